//! What deliveries must do.
//!
//! | Promise | Check |
//! |---|---|
//! | one live lease per message | nothing is granted while an earlier grant runs, by log time |
//! | nothing is passed over | whatever a receive has looked at was delivered by then: the group has no filter |
//! | a lease lasts what was asked for | a grant and a change end exactly that much after log time |
//! | acknowledged is done | nothing is granted after an acknowledgement was answered |
//! | only the last delivery counts | an acknowledgement of an older one is refused and changes nothing |
//! | an acknowledgement is kept | that of the last delivery is done, or was done before |
//! | attempts never go back | a grant has the attempt after the last one |
//! | the dead-letter queue or the group, never both | a letter ends its delivery: nothing is granted after it |

use ledgermq_broker::state::{
    AckMessages, ChangeInvisible, ChangeOutcome, DeadLetter, DeliveryEpoch, DeliveryOutcome, Granted,
    LeasePart,
};
use ledgermq_common::QueueOffset;
use ledgermq_common::clock::UnixMillis;

use super::{Model, Place, next_of};

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Delivery {
    attempt: u32,
    epoch: DeliveryEpoch,
    until: UnixMillis,
    pub(super) is_consumed: bool,
}

impl Model {
    pub(super) fn grant(&mut self, index: u64, grant: &Granted, invisible_ms: u64) -> Result<(), String> {
        let place = (grant.queue, grant.offset);
        if next_of(&self.next_offset, grant.queue) <= grant.offset {
            return Err(format!("entry {index} grants {place:?}, where nothing is stored"));
        }
        let (now, delivery) = (self.log_time, self.deliveries.entry(place).or_default());
        if delivery.is_consumed {
            return Err(format!("entry {index} grants {place:?}, which was acknowledged or given up"));
        }
        if delivery.until > now {
            return Err(format!(
                "entry {index} grants {place:?} at log time {now}, leased until {}",
                delivery.until
            ));
        }
        if grant.attempt != delivery.attempt + 1 {
            return Err(format!(
                "entry {index} grants {place:?} as attempt {} after attempt {}",
                grant.attempt, delivery.attempt
            ));
        }
        if grant.until != now.saturating_add_ms(invisible_ms) {
            return Err(format!(
                "entry {index} grants {place:?} at {now} until {}, {invisible_ms} ms were asked for",
                grant.until
            ));
        }
        if delivery.attempt > 0 && grant.epoch <= delivery.epoch {
            return Err(format!("entry {index} grants {place:?} under the receipt handle of an older one"));
        }
        let Granted { attempt, epoch, until, .. } = *grant;
        *delivery = Delivery { attempt, epoch, until, is_consumed: false };
        Ok(())
    }

    /// What a receive has looked at counts as seen, so whatever is there must have been delivered.
    pub(super) fn nothing_is_passed_over(&self, index: u64, part: &LeasePart) -> Result<(), String> {
        let to = part.to.min(next_of(&self.next_offset, part.queue));
        for offset in part.from.get()..to.get() {
            let place = (part.queue, QueueOffset(offset));
            if self.deliveries.get(&place).is_none_or(|delivery| delivery.attempt == 0) {
                return Err(format!("entry {index} passes over {place:?}, which was never delivered"));
            }
        }
        Ok(())
    }

    pub(super) fn acks(
        &mut self,
        index: u64,
        acks: &AckMessages,
        outcomes: &[DeliveryOutcome],
    ) -> Result<(), String> {
        if acks.entries.len() != outcomes.len() {
            return Err(format!("entry {index}: {} acks, {} answers", acks.entries.len(), outcomes.len()));
        }
        for (ack, outcome) in acks.entries.iter().zip(outcomes) {
            self.end_delivery(index, (ack.queue, ack.offset), ack.epoch, *outcome)?;
        }
        Ok(())
    }

    pub(super) fn give_up(
        &mut self,
        index: u64,
        command: &DeadLetter,
        outcomes: &[DeliveryOutcome],
    ) -> Result<(), String> {
        if command.letters.len() != outcomes.len() {
            return Err(format!(
                "entry {index}: {} letters, {} answers",
                command.letters.len(),
                outcomes.len()
            ));
        }
        for (letter, outcome) in command.letters.iter().zip(outcomes) {
            self.end_delivery(index, (letter.queue, letter.offset), letter.epoch, *outcome)?;
        }
        Ok(())
    }

    pub(super) fn change(
        &mut self,
        index: u64,
        change: &ChangeInvisible,
        outcome: ChangeOutcome,
    ) -> Result<(), String> {
        let place = (change.queue, change.offset);
        let (now, delivery) = (self.log_time, self.deliveries.entry(place).or_default());
        let is_last = !delivery.is_consumed && delivery.attempt > 0 && delivery.epoch == change.epoch;
        match outcome {
            ChangeOutcome::Changed { until, attempt, .. }
                if is_last
                    && until == now.saturating_add_ms(change.invisible_ms)
                    && attempt == delivery.attempt =>
            {
                delivery.until = until;
                Ok(())
            }
            ChangeOutcome::Not(_) if !is_last => Ok(()),
            outcome => Err(format!("entry {index} at {now}: {change:?} of {delivery:?}: {outcome:?}")),
        }
    }

    fn end_delivery(
        &mut self,
        index: u64,
        place: Place,
        epoch: DeliveryEpoch,
        outcome: DeliveryOutcome,
    ) -> Result<(), String> {
        let delivery = self.deliveries.entry(place).or_default();
        let is_last = delivery.attempt > 0 && delivery.epoch == epoch;
        let is_right = match outcome {
            DeliveryOutcome::Done => is_last && !delivery.is_consumed,
            DeliveryOutcome::AlreadyConsumed => delivery.is_consumed,
            _ => !is_last && !delivery.is_consumed,
        };
        if !is_right {
            return Err(format!("entry {index} ends {epoch:?} of {place:?} as {outcome:?}: {delivery:?}"));
        }
        delivery.is_consumed |= outcome == DeliveryOutcome::Done;
        Ok(())
    }
}

//! Receiving for a consumer group that consumes in order: the same steps with a plan that respects
//! message groups.

use super::*;
use crate::state::{OrderKey, OrderedPlan};

impl Poll<'_> {
    /// As `look`, for a group that consumes in order.
    pub(super) async fn look_in_order(&self, skipped_min: usize, others: &Others) -> Result<Look, Ended> {
        let Some(mut plan) = self.plan_in_order(others) else { return Ok(Look::Nothing) };
        let mut records = Records::default();
        let Judged { unwanted, is_left } = self.judge(&mut plan, &mut records, others);
        let is_sql = matches!(self.wanted, Wanted::Sql(_));
        if plan.is_empty() || (is_sql && plan.messages().is_empty() && unwanted < skipped_min) {
            plan.settle();
            self.wake_others(is_left);
            return Ok(Look::Nothing);
        }
        let planned: Vec<_> = plan.messages().iter().map(|m| ((m.queue, m.offset), m.entry)).collect();
        let more = planned.len() >= self.request.batch_size as usize || fills_answer(&planned);
        let command = plan.command(
            self.client,
            self.request.invisible_ms,
            self.request.auto_renew,
            self.request.attempt_id.as_deref().unwrap_or_default(),
        );
        let granted = self.propose_lease(command, planned.len(), move || plan.settle()).await;
        self.wake_others(is_left);
        Ok(self.deliver(granted?, &planned, records, more))
    }

    fn plan_in_order(&self, others: &Others) -> Option<OrderedPlan> {
        let topic = self.topic.id;
        let mut order_of = |queue, offset, entry| {
            self.hosted.order_keys.get(topic, queue, offset, || {
                let stored = read_record(self.hosted, entry)?;
                Some(OrderKey::of(stored.properties.message_group.as_deref()))
            })
        };
        let messages_max = match self.wanted {
            Wanted::Tags(_) => self.request.batch_size.clamp(1, RECEIVE_BATCH_MESSAGES_MAX),
            Wanted::Sql(_) => SQL_EXAMINED_MAX,
        };
        let request = state::ReceiveRequest {
            consumer_group: self.consumer_group.id,
            topic,
            queues: QueueChoice::All,
            messages_max,
            now: self.hosted.now(),
            filter: self.wanted.tags(),
            others: others.plan.clone(),
        };
        self.hosted.state.plan_ordered_receive(&request, &mut order_of)
    }

    /// Leaves in the plan what fits into one answer and is wanted. What comes behind a message for others
    /// in its message group waits for it.
    fn judge(&self, plan: &mut OrderedPlan, records: &mut Records, others: &Others) -> Judged {
        let planned: Vec<_> = plan.messages().iter().map(|m| (m.queue, m.offset, m.entry, m.order)).collect();
        let mut blocked = BTreeSet::new();
        let (mut left, mut is_left) = (Vec::new(), false);
        let batch = self.request.batch_size.clamp(1, RECEIVE_BATCH_MESSAGES_MAX) as usize;
        let (mut found, mut bytes) = (0, 0);
        let mut unwanted = Vec::new();
        for (position, (queue, offset, entry, order)) in planned.into_iter().enumerate() {
            if blocked.contains(&(queue, order)) {
                left.push((queue, offset));
                continue;
            }
            let record_bytes = u64::from(entry.record_bytes);
            if found >= batch || (found > 0 && bytes + record_bytes > RECEIVE_BYTES_MAX) {
                plan.truncate(position);
                break;
            }
            if !self.wanted.is_everything() {
                // One that cannot be read now is leased all the same, and tried again by its expiry.
                match read_record(self.hosted, entry) {
                    Some(stored) if !self.wanted.wants(&stored) && others.want(&stored) => {
                        is_left |= others.plan.left.add(queue.get(), offset.get());
                        blocked.insert((queue, order));
                        left.push((queue, offset));
                        continue;
                    }
                    Some(stored) if !self.wanted.wants(&stored) => {
                        unwanted.push((queue, offset));
                        continue;
                    }
                    Some(stored) => records.0.push(((queue, offset), stored)),
                    None => {}
                }
            }
            found += 1;
            bytes += record_bytes;
        }
        plan.reject(&unwanted);
        plan.leave(&left);
        Judged { unwanted: unwanted.len(), is_left }
    }
}

struct Judged {
    unwanted: usize,
    /// Something was left for others that was not known to be for them.
    is_left: bool,
}

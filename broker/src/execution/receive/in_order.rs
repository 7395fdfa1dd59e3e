//! Receiving for a consumer group that consumes in order: the same steps with a plan that respects
//! message groups.

use super::*;
use crate::state::{OrderKey, OrderedPlan};

impl Poll<'_> {
    /// As `look`, for a group that consumes in order.
    pub(super) async fn look_in_order(&self, skipped_min: usize) -> Result<Look, Ended> {
        let Some(mut plan) = self.plan_in_order() else { return Ok(Look::Nothing) };
        let mut records = Records::default();
        let unwanted = self.judge(&mut plan, &mut records);
        let is_sql = matches!(self.wanted, Wanted::Sql(_));
        if is_sql && plan.messages().is_empty() && unwanted < skipped_min {
            plan.settle();
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
        let granted = self.propose_lease(command, planned.len(), move || plan.settle()).await?;
        Ok(self.deliver(granted, &planned, records, more))
    }

    fn plan_in_order(&self) -> Option<OrderedPlan> {
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
        };
        self.hosted.state.plan_ordered_receive(&request, &mut order_of)
    }

    /// Leaves in the plan what fits into one answer and is wanted; returns how many are not.
    fn judge(&self, plan: &mut OrderedPlan, records: &mut Records) -> usize {
        let planned: Vec<_> = plan.messages().iter().map(|m| (m.queue, m.offset, m.entry)).collect();
        let batch = self.request.batch_size.clamp(1, RECEIVE_BATCH_MESSAGES_MAX) as usize;
        let (mut found, mut bytes) = (0, 0);
        let mut unwanted = Vec::new();
        for (position, (queue, offset, entry)) in planned.into_iter().enumerate() {
            let record_bytes = u64::from(entry.record_bytes);
            if found >= batch || (found > 0 && bytes + record_bytes > RECEIVE_BYTES_MAX) {
                plan.truncate(position);
                break;
            }
            if !self.wanted.is_everything() {
                // One that cannot be read now is leased all the same, and tried again by its expiry.
                match read_record(self.hosted, entry) {
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
        unwanted.len()
    }
}

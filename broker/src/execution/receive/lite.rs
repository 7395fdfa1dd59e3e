//! Receiving from the lite topics a client reads: the same steps with a plan of its own. There is no
//! filter, and every lite topic is in order.

use super::*;
use crate::state::LiteReceive;

impl Poll<'_> {
    /// As `look`, for lite topics.
    pub(super) async fn look_lite(&self) -> Result<Look, Ended> {
        let request = LiteReceive {
            consumer_group: self.consumer_group.id,
            topic: self.topic.id,
            client: self.client,
            messages_max: self.request.batch_size.clamp(1, RECEIVE_BATCH_MESSAGES_MAX),
            bytes_max: RECEIVE_BYTES_MAX,
            now: self.hosted.now(),
        };
        let Some(plan) = self.hosted.state.plan_lite_receive(&request) else { return Ok(Look::Nothing) };
        let planned: Vec<_> =
            plan.messages().map(|(queue, offset, entry)| ((queue, offset), entry)).collect();
        let command = plan.command(
            self.request.invisible_ms,
            self.request.auto_renew,
            self.request.attempt_id.as_deref().unwrap_or_default(),
        );
        let granted = self.propose_lease(command, planned.len(), || {}).await?;
        Ok(self.deliver(granted, &planned, Records::default(), false))
    }
}

/// What a consumer group bound to lite topics may receive from, and who may receive from lite topics.
pub(super) fn check_binding(topic: &TopicView, bind_topic: &str) -> Result<(), Refused> {
    let is_lite = topic.settings.message_type == state::MessageType::Lite;
    let is_letters = topic.name.starts_with(DEAD_LETTER_TOPIC_PREFIX);
    if bind_topic.is_empty() || bind_topic == topic.name || is_letters && !is_lite {
        return Ok(());
    }
    Err(Refused::new(
        Code::BadRequest,
        format!("the consumer group is bound to the lite topics of {bind_topic}, not to {}", topic.name),
    ))
}

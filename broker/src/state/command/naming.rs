//! Commands that create, change and delete topics and consumer groups.
//!
//! | Kind | Body |
//! |---|---|
//! | `CreateTopic`, `UpdateTopic` | name, topic settings |
//! | `DeleteTopic` | name |
//! | `CreateConsumerGroup`, `UpdateConsumerGroup` | name, consumer group settings |
//! | `DeleteConsumerGroup` | name |
//!
//! Topic settings: message type u8, permission u8, queues u32.
//! Consumer group settings: fifo u8, attempts u32, then the backoff: u8 1 (exponential) with initial,
//! maximum (u64 ms) and the multiplier in thousandths (u32), or u8 2 (customised) with a list of u64 ms.

use bytes::{BufMut, BytesMut};

use super::wire::{FieldReader, MalformedField, put_list, put_text};
use crate::state::names::{MessageType, Permission};

/// RocketMQ's 16 retries and the first delivery.
pub const DELIVERY_ATTEMPTS_MAX_DEFAULT: u32 = 17;
/// An exponent above this adds nothing: RocketMQ caps it likewise.
const BACKOFF_EXPONENT_MAX: u32 = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicSettings {
    pub message_type: MessageType,
    pub permission: Permission,
    pub queues: u32,
}

impl TopicSettings {
    pub fn normal(queues: u32) -> Self {
        Self { message_type: MessageType::Normal, permission: Permission::ReadWrite, queues }
    }

    pub(crate) fn put(&self, out: &mut BytesMut) {
        out.put_u8(self.message_type.number());
        out.put_u8(self.permission.number());
        out.put_u32_le(self.queues);
    }

    pub(crate) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        let message_type = MessageType::from_number(reader.u8("message type")?)
            .ok_or_else(|| reader.malformed("message type"))?;
        let permission = Permission::from_number(reader.u8("permission")?)
            .ok_or_else(|| reader.malformed("permission"))?;
        Ok(Self { message_type, permission, queues: reader.u32("queues")? })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backoff {
    Exponential { initial_ms: u64, max_ms: u64, multiplier_thousandths: u32 },
    Customised { steps_ms: Vec<u64> },
}

impl Backoff {
    /// How long after failed delivery `attempt` (from 1) the next one is due.
    pub fn delay_ms(&self, attempt: u32) -> u64 {
        let step = attempt.saturating_sub(1);
        match self {
            Self::Exponential { initial_ms, max_ms, multiplier_thousandths } => {
                let mut delay_ms = u128::from(*initial_ms);
                for _ in 0..step.min(BACKOFF_EXPONENT_MAX) {
                    if delay_ms >= u128::from(*max_ms) {
                        break;
                    }
                    delay_ms = delay_ms * u128::from(*multiplier_thousandths) / 1000;
                }
                u64::try_from(delay_ms).map_or(*max_ms, |delay_ms| delay_ms.min(*max_ms))
            }
            Self::Customised { steps_ms } => {
                let last = steps_ms.last().copied().unwrap_or(0);
                steps_ms.get(step as usize).copied().unwrap_or(last)
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerGroupSettings {
    pub fifo: bool,
    pub attempts_max: u32,
    pub backoff: Backoff,
}

impl Default for ConsumerGroupSettings {
    /// What RocketMQ gives a group nobody configured: the 18 steps from one second to two hours.
    fn default() -> Self {
        const STEPS_S: [u64; 18] =
            [1, 5, 10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200];
        Self {
            fifo: false,
            attempts_max: DELIVERY_ATTEMPTS_MAX_DEFAULT,
            backoff: Backoff::Customised { steps_ms: STEPS_S.iter().map(|step_s| step_s * 1000).collect() },
        }
    }
}

impl ConsumerGroupSettings {
    pub(crate) fn put(&self, out: &mut BytesMut) {
        out.put_u8(u8::from(self.fifo));
        out.put_u32_le(self.attempts_max);
        match &self.backoff {
            Backoff::Exponential { initial_ms, max_ms, multiplier_thousandths } => {
                out.put_u8(1);
                out.put_u64_le(*initial_ms);
                out.put_u64_le(*max_ms);
                out.put_u32_le(*multiplier_thousandths);
            }
            Backoff::Customised { steps_ms } => {
                out.put_u8(2);
                put_list(out, steps_ms, |out, step_ms| out.put_u64_le(*step_ms));
            }
        }
    }

    pub(crate) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
        let fifo = reader.bool("fifo")?;
        let attempts_max = reader.u32("attempts")?;
        let backoff = match reader.u8("backoff")? {
            1 => Backoff::Exponential {
                initial_ms: reader.u64("initial backoff")?,
                max_ms: reader.u64("maximum backoff")?,
                multiplier_thousandths: reader.u32("backoff multiplier")?,
            },
            2 => Backoff::Customised {
                steps_ms: reader.list(8, "backoff steps", |reader| reader.u64("backoff step"))?,
            },
            _ => return Err(reader.malformed("backoff")),
        };
        Ok(Self { fifo, attempts_max, backoff })
    }
}

/// Creates a topic, or finds it: a topic of that name stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateTopic {
    pub name: String,
    pub settings: TopicSettings,
}

/// Changes a topic. Its queues may become more, never fewer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateTopic {
    pub name: String,
    pub settings: TopicSettings,
}

/// Deletes a topic with its queues and every group's progress in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteTopic {
    pub name: String,
}

/// Creates a consumer group, or finds it: a group of that name stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateConsumerGroup {
    pub name: String,
    pub settings: ConsumerGroupSettings,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateConsumerGroup {
    pub name: String,
    pub settings: ConsumerGroupSettings,
}

/// Deletes a consumer group with its progress and leases in all topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteConsumerGroup {
    pub name: String,
}

macro_rules! name_and_settings {
    ($($command:ident: $settings:ident),*) => {$(
        impl $command {
            pub(super) fn put(&self, out: &mut BytesMut) {
                put_text(out, &self.name);
                self.settings.put(out);
            }

            pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
                Ok(Self { name: reader.text("name")?, settings: $settings::read(reader)? })
            }
        }
    )*};
}

macro_rules! name_only {
    ($($command:ident),*) => {$(
        impl $command {
            pub(super) fn put(&self, out: &mut BytesMut) {
                put_text(out, &self.name);
            }

            pub(super) fn read(reader: &mut FieldReader<'_>) -> Result<Self, MalformedField> {
                Ok(Self { name: reader.text("name")? })
            }
        }
    )*};
}

name_and_settings!(
    CreateTopic: TopicSettings,
    UpdateTopic: TopicSettings,
    CreateConsumerGroup: ConsumerGroupSettings,
    UpdateConsumerGroup: ConsumerGroupSettings
);
name_only!(DeleteTopic, DeleteConsumerGroup);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_backoff_grows_to_its_maximum_and_stays_there() {
        let backoff = Backoff::Exponential { initial_ms: 1000, max_ms: 10_000, multiplier_thousandths: 2000 };
        let delays: Vec<u64> = (1..=6).map(|attempt| backoff.delay_ms(attempt)).collect();
        assert_eq!(delays, [1000, 2000, 4000, 8000, 10_000, 10_000]);
        assert_eq!(backoff.delay_ms(u32::MAX), 10_000);
    }

    #[test]
    fn the_last_customised_step_repeats() {
        let backoff = ConsumerGroupSettings::default().backoff;
        assert_eq!(backoff.delay_ms(1), 1000);
        assert_eq!(backoff.delay_ms(18), 7_200_000);
        assert_eq!(backoff.delay_ms(99), 7_200_000);
        assert_eq!(Backoff::Customised { steps_ms: Vec::new() }.delay_ms(3), 0);
    }
}

use bytes::Bytes;
use ledgermq_common::clock::UnixMillis;
use ledgermq_common::{PhysicalOffset, QueueId, QueueOffset, ResetMark};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::state::names::{
    BodyEncoding, ClientHash, ConsumerGroupId, DeliveryEpoch, Generation, MessageType, Permission, ResetId,
    TopicId,
};

fn new_messages() -> impl Strategy<Value = Vec<NewMessage>> {
    let message = (
        any::<u32>(),
        "[ -~]{1,40}",
        proptest::option::of("[a-zé]{0,9}"),
        vec(any::<u8>(), 0..200),
        proptest::collection::btree_map("[a-z]{1,5}", "[a-z]{0,5}", 0..4),
    );
    vec(message, 1..5).prop_map(|messages| {
        messages
            .into_iter()
            .map(|(queue, id, tag, body, user)| NewMessage {
                queue: QueueId(queue),
                id,
                message_type: MessageType::Normal,
                body_encoding: BodyEncoding::Identity,
                born_at: UnixMillis(u64::from(queue) * 3),
                properties: MessageProperties {
                    user,
                    tag,
                    keys: vec!["k 1".to_owned(), String::new()],
                    message_group: None,
                    trace_context: None,
                    born_host: "10.0.0.1:1".to_owned(),
                    deliver_at_ms: None,
                    priority: None,
                    lite_topic: None,
                },
                body: Bytes::from(body),
            })
            .collect()
    })
}

fn layout(queues: &[u32]) -> std::sync::Arc<ledgermq_common::QueueLayout> {
    let group = |number| ledgermq_common::GroupName::parse(&format!("g{number}")).expect("a name");
    let groups = queues.iter().enumerate().map(|(number, queues)| (group(number), *queues));
    std::sync::Arc::new(ledgermq_common::QueueLayout::new(groups).expect("a layout"))
}

fn offsets() -> impl Strategy<Value = Vec<QueueOffset>> {
    vec(any::<u64>().prop_map(QueueOffset), 0..5)
}

fn commands() -> impl Strategy<Value = Command> {
    let topic_settings = (1u32..100).prop_map(|queues| TopicSettings {
        message_type: MessageType::Fifo,
        permission: Permission::Read,
        queues,
    });
    let group_settings =
        (any::<bool>(), any::<u32>(), vec(any::<u64>(), 0..4)).prop_map(|(fifo, attempts_max, steps_ms)| {
            ConsumerGroupSettings {
                fifo,
                attempts_max,
                backoff: if fifo {
                    Backoff::Exponential { initial_ms: 1, max_ms: u64::MAX, multiplier_thousandths: 1500 }
                } else {
                    Backoff::Customised { steps_ms }
                },
            }
        });
    let part = (any::<u32>(), any::<u64>(), any::<u64>(), offsets(), offsets(), offsets()).prop_map(
        |(queue, from, to, take, redeliver, finish)| LeasePart {
            queue: QueueId(queue),
            from: QueueOffset(from),
            to: QueueOffset(to),
            take,
            redeliver,
            finish,
        },
    );
    prop_oneof![
        ("[a-z%]{1,20}", topic_settings.clone())
            .prop_map(|(name, settings)| Command::CreateTopic(CreateTopic { name, settings })),
        ("[a-z%]{1,20}", topic_settings)
            .prop_map(|(name, settings)| Command::UpdateTopic(UpdateTopic { name, settings })),
        "[a-z]{1,20}".prop_map(|name| Command::DeleteTopic(DeleteTopic { name })),
        ("[a-z]{1,20}", group_settings.clone()).prop_map(|(name, settings)| {
            Command::CreateConsumerGroup(CreateConsumerGroup { name, settings })
        }),
        ("[a-z]{1,20}", group_settings).prop_map(|(name, settings)| {
            Command::UpdateConsumerGroup(UpdateConsumerGroup { name, settings })
        }),
        "[a-z]{1,20}".prop_map(|name| Command::DeleteConsumerGroup(DeleteConsumerGroup { name })),
        (any::<u32>(), any::<u64>(), any::<bool>(), "[a-z0-9-]{0,36}", vec(part, 0..4)).prop_map(
            |(id, number, auto_renew, attempt_id, parts)| {
                Command::LeaseMessages(LeaseMessages {
                    consumer_group: ConsumerGroupId(id),
                    topic: TopicId(!id),
                    client: ClientHash(number),
                    invisible_ms: !number,
                    auto_renew,
                    attempt_id,
                    parts,
                })
            }
        ),
        vec((any::<u32>(), any::<u64>(), any::<u64>()), 0..5).prop_map(|entries| {
            Command::AckMessages(AckMessages {
                consumer_group: ConsumerGroupId(1),
                topic: TopicId(2),
                entries: entries
                    .into_iter()
                    .map(|(queue, offset, epoch)| AckEntry {
                        queue: QueueId(queue),
                        offset: QueueOffset(offset),
                        epoch: DeliveryEpoch(epoch),
                    })
                    .collect(),
            })
        }),
        (any::<u32>(), any::<u64>()).prop_map(|(queue, number)| {
            Command::ChangeInvisible(ChangeInvisible {
                consumer_group: ConsumerGroupId(queue),
                topic: TopicId(queue),
                queue: QueueId(queue),
                offset: QueueOffset(number),
                epoch: DeliveryEpoch(number),
                invisible_ms: number,
            })
        }),
        vec((any::<u32>(), any::<u64>(), any::<bool>()), 0..5).prop_map(|extensions| {
            Command::ExtendLeases(ExtendLeases {
                extensions: extensions
                    .into_iter()
                    .map(|(id, number, keep_renewing)| LeaseExtension {
                        consumer_group: ConsumerGroupId(id),
                        topic: TopicId(id),
                        queue: QueueId(id),
                        offset: QueueOffset(number),
                        epoch: DeliveryEpoch(number),
                        invisible_ms: number,
                        keep_renewing,
                    })
                    .collect(),
            })
        }),
        vec((any::<u32>(), any::<u64>(), "[a-z%]{0,12}"), 0..4).prop_map(|letters| {
            Command::DeadLetter(DeadLetter {
                consumer_group: ConsumerGroupId(3),
                topic: TopicId(4),
                letters: letters
                    .into_iter()
                    .map(|(number, wide, topic_name)| Letter {
                        queue: QueueId(number),
                        offset: QueueOffset(wide),
                        epoch: DeliveryEpoch(!wide),
                        record: DeadLetterRecord {
                            reason: if wide % 2 == 0 {
                                DeadLetterReason::AttemptsExhausted
                            } else {
                                DeadLetterReason::Forwarded
                            },
                            topic: TopicId(number),
                            queue: QueueId(number),
                            offset: QueueOffset(wide),
                            tag_code: number,
                            attempts: number,
                            physical: PhysicalOffset(wide),
                            record_bytes: number,
                            at: UnixMillis(wide),
                            topic_name,
                        },
                    })
                    .collect(),
            })
        }),
        vec((any::<u32>(), any::<u64>()), 0..4).prop_map(|letters| {
            Command::RedriveDeadLetters(RedriveDeadLetters {
                consumer_group: ConsumerGroupId(3),
                letters: letters
                    .into_iter()
                    .map(|(number, wide)| RedrivenLetter {
                        letter: QueueOffset(wide),
                        topic: TopicId(number),
                        queue: QueueId(number),
                        offset: QueueOffset(!wide),
                    })
                    .collect(),
            })
        }),
        (any::<u32>(), 1u32..9, 1u32..9).prop_map(|(number, queues, more)| {
            Command::PrepareGeneration(PrepareGeneration {
                topic: TopicId(number),
                generation: Generation(!number),
                queues,
                former: layout(&[queues]),
                layout: layout(&[queues, more]),
            })
        }),
        (any::<u32>(), any::<u32>()).prop_map(|(number, resets)| match number % 3 {
            0 => Command::CloseGeneration(CloseGeneration {
                topic: TopicId(number),
                generation: Generation(resets),
            }),
            1 => Command::OpenGeneration(OpenGeneration {
                topic: TopicId(number),
                generation: Generation(resets),
            }),
            _ => Command::DrainGeneration(DrainGeneration {
                consumer_group: ConsumerGroupId(!number),
                topic: TopicId(number),
                generation: Generation(!resets),
                resets,
            }),
        }),
        (any::<u32>(), any::<u64>()).prop_map(|(max, through)| {
            Command::FireTimers(FireTimers { through: UnixMillis(through), max })
        }),
        (any::<u32>(), any::<u64>(), any::<Option<u64>>()).prop_map(|(number, offset, known)| {
            Command::CommitOffset(CommitOffset {
                consumer_group: ConsumerGroupId(number),
                topic: TopicId(!number),
                queue: QueueId(number),
                offset: QueueOffset(offset),
                known: known.map(ResetMark),
            })
        }),
        (vec((any::<u32>(), any::<u64>()), 0..4), any::<u64>()).prop_map(|(queues, id)| {
            Command::ResetProgress(ResetProgress {
                id: ResetId(id),
                consumer_group: ConsumerGroupId(1),
                topic: TopicId(2),
                queues: queues.into_iter().map(|(q, o)| (QueueId(q), QueueOffset(o))).collect(),
            })
        }),
        ("[a-z]{0,8}", 0u8..4, vec(("[a-z]{1,8}", 0u8..5, any::<u64>()), 0..4)).prop_map(
            |(client_id, action, named)| {
                let start = |kind, value| match kind {
                    0 => LiteStart::Last,
                    1 => LiteStart::Min,
                    2 => LiteStart::Max,
                    3 => LiteStart::Offset(value),
                    _ => LiteStart::Tail(value),
                };
                Command::SyncLite(SyncLite {
                    consumer_group: ConsumerGroupId(1),
                    topic: TopicId(2),
                    client_id,
                    version: 3,
                    action: LiteAction::from_number(action).expect("an action"),
                    lite_topics: named.into_iter().map(|(name, k, v)| (name, start(k, v))).collect(),
                })
            }
        ),
        (any::<u32>(), any::<u64>(), "[a-z]{0,8}", any::<bool>()).prop_map(|(number, ms, name, flag)| {
            match number % 4 {
                0 => Command::ExpireLite(ExpireLite { topic: TopicId(number), queues: vec![number; 3] }),
                1 => Command::SetLiteTopic(SetLiteTopic { topic: TopicId(number), expire_after_ms: ms }),
                2 => Command::SuspendDelivery(ChangeInvisible {
                    consumer_group: ConsumerGroupId(number),
                    topic: TopicId(number),
                    queue: QueueId(number),
                    offset: QueueOffset(ms),
                    epoch: DeliveryEpoch(ms),
                    invisible_ms: ms,
                }),
                _ => Command::SetGroupAttributes(SetGroupAttributes {
                    consumer_group: ConsumerGroupId(number),
                    attributes: GroupAttributes {
                        priority_factor: 7,
                        bind_topic: name,
                        exclusive: flag,
                        client_quota: number,
                        reset_when_taken_over: !flag,
                        reset_on_unsubscribe: flag,
                    },
                }),
            }
        }),
        (any::<u32>(), vec("[a-z |=*]{0,12}", 0..4)).prop_map(|(number, filters)| {
            Command::SetFilters(SetFilters {
                consumer_group: ConsumerGroupId(number),
                topic: TopicId(!number),
                filters,
            })
        }),
        (any::<u64>(), any::<u64>()).prop_map(|(deliver_at, physical)| {
            Command::RecallTimer(RecallTimer {
                deliver_at: UnixMillis(deliver_at),
                physical: PhysicalOffset(physical),
            })
        }),
        (any::<u32>(), any::<u64>()).prop_map(|(id, client)| {
            Command::ReleaseClient(ReleaseClient {
                consumer_group: ConsumerGroupId(id),
                client: ClientHash(client),
            })
        }),
    ]
}

proptest! {
    #[test]
    fn a_batch_comes_back_with_every_message_in_its_topic(
        messages in new_messages(), stamp: u64, of in vec(0usize..3, 4), generation: u32,
    ) {
        let topics: Vec<BatchTopic> = [7, 3, 9]
            .map(|topic| BatchTopic { topic: TopicId(topic), generation: Generation(generation) })
            .to_vec();
        let messages: Vec<(TopicId, NewMessage)> =
            of.iter().map(|of| topics[*of].topic).zip(messages).collect();
        let bytes = encode_batch(UnixMillis(stamp), &topics, &messages);
        prop_assert_eq!(bytes.len(), encoded_batch_bytes(topics.len(), &messages));
        let (stamped_at, command) = Command::decode(&bytes).expect("our own encoding");
        prop_assert_eq!(command.encode(stamped_at), bytes.clone());
        let Command::StoreBatch(batch) = command else { panic!("kind") };
        prop_assert_eq!(batch.topics, topics);
        for ((topic, stored), (of, sent)) in batch.messages.iter().zip(&messages) {
            let at = stored.record_at as usize;
            let read = StoredMessage::decode(&bytes.slice(at..at + stored.record.len())).expect("our own record");
            prop_assert_eq!((*topic, read.topic), (*of, *of));
            prop_assert_eq!(&read.id, &sent.id);
            prop_assert_eq!(&read.body, &sent.body);
        }
        for end in 0..bytes.len() {
            prop_assert!(Command::decode(&bytes.slice(..end)).is_err());
        }
    }

    #[test]
    fn messages_come_back_as_they_were_sent(messages in new_messages(), stamp: u64, topic: u32) {
        let bytes = encode_append(UnixMillis(stamp), TopicId(topic), &messages);
        prop_assert_eq!(bytes.len(), encoded_append_bytes(&messages));
        let (stamped_at, command) = Command::decode(&bytes).expect("our own encoding");
        prop_assert_eq!(stamped_at, UnixMillis(stamp));
        prop_assert_eq!(command.encode(stamped_at), bytes.clone());
        let Command::AppendMessages(append) = command else { panic!("kind") };
        prop_assert_eq!(append.messages.len(), messages.len());
        for (stored, sent) in append.messages.iter().zip(&messages) {
            let at = stored.record_at as usize;
            let record = bytes.slice(at..at + stored.record.len());
            let read = StoredMessage::decode(&record).expect("our own record");
            prop_assert_eq!(read.topic, TopicId(topic));
            prop_assert_eq!(read.queue, sent.queue);
            prop_assert_eq!(&read.id, &sent.id);
            prop_assert_eq!(read.born_at, sent.born_at);
            prop_assert_eq!(read.tag_code, sent.tag_code());
            prop_assert_eq!(&read.properties, &sent.properties);
            prop_assert_eq!(&read.body, &sent.body);
            prop_assert_eq!(read.body.as_ptr_range().end, record.as_ptr_range().end, "body is a slice");
        }
    }

    #[test]
    fn delayed_messages_come_back_as_they_were_sent(messages in new_messages(), stamp: u64, topic: u32) {
        let delayed: Vec<(UnixMillis, NewMessage)> =
            messages.into_iter().map(|message| (UnixMillis(stamp ^ 5), message)).collect();
        let bytes = encode_delayed(UnixMillis(stamp), TopicId(topic), &delayed);
        prop_assert_eq!(bytes.len(), encoded_delayed_bytes(&delayed));
        let (stamped_at, command) = Command::decode(&bytes).expect("our own encoding");
        prop_assert_eq!(command.encode(stamped_at), bytes.clone());
        let Command::AppendDelayed(append) = command else { panic!("kind") };
        for ((deliver_at, stored), (_, sent)) in append.messages.iter().zip(&delayed) {
            let at = stored.record_at as usize;
            let read = StoredMessage::decode(&bytes.slice(at..at + stored.record.len())).expect("our own record");
            prop_assert_eq!((*deliver_at, read.id), (UnixMillis(stamp ^ 5), sent.id.clone()));
        }
        for end in 0..bytes.len() {
            prop_assert!(Command::decode(&bytes.slice(..end)).is_err());
        }
    }

    #[test]
    fn commands_come_back_as_they_were_encoded(command in commands(), stamp: u64) {
        let bytes = command.encode(UnixMillis(stamp));
        prop_assert_eq!(Command::decode(&bytes), Ok((UnixMillis(stamp), command)));
        prop_assert_eq!(Command::peek_stamp(&bytes), Some(UnixMillis(stamp)));
    }

    #[test]
    fn every_cut_of_a_command_is_refused(command in commands()) {
        let bytes = command.encode(UnixMillis(1));
        for end in 0..bytes.len() {
            prop_assert!(Command::decode(&bytes.slice(..end)).is_err());
        }
    }

    #[test]
    fn garbage_is_refused_or_decoded_but_never_panics(
        kind in 0u8..60,
        body in vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 0..120),
    ) {
        let bytes = Bytes::from([&[1, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &body].concat());
        let _ = Command::decode(&bytes);
        let _ = StoredMessage::decode(&Bytes::from(body.clone()));
        let _ = crate::state::Answer::decode(&Bytes::from(body));
    }

    #[test]
    fn a_changed_byte_of_a_message_command_never_panics(
        messages in new_messages(),
        at: proptest::sample::Index,
        value: u8,
    ) {
        let mut bytes = encode_append(UnixMillis(1), TopicId(1), &messages).to_vec();
        let at = at.index(bytes.len());
        bytes[at] = value;
        let bytes = Bytes::from(bytes);
        if let Ok((_, Command::AppendMessages(append))) = Command::decode(&bytes) {
            for message in append.messages {
                let _ = StoredMessage::decode(&message.record);
            }
        }
    }
}

#[test]
fn a_count_beyond_the_bytes_is_refused_before_anything_is_allocated() {
    let mut bytes = vec![1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    bytes.extend_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(Command::decode(&Bytes::from(bytes)), Err(CommandError::Malformed(_))));
}

#[test]
fn a_command_of_a_newer_version_is_told_from_a_malformed_one() {
    let newer = Command::decode(&Bytes::from_static(&[2, 1])).expect_err("version 2");
    assert!(newer.is_from_a_newer_version());
    let unknown = Command::decode(&Bytes::from_static(&[1, 200])).expect_err("kind 200");
    assert!(unknown.is_from_a_newer_version());
    let cut = Command::decode(&Bytes::from_static(&[1, 2, 0])).expect_err("cut");
    assert!(!cut.is_from_a_newer_version());
}

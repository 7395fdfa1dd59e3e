//! Does the steps of a program, and proposes what a leader would.

use std::collections::BTreeSet;

use super::dead_letters::letter;
use super::lite::{lite_message, lite_parent};
use super::programs::Step;
use super::*;

/// Does the steps on a replica, as its leader; returns the answers as they were encoded.
pub(super) struct Leader {
    pub(super) replica: Replica,
    granted: Vec<(ConsumerGroupId, TopicId, Granted)>,
    halves: Vec<(TopicId, PhysicalOffset, String)>,
    timers: Vec<RecallTimer>,
    pub(super) answers: Vec<Answer>,
}

impl Leader {
    pub(super) fn new() -> Self {
        let mut leader = Self {
            replica: Replica::in_memory(),
            granted: Vec::new(),
            halves: Vec::new(),
            timers: Vec::new(),
            answers: Vec::new(),
        };
        leader.replica.topic("topic-0", 3);
        lite_parent(&mut leader.replica, "rooms");
        leader.replica.group("group-0");
        leader
    }

    pub(super) fn run(&mut self, steps: &[Step]) {
        steps.iter().for_each(|step| self.step(step));
    }

    pub(super) fn step(&mut self, step: &Step) {
        match step {
            Step::Send { topic, messages } => {
                let messages: Vec<NewMessage> = messages
                    .iter()
                    .map(|(queue, id, tag)| {
                        tagged(*queue, &format!("{}", id % 200), Some(&format!("tag-{tag}")))
                    })
                    .collect();
                let command = encode_append(self.replica.now, TopicId(*topic), &messages);
                self.propose(command);
            }
            Step::Receive { group, topic, max, invisible_ms, tag, client } => {
                let (group, topic) = (ConsumerGroupId(*group), TopicId(*topic));
                let mut request = self.replica.request(group, topic, *max);
                if let Some(tag) = tag {
                    request.filter = TagFilter::tags([format!("tag-{tag}").as_str()]);
                }
                let Some(plan) = self.replica.state.plan_receive(&request) else { return };
                let client = ClientHash(u64::from(*client));
                let command = plan.command(client, *invisible_ms, *max % 2 == 0, "attempt");
                let command = command.encode(self.replica.now);
                if let Answer::Leased(granted) = self.propose(command) {
                    assert_eq!(granted.len(), plan.messages().len(), "an undisturbed plan is granted");
                    self.granted.extend(granted.into_iter().map(|lease| (group, topic, lease)));
                }
            }
            Step::WildLease { group, topic, queue, from, to, offsets } => {
                let offsets: Vec<QueueOffset> = offsets.iter().copied().map(QueueOffset).collect();
                let part = LeasePart {
                    queue: QueueId(*queue),
                    from: QueueOffset(*from),
                    to: QueueOffset(*to),
                    take: offsets.clone(),
                    redeliver: offsets.clone(),
                    finish: offsets,
                };
                self.propose_command(&Command::LeaseMessages(LeaseMessages {
                    consumer_group: ConsumerGroupId(*group),
                    topic: TopicId(*topic),
                    client: ClientHash(1),
                    invisible_ms: 5_000,
                    auto_renew: false,
                    attempt_id: String::new(),
                    parts: vec![part],
                }));
            }
            Step::OrderedLease { group, topic, queue, messages, pass_over } => {
                let (group, topic) = (ConsumerGroupId(*group), TopicId(*topic));
                let messages = messages
                    .iter()
                    .map(|&(offset, order, again)| OrderedMessage {
                        offset: QueueOffset(offset),
                        order: OrderKey(order),
                        again,
                    })
                    .collect();
                let pass_over = pass_over.iter().copied().map(QueueOffset).collect();
                let command = Command::LeaseInOrder(LeaseInOrder {
                    consumer_group: group,
                    topic,
                    client: ClientHash(2),
                    invisible_ms: 5_000,
                    auto_renew: true,
                    attempt_id: "attempt".to_owned(),
                    parts: vec![OrderedPart { queue: QueueId(*queue), messages, pass_over }],
                });
                if let Answer::Leased(granted) = self.propose(command.encode(self.replica.now)) {
                    self.granted.extend(granted.into_iter().map(|lease| (group, topic, lease)));
                }
            }
            Step::Ack(which) => {
                let Some((group, topic, _)) = self.pick(which[0]) else { return };
                let entries = which
                    .iter()
                    .filter_map(|which| self.pick(*which))
                    .map(|(_, _, lease)| AckEntry {
                        queue: lease.queue,
                        offset: lease.offset,
                        epoch: lease.epoch,
                    })
                    .collect();
                self.propose_command(&Command::AckMessages(AckMessages {
                    consumer_group: group,
                    topic,
                    entries,
                }));
            }
            Step::Change(which, invisible_ms) => {
                let Some(change) = self.change(*which, *invisible_ms) else { return };
                self.propose_command(&Command::ChangeInvisible(change));
            }
            Step::Extend(which, invisible_ms) => {
                let Some((consumer_group, topic, lease)) = self.pick(*which) else { return };
                self.propose_command(&Command::ExtendLeases(ExtendLeases {
                    extensions: vec![LeaseExtension {
                        consumer_group,
                        topic,
                        queue: lease.queue,
                        offset: lease.offset,
                        epoch: lease.epoch,
                        invisible_ms: *invisible_ms,
                        keep_renewing: invisible_ms % 2 == 0,
                    }],
                }));
            }
            Step::Delay { topic, messages } => {
                let messages: Vec<(UnixMillis, NewMessage)> = messages
                    .iter()
                    .map(|(queue, id, ahead_ms)| {
                        let deliver_at = self.replica.now.saturating_add_ms(*ahead_ms);
                        (deliver_at, message(*queue, &format!("{}", id % 300)))
                    })
                    .collect();
                let command = encode_delayed(self.replica.now, TopicId(*topic), &messages);
                if let Answer::Scheduled(scheduled) = self.propose(command) {
                    for (at, (deliver_at, _)) in scheduled.iter().zip(messages) {
                        if let (Placed::Pending { physical }, false) = (at.placed, at.repeated) {
                            self.timers.push(RecallTimer { deliver_at, physical });
                        }
                    }
                }
            }
            Step::Fire(beyond_ms, max) => {
                let through = self.replica.now.saturating_add_ms(*beyond_ms);
                self.propose_command(&Command::FireTimers(FireTimers { through, max: *max }));
            }
            Step::Recall(which) => {
                let Some(&timer) = self.timers.get(which % self.timers.len().max(1)) else { return };
                self.propose_command(&Command::RecallTimer(timer));
            }
            Step::CommitOffset(group, topic, queue, offset) => {
                self.propose_command(&Command::CommitOffset(CommitOffset {
                    consumer_group: ConsumerGroupId(*group),
                    topic: TopicId(*topic),
                    queue: QueueId(*queue),
                    offset: QueueOffset(*offset),
                    known: (offset % 3 == 1).then_some(ResetMark(0)),
                }));
            }
            Step::Reset(group, topic, queues) => {
                self.propose_command(&Command::ResetProgress(ResetProgress {
                    consumer_group: ConsumerGroupId(*group),
                    topic: TopicId(*topic),
                    queues: queues.iter().map(|(q, o)| (QueueId(*q), QueueOffset(*o))).collect(),
                    // Some are repeats of others.
                    id: ResetId(queues.iter().map(|(_, offset)| offset % 4).sum()),
                }));
            }
            Step::GiveUp(which, forwarded) => {
                let Some((consumer_group, topic, _)) = self.pick(which[0]) else { return };
                let reason = if *forwarded {
                    DeadLetterReason::Forwarded
                } else {
                    DeadLetterReason::AttemptsExhausted
                };
                let letters = which
                    .iter()
                    .filter_map(|which| self.pick(*which))
                    .map(|(_, _, lease)| self.letter(topic, lease, reason))
                    .collect();
                self.propose_command(&Command::DeadLetter(DeadLetter { consumer_group, topic, letters }));
            }
            Step::Redrive(letter, which) => {
                let Some((consumer_group, topic, lease)) = self.pick(*which) else { return };
                let letter = RedrivenLetter {
                    letter: QueueOffset(*letter),
                    topic,
                    queue: lease.queue,
                    offset: lease.offset,
                };
                let letters = vec![letter];
                self.propose_command(&Command::RedriveDeadLetters(RedriveDeadLetters {
                    consumer_group,
                    letters,
                }));
            }
            Step::SetAttempts(name, attempts_max) => {
                let settings =
                    ConsumerGroupSettings { attempts_max: *attempts_max, ..ConsumerGroupSettings::default() };
                let name = format!("group-{name}");
                self.propose_command(&Command::UpdateConsumerGroup(UpdateConsumerGroup { name, settings }));
            }
            Step::Release { group, client } => self.propose_command(&Command::ReleaseClient(ReleaseClient {
                consumer_group: ConsumerGroupId(*group),
                client: ClientHash(u64::from(*client)),
            })),
            Step::Half { topic, halves } => {
                let topic = TopicId(*topic);
                let halves: Vec<NewHalf> = halves
                    .iter()
                    .map(|(queue, id, first_check_ms)| NewHalf {
                        message: message(*queue, &format!("{}", id % 200)),
                        first_check_ms: *first_check_ms,
                    })
                    .collect();
                let command = encode_halves(self.replica.now, topic, &halves);
                if let Answer::Halves(stored) = self.propose(command) {
                    let stored = stored.iter().zip(&halves);
                    self.halves
                        .extend(stored.map(|(at, half)| (topic, at.transaction, half.message.id.clone())));
                }
            }
            Step::End { which, topic, commit } => {
                let Some((of, transaction, id)) = self.half(*which) else { return };
                // Now and then by a wrong topic.
                let topic = if which % 7 == 0 { TopicId(*topic) } else { of };
                self.propose_command(&Command::EndTransaction(EndTransaction {
                    topic,
                    transaction,
                    message: MessageIdHash::of(id.as_bytes()),
                    decision: if *commit { Decision::Commit } else { Decision::Rollback },
                    source: DecisionSource::Check,
                }));
            }
            Step::CountChecks(checks, next_check_ms) => {
                let command =
                    CountTransactionChecks { next_check_ms: *next_check_ms, checks: self.checks(checks) };
                self.propose_command(&Command::CountTransactionChecks(command));
            }
            Step::Park(checks) => {
                let command = ParkTransactions { transactions: self.checks(checks) };
                self.propose_command(&Command::ParkTransactions(command));
            }
            Step::CreateTopic(name, queues) => self.propose_command(&Command::CreateTopic(CreateTopic {
                name: format!("topic-{name}"),
                settings: TopicSettings {
                    message_type: if *name < 2 { MessageType::Fifo } else { MessageType::Normal },
                    ..TopicSettings::normal(*queues)
                },
            })),
            Step::Grow(topic, step, generation, queues) => {
                let (topic, generation) = (TopicId(*topic), Generation(*generation));
                let command = match step {
                    0 => Command::PrepareGeneration(PrepareGeneration {
                        topic,
                        generation,
                        queues: *queues,
                        former: super::generations::layout(&[1]),
                        layout: super::generations::layout(&[*queues]),
                    }),
                    1 => Command::CloseGeneration(CloseGeneration { topic, generation }),
                    _ => Command::OpenGeneration(OpenGeneration { topic, generation }),
                };
                self.propose_command(&command);
            }
            Step::SendInOrder(topic, generation, messages) => {
                let messages: Vec<NewMessage> =
                    messages.iter().map(|(queue, id)| message(*queue, &format!("{}", id % 200))).collect();
                let (topic, generation) = (TopicId(*topic), Generation(*generation));
                self.propose(encode_append_in_order(self.replica.now, topic, generation, &messages));
            }
            Step::StoreBatch(generation, messages) => {
                let messages: Vec<(TopicId, NewMessage)> = messages
                    .iter()
                    .map(|(topic, queue, id)| (TopicId(*topic), message(*queue, &format!("{}", id % 2_000))))
                    .collect();
                let listed: BTreeSet<TopicId> = messages.iter().map(|(topic, _)| *topic).collect();
                let generation = Generation(generation / 2);
                let topics: Vec<BatchTopic> =
                    listed.into_iter().map(|topic| BatchTopic { topic, generation }).collect();
                self.propose(encode_batch(self.replica.now, &topics, &messages));
            }
            Step::Drain(group, topic, generation) => {
                self.propose_command(&Command::DrainGeneration(DrainGeneration {
                    consumer_group: ConsumerGroupId(*group),
                    topic: TopicId(*topic),
                    generation: Generation(*generation),
                    resets: 0,
                }));
            }
            Step::GrowTopic(name, queues) => self.propose_command(&Command::UpdateTopic(UpdateTopic {
                name: format!("topic-{name}"),
                settings: TopicSettings::normal(*queues),
            })),
            Step::DeleteTopic(name) => {
                self.propose_command(&Command::DeleteTopic(DeleteTopic { name: format!("topic-{name}") }));
            }
            Step::CreateGroup(name) => {
                self.propose_command(&Command::CreateConsumerGroup(CreateConsumerGroup {
                    name: format!("group-{name}"),
                    settings: ConsumerGroupSettings::default(),
                }));
            }
            Step::DeleteGroup(name) => {
                self.propose_command(&Command::DeleteConsumerGroup(DeleteConsumerGroup {
                    name: format!("group-{name}"),
                }));
            }
            Step::Expire { retention_ms, log_bytes_max } => {
                let now = self.replica.now;
                for plan in self.replica.state.expiry_plan(now, *retention_ms, *log_bytes_max) {
                    self.propose_command(&Command::ExpireMessages(plan));
                }
            }
            Step::Carry(which) => self.carry(which.as_deref()),
            Step::ReleaseLog => {
                let below = self.replica.state.log_pins().edge();
                self.propose_command(&Command::ReleaseLog(ReleaseLog { below }));
            }
            Step::SetRetention(topic, retention_ms) => {
                let command = SetTopicRetention { topic: TopicId(*topic), retention_ms: *retention_ms };
                self.propose_command(&Command::SetTopicRetention(command));
            }
            Step::Skip(bytes) => self.replica.log.skip(*bytes),
            Step::SendLite { topic, lite, ids } => {
                let lite = format!("lite-{lite}");
                let messages: Vec<NewMessage> =
                    ids.iter().map(|id| lite_message(&lite, &format!("{}", id % 300))).collect();
                self.propose(encode_lite(self.replica.now, TopicId(*topic), &lite, &messages));
            }
            Step::SyncLite { group, topic, client, action, names } => {
                let consumer_group = ConsumerGroupId(*group);
                let client_id = format!("client-{client}");
                let Some(action) = LiteAction::from_number(*action) else {
                    let client = ClientHash::of(&client_id);
                    self.propose_command(&Command::ReleaseClient(ReleaseClient { consumer_group, client }));
                    return;
                };
                let start = |name: &u8| if name % 2 == 0 { LiteStart::Min } else { LiteStart::Max };
                let lite_topics = names.iter().map(|name| (format!("lite-{name}"), start(name))).collect();
                let topic = TopicId(*topic);
                let sync = SyncLite { consumer_group, topic, client_id, version: 0, action, lite_topics };
                self.propose_command(&Command::SyncLite(sync));
            }
            Step::ReceiveLite { group, topic, client, max } => {
                let (group, topic) = (ConsumerGroupId(*group), TopicId(*topic));
                let plan = self.replica.state.plan_lite_receive(&LiteReceive {
                    consumer_group: group,
                    topic,
                    client: ClientHash::of(&format!("client-{client}")),
                    messages_max: *max,
                    bytes_max: 1 << 20,
                    now: self.replica.now,
                });
                let Some(plan) = plan else { return };
                let command = plan.command(5_000, false, "attempt").encode(self.replica.now);
                if let Answer::Leased(granted) = self.propose(command) {
                    assert_eq!(granted.len(), plan.messages().len(), "an undisturbed plan is granted");
                    self.granted.extend(granted.into_iter().map(|lease| (group, topic, lease)));
                }
            }
            Step::Suspend(which, invisible_ms) => {
                let Some(change) = self.change(*which, *invisible_ms) else { return };
                self.propose_command(&Command::SuspendDelivery(change));
            }
            Step::ExpireLite(topic, expire_after_ms) => {
                let topic = TopicId(*topic);
                let set = SetLiteTopic { topic, expire_after_ms: *expire_after_ms };
                self.propose_command(&Command::SetLiteTopic(set));
                let queues = (1 << 24..(1 << 24) + 12).collect();
                self.propose_command(&Command::ExpireLite(ExpireLite { topic, queues }));
            }
            Step::SetAttributes(group, flag) => {
                let attributes = GroupAttributes {
                    exclusive: *flag,
                    client_quota: 3,
                    reset_when_taken_over: *flag,
                    reset_on_unsubscribe: !*flag,
                    ..GroupAttributes::default()
                };
                self.propose_command(&Command::SetGroupAttributes(SetGroupAttributes {
                    consumer_group: ConsumerGroupId(*group),
                    attributes,
                }));
            }
            Step::SetFilters(group, topic, count) => {
                self.propose_command(&Command::SetFilters(SetFilters {
                    consumer_group: ConsumerGroupId(*group),
                    topic: TopicId(*topic),
                    filters: (0..*count).map(|number| format!("tag tag-{number}")).collect(),
                }));
            }
            Step::Pass(ms) => self.replica.pass_ms(*ms),
            Step::Malformed(body) => {
                let bytes = [&[1, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], body].concat();
                self.propose(Bytes::from(bytes));
            }
        }
    }

    /// A letter that names the place of its message, as a leader's does.
    fn letter(&self, topic: TopicId, lease: Granted, reason: DeadLetterReason) -> Letter {
        let mut letter = letter(topic, lease, reason);
        if let Some(entry) = self.replica.state.locate(topic, lease.queue, lease.offset) {
            letter.record.physical = entry.physical;
            letter.record.record_bytes = entry.record_bytes;
        }
        letter
    }

    /// What the leader would carry, or records named without asking whether they are owed any more.
    fn carry(&mut self, which: Option<&[usize]>) {
        let state = &self.replica.state;
        let owed = match which {
            None => state.carry_plan(&state.log_pins(), 512 << 10, 1 << 30).records,
            Some(which) => which
                .iter()
                .filter_map(|which| {
                    let (topic, half, id) = self.half(*which)?;
                    let found = state.search(topic, SearchKey::MessageId(&id), PhysicalOffset(0), 1);
                    let FoundRecord { physical, record_bytes } = *found.first()?;
                    let stored_at = UnixMillis(0);
                    let entry = IndexEntry { physical, record_bytes, tag_code: 0, stored_at };
                    Some((Owed::Half(half), topic, entry))
                })
                .collect(),
        };
        let records: Vec<_> =
            owed.into_iter().map(|(owed, topic, at)| (owed, topic, self.replica.log.record(at))).collect();
        if !records.is_empty() {
            self.propose(encode_carried(self.replica.now, &records));
        }
    }

    /// Whatever the state refers to is above what it lets go of, and is what it was.
    pub(super) fn check_references(&self) {
        let state = &self.replica.state;
        let released_below = state.retention_view().released_below;
        let read = |entry: IndexEntry, what: &str| {
            assert!(entry.physical >= released_below, "{what} at {} is released", entry.physical);
            self.replica.log.record(entry)
        };
        for topic in state.topics() {
            let ranges = state.queue_ranges(topic.id).expect("there");
            for (queue, range) in (0u32..).zip(ranges) {
                let entries = state.range(topic.id, QueueId(queue), QueueOffset(0), u32::MAX);
                assert_eq!(entries.len() as u64, range.end - range.start, "topic {} queue {queue}", topic.id);
                for (_, entry) in entries {
                    let record = read(entry, "a message");
                    if DeadLetterRecord::is_one(&record) {
                        let letter = DeadLetterRecord::decode(&record).expect("a letter");
                        assert!(letter.physical >= released_below, "the message of a letter is released");
                    } else {
                        assert_eq!(StoredMessage::decode(&record).expect("a record").topic, topic.id);
                    }
                }
            }
        }
        for open in state.open_transactions(TransactionQuery::default(), usize::MAX) {
            let stored = StoredMessage::decode(&read(open.entry(), "a half")).expect("a record");
            assert_eq!(MessageIdHash::of(stored.id.as_bytes()), open.message);
        }
        for timer in &self.timers {
            if let TimerState::Pending { topic } = state.timer(timer.deliver_at, timer.physical) {
                let place = state.timer_place(timer.physical);
                let length =
                    IndexEntry { physical: place, record_bytes: 4, tag_code: 0, stored_at: UnixMillis(0) };
                let length = read(length, "a timer");
                let record_bytes = u32::from_le_bytes(length[..].try_into().expect("four"));
                let record = read(
                    IndexEntry { record_bytes, physical: place, tag_code: 0, stored_at: UnixMillis(0) },
                    "a timer",
                );
                assert_eq!(StoredMessage::decode(&record).expect("a record").topic, topic);
            }
        }
    }

    fn half(&self, which: usize) -> Option<(TopicId, PhysicalOffset, String)> {
        self.halves.get(which % self.halves.len().max(1)).cloned()
    }

    fn checks(&self, checks: &[(usize, u32)]) -> Vec<TransactionCheck> {
        let named = checks.iter().filter_map(|(which, number)| Some((self.half(*which)?, *number)));
        named.map(|((_, transaction, _), number)| TransactionCheck { transaction, number }).collect()
    }

    fn change(&self, which: usize, invisible_ms: u64) -> Option<ChangeInvisible> {
        let (consumer_group, topic, lease) = self.pick(which)?;
        let Granted { queue, offset, epoch, .. } = lease;
        Some(ChangeInvisible { consumer_group, topic, queue, offset, epoch, invisible_ms })
    }

    fn pick(&self, which: usize) -> Option<(ConsumerGroupId, TopicId, Granted)> {
        self.granted.get(which % self.granted.len().max(1)).copied()
    }

    fn propose_command(&mut self, command: &Command) {
        self.propose(command.encode(self.replica.now));
    }

    fn propose(&mut self, command: Bytes) -> Answer {
        let answer = self.replica.propose_bytes(command);
        self.answers.push(answer.clone());
        answer
    }
}

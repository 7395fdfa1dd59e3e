use super::*;
use crate::state::applied::leases::RELEASED_CLIENT_INVISIBLE_MS;

const INVISIBLE_MS: u64 = 30_000;

struct Consumer {
    replica: Replica,
    group: ConsumerGroupId,
    topic: TopicId,
}

/// A group and a topic of one queue with `messages` messages.
fn consumer(messages: u64) -> Consumer {
    let mut replica = Replica::in_memory();
    let topic = replica.topic("orders", 1);
    let group = replica.group("workers");
    for number in 0..messages {
        replica.send(topic, &[message(0, &format!("id-{number}"))]);
    }
    Consumer { replica, group, topic }
}

impl Consumer {
    fn receive(&mut self, max: u32) -> Vec<Granted> {
        self.replica.receive(self.group, self.topic, max, INVISIBLE_MS)
    }

    fn ack(&mut self, granted: Granted) -> DeliveryOutcome {
        self.replica.ack(self.group, self.topic, &[granted])[0]
    }

    fn change(&mut self, granted: Granted, invisible_ms: u64) -> ChangeOutcome {
        let command = Command::ChangeInvisible(ChangeInvisible {
            consumer_group: self.group,
            topic: self.topic,
            queue: granted.queue,
            offset: granted.offset,
            epoch: granted.epoch,
            invisible_ms,
        });
        match self.replica.propose(&command) {
            Answer::Changed(outcome) => outcome,
            other => panic!("{other:?}"),
        }
    }

    fn extend(&mut self, granted: Granted, invisible_ms: u64) -> DeliveryOutcome {
        let extension = LeaseExtension {
            consumer_group: self.group,
            topic: self.topic,
            queue: granted.queue,
            offset: granted.offset,
            epoch: granted.epoch,
            invisible_ms,
            keep_renewing: true,
        };
        match self.replica.propose(&Command::ExtendLeases(ExtendLeases { extensions: vec![extension] })) {
            Answer::Extended(outcomes) => outcomes[0],
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_new_group_begins_with_the_oldest_message() {
    let mut consumer = consumer(3);
    let granted = consumer.receive(10);
    assert_eq!(offsets(&granted), [(0, 0), (0, 1), (0, 2)]);
    assert!(granted.iter().all(|lease| lease.attempt == 1));
    assert_eq!(granted[0].until, UnixMillis(START + INVISIBLE_MS));
}

#[test]
fn a_leased_message_is_invisible_until_its_lease_ends_and_then_comes_again() {
    let mut consumer = consumer(1);
    let first = consumer.receive(10);
    consumer.replica.pass_ms(INVISIBLE_MS - 1);
    assert_eq!(consumer.receive(10), []);
    assert_eq!(
        consumer.replica.state.next_expiry(consumer.group, consumer.topic, consumer.replica.now),
        Some(UnixMillis(START + INVISIBLE_MS)),
    );
    consumer.replica.pass_ms(1);
    let second = consumer.receive(10);
    assert_eq!(offsets(&second), offsets(&first));
    assert_eq!(second[0].attempt, 2);
    assert!(second[0].epoch > first[0].epoch);
}

#[test]
fn an_acknowledged_message_never_comes_again_and_acking_twice_is_fine() {
    let mut consumer = consumer(1);
    let granted = consumer.receive(10)[0];
    assert_eq!(consumer.ack(granted), DeliveryOutcome::Done);
    assert_eq!(consumer.ack(granted), DeliveryOutcome::AlreadyConsumed);
    consumer.replica.pass_ms(10 * INVISIBLE_MS);
    assert_eq!(consumer.receive(10), []);
}

#[test]
fn a_late_ack_counts_until_the_message_is_delivered_anew() {
    let mut consumer = consumer(2);
    let granted = consumer.receive(10);
    consumer.replica.pass_ms(INVISIBLE_MS + 1);
    assert_eq!(consumer.ack(granted[0]), DeliveryOutcome::Done);
    let again = consumer.receive(10);
    assert_eq!(offsets(&again), [(0, 1)]);
    assert_eq!(consumer.ack(granted[1]), DeliveryOutcome::Stale);
    assert_eq!(
        consumer.change(granted[1], 1_000),
        ChangeOutcome::Not(DeliveryOutcome::Stale),
        "the stale delivery cannot move the new lease"
    );
    assert_eq!(consumer.extend(granted[1], 99_000), DeliveryOutcome::Stale);
    assert_eq!(consumer.ack(again[0]), DeliveryOutcome::Done);
    assert_eq!(consumer.ack(granted[1]), DeliveryOutcome::AlreadyConsumed);
}

#[test]
fn what_was_never_delivered_cannot_be_acknowledged() {
    let mut consumer = consumer(3);
    let granted = consumer.receive(1)[0];
    let beyond = Granted { offset: QueueOffset(2), ..granted };
    let forged = Granted { epoch: DeliveryEpoch(granted.epoch.get() + 1), ..granted };
    let other_queue = Granted { queue: QueueId(9), ..granted };
    for wrong in [beyond, forged, other_queue] {
        assert_eq!(consumer.ack(wrong), DeliveryOutcome::NeverDelivered);
    }
    assert_eq!(consumer.ack(granted), DeliveryOutcome::Done);
}

#[test]
fn changing_the_invisible_time_keeps_the_delivery_and_its_old_handle() {
    let mut consumer = consumer(1);
    let granted = consumer.receive(1)[0];
    consumer.replica.pass_ms(1_000);
    assert_eq!(
        consumer.change(granted, 60_000),
        ChangeOutcome::Changed { until: UnixMillis(START + 61_000), renewal: 1, attempt: 1 },
    );
    consumer.replica.pass_ms(INVISIBLE_MS);
    assert_eq!(consumer.receive(1), [], "the lease became longer");
    assert_eq!(
        consumer.change(granted, 0),
        ChangeOutcome::Changed { until: consumer.replica.now, renewal: 2, attempt: 1 },
    );
    let again = consumer.receive(1);
    assert_eq!(again[0].attempt, 2, "visible again at once");
    assert_eq!(consumer.ack(again[0]), DeliveryOutcome::Done);
}

#[test]
fn an_extension_never_makes_a_lease_shorter() {
    let mut consumer = consumer(1);
    let granted = consumer.receive(1)[0];
    assert_eq!(consumer.extend(granted, 1_000), DeliveryOutcome::Done);
    consumer.replica.pass_ms(INVISIBLE_MS - 1);
    assert_eq!(consumer.receive(1), []);
    assert_eq!(consumer.extend(granted, INVISIBLE_MS), DeliveryOutcome::Done);
    consumer.replica.pass_ms(INVISIBLE_MS - 1);
    assert_eq!(consumer.receive(1), []);
    consumer.replica.pass_ms(1);
    assert_eq!(consumer.receive(1).len(), 1);
}

#[test]
fn messages_of_a_client_that_ended_come_again_after_a_second() {
    let mut consumer = consumer(2);
    let held = consumer.receive(2);
    assert_eq!(consumer.ack(held[0]), DeliveryOutcome::Done);
    let release = Command::ReleaseClient(ReleaseClient {
        consumer_group: consumer.group,
        client: ClientHash::of("client"),
    });
    let other = Command::ReleaseClient(ReleaseClient {
        consumer_group: consumer.group,
        client: ClientHash::of("another"),
    });
    assert_eq!(consumer.replica.propose(&other), Answer::Released(0));
    assert_eq!(consumer.replica.propose(&release), Answer::Released(1));
    assert_eq!(consumer.receive(2), []);
    consumer.replica.pass_ms(RELEASED_CLIENT_INVISIBLE_MS);
    assert_eq!(offsets(&consumer.receive(2)), [(0, 1)]);
}

#[test]
fn only_leases_to_be_renewed_are_named_and_only_near_their_end() {
    let mut consumer = consumer(2);
    let request = consumer.replica.request(consumer.group, consumer.topic, 1);
    let plan = consumer.replica.state.plan_receive(&request).expect("messages");
    let command = plan.command(ClientHash::of("push"), 60_000, true, "");
    consumer.replica.propose(&command);
    plan.settle();
    consumer.receive(1);
    let state = &consumer.replica.state;
    assert_eq!(state.leases_to_renew(UnixMillis(START + 59_999), 10), []);
    let due = state.leases_to_renew(UnixMillis(START + 60_000), 10);
    assert_eq!(due.len(), 1);
    assert_eq!((due[0].offset, due[0].client), (QueueOffset(0), ClientHash::of("push")));
}

#[test]
fn two_groups_do_not_disturb_each_other() {
    let mut consumer = consumer(1);
    let other = consumer.replica.group("auditors");
    let granted = consumer.receive(1)[0];
    let of_other = consumer.replica.receive(other, consumer.topic, 1, INVISIBLE_MS);
    assert_eq!(of_other.len(), 1);
    let stolen = consumer.replica.ack(other, consumer.topic, &[granted]);
    assert_ne!(stolen, [DeliveryOutcome::Done]);
    assert_eq!(consumer.ack(granted), DeliveryOutcome::Done);
}

#[test]
fn a_handle_works_for_its_own_group_and_topic_alone() {
    let mut consumer = consumer(1);
    consumer.replica.group("auditors");
    consumer.replica.topic("bills", 1);
    let granted = consumer.receive(1)[0];
    let state = &consumer.replica.state;
    let handle = state.handle_of(consumer.group, consumer.topic, &granted, 0);
    let target = state.check_handle(&handle, "workers", "orders").expect("its own");
    assert_eq!((target.offset, target.epoch), (granted.offset, granted.epoch));
    let refused = |group, topic| state.check_handle(&handle, group, topic).expect_err("not its own");
    assert_eq!(refused("auditors", "orders"), HandleRefusal::OtherConsumerGroup);
    assert_eq!(refused("workers", "bills"), HandleRefusal::OtherTopic);
    assert_eq!(refused("workers", "none"), HandleRefusal::TopicUnknown);
    assert_eq!(refused("none", "orders"), HandleRefusal::ConsumerGroupUnknown);
    let foreign = ledgermq_common::receipt_handle::ReceiptHandle { group: GroupId(8), ..handle };
    assert_eq!(state.check_handle(&foreign, "workers", "orders"), Err(HandleRefusal::OtherBrokerGroup));
}

#[test]
fn deleting_a_group_ends_its_leases_and_a_group_made_again_starts_over() {
    let mut consumer = consumer(1);
    let granted = consumer.receive(1)[0];
    let delete = Command::DeleteConsumerGroup(DeleteConsumerGroup { name: "workers".to_owned() });
    assert_eq!(consumer.replica.propose(&delete), Answer::Deleted(true));
    assert_eq!(consumer.ack(granted), DeliveryOutcome::ConsumerGroupUnknown);
    consumer.group = consumer.replica.group("workers");
    assert_eq!(offsets(&consumer.receive(1)), [(0, 0)]);
}

#[test]
fn a_repeated_receive_gets_its_own_deliveries_and_nobody_elses() {
    let mut consumer = consumer(3);
    let client = ClientHash::of("client-a");
    let receive = |consumer: &mut Consumer, attempt_id: &str, take: u64| {
        let command = Command::LeaseMessages(LeaseMessages {
            consumer_group: consumer.group,
            topic: consumer.topic,
            client,
            invisible_ms: INVISIBLE_MS,
            auto_renew: false,
            attempt_id: attempt_id.to_owned(),
            parts: vec![LeasePart {
                queue: QueueId(0),
                from: QueueOffset(take),
                to: QueueOffset(take + 1),
                take: vec![QueueOffset(take)],
                redeliver: Vec::new(),
                finish: Vec::new(),
            }],
        });
        match consumer.replica.propose(&command) {
            Answer::Leased(granted) => granted,
            other => panic!("{other:?}"),
        }
    };
    let deliveries = |consumer: &Consumer, attempt_id: &str| {
        let receive = AttemptHash::of(client, attempt_id);
        let replica = &consumer.replica;
        replica.state.deliveries_of(consumer.group, consumer.topic, receive, replica.now, 32)
    };
    let first = receive(&mut consumer, "one", 0);
    let second = receive(&mut consumer, "two", 1);
    receive(&mut consumer, "", 2);
    let repeated: Vec<Granted> = deliveries(&consumer, "one").iter().map(|again| again.granted).collect();
    assert_eq!(repeated, first, "the same delivery: attempt, epoch and end");
    assert_eq!(deliveries(&consumer, "unknown"), []);
    assert_eq!(deliveries(&consumer, ""), [], "a receive without an attempt id has no repetition");

    assert_eq!(consumer.ack(first[0]), DeliveryOutcome::Done);
    assert_eq!(deliveries(&consumer, "one"), [], "what was acknowledged does not come again");
    consumer.replica.pass_ms(INVISIBLE_MS);
    assert_eq!(deliveries(&consumer, "two"), [], "an ended lease may be somebody else's by now");
    assert_eq!(offsets(&second), [(0, 1)]);
}

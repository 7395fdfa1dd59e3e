use super::*;

fn topic_with(queues: u32, messages: &[NewMessage]) -> (Replica, ConsumerGroupId, TopicId) {
    let mut replica = Replica::in_memory();
    let topic = replica.topic("orders", queues);
    let group = replica.group("workers");
    replica.send(topic, messages);
    (replica, group, topic)
}

fn propose(replica: &mut Replica, plan: &LeasePlan) -> Vec<Granted> {
    match replica.propose(&plan.command(ClientHash::of("client"), 30_000, false, "")) {
        Answer::Leased(granted) => granted,
        other => panic!("{other:?}"),
    }
}

fn planned(plan: &LeasePlan) -> Vec<(u32, u64)> {
    plan.messages().iter().map(|message| (message.queue.get(), message.offset.get())).collect()
}

#[test]
fn two_receives_at_once_plan_different_messages() {
    let messages: Vec<NewMessage> = (0..10).map(|n| message(0, &format!("{n}"))).collect();
    let (mut replica, group, topic) = topic_with(1, &messages);
    let request = replica.request(group, topic, 4);
    let first = replica.state.plan_receive(&request).expect("messages");
    let second = replica.state.plan_receive(&request).expect("messages");
    assert_eq!(planned(&first), [(0, 0), (0, 1), (0, 2), (0, 3)]);
    assert_eq!(planned(&second), [(0, 4), (0, 5), (0, 6), (0, 7)]);
    // The later plan reaches the log first: nothing of the earlier one is skipped.
    assert_eq!(offsets(&propose(&mut replica, &second)), planned(&second));
    assert_eq!(offsets(&propose(&mut replica, &first)), planned(&first));
}

#[test]
fn messages_of_a_plan_that_failed_are_planned_again() {
    let messages: Vec<NewMessage> = (0..6).map(|n| message(0, &format!("{n}"))).collect();
    let (mut replica, group, topic) = topic_with(1, &messages);
    let request = replica.request(group, topic, 2);
    let lost = replica.state.plan_receive(&request).expect("messages");
    let kept = replica.state.plan_receive(&request).expect("messages");
    propose(&mut replica, &kept);
    drop(lost);
    drop(kept);
    let next = replica.state.plan_receive(&replica.request(group, topic, 4)).expect("messages");
    assert_eq!(planned(&next), [(0, 0), (0, 1), (0, 4), (0, 5)]);
    assert_eq!(offsets(&propose(&mut replica, &next)), planned(&next));
}

#[test]
fn the_same_plan_twice_in_the_log_grants_once() {
    let (mut replica, group, topic) = topic_with(1, &[message(0, "a"), message(0, "b")]);
    let plan = replica.state.plan_receive(&replica.request(group, topic, 2)).expect("messages");
    assert_eq!(propose(&mut replica, &plan).len(), 2);
    assert_eq!(propose(&mut replica, &plan), []);
}

#[test]
fn messages_of_other_tags_are_passed_over_for_good() {
    let messages: Vec<NewMessage> =
        (0..8).map(|n| tagged(0, &format!("{n}"), [Some("red"), Some("blue"), None][n % 3])).collect();
    let (mut replica, group, topic) = topic_with(1, &messages);
    let request =
        ReceiveRequest { filter: TagFilter::tags(["blue", "green"]), ..replica.request(group, topic, 10) };
    let plan = replica.state.plan_receive(&request).expect("messages");
    assert_eq!(planned(&plan), [(0, 1), (0, 4), (0, 7)]);
    propose(&mut replica, &plan);
    drop(plan);
    assert!(replica.state.plan_receive(&replica.request(group, topic, 10)).is_none());
}

#[test]
fn tags_with_one_code_are_told_apart_after_reading_and_the_wrong_one_is_consumed() {
    // "Aa" and "BB" have the same Java hash code.
    let (mut replica, group, topic) =
        topic_with(1, &[tagged(0, "1", Some("Aa")), tagged(0, "2", Some("BB"))]);
    let filter = TagFilter::tags(["BB"]);
    let request = ReceiveRequest { filter: filter.clone(), ..replica.request(group, topic, 10) };
    let mut plan = replica.state.plan_receive(&request).expect("messages");
    for planned in plan.messages().to_vec() {
        let read = StoredMessage::decode(&replica.log.record(planned.entry)).expect("a record");
        if !filter.matches(read.properties.tag.as_deref()) {
            plan.reject(planned.queue, planned.offset);
            assert!(plan.is_rejected(planned.queue, planned.offset));
        }
    }
    let granted = propose(&mut replica, &plan);
    assert_eq!(offsets(&granted), [(0, 1)]);
    drop(plan);
    // Redelivered and rejected then: consumed as well.
    replica.pass_ms(60_000);
    let request = ReceiveRequest { now: replica.now, ..request };
    let mut plan = replica.state.plan_receive(&request).expect("the lease ended");
    let (queue, offset) = at(0, 1);
    plan.reject(queue, offset);
    assert_eq!(propose(&mut replica, &plan), []);
    drop(plan);
    replica.pass_ms(60_000);
    assert!(replica.state.plan_receive(&replica.request(group, topic, 10)).is_none());
}

#[test]
fn what_a_plan_gives_up_is_free_for_others_and_not_consumed() {
    let messages: Vec<NewMessage> =
        (0..6).flat_map(|n| [message(0, &format!("a{n}")), message(1, &format!("b{n}"))]).collect();
    let (mut replica, group, topic) = topic_with(2, &messages);
    let mut first = replica.state.plan_receive(&replica.request(group, topic, 2)).expect("messages");
    propose(&mut replica, &first);
    first.keep_first(9);
    let leased = planned(&first);
    drop(first);
    replica.pass_ms(60_000);
    // Two redeliveries, then unseen messages of two queues.
    let mut plan = replica.state.plan_receive(&replica.request(group, topic, 12)).expect("messages");
    let all = planned(&plan);
    assert_eq!((all.len(), &all[..2]), (12, leased.as_slice()));
    for keep in [11, 5, 3, 1] {
        plan.keep_first(keep);
        assert_eq!(planned(&plan), all[..keep]);
        let rest = replica.state.plan_receive(&replica.request(group, topic, 20)).expect("the rest");
        let (mut found, mut expected) = (planned(&rest), all[keep..].to_vec());
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected, "keeping {keep}");
    }
    plan.reject_nth(0);
    assert_eq!(propose(&mut replica, &plan), [], "the one that is left is rejected");
    drop(plan);
    let rest = replica.state.plan_receive(&replica.request(group, topic, 20)).expect("the rest");
    let mut granted = offsets(&propose(&mut replica, &rest));
    granted.sort_unstable();
    let mut expected = all[1..].to_vec();
    expected.sort_unstable();
    assert_eq!(granted, expected);
}

#[test]
fn a_long_stretch_without_a_match_is_worth_an_entry_of_its_own() {
    let messages: Vec<NewMessage> =
        (0..PLAN_SCAN_ENTRIES_MAX + 10).map(|n| tagged(0, &format!("{n}"), Some("red"))).collect();
    let (mut replica, group, topic) = topic_with(1, &messages);
    let wanted = tagged(0, "wanted", Some("blue"));
    replica.send(topic, &[wanted]);
    let request = ReceiveRequest { filter: TagFilter::tags(["blue"]), ..replica.request(group, topic, 1) };
    let skip = replica.state.plan_receive(&request).expect("progress");
    assert_eq!(planned(&skip), []);
    assert_eq!(propose(&mut replica, &skip), []);
    drop(skip);
    let plan = replica.state.plan_receive(&request).expect("the match");
    assert_eq!(planned(&plan), [(0, PLAN_SCAN_ENTRIES_MAX + 10)]);
}

#[test]
fn ended_leases_come_first_and_one_queue_can_be_asked_for() {
    let (mut replica, group, topic) = topic_with(2, &[message(0, "a"), message(1, "b")]);
    let first = replica.receive(group, topic, 1, 10_000);
    replica.pass_ms(10_000);
    let plan = replica.state.plan_receive(&replica.request(group, topic, 1)).expect("ended");
    assert_eq!(planned(&plan), offsets(&first));
    assert_eq!(plan.messages()[0].attempt, 2);
    drop(plan);
    let other = QueueId(1 - first[0].queue.get());
    let request = ReceiveRequest { queues: QueueChoice::One(other), ..replica.request(group, topic, 10) };
    let plan = replica.state.plan_receive(&request).expect("the other queue");
    assert_eq!(planned(&plan), [(other.get(), 0)]);
}

#[test]
fn every_queue_gets_its_turn() {
    let messages: Vec<NewMessage> = (0..64).map(|n| message(n % 4, &format!("{n}"))).collect();
    let (mut replica, group, topic) = topic_with(4, &messages);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..64 {
        seen.extend(offsets(&replica.receive(group, topic, 1, 60_000)));
    }
    assert_eq!(seen.len(), 64, "each message once");
}

#[test]
fn lag_counts_what_is_ready_and_what_is_in_flight() {
    let (mut replica, group, topic) = topic_with(2, &[message(0, "a"), message(1, "b"), message(1, "c")]);
    assert_eq!(replica.state.lag(group, topic), Lag { ready: 3, in_flight: 0 });
    let granted = replica.receive(group, topic, 2, 10_000);
    assert_eq!(replica.state.lag(group, topic), Lag { ready: 1, in_flight: 2 });
    replica.ack(group, topic, &granted[..1]);
    assert_eq!(replica.state.lag(group, topic), Lag { ready: 1, in_flight: 1 });
}

fn with_priorities(replica: &mut Replica, queues: u32) -> TopicId {
    let settings = TopicSettings { message_type: MessageType::Priority, ..TopicSettings::normal(queues) };
    match replica.propose(&Command::CreateTopic(CreateTopic { name: "urgent".to_owned(), settings })) {
        Answer::Topic { id, .. } => id,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_highest_priority_goes_first_ended_deliveries_of_it_included() {
    let mut replica = Replica::in_memory();
    let (topic, group) = (with_priorities(&mut replica, 4), replica.group("workers"));
    for (number, queue) in [0, 3, 1, 3, 0, 2].into_iter().enumerate() {
        replica.send(topic, &[message(queue, &format!("{number}"))]);
    }
    let first = replica.receive(group, topic, 3, 10_000);
    assert_eq!(offsets(&first), [(3, 0), (3, 1), (2, 0)]);
    replica.ack(group, topic, &first[1..2]);
    replica.pass_ms(10_000);
    replica.send(topic, &[message(3, "late")]);
    let plan = replica.state.plan_receive(&replica.request(group, topic, 10)).expect("messages");
    let planned: Vec<_> =
        plan.messages().iter().map(|m| (m.queue.get(), m.offset.get(), m.attempt)).collect();
    assert_eq!(planned, [(3, 0, 2), (3, 2, 1), (2, 0, 2), (1, 0, 1), (0, 0, 1), (0, 1, 1)]);
}

#[test]
fn the_priority_factor_lets_lower_priorities_through() {
    let mut replica = Replica::in_memory();
    let (topic, group) = (with_priorities(&mut replica, 2), replica.group("workers"));
    let attributes = GroupAttributes { priority_factor: 0, ..GroupAttributes::default() };
    let set = SetGroupAttributes { consumer_group: group, attributes };
    for number in 0..20 {
        replica.send(topic, &[message(number % 2, &format!("{number}"))]);
    }
    let honoured: Vec<u32> = (0..4)
        .flat_map(|_| replica.receive(group, topic, 1, 10_000))
        .map(|lease| lease.queue.get())
        .collect();
    assert_eq!(honoured, [1; 4]);
    replica.propose(&Command::SetGroupAttributes(set));
    let in_turn: Vec<u32> = (0..4)
        .flat_map(|_| replica.receive(group, topic, 1, 10_000))
        .map(|lease| lease.queue.get())
        .collect();
    assert_eq!(in_turn.iter().filter(|queue| **queue == 0).count(), 2, "{in_turn:?}");
}

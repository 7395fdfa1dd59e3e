use ledgermq_checkers::compact::{Reader, Writer};
use ledgermq_checkers::history::{Batch, Delivery, NEMESIS, Receiving, Sending};
use ledgermq_checkers::{
    Event, Gather, History, HistoryError, Kind, Messages, Operation, fifo, queue_log, total_queue,
};
use proptest::prelude::*;

use super::script::history;

fn written(history: &History) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), &history.scenario, history.seed).expect("a header");
    for event in &history.events {
        writer.write(event).expect("written");
    }
    writer.finish().expect("flushed")
}

fn read(bytes: &[u8]) -> Result<(String, u64, Vec<Event>), HistoryError> {
    let mut reader = Reader::new(bytes)?.expect("a compact history");
    let mut events = Vec::new();
    while let Some(event) = reader.read()? {
        events.push(event);
    }
    Ok((reader.scenario, reader.seed, events))
}

fn ids() -> impl Strategy<Value = String> {
    prop_oneof!["[0-9A-F]{34}", "[0-9a-fA-F]{0,5}", ".{0,8}"]
}

fn operations() -> impl Strategy<Value = Operation> {
    let names = || prop_oneof!["[a-c]", ".{0,4}"];
    let delivery = (any::<u64>(), ids(), names(), any::<u32>(), any::<u64>(), any::<u32>()).prop_map(
        |(number, id, broker, queue, offset, attempt)| Delivery {
            number,
            id,
            queue: (broker, queue),
            offset,
            attempt,
        },
    );
    let sending = (any::<u64>(), prop::option::of(ids()), prop::option::of(0..u64::MAX), any::<[bool; 4]>());
    prop_oneof![
        4 => sending.prop_map(|(number, id, offset, [half, grouped, due, topic])| {
            Operation::Send(Sending {
                number,
                id,
                offset,
                half,
                message_group: grouped.then(|| "m".to_owned()),
                due_ns: due.then_some(number),
                topic: topic.then(|| "t".to_owned()),
                queue: topic.then(|| ("g".to_owned(), 7)),
            })
        }),
        2 => (any::<u64>(), any::<u32>(), prop::collection::vec(any::<u64>(), 0..5))
            .prop_map(|(first, count, offsets)| Operation::SendBatch(Batch { first, count, offsets })),
        4 => (names(), any::<u64>(), any::<bool>(), prop::collection::vec(delivery, 0..4)).prop_map(
            |(group, lease_ns, topic, messages)| {
                let topic = topic.then(|| "t".to_owned());
                Operation::Receive(Receiving { group, topic, lease_ns, messages })
            }
        ),
        2 => (names(), prop::collection::vec(any::<u64>(), 0..5))
            .prop_map(|(group, numbers)| Operation::Ack { group, numbers }),
        1 => (names(), any::<i64>()).prop_map(|(key, value)| Operation::Write { key, value }),
    ]
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let kinds = prop_oneof![Just(Kind::Invoke), Just(Kind::Ok), Just(Kind::Fail), Just(Kind::Info)];
    prop::collection::vec((any::<u64>(), any::<u32>(), kinds, operations()), 0..20).prop_map(|events| {
        events.into_iter().map(|(at_ns, process, kind, op)| Event { at_ns, process, kind, op }).collect()
    })
}

proptest! {
    #[test]
    fn every_event_comes_back_as_it_was(events in events(), seed: u64, scenario in ".{0,9}") {
        let history = History { scenario, seed, events };
        let back = read(&written(&history)).expect("read");
        prop_assert_eq!(back, (history.scenario, history.seed, history.events));
    }

    #[test]
    fn bytes_that_are_no_history_are_refused_and_nothing_else(
        events in events(), at: prop::sample::Index, byte: u8, cut: bool,
    ) {
        let mut bytes = written(&History { events, ..History::default() });
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        // Whatever comes of it, it is an answer.
        if let Ok(Some(mut reader)) = Reader::new(bytes.as_slice()) {
            while let Ok(Some(_)) = reader.read() {}
        }
    }
}

const SCRIPT: &str = "0 batch 7 3 @5
    1 send 20 key=a
    1 send 21 key=a
    1 send! 22
    2 [ send 23
    5 recv g 7@q0:5 20@q1:0
    5 ack g 7
    6 recv h 7@q0:5 8@q0:6 9@q0:7 9@q0:8 99@q3:4
    6 recv g 21@q1:1
    6 recv! g";

#[test]
fn what_is_read_event_by_event_is_judged_as_what_is_read_whole() {
    let history = history(SCRIPT);
    let spans = history.spans().expect("well formed");
    let whole = Messages::of(&spans);
    let mut gather = Gather::default();
    for event in read(&written(&history)).expect("read").2 {
        gather.event(event).expect("well formed");
    }
    let one_by_one = gather.finish();
    let order = queue_log::PollOrder::Any;
    for (expected, found) in [
        (total_queue::of(&whole), total_queue::of(&one_by_one)),
        (queue_log::of(&whole, order), queue_log::of(&one_by_one, order)),
        (fifo::of(&whole), fifo::of(&one_by_one)),
    ] {
        assert!(!expected.anomalies.is_empty(), "{expected:?}");
        assert_eq!(expected, found);
    }
}

#[test]
fn a_history_that_makes_no_sense_is_refused_event_by_event_too() {
    let event = |at_ns, process, kind| Event { at_ns, process, kind, op: Operation::Recall { number: 1 } };
    for (events, said) in [
        (vec![event(1, 0, Kind::Ok)], "event 0: process 0 gets an answer without having asked"),
        (
            vec![event(1, 4, Kind::Invoke), event(2, 4, Kind::Invoke)],
            "event 1: process 4 asks while it waits for an answer",
        ),
        (vec![event(2, 0, Kind::Invoke), event(1, 0, Kind::Ok)], "event 1: process 0 goes back in time"),
    ] {
        let mut gather = Gather::default();
        let outcomes = events.into_iter().map(|event| gather.event(event));
        let error = outcomes.filter_map(Result::err).next().expect(said);
        assert_eq!(error.to_string(), said);
    }
    let mut gather = Gather::default();
    gather.event(event(1, NEMESIS, Kind::Info)).expect("a fault is nobody's answer");
}

#[test]
fn the_other_form_is_left_to_its_reader() {
    let mut lines = Vec::new();
    history(SCRIPT).write(&mut lines).expect("written");
    let mut input = lines.as_slice();
    assert!(Reader::new(&mut input).expect("no error").is_none());
    assert_eq!(input.len(), lines.len(), "nothing was taken");
}

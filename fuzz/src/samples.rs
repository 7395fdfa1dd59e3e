//! Inputs that the real encoders make: where the corpus starts.

use bytes::Bytes;
use ledgermq_broker::state::{
    BatchTopic, BodyEncoding, Command, ConsumerGroupSettings, CreateConsumerGroup, CreateTopic, DeleteTopic,
    Generation, MessageProperties, MessageType, NewHalf, NewMessage, TopicId, TopicSettings, encode_append,
    encode_batch, encode_delayed, encode_halves,
};
use ledgermq_common::clock::UnixMillis;
use ledgermq_common::recall_handle::RecallHandle;
use ledgermq_common::transaction_id::TransactionId;
use ledgermq_common::{GroupId, PhysicalOffset, QueueId, QueueOffset, ReceiptHandle};
use ledgermq_proto::{forward, messaging, raft, rocketmq};
use prost::Message as _;

const STAMP: UnixMillis = UnixMillis(1_700_000_000_000);
/// The first topic a state gives a number to.
const TOPIC: TopicId = TopicId(1);

fn message(id: &str) -> NewMessage {
    NewMessage {
        queue: QueueId(0),
        id: id.to_owned(),
        message_type: MessageType::Normal,
        body_encoding: BodyEncoding::Identity,
        born_at: STAMP,
        properties: MessageProperties::default(),
        body: Bytes::from_static(b"paid"),
    }
}

fn create_topic() -> Bytes {
    let command = CreateTopic { name: "orders".to_owned(), settings: TopicSettings::normal(2) };
    Command::CreateTopic(command).encode(STAMP)
}

fn create_group() -> Bytes {
    let settings = ConsumerGroupSettings::default();
    Command::CreateConsumerGroup(CreateConsumerGroup { name: "billing".to_owned(), settings }).encode(STAMP)
}

/// A state with a topic, messages, a half and a timer, as commands.
fn history() -> Vec<Bytes> {
    let half = NewHalf { message: message("half"), first_check_ms: 6_000 };
    vec![
        create_topic(),
        create_group(),
        encode_append(STAMP, TOPIC, &[message("a"), message("b")]),
        encode_halves(STAMP, TOPIC, &[half]),
        encode_delayed(STAMP, TOPIC, &[(UnixMillis(STAMP.get() + 60_000), message("later"))]),
    ]
}

pub(crate) fn commands() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = history().iter().map(|command| command.to_vec()).collect();
    all.push(Command::DeleteTopic(DeleteTopic { name: "orders".to_owned() }).encode(STAMP).to_vec());
    let of = BatchTopic { topic: TOPIC, generation: Generation(0) };
    let messages = [(TOPIC, message("c")), (TOPIC, message("d"))];
    all.push(encode_batch(STAMP, &[of], &messages).to_vec());
    all
}

pub(crate) fn state_snapshots() -> Vec<Vec<u8>> {
    let stream = crate::state::stream_of(&history());
    // The same sections without their checksums, as the target takes them apart.
    let mut sections = Vec::new();
    let mut rest = stream.get(8..).unwrap_or_default();
    while let Some((header, more)) = rest.split_first_chunk::<9>() {
        let [kind, l0, l1, l2, l3, ..] = *header;
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let (content, behind) = more.split_at(len.min(more.len()));
        sections.push(kind);
        sections.extend_from_slice(&[l0, l1]);
        sections.extend_from_slice(content);
        rest = behind;
    }
    vec![stream, sections]
}

pub(crate) fn snapshot_files() -> Vec<Vec<u8>> {
    vec![
        ledgermq_raft_store::fuzzing::a_snapshot_file(b""),
        ledgermq_raft_store::fuzzing::a_snapshot_file(b"the state of a group"),
    ]
}

fn of_kind(kind: u8, message: &impl prost::Message) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&message.encode_to_vec());
    bytes
}

pub(crate) fn peer_messages() -> Vec<Vec<u8>> {
    let id = |index| Some(raft::EntryId { term: 3, index });
    let ballot = Some(raft::Ballot { term: 3, node: 1, committed: true });
    let entry = raft::Entry {
        id: id(8),
        kind: raft::EntryKind::Normal.into(),
        payload: create_topic(),
        payload_at: 4096,
    };
    let append = raft::AppendRequest {
        ballot,
        previous: id(7),
        committed: id(7),
        entries: vec![entry],
        ..raft::AppendRequest::default()
    };
    let vote = raft::VoteRequest { ballot, last: id(7), is_pre_vote: true, ..raft::VoteRequest::default() };
    let transfer = raft::TransferLeaderRequest {
        from_leader: ballot,
        to_node: 2,
        last: id(8),
        ..raft::TransferLeaderRequest::default()
    };
    vec![
        of_kind(0, &append),
        of_kind(1, &vote),
        of_kind(2, &raft::AppendResponse::default()),
        of_kind(3, &transfer),
    ]
}

pub(crate) fn receipt_handles() -> Vec<Vec<u8>> {
    let handle = ReceiptHandle {
        group: GroupId(1),
        topic_id: 2,
        queue: QueueId(3),
        offset: QueueOffset(4),
        consumer_group_id: 5,
        delivery_epoch: 6,
        renewal: 7,
    };
    vec![handle.encode().into_bytes()]
}

pub(crate) fn recall_handles() -> Vec<Vec<u8>> {
    let handle =
        RecallHandle { group: GroupId(1), topic_id: 2, deliver_at: STAMP, physical: PhysicalOffset(4096) };
    vec![handle.encode().into_bytes()]
}

pub(crate) fn transaction_ids() -> Vec<Vec<u8>> {
    let id = TransactionId {
        group: GroupId(1),
        topic_id: 2,
        half: PhysicalOffset(4096),
        message_id_hash: 0xdead_beef,
    };
    vec![id.encode().into_bytes()]
}

pub(crate) fn filters() -> Vec<Vec<u8>> {
    [
        "TAGS = 'paid'",
        "amount > 250 AND region IN ('eu', 'us')",
        "a BETWEEN 1 AND 5.5 OR NOT (b IS NULL)",
        "region NOT IN ('x') AND (a <> 3 OR TRUE)",
        "region CONTAINS 'e' AND region NOT STARTSWITH 'x' AND region ENDSWITH 'u'",
        "a NOT BETWEEN -1 AND 1e3",
    ]
    .into_iter()
    .map(|text| text.as_bytes().to_vec())
    .collect()
}

fn resource(name: &str) -> Option<rocketmq::Resource> {
    Some(rocketmq::Resource { name: name.to_owned(), ..rocketmq::Resource::default() })
}

fn send_request() -> rocketmq::SendMessageRequest {
    let system = rocketmq::SystemProperties {
        message_id: "0101".to_owned(),
        tag: Some("paid".to_owned()),
        keys: vec!["order-1".to_owned()],
        delivery_timestamp: Some(prost_types::Timestamp { seconds: 1_700_000_060, nanos: 0 }),
        ..rocketmq::SystemProperties::default()
    };
    let message = rocketmq::Message {
        topic: resource("orders"),
        user_properties: [("region".to_owned(), "eu".to_owned())].into(),
        system_properties: Some(system),
        body: Bytes::from_static(b"paid"),
    };
    rocketmq::SendMessageRequest { messages: vec![message] }
}

fn receive_request() -> rocketmq::ReceiveMessageRequest {
    let expression = "amount > 250".to_owned();
    rocketmq::ReceiveMessageRequest {
        group: resource("billing"),
        filter_expression: Some(rocketmq::FilterExpression { r#type: 2, expression }),
        batch_size: 32,
        invisible_duration: Some(prost_types::Duration { seconds: 30, nanos: 0 }),
        ..rocketmq::ReceiveMessageRequest::default()
    }
}

pub(crate) fn client_requests() -> Vec<Vec<u8>> {
    let receipt_handle = receipt_handles()
        .into_iter()
        .next()
        .and_then(|text| String::from_utf8(text).ok())
        .unwrap_or_default();
    let entry = rocketmq::AckMessageEntry {
        message_id: "0101".to_owned(),
        receipt_handle: receipt_handle.clone(),
        ..rocketmq::AckMessageEntry::default()
    };
    let ack = rocketmq::AckMessageRequest {
        group: resource("billing"),
        topic: resource("orders"),
        entries: vec![entry],
    };
    let change = rocketmq::ChangeInvisibleDurationRequest {
        group: resource("billing"),
        topic: resource("orders"),
        receipt_handle,
        invisible_duration: Some(prost_types::Duration { seconds: 10, nanos: 0 }),
        ..rocketmq::ChangeInvisibleDurationRequest::default()
    };
    let end = rocketmq::EndTransactionRequest {
        topic: resource("orders"),
        message_id: "0101".to_owned(),
        ..rocketmq::EndTransactionRequest::default()
    };
    let pull = rocketmq::PullMessageRequest { offset: 7, ..rocketmq::PullMessageRequest::default() };
    vec![
        of_kind(0, &send_request()),
        of_kind(1, &receive_request()),
        of_kind(2, &ack),
        of_kind(3, &change),
        of_kind(4, &pull),
        of_kind(5, &end),
        of_kind(6, &messaging::StoreBatchRequest { messages: send_request().messages, ..Default::default() }),
    ]
}

pub(crate) fn forwarded_requests() -> Vec<Vec<u8>> {
    use forward::forward_request::Request;
    let receive = forward::Receive {
        consumer_group: "billing".to_owned(),
        topic: "orders".to_owned(),
        batch_size: 32,
        ..forward::Receive::default()
    };
    [Request::Send(send_request()), Request::Receive(receive)]
        .into_iter()
        .map(|request| {
            let request = forward::ForwardRequest {
                group: "group-1".to_owned(),
                context: Some(forward::CallContext {
                    remaining_ms: 3_000,
                    ..forward::CallContext::default()
                }),
                request: Some(request),
                ..forward::ForwardRequest::default()
            };
            request.encode_to_vec()
        })
        .collect()
}

pub(crate) fn configs() -> Vec<Vec<u8>> {
    [
        "worker_threads = 2\nnameservers = [\"127.0.0.1:9876\"]\n[listen]\nclient = \"0.0.0.0:8081\"\n",
        "[cluster]\nname = \"payments\"\n[node]\nid = 1\n",
    ]
    .into_iter()
    .map(|text| text.as_bytes().to_vec())
    .collect()
}

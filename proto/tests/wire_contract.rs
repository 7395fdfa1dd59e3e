//! The promises of the wire contracts, checked on encoded bytes and on the descriptors.
//!
//! The numbers below repeat the `.proto` files on purpose: released client SDKs depend on them, so an edit there must
//! fail here.

use std::collections::BTreeMap;

use bytes::Bytes;
use ledgermq_proto::FILE_DESCRIPTOR_SET;
use ledgermq_proto::rocketmq::{
    ClientType, Code, Message, MessageType, Permission, Resource, SystemProperties, telemetry_command,
};
use prost::Message as _;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet, Timestamp};

#[test]
fn a_message_survives_encoding_and_decoding() {
    let sent = message();

    let received = Message::decode(Bytes::from(sent.encode_to_vec())).expect("an encoded message decodes");

    assert_eq!(received, sent);
}

#[test]
fn a_received_body_is_a_slice_of_the_frame_it_arrived_in() {
    let frame = Bytes::from(message().encode_to_vec());

    let received = Message::decode(frame.clone()).expect("an encoded message decodes");

    let frame_range = frame.as_ptr_range();
    let body_range = received.body.as_ptr_range();
    assert!(frame_range.start <= body_range.start && body_range.end <= frame_range.end);
}

#[test]
fn equal_messages_encode_to_equal_bytes_whatever_the_order_of_their_properties() {
    let properties: Vec<(String, String)> =
        (0..64).map(|n| (format!("key-{n}"), format!("value-{n}"))).collect();
    let forwards = Message { user_properties: properties.iter().cloned().collect(), ..message() };
    let backwards = Message { user_properties: properties.into_iter().rev().collect(), ..message() };

    assert_eq!(forwards.encode_to_vec(), backwards.encode_to_vec());
}

#[test]
fn an_absent_optional_field_differs_from_its_default() {
    let absent = SystemProperties::default();
    let zero = SystemProperties { priority: Some(0), ..SystemProperties::default() };

    assert!(absent.encode_to_vec().is_empty());
    // Field 22 with wire type 0 is the key 176, two bytes as a varint.
    assert_eq!(zero.encode_to_vec(), [0xb0, 0x01, 0x00]);
}

#[test]
fn codes_keep_the_numbers_that_clients_know() {
    let expected = [
        (Code::Unspecified, 0),
        (Code::Ok, 20000),
        (Code::MultipleResults, 30000),
        (Code::BadRequest, 40000),
        (Code::InvalidReceiptHandle, 40013),
        (Code::ClientIdRequired, 40017),
        (Code::InvalidClientProperties, 40021),
        (Code::Unauthorized, 40100),
        (Code::Forbidden, 40300),
        (Code::MessageNotFound, 40401),
        (Code::TopicNotFound, 40402),
        (Code::MessageBodyTooLarge, 41301),
        (Code::MessageBodyEmpty, 41302),
        (Code::TooManyRequests, 42900),
        (Code::LiteSubscriptionQuotaExceeded, 42902),
        (Code::MessagePropertiesTooLarge, 43101),
        (Code::InternalServerError, 50001),
        (Code::HaNotAvailable, 50002),
        (Code::SlavePersistenceTimeout, 50402),
        (Code::VerifyFifoMessageUnsupported, 50502),
        (Code::FailedToConsumeMessage, 60000),
    ];
    for (code, number) in expected {
        assert_eq!(code as i32, number, "{}", code.as_str_name());
    }
    assert_eq!(MessageType::Priority as i32, 6);
    assert_eq!(ClientType::LiteSimpleConsumer as i32, 6);
    assert_eq!(Permission::ReadWrite as i32, 4);
}

#[test]
fn system_properties_keep_their_field_numbers_types_and_presence() {
    let expected = [
        (1, "tag", Type::String, true),
        (2, "keys", Type::String, false),
        (3, "message_id", Type::String, false),
        (4, "body_digest", Type::Message, false),
        (5, "body_encoding", Type::Enum, false),
        (6, "message_type", Type::Enum, false),
        (7, "born_timestamp", Type::Message, false),
        (8, "born_host", Type::String, false),
        (9, "store_timestamp", Type::Message, true),
        (10, "store_host", Type::String, false),
        (11, "delivery_timestamp", Type::Message, true),
        (12, "receipt_handle", Type::String, true),
        (13, "queue_id", Type::Int32, false),
        (14, "queue_offset", Type::Int64, true),
        (15, "invisible_duration", Type::Message, true),
        (16, "delivery_attempt", Type::Int32, true),
        (17, "message_group", Type::String, true),
        (18, "trace_context", Type::String, true),
        (19, "orphaned_transaction_recovery_duration", Type::Message, true),
        (20, "dead_letter_queue", Type::Message, true),
        (21, "lite_topic", Type::String, true),
        (22, "priority", Type::Int32, true),
    ];
    let descriptors = descriptors();
    let found: Vec<_> = rocketmq_message(&descriptors, "SystemProperties")
        .field
        .iter()
        .map(|field| (field.number(), field.name(), field.r#type(), field.proto3_optional()))
        .collect();

    assert_eq!(found, expected);
}

#[test]
fn telemetry_commands_keep_their_field_numbers() {
    let descriptors = descriptors();
    let found: Vec<_> = rocketmq_message(&descriptors, "TelemetryCommand")
        .field
        .iter()
        .map(|field| (field.number(), field.name()))
        .collect();

    assert_eq!(
        found,
        [
            (1, "status"),
            (2, "settings"),
            (3, "thread_stack_trace"),
            (4, "verify_message_result"),
            (5, "recover_orphaned_transaction_command"),
            (6, "print_thread_stack_trace_command"),
            (7, "verify_message_command"),
            (8, "reconnect_endpoints_command"),
            (9, "notify_unsubscribe_lite_command"),
        ]
    );
    let unsubscribe = telemetry_command::Command::NotifyUnsubscribeLiteCommand(Default::default());
    let command = ledgermq_proto::rocketmq::TelemetryCommand { status: None, command: Some(unsubscribe) };
    // Field 9 with wire type 2, then an empty message.
    assert_eq!(command.encode_to_vec(), [0x4a, 0x00]);
}

#[test]
fn the_messaging_service_offers_every_call_of_the_protocol() {
    let unary = (false, false);
    let server_stream = (false, true);
    let expected: BTreeMap<&str, (bool, bool)> = BTreeMap::from([
        ("AckMessage", unary),
        ("ChangeInvisibleDuration", unary),
        ("EndTransaction", unary),
        ("ForwardMessageToDeadLetterQueue", unary),
        ("GetOffset", unary),
        ("Heartbeat", unary),
        ("NotifyClientTermination", unary),
        ("PullMessage", server_stream),
        ("QueryAssignment", unary),
        ("QueryOffset", unary),
        ("QueryRoute", unary),
        ("RecallMessage", unary),
        ("ReceiveMessage", server_stream),
        ("SendMessage", unary),
        ("SyncLiteSubscription", unary),
        ("Telemetry", (true, true)),
        ("UpdateOffset", unary),
    ]);
    let descriptors = descriptors();
    let service = rocketmq_files(&descriptors)
        .flat_map(|file| &file.service)
        .find(|service| service.name() == "MessagingService")
        .expect("the messaging service is defined");
    let found: BTreeMap<&str, (bool, bool)> = service
        .method
        .iter()
        .map(|method| (method.name(), (method.client_streaming(), method.server_streaming())))
        .collect();

    assert_eq!(found, expected);
}

#[test]
fn the_descriptor_set_holds_every_package_and_all_its_imports() {
    let descriptors = descriptors();

    for package in [
        "apache.rocketmq.v2",
        "ledgermq.raft.v1",
        "ledgermq.forward.v1",
        "ledgermq.registry.v1",
        "ledgermq.admin.v1",
    ] {
        assert!(descriptors.file.iter().any(|file| file.package() == package), "{package} is missing");
    }
    // Reflection clients load files in order, so an import has to come before its user.
    let mut seen = Vec::new();
    for file in &descriptors.file {
        for import in &file.dependency {
            assert!(seen.contains(&import.as_str()), "{} comes before its import {import}", file.name());
        }
        seen.push(file.name());
    }
}

fn message() -> Message {
    Message {
        topic: Some(Resource { resource_namespace: String::new(), name: "orders".to_owned() }),
        user_properties: BTreeMap::from([("region".to_owned(), "north".to_owned())]),
        system_properties: Some(SystemProperties {
            tag: Some("paid".to_owned()),
            keys: vec!["order-17".to_owned()],
            message_id: "01AABBCCDDEEFF00112233445566778899".to_owned(),
            message_type: MessageType::Fifo as i32,
            born_timestamp: Some(Timestamp { seconds: 1_700_000_000, nanos: 42 }),
            queue_offset: Some(0),
            message_group: Some("customer-3".to_owned()),
            priority: Some(1),
            ..SystemProperties::default()
        }),
        body: Bytes::from_static(b"a body long enough to be worth a slice rather than a copy"),
    }
}

fn descriptors() -> FileDescriptorSet {
    FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("the embedded descriptor set decodes")
}

fn rocketmq_files(descriptors: &FileDescriptorSet) -> impl Iterator<Item = &FileDescriptorProto> {
    descriptors.file.iter().filter(|file| file.package() == "apache.rocketmq.v2")
}

fn rocketmq_message<'a>(descriptors: &'a FileDescriptorSet, name: &str) -> &'a DescriptorProto {
    rocketmq_files(descriptors)
        .flat_map(|file| &file.message_type)
        .find(|message| message.name() == name)
        .expect("the message is defined")
}

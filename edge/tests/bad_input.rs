//! Wrong requests at the gRPC port: the exact code, a message that names field, value and limit,
//! nothing stored, and the next request served.

mod support;

use std::time::{Duration, Instant};

use ledgermq_common::{GroupId, QueueId, QueueOffset, ReceiptHandle};
use ledgermq_edge::group_call::GroupRequest;
use ledgermq_proto::messaging::StoreBatchRequest;
use ledgermq_proto::rocketmq::{self as rmq, Code, FilterType, MessageType};
use support::*;

type Change<T> = Box<dyn Fn(&mut T)>;

fn system(message: &mut rmq::Message) -> &mut rmq::SystemProperties {
    message.system_properties.get_or_insert_default()
}

fn handle(group: u32) -> String {
    ReceiptHandle {
        group: GroupId(group),
        topic_id: 1,
        queue: QueueId(0),
        offset: QueueOffset(0),
        consumer_group_id: 1,
        delivery_epoch: 1,
        renewal: 0,
    }
    .encode()
}

#[tokio::test]
async fn each_wrong_batch_gets_its_code_and_stores_nothing() {
    let cluster = Cluster::start(1).await;
    cluster.elect(Some(1));
    let mut client = batch_client(cluster.node(1).client_addr).await;
    let second = |change: fn(&mut rmq::Message)| -> Change<StoreBatchRequest> {
        Box::new(move |request| change(&mut request.messages[1]))
    };
    let many = |topics: usize| -> Vec<rmq::Message> {
        let of = |number: usize| format!("t{}", number % topics);
        let made =
            |number: usize| rmq::Message { topic: resource(&of(number)), ..message(&format!("m{number}")) };
        (0..1025).map(made).collect()
    };
    let (too_many, too_many_topics) = (many(1), many(1025)[..65].to_vec());
    let rows: Vec<(&str, Code, &str, Change<StoreBatchRequest>)> = vec![
        ("no message", Code::MessageCorrupted, "messages", Box::new(|r| r.messages.clear())),
        ("1025 messages", Code::PayloadTooLarge, "1024", Box::new(move |r| r.messages = too_many.clone())),
        (
            "65 topics",
            Code::PayloadTooLarge,
            "65 topics; the limit is 64",
            Box::new(move |r| r.messages = too_many_topics.clone()),
        ),
        (
            "too much together",
            Code::PayloadTooLarge,
            "16777216",
            Box::new(|r| {
                r.messages = (0..5)
                    .map(|i| rmq::Message { body: vec![1; 3_400_000].into(), ..message(&format!("b{i}")) })
                    .collect();
            }),
        ),
        ("no topic", Code::IllegalTopic, "topic", second(|m| m.topic = None)),
        ("unknown topic", Code::TopicNotFound, "nowhere", second(|m| m.topic = resource("nowhere"))),
        ("empty body", Code::MessageBodyEmpty, "message 1", second(|m| m.body.clear())),
        (
            "an id twice in a topic",
            Code::IllegalMessageId,
            "that of message 0",
            second(|m| system(m).message_id = "a".to_owned()),
        ),
        (
            "a transaction",
            Code::MessagePropertyConflictWithType,
            "message 1: message_type",
            second(|m| system(m).set_message_type(MessageType::Transaction)),
        ),
        (
            "a delay",
            Code::MessagePropertyConflictWithType,
            "delivery_timestamp",
            second(|m| {
                system(m).delivery_timestamp = Some(prost_types::Timestamp { seconds: 1, nanos: 0 });
            }),
        ),
        (
            "a delay level",
            Code::MessagePropertyConflictWithType,
            "property DELAY",
            second(|m| {
                m.user_properties.insert("DELAY".to_owned(), "3".to_owned());
            }),
        ),
        (
            "a lite topic",
            Code::MessagePropertyConflictWithType,
            "lite_topic",
            second(|m| system(m).lite_topic = Some("room".to_owned())),
        ),
        (
            "a normal message for a topic of delays",
            Code::MessagePropertyConflictWithType,
            "takes DELAY",
            second(|m| m.topic = resource("delays")),
        ),
        (
            "an ordered message for a normal topic",
            Code::MessagePropertyConflictWithType,
            "FIFO",
            second(|m| system(m).message_group = Some("g".to_owned())),
        ),
        (
            "a broker group that is not there",
            Code::BadRequest,
            "broker_group is \"group-9\"",
            Box::new(|r| r.broker_group = "group-9".to_owned()),
        ),
    ];
    for (name, code, told, change) in rows {
        let mut request = batch(&[(TOPIC, "a"), (TOPIC, "b")]);
        change(&mut request);
        let answer = client.store_batch(java(request)).await.expect("gRPC OK").into_inner();
        let status = answer.status.expect("a status");
        assert_eq!(status.code(), code, "{name}: {}", status.message);
        assert!(status.message.contains(told), "{name}: {}", status.message);
        assert!(answer.places.is_empty(), "{name}");
    }
    assert_eq!(cluster.agreed.stored.lock().len(), 0);
    let fine = client.store_batch(java(batch(&[(TOPIC, "a"), (TOPIC, "b")]))).await.expect("gRPC OK");
    assert_eq!(code_of(&fine.into_inner().status), Code::Ok);
}

#[tokio::test]
async fn each_wrong_send_gets_its_code_and_stores_nothing() {
    let cluster = Cluster::start(1).await;
    cluster.elect(Some(1));
    let mut client = client(cluster.node(1).client_addr).await;
    let one = |change: fn(&mut rmq::Message)| -> Change<rmq::SendMessageRequest> {
        Box::new(move |request| change(&mut request.messages[0]))
    };
    let day = 24 * 3600;
    let rows: Vec<(&str, Code, &str, Change<rmq::SendMessageRequest>)> = vec![
        ("no message", Code::MessageCorrupted, "messages", Box::new(|r| r.messages.clear())),
        (
            "two topics",
            Code::MessageCorrupted,
            "other",
            Box::new(|r| {
                r.messages.push(rmq::Message { topic: resource("other"), ..message("m2") });
            }),
        ),
        (
            "too many messages",
            Code::PayloadTooLarge,
            "1024",
            Box::new(|r| {
                r.messages = (0..1025).map(|i| message(&format!("m{i}"))).collect();
            }),
        ),
        (
            "too much together",
            Code::PayloadTooLarge,
            "16777216",
            Box::new(|r| {
                r.messages = (0..5)
                    .map(|i| rmq::Message { body: vec![1; 3_400_000].into(), ..message(&format!("b{i}")) })
                    .collect();
            }),
        ),
        ("no topic", Code::IllegalTopic, "topic", one(|m| m.topic = None)),
        ("topic with a space", Code::IllegalTopic, "' '", one(|m| m.topic = resource("a b"))),
        ("topic too long", Code::IllegalTopic, "127", one(|m| m.topic = resource(&"x".repeat(128)))),
        ("system topic", Code::IllegalTopic, "reserved", one(|m| m.topic = resource("TBW102"))),
        ("unknown topic", Code::TopicNotFound, "nowhere", one(|m| m.topic = resource("nowhere"))),
        ("empty body", Code::MessageBodyEmpty, "body", one(|m| m.body.clear())),
        ("large body", Code::MessageBodyTooLarge, "4128768", one(|m| m.body = vec![1; 5 << 20].into())),
        (
            "129 properties",
            Code::MessagePropertiesTooLarge,
            "128",
            one(|m| {
                m.user_properties = (0..129).map(|i| (format!("k{i}"), "v".to_owned())).collect();
            }),
        ),
        (
            "4 MiB of properties",
            Code::MessagePropertiesTooLarge,
            "16384",
            one(|m| {
                m.user_properties.insert("k".to_owned(), "v".repeat(4 << 20));
            }),
        ),
        (
            "reserved property",
            Code::IllegalMessagePropertyKey,
            "UNIQ_KEY",
            one(|m| {
                m.user_properties.insert("UNIQ_KEY".to_owned(), "v".to_owned());
            }),
        ),
        (
            "control character in a property",
            Code::IllegalMessagePropertyKey,
            "control",
            one(|m| {
                m.user_properties.insert("k".to_owned(), "a\u{1}b".to_owned());
            }),
        ),
        ("blank tag", Code::IllegalMessageTag, "blank", one(|m| system(m).tag = Some("  ".to_owned()))),
        ("tag with a bar", Code::IllegalMessageTag, "|", one(|m| system(m).tag = Some("a|b".to_owned()))),
        (
            "key with a control character",
            Code::IllegalMessageKey,
            "control",
            one(|m| {
                system(m).keys = vec!["ok".to_owned(), "a\n".to_owned()];
            }),
        ),
        ("no message id", Code::IllegalMessageId, "message_id", one(|m| system(m).message_id.clear())),
        ("long message id", Code::IllegalMessageId, "255", one(|m| system(m).message_id = "x".repeat(256))),
        (
            "long message group",
            Code::IllegalMessageGroup,
            "63",
            one(|m| {
                system(m).message_group = Some("g".repeat(64));
            }),
        ),
        (
            "delivery in two years",
            Code::IllegalDeliveryTime,
            "delivery_timestamp",
            Box::new(move |r| {
                let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs() as i64;
                system(&mut r.messages[0]).delivery_timestamp =
                    Some(prost_types::Timestamp { seconds: now + 732 * day, nanos: 0 });
            }),
        ),
        (
            "transaction recovery of a year",
            Code::BadRequest,
            "3600",
            one(|m| {
                system(m).set_message_type(MessageType::Transaction);
                system(m).orphaned_transaction_recovery_duration = Some(duration(365 * 24 * 3600));
            }),
        ),
        (
            "ordered message for a normal topic",
            Code::MessagePropertyConflictWithType,
            "FIFO",
            one(|m| {
                system(m).message_group = Some("g".to_owned());
            }),
        ),
        (
            "transaction for a normal topic",
            Code::MessagePropertyConflictWithType,
            "TRANSACTION",
            one(|m| {
                system(m).set_message_type(MessageType::Transaction);
            }),
        ),
        (
            "delayed message for a normal topic",
            Code::MessagePropertyConflictWithType,
            "DELAY",
            one(|m| {
                system(m).delivery_timestamp = Some(prost_types::Timestamp { seconds: 1, nanos: 0 });
            }),
        ),
        (
            "normal message for a delay topic",
            Code::MessagePropertyConflictWithType,
            "DELAY",
            one(|m| {
                m.topic = resource("delays");
            }),
        ),
        (
            "delay level for a normal topic",
            Code::MessagePropertyConflictWithType,
            "DELAY",
            one(|m| {
                m.user_properties.insert("DELAY".to_owned(), "3".to_owned());
            }),
        ),
        (
            "negative priority",
            Code::BadRequest,
            "priority is -1",
            one(|m| {
                m.topic = resource("urgent");
                system(m).priority = Some(-1);
            }),
        ),
        (
            "priority for a normal topic",
            Code::MessagePropertyConflictWithType,
            "PRIORITY",
            one(|m| {
                system(m).priority = Some(1);
            }),
        ),
        (
            "no priority for a topic with priorities",
            Code::MessagePropertyConflictWithType,
            "PRIORITY",
            one(|m| m.topic = resource("urgent")),
        ),
        (
            "lite topic with a dot",
            Code::IllegalLiteTopic,
            "'.'",
            one(|m| {
                m.topic = resource("rooms");
                system(m).lite_topic = Some("a.b".to_owned());
            }),
        ),
        (
            "long lite topic",
            Code::IllegalLiteTopic,
            "64",
            one(|m| {
                m.topic = resource("rooms");
                system(m).lite_topic = Some("l".repeat(65));
            }),
        ),
        (
            "blank lite topic",
            Code::IllegalLiteTopic,
            "blank",
            one(|m| {
                m.topic = resource("rooms");
                system(m).lite_topic = Some(" ".to_owned());
            }),
        ),
        (
            "lite topic of a normal topic",
            Code::MessagePropertyConflictWithType,
            "LITE",
            one(|m| {
                system(m).lite_topic = Some("a".to_owned());
            }),
        ),
        (
            "no lite topic",
            Code::MessagePropertyConflictWithType,
            "LITE",
            one(|m| m.topic = resource("rooms")),
        ),
        (
            "two lite topics",
            Code::IllegalLiteTopic,
            "message 1",
            Box::new(|r| {
                r.messages = (0..2)
                    .map(|number| {
                        let mut message = message(&format!("m{number}"));
                        message.topic = resource("rooms");
                        system(&mut message).lite_topic = Some(format!("room-{number}"));
                        message
                    })
                    .collect();
            }),
        ),
        (
            "delay level that is no number",
            Code::IllegalMessagePropertyKey,
            "DELAY",
            one(|m| {
                m.user_properties.insert("DELAY".to_owned(), "soon".to_owned());
            }),
        ),
    ];
    for (name, code, said, change) in rows {
        let mut wrong = send("m1");
        change(&mut wrong);
        let answer = client.send_message(java(wrong)).await.expect("gRPC OK").into_inner();
        let text = answer.status.as_ref().map_or("", |status| &status.message);
        assert_eq!(code_of(&answer.status), code, "{name}: {text}");
        assert!(text.contains(said), "{name}: \"{text}\" does not say {said}");
        assert!(text.len() < 400, "{name}: the value is cut");
        assert!(answer.entries.iter().all(|entry| code_of(&entry.status) == code), "{name}");
    }
    assert!(cluster.agreed.stored.lock().is_empty());
    let good = client.send_message(java(send("good"))).await.expect("gRPC OK").into_inner();
    assert_eq!(code_of(&good.status), Code::Ok);

    let mut empty = send("m1");
    empty.messages[0].body.clear();
    let rust = request("RUST", Duration::from_secs(3), empty);
    let answer = client.send_message(rust).await.expect("gRPC OK").into_inner();
    assert_eq!(code_of(&answer.status), Code::BadRequest, "a number the Rust SDK knows");
}

#[tokio::test]
async fn each_wrong_receive_gets_its_code() {
    let cluster = Cluster::start(1).await;
    cluster.elect(Some(1));
    let mut client = client(cluster.node(1).client_addr).await;
    let filter = |r#type, text: &str| {
        Some(rmq::FilterExpression { r#type: i32::from(r#type), expression: text.to_owned() })
    };
    let rows: Vec<(&str, Code, Change<rmq::ReceiveMessageRequest>)> = vec![
        ("no queue", Code::IllegalTopic, Box::new(|r| r.message_queue = None)),
        ("no group", Code::IllegalConsumerGroup, Box::new(|r| r.group = None)),
        ("long group", Code::IllegalConsumerGroup, Box::new(|r| r.group = resource(&"g".repeat(121)))),
        ("system group", Code::IllegalConsumerGroup, Box::new(|r| r.group = resource("CID_RMQ_SYS_x"))),
        ("batch 0", Code::BadRequest, Box::new(|r| r.batch_size = 0)),
        ("batch -1", Code::BadRequest, Box::new(|r| r.batch_size = -1)),
        ("no lease", Code::IllegalInvisibleTime, Box::new(|r| r.invisible_duration = None)),
        (
            "negative lease",
            Code::IllegalInvisibleTime,
            Box::new(|r| r.invisible_duration = Some(duration(-5))),
        ),
        ("short lease", Code::IllegalInvisibleTime, Box::new(|r| r.invisible_duration = Some(duration(9)))),
        (
            "endless lease",
            Code::IllegalInvisibleTime,
            Box::new(|r| {
                r.invisible_duration = Some(duration(i64::MAX));
            }),
        ),
        (
            "negative poll",
            Code::IllegalPollingTime,
            Box::new(|r| r.long_polling_timeout = Some(duration(-1))),
        ),
        (
            "empty SQL",
            Code::IllegalFilterExpression,
            Box::new(move |r| {
                r.filter_expression = filter(FilterType::Sql, "");
            }),
        ),
        (
            "SQL with a syntax error",
            Code::IllegalFilterExpression,
            Box::new(move |r| {
                r.filter_expression = filter(FilterType::Sql, "a > 1 AND");
            }),
        ),
        (
            "SQL with a function",
            Code::IllegalFilterExpression,
            Box::new(move |r| {
                r.filter_expression = filter(FilterType::Sql, "upper(a) = 'X'");
            }),
        ),
        (
            "deep SQL",
            Code::IllegalFilterExpression,
            Box::new(move |r| {
                let text = format!("{}a = 1{}", "(".repeat(200), ")".repeat(200));
                r.filter_expression = filter(FilterType::Sql, &text);
            }),
        ),
        (
            "a megabyte of SQL",
            Code::IllegalFilterExpression,
            Box::new(move |r| {
                r.filter_expression = filter(FilterType::Sql, &"a = 1 OR ".repeat(1 << 17));
            }),
        ),
        (
            "filter of an unknown type",
            Code::IllegalFilterExpression,
            Box::new(move |r| {
                r.filter_expression = Some(rmq::FilterExpression { r#type: 99, expression: "a".to_owned() });
            }),
        ),
        (
            "bars only",
            Code::IllegalFilterExpression,
            Box::new(move |r| {
                r.filter_expression = filter(FilterType::Tag, "||");
            }),
        ),
        (
            "long filter",
            Code::IllegalFilterExpression,
            Box::new(move |r| {
                r.filter_expression = filter(FilterType::Tag, &"x".repeat(5000));
            }),
        ),
        ("long attempt id", Code::BadRequest, Box::new(|r| r.attempt_id = Some("x".repeat(129)))),
    ];
    for (name, code, change) in rows {
        let mut wrong = receive(Some(Duration::ZERO));
        change(&mut wrong);
        let (status, messages) = collect(&mut client, java(wrong)).await;
        assert_eq!((status.code(), messages.len()), (code, 0), "{name}: {}", status.message);
    }
    assert!(cluster.node(1).member.requests.lock().is_empty(), "no wrong request reached the group");

    let mut huge = receive(Some(Duration::from_millis(10)));
    huge.batch_size = 1_000_000;
    let (status, _) = collect(&mut client, java(huge)).await;
    assert_eq!(status.code(), Code::MessageNotFound, "too large a batch is cut, not refused");
}

#[tokio::test]
async fn each_wrong_receipt_gets_its_code_and_the_others_of_the_request_count() {
    let cluster = Cluster::start(1).await;
    cluster.elect(Some(1));
    let mut client = client(cluster.node(1).client_addr).await;
    let ack = |handles: &[&str]| rmq::AckMessageRequest {
        group: resource("readers"),
        topic: resource(TOPIC),
        entries: handles
            .iter()
            .map(|handle| rmq::AckMessageEntry {
                message_id: "m".to_owned(),
                receipt_handle: (*handle).to_owned(),
                ..Default::default()
            })
            .collect(),
    };
    let mut answer = async |request| client.ack_message(java(request)).await.expect("gRPC OK").into_inner();
    let foreign = handle(77);
    for bad in ["", "garbage", foreign.as_str(), &handle(1)[..20]] {
        let answered = answer(ack(&[bad])).await;
        assert_eq!(code_of(&answered.status), Code::InvalidReceiptHandle, "{bad}");
        assert_eq!(code_of(&answered.entries[0].status), Code::InvalidReceiptHandle);
    }
    let good = handle(1);
    let mixed = answer(ack(&[&good, "garbage", &good])).await;
    assert_eq!(code_of(&mixed.status), Code::MultipleResults);
    let codes: Vec<_> = mixed.entries.iter().map(|entry| code_of(&entry.status)).collect();
    assert_eq!(codes, [Code::Ok, Code::InvalidReceiptHandle, Code::Ok]);
    assert_eq!(code_of(&answer(ack(&[])).await.status), Code::BadRequest);
    for count in [1_025, 10_000] {
        let answered = answer(ack(&vec![good.as_str(); count])).await;
        assert_eq!(code_of(&answered.status), Code::PayloadTooLarge);
        let text = answered.status.expect("a status").message;
        assert!(text.contains(&count.to_string()) && text.contains("1024"), "{text}");
        assert!(answered.entries.is_empty(), "none of them was looked at");
    }
    assert_eq!(code_of(&answer(ack(&[&good])).await.status), Code::Ok);

    let change = |handle: &str, invisible| rmq::ChangeInvisibleDurationRequest {
        group: resource("readers"),
        topic: resource(TOPIC),
        receipt_handle: handle.to_owned(),
        invisible_duration: invisible,
        ..Default::default()
    };
    for (handle, invisible, code) in [
        (good.as_str(), Some(duration(-1)), Code::IllegalInvisibleTime),
        (good.as_str(), Some(duration(12 * 3600 + 1)), Code::IllegalInvisibleTime),
        ("garbage", Some(duration(1)), Code::InvalidReceiptHandle),
        (good.as_str(), Some(duration(0)), Code::Ok),
    ] {
        let answer =
            client.change_invisible_duration(java(change(handle, invisible))).await.expect("gRPC OK");
        assert_eq!(code_of(&answer.into_inner().status), code, "{handle} {invisible:?}");
    }
}

#[tokio::test]
async fn a_call_without_client_id_is_told_so_on_every_rpc() {
    let cluster = Cluster::start(1).await;
    cluster.elect(Some(1));
    let mut client = client(cluster.node(1).client_addr).await;
    let sent = client.send_message(send("m")).await.expect("gRPC OK").into_inner();
    assert_eq!(code_of(&sent.status), Code::ClientIdRequired);
    let route = client.query_route(rmq::QueryRouteRequest { topic: resource(TOPIC), endpoints: None });
    assert_eq!(code_of(&route.await.expect("gRPC OK").into_inner().status), Code::ClientIdRequired);
    let ended = client.end_transaction(rmq::EndTransactionRequest::default()).await.expect("gRPC OK");
    assert_eq!(code_of(&ended.into_inner().status), Code::ClientIdRequired);
    let telemetry = client.telemetry(tokio_stream::empty()).await.expect("gRPC OK");
    let command = telemetry.into_inner().message().await.expect("item").expect("one command");
    assert_eq!(code_of(&command.status), Code::ClientIdRequired);
}

#[tokio::test]
async fn a_wrong_question_about_an_offset_is_refused_with_its_code() {
    let cluster = Cluster::start(1).await;
    cluster.elect(Some(1));
    let mut client = client(cluster.node(1).client_addr).await;
    let queue = |topic: &str, id| {
        Some(rmq::MessageQueue { topic: resource(topic), id, ..rmq::MessageQueue::default() })
    };
    let rows = [
        ("no queue at all", None, 0, Code::IllegalTopic),
        ("any queue", queue(TOPIC, -1), 0, Code::BadRequest),
        ("negative offset", queue(TOPIC, 0), -1, Code::IllegalOffset),
    ];
    for (name, message_queue, offset, code) in rows {
        let update =
            rmq::UpdateOffsetRequest { group: resource("g"), message_queue: message_queue.clone(), offset };
        let updated = client.update_offset(java(update)).await.expect("gRPC OK").into_inner();
        assert_eq!(code_of(&updated.status), code, "{name}");
        let pull = rmq::PullMessageRequest {
            group: resource("g"),
            message_queue,
            offset,
            batch_size: 1,
            ..rmq::PullMessageRequest::default()
        };
        let mut pulled = client.pull_message(java(pull)).await.expect("gRPC OK").into_inner();
        let Some(rmq::pull_message_response::Content::Status(status)) =
            pulled.message().await.expect("item").and_then(|item| item.content)
        else {
            panic!("{name}: a status");
        };
        assert_eq!(status.code(), code, "{name}");
        assert!(pulled.message().await.expect("OK trailers").is_none());
    }
    let query = rmq::QueryOffsetRequest {
        message_queue: queue(TOPIC, 0),
        query_offset_policy: rmq::QueryOffsetPolicy::Timestamp as i32,
        timestamp: None,
    };
    let asked = client.query_offset(java(query)).await.expect("gRPC OK").into_inner();
    assert_eq!(code_of(&asked.status), Code::BadRequest, "a time is missing");
}

#[tokio::test]
async fn a_refused_receive_of_a_busy_looping_sdk_is_slowed_down() {
    let cluster = Cluster::start(1).await;
    cluster.elect(Some(1));
    let mut client = client(cluster.node(1).client_addr).await;
    let mut wrong = receive(Some(Duration::from_secs(5)));
    wrong.batch_size = 0;
    for (language, slow) in [("GO", true), ("JAVA", false)] {
        let began = Instant::now();
        let (status, _) =
            collect(&mut client, request(language, Duration::from_secs(8), wrong.clone())).await;
        assert_eq!(status.code(), Code::BadRequest);
        assert_eq!(began.elapsed() >= Duration::from_millis(900), slow, "{language}: {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn each_wrong_subscription_to_lite_topics_gets_its_code_and_reaches_no_group() {
    let cluster = Cluster::start(1).await;
    cluster.elect(Some(1));
    let mut client = client(cluster.node(1).client_addr).await;
    let good = || rmq::SyncLiteSubscriptionRequest {
        topic: resource("rooms"),
        group: resource("agents"),
        lite_topic_set: vec!["a".to_owned()],
        ..Default::default()
    };
    let with = |offset_type| Some(rmq::OffsetOption { offset_type: Some(offset_type) });
    let full = rmq::LiteSubscriptionAction::CompleteAdd;
    type Sync = rmq::SyncLiteSubscriptionRequest;
    let rows: Vec<(&str, Code, &str, Sync)> = vec![
        ("no topic", Code::IllegalTopic, "topic", Sync { topic: None, ..good() }),
        ("no group", Code::IllegalConsumerGroup, "group", Sync { group: None, ..good() }),
        ("unknown topic", Code::TopicNotFound, "nowhere", Sync { topic: resource("nowhere"), ..good() }),
        ("normal topic", Code::BadRequest, "LITE", Sync { topic: resource("orders"), ..good() }),
        (
            "illegal name",
            Code::IllegalLiteTopic,
            "'/'",
            Sync { lite_topic_set: vec!["ok".to_owned(), "a/b".to_owned()], ..good() },
        ),
        (
            "illegal name in a full list",
            Code::IllegalLiteTopic,
            "blank",
            Sync { action: full.into(), lite_topic_set: vec![String::new()], ..good() },
        ),
        (
            "2001 names in a full list",
            Code::LiteSubscriptionQuotaExceeded,
            "2000",
            Sync {
                action: full.into(),
                lite_topic_set: (0..2001).map(|number| format!("l{number}")).collect(),
                ..good()
            },
        ),
        (
            "10001 names",
            Code::LiteSubscriptionQuotaExceeded,
            "10000",
            Sync { lite_topic_set: (0..10_001).map(|number| format!("l{number}")).collect(), ..good() },
        ),
        (
            "negative offset",
            Code::IllegalOffset,
            "-1",
            Sync { offset_option: with(rmq::offset_option::OffsetType::Offset(-1)), ..good() },
        ),
        (
            "negative tail",
            Code::IllegalOffset,
            "-5",
            Sync { offset_option: with(rmq::offset_option::OffsetType::TailN(-5)), ..good() },
        ),
        ("negative version", Code::BadRequest, "version", Sync { version: Some(-3), ..good() }),
    ];
    for (name, code, said, wrong) in rows {
        let answer = client.sync_lite_subscription(java(wrong)).await.expect("gRPC OK").into_inner();
        let text = answer.status.as_ref().map_or("", |status| &status.message);
        assert_eq!(code_of(&answer.status), code, "{name}: {text}");
        assert!(text.contains(said), "{name}: \"{text}\" does not say {said}");
    }
    let synced = |member: &Member| {
        let requests = member.requests.lock();
        requests.iter().filter(|request| matches!(request, GroupRequest::SyncLite(_))).count()
    };
    assert_eq!(synced(&cluster.node(1).member), 0);
    let leaving = Sync {
        action: rmq::LiteSubscriptionAction::PartialRemove.into(),
        lite_topic_set: vec!["a.b".to_owned()],
        ..good()
    };
    for request in [good(), leaving] {
        let answer = client.sync_lite_subscription(java(request)).await.expect("gRPC OK").into_inner();
        assert_eq!(code_of(&answer.status), Code::Ok, "a name that never was one may be left");
    }
    assert_eq!(synced(&cluster.node(1).member), 2);
    let rust =
        request("RUST", Duration::from_secs(3), Sync { lite_topic_set: vec![" ".to_owned()], ..good() });
    let answer = client.sync_lite_subscription(rust).await.expect("gRPC OK").into_inner();
    assert_eq!(code_of(&answer.status), Code::BadRequest, "a number the Rust SDK knows");
}

//! Messages a consumer group gives up: by its retry policy, by the consumer, and their way back.

use std::time::Duration;

use ledgermq_proto::admin::admin_client::AdminClient;
use ledgermq_proto::admin::{
    CustomisedBackoff, DeadLetter, ListDeadLettersRequest, RedriveDeadLettersRequest,
    SetConsumerGroupRequest, set_consumer_group_request,
};
use ledgermq_proto::rocketmq::{Code, Message};
use tonic::transport::{Channel, Endpoint};

use crate::support::client::{Receive, handle, id, message, system};
use crate::support::{Client, Cluster};

const SHORT: Duration = Duration::from_millis(300);

struct Bed {
    cluster: Cluster,
    client: Client,
    admin: AdminClient<Channel>,
}

impl Bed {
    async fn start() -> Self {
        let cluster = tokio::task::spawn_blocking(|| Cluster::start(1)).await.expect("a cluster");
        let address = cluster.nodes[0].client_addr();
        let client = Client::connect(&address).await;
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let admin = AdminClient::new(endpoint.connect().await.expect("a broker"));
        Self { cluster, client, admin }
    }

    async fn allow_attempts(&mut self, group: &str, max_attempts: u32) {
        let steps = CustomisedBackoff { steps_ms: vec![100] };
        let request = SetConsumerGroupRequest {
            name: group.to_owned(),
            max_attempts,
            backoff: Some(set_consumer_group_request::Backoff::Customised(steps)),
            ..SetConsumerGroupRequest::default()
        };
        let set = self.admin.set_consumer_group(request).await.expect("set").into_inner();
        let retry = set.consumer_group.and_then(|group| group.retry).expect("a retry policy");
        assert_eq!(retry.max_attempts, max_attempts);
    }

    async fn one(&self, topic: &str, group: &str) -> Message {
        let (status, mut messages) = self.client.receive(topic, group, Receive::default()).await;
        assert_eq!((status, messages.len()), (Code::Ok, 1));
        messages.remove(0)
    }

    async fn nack(&self, topic: &str, group: &str, message: &Message) {
        self.client.change_invisible(topic, group, handle(message), Duration::ZERO).await;
    }

    async fn letters(&mut self, group: &str) -> Vec<DeadLetter> {
        let request = ListDeadLettersRequest { consumer_group: group.to_owned(), ..Default::default() };
        self.admin.list_dead_letters(request).await.expect("a list").into_inner().letters
    }

    async fn stop(self) {
        tokio::task::spawn_blocking(move || drop(self.cluster)).await.expect("the end of the cluster");
    }
}

fn short() -> Receive {
    Receive { poll: SHORT, ..Receive::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_fails_as_often_as_allowed_is_read_from_the_dead_letters_and_comes_back_when_redriven() {
    let mut bed = Bed::start().await;
    bed.client.send(message("orders", "id-1", "hello")).await;
    bed.allow_attempts("billing", 2).await;
    for attempt in 1..=2 {
        let got = bed.one("orders", "billing").await;
        assert_eq!(system(&got).delivery_attempt, Some(attempt));
        bed.nack("orders", "billing", &got).await;
    }
    // It is moved when the last lease has ended; the topic of the dead letters comes with it.
    let letters = loop {
        let letters = bed.letters("billing").await;
        if !letters.is_empty() {
            break letters;
        }
        tokio::task::yield_now().await;
    };
    let letter = &letters[0];
    assert_eq!((letter.message_id.as_str(), letter.topic.as_str()), ("id-1", "orders"));
    assert_eq!((letter.reason.as_str(), letter.attempts, letter.redriven), ("attempts-exhausted", 2, false));
    assert_eq!(bed.client.receive("orders", "billing", short()).await.0, Code::MessageNotFound);

    let dead = bed.one("%DLQ%billing", "undertaker").await;
    let sent = message("orders", "id-1", "hello");
    assert_eq!((id(&dead), &dead.body), ("id-1", &sent.body));
    assert_eq!((&system(&dead).keys, &system(&dead).tag), (&system(&sent).keys, &system(&sent).tag));
    let origin = system(&dead).dead_letter_queue.as_ref().expect("its origin");
    assert_eq!((origin.topic.as_str(), origin.message_id.as_str()), ("orders", "id-1"));
    for (key, value) in [
        ("colour", "red"),
        ("dlq.origin.topic", "orders"),
        ("dlq.origin.message-id", "id-1"),
        ("dlq.reason", "attempts-exhausted"),
        ("dlq.attempts", "2"),
    ] {
        assert_eq!(dead.user_properties.get(key).map(String::as_str), Some(value), "{key}");
    }

    let redrive = RedriveDeadLettersRequest {
        consumer_group: "billing".to_owned(),
        group: letter.group.clone(),
        offsets: vec![letter.offset],
    };
    let redriven = bed.admin.redrive_dead_letters(redrive.clone()).await.expect("redriven").into_inner();
    assert_eq!(redriven.redriven, 1);
    let again = bed.admin.redrive_dead_letters(redrive).await.expect("an answer").into_inner();
    assert_eq!(again.redriven, 0, "each letter goes back once");
    assert!(bed.letters("billing").await[0].redriven);
    let got = bed.one("orders", "billing").await;
    assert_eq!((id(&got), system(&got).delivery_attempt), ("id-1", Some(1)));
    assert_eq!(bed.client.ack("orders", "billing", &got).await, Code::Ok);
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_consumer_forwards_a_message_by_its_handle_or_by_its_id_and_may_repeat_that() {
    let mut bed = Bed::start().await;
    for (id, by_handle) in [("id-1", true), ("id-2", false)] {
        bed.client.send(message("orders", id, "hello")).await;
        let got = bed.one("orders", "billing").await;
        let receipt = if by_handle { handle(&got) } else { "" };
        for _ in 0..2 {
            assert_eq!(bed.client.forward("orders", "billing", receipt, id).await, Code::Ok, "{id}");
        }
        assert_eq!(bed.client.ack("orders", "billing", &got).await, Code::Ok, "it is consumed");
    }
    let letters = bed.letters("billing").await;
    let shown: Vec<_> = letters.iter().map(|l| (l.message_id.as_str(), l.reason.as_str())).collect();
    assert_eq!(shown, [("id-1", "forwarded"), ("id-2", "forwarded")], "a repeat adds no letter");
    assert_eq!(bed.client.receive("orders", "billing", short()).await.0, Code::MessageNotFound);
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_forward_of_nothing_is_refused() {
    let bed = Bed::start().await;
    bed.client.send(message("orders", "id-1", "hello")).await;
    bed.client.send(message("other", "id-2", "hello")).await;
    let got = bed.one("orders", "billing").await;
    let rows = [
        ("orders", "billing", "garbage", "id-1", Code::InvalidReceiptHandle),
        ("other", "billing", handle(&got), "id-1", Code::InvalidReceiptHandle),
        ("orders", "nobody", handle(&got), "id-1", Code::ConsumerGroupNotFound),
        ("orders", "billing", "", "id-9", Code::MessageNotFound),
        ("orders", "billing", "", " ", Code::IllegalMessageId),
        ("no-such-topic", "billing", handle(&got), "id-1", Code::TopicNotFound),
        ("bad topic", "billing", handle(&got), "id-1", Code::IllegalTopic),
        ("orders", "bad group", handle(&got), "id-1", Code::IllegalConsumerGroup),
    ];
    for (topic, group, receipt, id, expected) in rows {
        assert_eq!(bed.client.forward(topic, group, receipt, id).await, expected, "{topic} {group} {id}");
    }
    assert_eq!(bed.client.ack("orders", "billing", &got).await, Code::Ok, "the delivery itself is unharmed");
    bed.stop().await;
}

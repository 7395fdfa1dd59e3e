//! Settings as each SDK needs them, and streams that end as each SDK can bear.

mod support;

use std::time::Duration;

use ledgermq_edge::group_call::ConsumerGroupDescription;
use ledgermq_proto::rocketmq::retry_policy::Strategy;
use ledgermq_proto::rocketmq::settings::PubSub;
use ledgermq_proto::rocketmq::telemetry_command::Command;
use ledgermq_proto::rocketmq::{self as rmq, ClientType, Code};
use support::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

const STREAM_DEADLINE: Duration = Duration::from_secs(3600);

fn producer() -> rmq::Settings {
    rmq::Settings {
        client_type: Some(ClientType::Producer.into()),
        access_point: Some(rmq::Endpoints::default()),
        request_timeout: Some(duration(3)),
        pub_sub: Some(PubSub::Publishing(rmq::Publishing {
            topics: resource(TOPIC).into_iter().collect(),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn consumer() -> rmq::Settings {
    rmq::Settings {
        client_type: Some(ClientType::PushConsumer.into()),
        pub_sub: Some(PubSub::Subscription(rmq::Subscription {
            group: Some(rmq::Resource { resource_namespace: "ns".to_owned(), name: "readers".to_owned() }),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn command(settings: rmq::Settings) -> rmq::TelemetryCommand {
    rmq::TelemetryCommand { status: None, command: Some(Command::Settings(settings)) }
}

/// Opens a stream, sends the settings, returns the reply, and sees that a half-close ends it with OK.
async fn exchange(
    cluster: &Cluster,
    language: &'static str,
    settings: rmq::Settings,
) -> Result<rmq::Settings, tonic::Status> {
    let mut client = client(cluster.node(1).client_addr).await;
    let (commands, sent) = mpsc::channel(4);
    commands.send(command(settings)).await.expect("open");
    let mut replies =
        client.telemetry(request(language, STREAM_DEADLINE, ReceiverStream::new(sent))).await?.into_inner();
    let reply = replies.message().await?.expect("a reply");
    assert_eq!(code_of(&reply.status), Code::Ok);
    let Some(Command::Settings(settings)) = reply.command else { panic!("settings") };
    drop(commands);
    assert!(replies.message().await.expect("OK trailers after a half-close").is_none());
    Ok(settings)
}

#[tokio::test]
async fn producers_of_every_language_get_exponential_back_off_and_their_fields_back() {
    let cluster = Cluster::start(1).await;
    cluster.elect(Some(1));
    for language in ["JAVA", "GO", "PYTHON", "HTTP", "DOTNET", "CPP", "RUST"] {
        let settings = exchange(&cluster, language, producer()).await.expect("settings");
        let policy = settings.backoff_policy.expect("a policy");
        assert!(matches!(policy.strategy, Some(Strategy::ExponentialBackoff(_))), "{language}");
        assert!(policy.max_attempts >= 3);
        assert_eq!(settings.request_timeout, Some(duration(3)));
        assert!(!settings.metric.expect("metric").on);
        let Some(PubSub::Publishing(publishing)) = settings.pub_sub else { panic!("the same case") };
        assert_eq!(publishing.topics, resource(TOPIC).into_iter().collect::<Vec<_>>());
        assert_eq!(publishing.max_body_size, 4 * 1024 * 1024 - 64 * 1024);
    }
}

#[tokio::test]
async fn consumers_get_the_back_off_their_language_understands() {
    let cluster = Cluster::start(1).await;
    cluster.elect(Some(1));
    for (language, exponential) in [("PYTHON", false), ("JAVA", false), ("GO", false), ("HTTP", true)] {
        let settings = exchange(&cluster, language, consumer()).await.expect("settings");
        let policy = settings.backoff_policy.expect("a policy");
        assert_eq!(policy.max_attempts, 17);
        match policy.strategy {
            Some(Strategy::ExponentialBackoff(_)) => assert!(exponential, "{language}"),
            Some(Strategy::CustomizedBackoff(custom)) => {
                assert!(!exponential, "{language}");
                assert_eq!(custom.next.len(), 18);
            }
            None => panic!("{language}: no strategy"),
        }
        let Some(PubSub::Subscription(subscription)) = settings.pub_sub else { panic!("the same case") };
        assert_eq!(subscription.receive_batch_size, Some(32));
        assert_eq!(subscription.long_polling_timeout, Some(duration(20)));
        assert_eq!(subscription.fifo, Some(false));
        assert_eq!(
            subscription.group.expect("group").resource_namespace,
            "ns",
            "namespaces come back unchanged"
        );
    }
}

#[tokio::test]
async fn a_consumer_starts_although_no_group_has_a_leader() {
    let cluster = Cluster::start(1).await;
    let began = std::time::Instant::now();
    exchange(&cluster, "JAVA", consumer()).await.expect("settings");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

/// An SDK that is told of no order hands out messages of one message group to several threads.
#[tokio::test]
async fn a_consumer_learns_that_its_group_keeps_order_from_the_leader_and_in_an_election_from_its_node() {
    let cluster = Cluster::start(1).await;
    let in_order = ConsumerGroupDescription { fifo: true, ..ConsumerGroupDescription::default() };
    let applied = |description| *cluster.node(1).member.applied_consumer_group.lock() = Some(description);
    let told = async || {
        let settings = exchange(&cluster, "JAVA", consumer()).await.expect("settings");
        let Some(PubSub::Subscription(subscription)) = settings.pub_sub else { panic!("the same case") };
        subscription.fifo
    };

    applied(in_order.clone());
    assert_eq!(told().await, Some(true), "no leader: what the node has applied");
    cluster.elect(Some(1));
    *cluster.agreed.consumer_group.lock() = in_order;
    applied(ConsumerGroupDescription::default());
    assert_eq!(told().await, Some(true), "what is agreed, although the node has not applied it yet");
}

#[tokio::test]
async fn settings_without_a_side_or_with_illegal_names_end_the_stream() {
    let cluster = Cluster::start(1).await;
    cluster.elect(Some(1));
    let neither = rmq::Settings { pub_sub: None, ..producer() };
    let illegal = rmq::Settings {
        pub_sub: Some(PubSub::Publishing(rmq::Publishing {
            topics: resource("a b").into_iter().collect(),
            ..Default::default()
        })),
        ..producer()
    };
    for wrong in [neither, illegal] {
        let status = exchange(&cluster, "JAVA", wrong).await.expect_err("refused");
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
    }
}

#[tokio::test]
async fn a_subscription_with_a_bad_filter_is_refused_with_its_code_and_column() {
    let cluster = Cluster::start(1).await;
    cluster.elect(Some(1));
    let subscribing = |r#type: rmq::FilterType, text: &str| {
        let mut settings = consumer();
        let Some(PubSub::Subscription(subscription)) = &mut settings.pub_sub else { panic!("a consumer") };
        subscription.subscriptions = vec![rmq::SubscriptionEntry {
            topic: resource(TOPIC),
            expression: Some(rmq::FilterExpression { r#type: r#type.into(), expression: text.to_owned() }),
        }];
        settings
    };
    for text in ["a > 5 AND TAGS = 'x'", "missing IS NULL"] {
        exchange(&cluster, "JAVA", subscribing(rmq::FilterType::Sql, text)).await.expect("settings");
    }
    let mut client = client(cluster.node(1).client_addr).await;
    let (commands, sent) = mpsc::channel(4);
    commands.send(command(subscribing(rmq::FilterType::Sql, "a > 5 OR OR b"))).await.expect("open");
    let stream = client.telemetry(request("JAVA", STREAM_DEADLINE, ReceiverStream::new(sent)));
    let mut replies = stream.await.expect("a stream").into_inner();
    let refused = replies.message().await.expect("a command").expect("a command");
    assert_eq!(code_of(&refused.status), Code::IllegalFilterExpression);
    assert!(refused.status.expect("a status").message.contains("line 1, column 10"), "the place is named");
    let end = replies.message().await.expect_err("the stream ends");
    assert_eq!(end.code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn a_stopping_node_ends_its_streams_with_ok() {
    let cluster = Cluster::start(1).await;
    cluster.elect(Some(1));
    let mut client = client(cluster.node(1).client_addr).await;
    let (commands, sent) = mpsc::channel(4);
    commands.send(command(producer())).await.expect("open");
    let mut replies = client
        .telemetry(request("JAVA", STREAM_DEADLINE, ReceiverStream::new(sent)))
        .await
        .expect("a stream")
        .into_inner();
    replies.message().await.expect("item").expect("settings");
    cluster.node(1).edge.stop();
    assert!(replies.message().await.expect("OK trailers").is_none());
}

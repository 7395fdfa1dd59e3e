//! The unmodified Rust SDK (crate `rocketmq` 5.0.0): producer and simple consumer through a
//! nameserver, one broker and a list. Bodies, tags, keys and properties must arrive equal.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use ledgermq::cluster::Member;
use ledgermq_jepsen_tests::bed::Bed;
use rocketmq::conf::{ClientOption, ProducerOption, SimpleConsumerOption};
use rocketmq::model::common::{FilterExpression, FilterType};
use rocketmq::model::message::MessageBuilder;
use rocketmq::{Producer, SimpleConsumer};

const MESSAGES: usize = 30;
const RECEIVE_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug, PartialEq, Eq)]
struct Content {
    body: Vec<u8>,
    tag: Option<String>,
    keys: Vec<String>,
    properties: BTreeMap<String, String>,
}

fn content(number: usize) -> Content {
    Content {
        body: (0..1 + (number % 5) * 7000).map(|i| (i + number) as u8).collect(),
        tag: Some(format!("tag-{}", number % 3)),
        keys: vec![format!("key-{number}"), format!("order-{number}")],
        properties: BTreeMap::from([("number".to_owned(), number.to_string())]),
    }
}

fn options(access_point: &str) -> ClientOption {
    let mut option = ClientOption::default();
    option.set_access_url(access_point);
    option.set_enable_tls(false);
    option.set_long_polling_timeout(Duration::from_secs(5));
    option
}

async fn round_trip(name: &str, access_point: &str) -> Result<()> {
    let topic = format!("rust-{name}");
    let mut producer_option = ProducerOption::default();
    producer_option.set_topics(vec![topic.clone()]);
    let mut producer =
        Producer::new(producer_option, options(access_point)).map_err(|error| anyhow!("{error}"))?;
    producer.start().await.map_err(|error| anyhow!("{error}"))?;
    let mut sent = BTreeMap::new();
    for number in 0..MESSAGES {
        let content = content(number);
        let message = MessageBuilder::builder()
            .set_topic(&topic)
            .set_body(content.body.clone())
            .set_tag(content.tag.clone().unwrap_or_default())
            .set_keys(content.keys.clone())
            .set_properties(
                content.properties.iter().map(|(k, v)| (k.clone(), v.clone())).collect::<HashMap<_, _>>(),
            )
            .build()
            .map_err(|error| anyhow!("{error}"))?;
        let receipt = producer.send(message).await.map_err(|error| anyhow!("send {number}: {error}"))?;
        sent.insert(receipt.message_id().to_owned(), content);
    }
    ensure!(sent.len() == MESSAGES, "message ids repeat");

    let mut consumer_option = SimpleConsumerOption::default();
    consumer_option.set_topics(vec![topic.clone()]);
    consumer_option.set_consumer_group(format!("{topic}-group"));
    let mut consumer =
        SimpleConsumer::new(consumer_option, options(access_point)).map_err(|error| anyhow!("{error}"))?;
    consumer.start().await.map_err(|error| anyhow!("{error}"))?;
    let deadline = Instant::now() + RECEIVE_WITHIN;
    let mut received = BTreeMap::new();
    while received.len() < MESSAGES && Instant::now() < deadline {
        let messages = consumer
            .receive(topic.clone(), &FilterExpression::new(FilterType::Tag, "*"))
            .await
            .map_err(|error| anyhow!("receive: {error}"))?;
        for message in messages {
            consumer.ack(&message).await.map_err(|error| anyhow!("ack: {error}"))?;
            let arrived = Content {
                body: message.body().to_vec(),
                tag: message.tag().map(str::to_owned),
                keys: message.keys().to_vec(),
                properties: message.properties().iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            };
            ensure!(
                message.delivery_attempt() == 1,
                "first delivery says attempt {}",
                message.delivery_attempt()
            );
            ensure!(received.insert(message.message_id().to_owned(), arrived).is_none(), "received twice");
        }
    }
    ensure!(received == sent, "{name}: what arrived differs from what was sent");
    producer.shutdown().await.map_err(|error| anyhow!("{error}"))?;
    consumer.shutdown().await.map_err(|error| anyhow!("{error}"))?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rust_sdk_sends_and_receives_through_every_kind_of_access_point() -> Result<()> {
    let bed = Bed::make(|_| {}).await?;
    let nameserver = bed.cluster.access_point(Member::Nameserver(1))?;
    let broker = bed.cluster.access_point(Member::Broker(3))?;
    // This SDK separates a list by commas.
    let list = bed.cluster.broker_access_points().replace(';', ",");
    for (name, access_point) in [("nameserver", &nameserver), ("broker", &broker), ("list", &list)] {
        round_trip(name, access_point)
            .await
            .map_err(|error| error.context(format!("through {name} {access_point}")))?;
    }
    bed.passed().await
}

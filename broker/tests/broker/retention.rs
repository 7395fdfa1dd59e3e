//! Retention on real disks: the log stays small under load, and what is owed outlives it, also when
//! the leader dies.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ledgermq_proto::admin::admin_client::AdminClient;
use ledgermq_proto::admin::{
    CreateTopicRequest, SetTopicRetentionRequest, ShowRetentionRequest, ShowTopicRequest,
};
use ledgermq_proto::rocketmq::{Code, Message, MessageType};
use tonic::transport::{Channel, Endpoint};

use crate::support::client::{Receive, code, id, message, system};
use crate::support::{Client, Cluster, Node};

const BODY_BYTES: usize = 32 << 10;
const PRODUCERS: usize = 8;
/// 64 MiB a filling, three segments with what the other filling left.
const MESSAGES_PER_PRODUCER: usize = 256;
const FILLINGS_MAX: usize = 10;
const SETTLES_WITHIN: Duration = Duration::from_secs(10);

#[expect(clippy::disallowed_methods, reason = "delivery times are by the wall clock of the client")]
fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(now.as_millis()).expect("a time")
}

fn delayed(topic: &str, id: &str, at_ms: u64) -> Message {
    let mut message = message(topic, id, id);
    let system = message.system_properties.as_mut().expect("system properties");
    system.delivery_timestamp = Some(prost_types::Timestamp {
        seconds: i64::try_from(at_ms / 1000).expect("seconds"),
        nanos: i32::try_from(at_ms % 1000 * 1_000_000).expect("nanoseconds"),
    });
    message
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("it ended")
}

async fn admin(cluster: &Cluster, node: usize) -> AdminClient<Channel> {
    let address = format!("http://{}", cluster.nodes[node].client_addr());
    AdminClient::new(Endpoint::from_shared(address).expect("an address").connect().await.expect("a broker"))
}

/// Every send is acknowledged, or fails the test.
async fn fill(address: &str, name: &str) {
    let body = "x".repeat(BODY_BYTES);
    let mut producers = tokio::task::JoinSet::new();
    for producer in 0..PRODUCERS {
        let (client, body, name) = (Client::connect(address).await, body.clone(), name.to_owned());
        producers.spawn(async move {
            for number in 0..MESSAGES_PER_PRODUCER {
                client.send(message("bulk", &format!("{name}-{producer}-{number}"), &body)).await;
            }
        });
    }
    while let Some(ended) = producers.join_next().await {
        ended.expect("every message was acknowledged");
    }
}

/// What one replica keeps.
#[derive(Debug)]
struct Kept {
    size_bytes: u64,
    carried_bytes: u64,
    purged_index: u64,
}

impl Kept {
    fn of(node: &Node) -> Self {
        Self {
            size_bytes: figure(node, "rocketmq_storage_size"),
            carried_bytes: figure(node, "ledgermq_carried_bytes_total"),
            purged_index: figure(node, "ledgermq_raft_purged_index"),
        }
    }

    /// Less than was written by three segments, the timers in it were carried, and Raft has let go.
    fn is_little(&self, written: u64) -> bool {
        self.size_bytes > 0
            && self.size_bytes < written - (48 << 20)
            && self.carried_bytes > 0
            && self.purged_index > 0
    }
}

fn figure(node: &Node, name: &str) -> u64 {
    let (_, text) = node.http("/metrics");
    let line = text.lines().find(|line| line.starts_with(name) && !line.starts_with('#'));
    line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).map_or(0, |value| value as u64)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_stays_small_under_load_and_timers_outlive_their_segments_and_a_dead_leader() {
    let cluster = blocking(|| {
        Cluster::start_with(3, |config| {
            config.topics.retention_s = 1;
            config.topics.retention_check_ms = 200;
            config.storage.snapshot_interval_bytes = 4 << 20;
            config.storage.purge_margin_entries = 1_000;
        })
    })
    .await;
    let mut admin_client = admin(&cluster, 0).await;
    let create = CreateTopicRequest {
        name: "later".to_owned(),
        message_type: MessageType::Delay as i32,
        ..CreateTopicRequest::default()
    };
    admin_client.create_topic(create).await.expect("created");
    let keep = SetTopicRetentionRequest { topic: "later".to_owned(), retention_ms: Some(3_600_000) };
    let set = admin_client.set_topic_retention(keep).await.expect("set").into_inner();
    assert_eq!((set.parts[0].retention_ms, set.parts[0].own_retention), (3_600_000, true));

    let (cluster, leader, follower) = blocking(move || {
        let (leader, follower) = (cluster.leader(), cluster.follower());
        (cluster, leader, follower)
    })
    .await;
    let address = cluster.nodes[follower].client_addr();
    let client = Client::connect(&address).await;
    let send_delayed = async |name: &str, ahead_ms: u64| {
        let sent =
            client.try_send(vec![delayed("later", name, now_ms() + ahead_ms)]).await.expect("an answer");
        assert_eq!(code(sent.status.as_ref()), Code::Ok, "{sent:?}");
        sent.entries[0].recall_handle.clone()
    };
    let recall_handle = send_delayed("recalled", 24 * 3_600_000).await;
    send_delayed("fired", 20_000).await;
    fill(&address, "first").await;

    let mut cluster = blocking(move || {
        let mut cluster = cluster;
        cluster.nodes[leader].kill();
        cluster
    })
    .await;
    fill(&address, "second").await;
    // Down while the log it needs was purged. What it is brought may be a log as short as the others'
    // already, so it has something to purge only when more comes.
    let mut cluster = blocking(move || {
        cluster.nodes[leader].start();
        cluster
    })
    .await;
    let mut fillings = 2;
    loop {
        let written = (fillings * PRODUCERS * MESSAGES_PER_PRODUCER * BODY_BYTES) as u64;
        let (back, kept) = blocking(move || {
            let began = std::time::Instant::now();
            let kept = loop {
                let kept: Vec<Kept> = cluster.nodes.iter().map(Kept::of).collect();
                let is_over = began.elapsed() >= SETTLES_WITHIN;
                if is_over || kept.iter().all(|kept| kept.is_little(written)) {
                    break kept;
                }
                std::thread::sleep(Duration::from_millis(50));
            };
            (cluster, kept)
        })
        .await;
        cluster = back;
        if kept.iter().all(|kept| kept.is_little(written)) {
            break;
        }
        fillings += 1;
        assert!(fillings <= FILLINGS_MAX, "not released after {written} bytes: {kept:?}");
        fill(&address, &format!("filling-{fillings}")).await;
    }

    let mut admin_client = admin(&cluster, follower).await;
    let shown = ShowTopicRequest { name: "bulk".to_owned() };
    let shown = admin_client.show_topic(shown).await.expect("shown").into_inner();
    assert!(shown.queues.iter().all(|queue| queue.min_offset > 0), "{:?}", shown.queues);
    let view =
        admin_client.show_retention(ShowRetentionRequest::default()).await.expect("shown").into_inner();
    assert!(view.parts[0].log_start > 0 && view.parts[0].expired_messages > 0, "{view:?}");

    let recalled = client.recall("later", &recall_handle).await;
    assert_eq!(code(recalled.status.as_ref()), Code::Ok);
    assert_eq!(recalled.message_id, "recalled", "its record is read where it lies now");
    let fired = loop {
        let receive = Receive { poll: Duration::from_secs(5), ..Receive::default() };
        let (status, messages) = client.receive("later", "c", receive).await;
        assert!(matches!(status, Code::Ok | Code::MessageNotFound), "{status:?}");
        if let Some(message) = messages.into_iter().next() {
            break message;
        }
    };
    assert_eq!(id(&fired), "fired");
    assert!(system(&fired).delivery_timestamp.is_some());
    assert_eq!(fired.body, b"fired"[..]);
    blocking(move || drop(cluster)).await;
}

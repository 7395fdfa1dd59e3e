//! Transactions over real nodes: halves, decisions, check-back, and what an administrator does with
//! those nobody decides.

use std::time::Duration;

use ledgermq_broker::state::{
    Answer, BodyEncoding, Command as Stored, Decision, DecisionSource, EndTransaction, MessageIdHash,
    MessageProperties, MessageType as StoredType, NewHalf, NewMessage, encode_halves,
};
use ledgermq_common::QueueId;
use ledgermq_common::clock::UnixMillis;
use ledgermq_common::limits::TRANSACTION_OUTCOME_MS;
use ledgermq_proto::admin::admin_client::AdminClient;
use ledgermq_proto::admin::transaction::State;
use ledgermq_proto::admin::{
    CreateTopicRequest, EndTransactionRequest as AdminEnd, ListTransactionsRequest, ShowTransactionRequest,
};
use ledgermq_proto::rocketmq::settings::PubSub;
use ledgermq_proto::rocketmq::telemetry_command::Command;
use ledgermq_proto::rocketmq::{
    ClientType, Code, EndTransactionRequest, Message, MessageType, Publishing,
    RecoverOrphanedTransactionCommand, Settings, TelemetryCommand, TransactionResolution, TransactionSource,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::support::client::{Receive, code, id, message, resource, system};
use crate::support::{Client, Cluster, PATIENCE};

const CHECK_AFTER_MS: u64 = 500;
const CHECK_INTERVAL_MS: u64 = 1_000;
const CHECKS_MAX: u32 = 3;

pub(crate) fn short() -> Receive {
    Receive { poll: Duration::from_millis(300), ..Receive::default() }
}

pub(crate) fn half(topic: &str, id: &str) -> Message {
    let mut message = message(topic, id, &format!("body of {id}"));
    message.system_properties.as_mut().expect("system properties").message_type =
        MessageType::Transaction as i32;
    message
}

pub(crate) async fn admin(cluster: &Cluster, node: usize) -> AdminClient<Channel> {
    let address = format!("http://{}", cluster.nodes[node].client_addr());
    AdminClient::new(Endpoint::from_shared(address).expect("an address").connect().await.expect("a broker"))
}

async fn start(nodes: usize) -> Cluster {
    let start = move || {
        Cluster::start_with(nodes, |config| {
            config.transactions.timeout_ms = CHECK_AFTER_MS;
            config.transactions.check_interval_ms = CHECK_INTERVAL_MS;
            config.transactions.checks_max = CHECKS_MAX;
        })
    };
    let cluster = tokio::task::spawn_blocking(start).await.expect("a cluster");
    let create = CreateTopicRequest {
        name: "pay".to_owned(),
        queues: 2,
        message_type: MessageType::Transaction as i32,
        ..CreateTopicRequest::default()
    };
    admin(&cluster, 0).await.create_topic(create).await.expect("created");
    cluster
}

pub(crate) async fn stop(cluster: Cluster) {
    tokio::task::spawn_blocking(move || drop(cluster)).await.expect("dropped");
}

/// Sends a half and answers its transaction id.
async fn send_half(client: &Client, message_id: &str) -> String {
    let response = client.try_send(vec![half("pay", message_id)]).await.expect("an answer");
    assert_eq!(code(response.status.as_ref()), Code::Ok, "{response:?}");
    response.entries[0].transaction_id.clone()
}

pub(crate) async fn end(
    client: &Client,
    topic: &str,
    transaction: &str,
    resolution: TransactionResolution,
) -> (Code, String) {
    let request = EndTransactionRequest {
        topic: Some(resource(topic)),
        message_id: "any".to_owned(),
        transaction_id: transaction.to_owned(),
        resolution: resolution.into(),
        source: TransactionSource::SourceClient.into(),
        trace_context: String::new(),
    };
    let request = client.request(request, Duration::from_secs(3));
    let status = client.stub().end_transaction(request).await.expect("an answer").into_inner().status;
    let text = status.as_ref().expect("a status").message.clone();
    (code(status.as_ref()), text)
}

/// A producer's telemetry stream.
pub(crate) struct Producer {
    _commands: mpsc::Sender<TelemetryCommand>,
    asked: Streaming<TelemetryCommand>,
}

impl Producer {
    pub(crate) async fn of(client: &Client, topic: &str) -> Self {
        let (commands, sent) = mpsc::channel(4);
        let publishing = Publishing { topics: vec![resource(topic)], ..Publishing::default() };
        let settings = Settings {
            client_type: Some(ClientType::Producer.into()),
            pub_sub: Some(PubSub::Publishing(publishing)),
            ..Settings::default()
        };
        let command = TelemetryCommand { status: None, command: Some(Command::Settings(settings)) };
        commands.send(command).await.expect("open");
        let request = client.request(ReceiverStream::new(sent), Duration::from_secs(3600));
        let mut asked = client.stub().telemetry(request).await.expect("a stream").into_inner();
        let reply = asked.message().await.expect("open").expect("a reply");
        assert!(matches!(reply.command, Some(Command::Settings(_))), "{reply:?}");
        Self { _commands: commands, asked }
    }

    pub(crate) async fn next_check(&mut self) -> RecoverOrphanedTransactionCommand {
        self.check_within(PATIENCE).await.expect("a check")
    }

    pub(crate) async fn check_within(&mut self, wait: Duration) -> Option<RecoverOrphanedTransactionCommand> {
        let next = tokio::time::timeout(wait, self.asked.message()).await.ok()?;
        match next.expect("open").expect("not ended").command {
            Some(Command::RecoverOrphanedTransactionCommand(check)) => Some(check),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_is_seen_after_its_commit_and_never_after_a_rollback_through_any_node() {
    let cluster = start(3).await;
    let (first, second) = (
        Client::connect(&cluster.nodes[0].client_addr()).await,
        Client::connect(&cluster.nodes[1].client_addr()).await,
    );
    let (a, b) = (send_half(&first, "a").await, send_half(&second, "b").await);
    assert_eq!(send_half(&second, "a").await, a, "a repeat is the same transaction");
    assert_eq!(first.receive("pay", "c", short()).await.0, Code::MessageNotFound);

    use TransactionResolution::{Commit, Rollback, Unspecified};
    assert_eq!(end(&second, "pay", &a, Unspecified).await.0, Code::Ok, "nothing is decided");
    assert_eq!(end(&second, "pay", &a, Commit).await.0, Code::Ok);
    assert_eq!(end(&first, "pay", &b, Rollback).await.0, Code::Ok);
    let (status, messages) = first.receive("pay", "c", Receive::default()).await;
    assert_eq!((status, messages.len()), (Code::Ok, 1));
    assert_eq!((id(&messages[0]), messages[0].body.as_ref()), ("a", b"body of a".as_slice()));
    assert_eq!(system(&messages[0]).message_type, MessageType::Transaction as i32);
    assert_eq!(first.receive("pay", "c", short()).await.0, Code::MessageNotFound);

    // Said again, and the other way.
    assert_eq!(end(&first, "pay", &a, Commit).await.0, Code::Ok);
    let (refused, text) = end(&first, "pay", &a, Rollback).await;
    assert_eq!(refused, Code::PreconditionFailed);
    assert!(text.contains("COMMIT"), "{text}");
    let (refused, text) = end(&first, "pay", &b, Commit).await;
    assert_eq!(refused, Code::PreconditionFailed);
    assert!(text.contains("ROLLBACK"), "{text}");
    assert_eq!(first.receive("pay", "c", short()).await.0, Code::MessageNotFound);
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_transaction_is_refused_with_its_code() {
    use TransactionResolution::Commit;
    let cluster = start(1).await;
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    client.send(message("orders", "normal", "body")).await;
    let real = send_half(&client, "a").await;
    let foreign = ledgermq_common::TransactionId {
        group: ledgermq_common::GroupId(99),
        ..ledgermq_common::TransactionId::parse(&real).expect("our own")
    };
    let never = ledgermq_common::TransactionId {
        half: ledgermq_common::PhysicalOffset(7),
        ..ledgermq_common::TransactionId::parse(&real).expect("our own")
    };
    let cut = &real[..real.len() - 1];
    for (topic, transaction, expected) in [
        ("pay", "", Code::InvalidTransactionId),
        ("pay", "   ", Code::InvalidTransactionId),
        ("pay", "not one", Code::InvalidTransactionId),
        ("pay", cut, Code::InvalidTransactionId),
        ("pay", foreign.encode().as_str(), Code::InvalidTransactionId),
        ("pay", never.encode().as_str(), Code::InvalidTransactionId),
        ("orders", real.as_str(), Code::InvalidTransactionId),
        ("missing", real.as_str(), Code::TopicNotFound),
        ("", real.as_str(), Code::IllegalTopic),
    ] {
        let (answer, text) = end(&client, topic, transaction, Commit).await;
        assert_eq!(answer, expected, "{topic:?} {transaction:?}: {text}");
    }

    let refused = |message: Message| {
        let client = client.clone();
        async move {
            let response = client.try_send(vec![message]).await.expect("an answer");
            code(response.status.as_ref())
        }
    };
    let conflict = Code::MessagePropertyConflictWithType;
    assert_eq!(refused(half("orders", "x")).await, conflict, "a half for a normal topic");
    assert_eq!(
        refused(message("pay", "x", "body")).await,
        conflict,
        "a normal message for a topic of halves"
    );
    let mut ordered = half("pay", "x");
    ordered.system_properties.as_mut().expect("there").message_group = Some("g".to_owned());
    assert_eq!(refused(ordered).await, conflict);
    let mut delayed = half("pay", "x");
    delayed.system_properties.as_mut().expect("there").delivery_timestamp =
        Some(prost_types::Timestamp { seconds: 1, nanos: 0 });
    assert_eq!(refused(delayed).await, conflict);
    let mut patient = half("pay", "x");
    patient.system_properties.as_mut().expect("there").orphaned_transaction_recovery_duration =
        Some(prost_types::Duration { seconds: 3601, nanos: 0 });
    assert_eq!(refused(patient).await, Code::BadRequest);
    assert_eq!(end(&client, "pay", &real, Commit).await.0, Code::Ok, "none of this touched it");
    stop(cluster).await;
}

/// Outcomes are remembered by the chunk, so more of them are needed than one has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_id_that_expired_is_refused_as_unknown() {
    let cluster = start(1).await;
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    let decided = send_half(&client, "decided").await;
    let open = send_half(&client, "open").await;
    assert_eq!(end(&client, "pay", &decided, TransactionResolution::Commit).await.0, Code::Ok);
    assert_eq!(end(&client, "pay", &decided, TransactionResolution::Commit).await.0, Code::Ok, "a repeat");

    let hosted = cluster.nodes[0].hosted();
    let topic = hosted.state().topic("pay").expect("created").id;
    let ids: Vec<String> = (0..600).map(|number| format!("other-{number}")).collect();
    let propose_all = async |stamp: UnixMillis, ids: &[String]| {
        let halves: Vec<NewHalf> = ids.iter().map(|id| new_half(id)).collect();
        let answer = hosted.group().propose(encode_halves(stamp, topic, &halves)).await.expect("stored");
        let Ok(Answer::Halves(halves)) = Answer::decode(&answer) else { panic!("halves") };
        let ends = ids.iter().zip(halves).map(|(id, half)| {
            let end = EndTransaction {
                topic,
                transaction: half.transaction,
                message: MessageIdHash::of(id.as_bytes()),
                decision: Decision::Rollback,
                source: DecisionSource::Producer,
            };
            hosted.group().propose(Stored::EndTransaction(end).encode(stamp))
        });
        for ended in futures_util::future::join_all(ends).await {
            ended.expect("decided");
        }
    };
    let now = hosted.state().now();
    propose_all(now, &ids).await;
    assert_eq!(end(&client, "pay", &decided, TransactionResolution::Commit).await.0, Code::Ok, "remembered");
    // The leader's clock is a day further.
    let later = now.saturating_add_ms(TRANSACTION_OUTCOME_MS + 60_000);
    propose_all(later, &["a day later".to_owned()]).await;
    for resolution in [TransactionResolution::Commit, TransactionResolution::Rollback] {
        let (code, text) = end(&client, "pay", &decided, resolution).await;
        assert_eq!(code, Code::InvalidTransactionId);
        assert!(text.contains("decided long ago"), "{text}");
    }
    assert_eq!(
        end(&client, "pay", &open, TransactionResolution::Commit).await.0,
        Code::Ok,
        "never forgotten"
    );
    let (_, messages) = client.receive("pay", "c", Receive::default()).await;
    let mut ids: Vec<&str> = messages.iter().map(id).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["decided", "open"], "the outcome itself stays");
    stop(cluster).await;
}

fn new_half(id: &str) -> NewHalf {
    NewHalf {
        first_check_ms: 3_600_000,
        message: NewMessage {
            queue: QueueId(0),
            id: id.to_owned(),
            message_type: StoredType::Transaction,
            body_encoding: BodyEncoding::Identity,
            born_at: UnixMillis(0),
            properties: MessageProperties::default(),
            body: bytes::Bytes::new(),
        },
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_anywhere_is_asked_and_its_answer_decides_also_when_the_leader_dies_in_between() {
    let mut cluster = start(3).await;
    let (back, leader, follower) = tokio::task::spawn_blocking(move || {
        let (leader, follower) = (cluster.leader(), cluster.follower());
        (cluster, leader, follower)
    })
    .await
    .expect("roles");
    cluster = back;
    let client = Client::connect(&cluster.nodes[follower].client_addr()).await;
    let through_leader = Client::connect(&cluster.nodes[leader].client_addr()).await;
    // The producer of the half is gone; the one that is asked has never sent anything.
    let orphan = send_half(&through_leader, "orphan").await;
    let mut producer = Producer::of(&client, "pay").await;
    let check = producer.next_check().await;
    assert_eq!(check.transaction_id, orphan);
    let asked_about = check.message.expect("the half message");
    assert_eq!((id(&asked_about), asked_about.body.as_ref()), ("orphan", b"body of orphan".as_slice()));
    assert_eq!(asked_about.topic.as_ref().map(|topic| topic.name.as_str()), Some("pay"));
    assert!(system(&asked_about).body_digest.is_some(), "two SDKs need it");

    // No answer: asked again by the next leader, on the schedule of the log.
    cluster = tokio::task::spawn_blocking(move || {
        cluster.nodes[leader].kill();
        cluster
    })
    .await
    .expect("killed");
    let again = producer.next_check().await;
    assert_eq!(again.transaction_id, orphan);
    assert_eq!(end(&client, "pay", &orphan, TransactionResolution::Commit).await.0, Code::Ok);
    let (_, messages) = client.receive("pay", "c", Receive::default()).await;
    assert_eq!(messages.iter().map(id).collect::<Vec<_>>(), ["orphan"]);
    let interval = Duration::from_millis(2 * CHECK_INTERVAL_MS);
    assert_eq!(producer.check_within(interval).await, None, "nobody asks about what is decided");
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_without_anybody_to_ask_are_not_used_up_and_after_the_last_one_an_administrator_decides() {
    let cluster = start(1).await;
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    let mut operator = admin(&cluster, 0).await;
    let (first, second) = (send_half(&client, "first").await, send_half(&client, "second").await);
    let listed = |only_parked| ListTransactionsRequest {
        topic: "pay".to_owned(),
        only_parked,
        ..ListTransactionsRequest::default()
    };
    let due_again = Duration::from_millis(CHECK_AFTER_MS + 2 * CHECK_INTERVAL_MS);
    let until = tokio::time::Instant::now() + due_again;
    while tokio::time::Instant::now() < until {
        let open = operator.list_transactions(listed(false)).await.expect("listed").into_inner().transactions;
        assert_eq!(open.len(), 2);
        assert!(open.iter().all(|open| open.checks == 0), "nobody was asked: {open:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    let mut producer = Producer::of(&client, "pay").await;
    let mut asked = std::collections::BTreeMap::new();
    for _ in 0..2 * CHECKS_MAX {
        *asked.entry(producer.next_check().await.transaction_id).or_insert(0) += 1;
    }
    assert_eq!(asked, [(first.clone(), CHECKS_MAX), (second.clone(), CHECKS_MAX)].into());
    let parked = loop {
        let parked =
            operator.list_transactions(listed(true)).await.expect("listed").into_inner().transactions;
        if parked.len() == 2 {
            break parked;
        }
        assert_eq!(producer.check_within(Duration::from_millis(100)).await, None, "no check beyond the last");
    };
    assert!(
        parked.iter().all(|open| open.checks == CHECKS_MAX && open.state() == State::Parked),
        "{parked:?}"
    );
    assert_eq!(parked[0].message_id, "first");
    assert_eq!(client.receive("pay", "c", short()).await.0, Code::MessageNotFound);

    let page = ListTransactionsRequest { max: 1, ..listed(true) };
    let one = operator.list_transactions(page.clone()).await.expect("listed").into_inner();
    assert_eq!((one.transactions.len(), one.next.as_str()), (1, first.as_str()));
    let rest = operator.list_transactions(ListTransactionsRequest { after: one.next, max: 10, ..page }).await;
    let rest = rest.expect("listed").into_inner();
    assert_eq!((rest.transactions.len(), rest.next.as_str()), (1, ""));
    let show = ShowTransactionRequest { transaction_id: first.clone() };
    let shown = operator.show_transaction(show.clone()).await.expect("shown").into_inner();
    assert_eq!(shown.message.expect("the half").body.as_ref(), b"body of first");

    let decide = |transaction_id: &str, decision: TransactionResolution| AdminEnd {
        transaction_id: transaction_id.to_owned(),
        decision: decision.into(),
    };
    operator.end_transaction(decide(&first, TransactionResolution::Commit)).await.expect("committed");
    operator.end_transaction(decide(&second, TransactionResolution::Rollback)).await.expect("rolled back");
    operator.end_transaction(decide(&second, TransactionResolution::Rollback)).await.expect("said again");
    let refused = operator.end_transaction(decide(&second, TransactionResolution::Commit)).await;
    assert_eq!(refused.expect_err("decided").code(), tonic::Code::FailedPrecondition);
    let shown = operator.show_transaction(show).await.expect("shown").into_inner();
    assert_eq!(shown.transaction.expect("remembered").state(), State::Committed);
    let (_, messages) = client.receive("pay", "c", Receive::default()).await;
    assert_eq!(messages.iter().map(id).collect::<Vec<_>>(), ["first"]);
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_writes_little_more_than_a_normal_message() {
    const MESSAGES: usize = 200;
    let cluster = start(1).await;
    let client = Client::connect(&cluster.nodes[0].client_addr()).await;
    client.send(message("orders", "first", "body")).await;
    let body = "x".repeat(1024);
    let before = log_bytes(&cluster).await;
    for at in 0..MESSAGES {
        client.send(message("orders", &format!("n-{at}"), &body)).await;
    }
    let between = log_bytes(&cluster).await;
    for at in 0..MESSAGES {
        let mut half = half("pay", &format!("n-{at}"));
        half.body = body.clone().into();
        let response = client.try_send(vec![half]).await.expect("an answer");
        let transaction = &response.entries[0].transaction_id;
        assert_eq!(end(&client, "pay", transaction, TransactionResolution::Commit).await.0, Code::Ok);
    }
    let after = log_bytes(&cluster).await;
    let (normal, transactional) = ((between - before) as f64, (after - between) as f64);
    println!(
        "bytes of the log per message: normal {}, transactional {}",
        normal / 200.0,
        transactional / 200.0
    );
    assert!(transactional <= 1.15 * normal, "{transactional} against {normal}");
    stop(cluster).await;
}

async fn log_bytes(cluster: &Cluster) -> u64 {
    let config = cluster.nodes[0].config.listen.http.clone();
    let text = tokio::task::spawn_blocking(move || crate::support::http_get(&config, "/metrics").1).await;
    let text = text.expect("an answer");
    let line = text.lines().find(|line| line.starts_with("rocketmq_storage_size")).expect("the figure");
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
}

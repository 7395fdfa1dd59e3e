//! Queues read by offset, the offsets of groups, and questions of administrators about messages.

use std::time::{Duration, Instant};

use ledgermq_proto::admin::admin_client::AdminClient;
use ledgermq_proto::admin::query_messages_request::By;
use ledgermq_proto::admin::{self as wire, reset_offsets_request};
use ledgermq_proto::messaging::commit_offset_response::Superseded;
use ledgermq_proto::messaging::offsets_client::OffsetsClient;
use ledgermq_proto::messaging::{
    CommitOffsetRequest, CommitOffsetResponse, CommittedOffsetRequest, CommittedOffsetResponse,
};
use ledgermq_proto::rocketmq::{Code, QueryOffsetPolicy};
use tonic::transport::{Channel, Endpoint};

use crate::support::client::{Pull, Receive, UNARY_DEADLINE, code, id, message, queue, resource, system};
use crate::support::{Client, Cluster, PATIENCE};

struct Bed {
    cluster: Cluster,
    client: Client,
    admin: AdminClient<Channel>,
    offsets: OffsetsClient<Channel>,
}

async fn bed(messages: usize) -> Bed {
    bed_of(|| Cluster::start_with(1, |config| config.topics.default_queues = 1), messages).await
}

async fn bed_of(start: impl FnOnce() -> Cluster + Send + 'static, messages: usize) -> Bed {
    let cluster = tokio::task::spawn_blocking(start).await.expect("a cluster");
    let address = cluster.nodes[0].client_addr();
    let client = Client::connect(&address).await;
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let channel = endpoint.connect().await.expect("a broker");
    let (admin, offsets) = (AdminClient::new(channel.clone()), OffsetsClient::new(channel));
    for number in 0..messages {
        client.send(message("t", &format!("id-{number}"), "body")).await;
    }
    Bed { cluster, client, admin, offsets }
}

impl Bed {
    async fn stop(self) {
        tokio::task::spawn_blocking(move || drop(self.cluster)).await.expect("the end of the cluster");
    }

    async fn reset(&mut self, offset: u64, reset_id: u64) {
        let to = reset_offsets_request::To::Place(wire::Place { group: "g".to_owned(), queue: 0, offset });
        let request = wire::ResetOffsetsRequest {
            consumer_group: "c".to_owned(),
            topic: "t".to_owned(),
            reset_id,
            to: Some(to),
        };
        let reset = self.admin.reset_offsets(request).await.expect("reset").into_inner();
        assert_eq!(reset.queues, 1);
    }

    async fn committed(&self) -> CommittedOffsetResponse {
        let request =
            CommittedOffsetRequest { group: Some(resource("c")), message_queue: Some(queue("t", 0)) };
        let request = self.client.request(request, UNARY_DEADLINE);
        let answer = self.offsets.clone().committed_offset(request).await.expect("an answer").into_inner();
        assert_eq!(code(answer.status.as_ref()), Code::Ok);
        answer
    }

    async fn commit(&self, offset: u64, last_reset: u64) -> CommitOffsetResponse {
        let request = CommitOffsetRequest {
            group: Some(resource("c")),
            message_queue: Some(queue("t", 0)),
            offset,
            last_reset,
        };
        let request = self.client.request(request, UNARY_DEADLINE);
        self.offsets.clone().commit_offset(request).await.expect("an answer").into_inner()
    }

    async fn why(&mut self, id: &str) -> String {
        let request = wire::WhyRequest {
            topic: "t".to_owned(),
            message_id: id.to_owned(),
            consumer_group: "c".to_owned(),
        };
        self.admin.why(request).await.expect("an answer").into_inner().verdict
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_queue_is_read_from_any_offset_without_leases_and_waits_at_its_end() {
    let bed = bed(5).await;
    let pull = Pull { offset: 1, batch: 3, ..Pull::default() };
    for _ in 0..2 {
        let (status, messages, next) = bed.client.pull("t", "c", pull).await;
        assert_eq!((status, next), (Code::Ok, Some(4)));
        assert_eq!(messages.iter().map(id).collect::<Vec<_>>(), ["id-1", "id-2", "id-3"]);
        assert_eq!(system(&messages[0]).queue_offset, Some(1));
    }
    let at_end = Pull { offset: 5, poll: Duration::from_millis(300), ..Pull::default() };
    assert_eq!(bed.client.pull("t", "c", at_end).await, (Code::MessageNotFound, vec![], Some(5)));

    let began = Instant::now();
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let client = bed.client.clone();
            let poll = Pull { offset: 5, poll: Duration::from_secs(20), ..Pull::default() };
            tokio::spawn(async move { client.pull("t", "c", poll).await })
        })
        .collect();
    bed.client.send(message("t", "id-5", "body")).await;
    for waiting in waiting {
        let (status, messages, next) = waiting.await.expect("a pull");
        assert_eq!((status, messages.len(), next), (Code::Ok, 1, Some(6)), "each of the group gets it");
    }
    assert!(began.elapsed() < Duration::from_secs(10), "arrivals wake pulls");
    for wrong in [7, i64::MAX] {
        let pull = Pull { offset: wrong, ..Pull::default() };
        assert_eq!(bed.client.pull("t", "c", pull).await.0, Code::IllegalOffset, "{wrong}");
    }
    let no_queue = Pull { queue: 9, ..Pull::default() };
    assert_eq!(bed.client.pull("t", "c", no_queue).await.0, Code::BadRequest);
    assert_eq!(bed.client.pull("none", "c", Pull::default()).await.0, Code::TopicNotFound);
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_offset_below_what_retention_left_or_above_the_end_is_refused_with_its_code() {
    let start = || {
        Cluster::start_with(1, |config| {
            config.topics.default_queues = 1;
            config.topics.retention_check_ms = 100;
        })
    };
    let mut bed = bed_of(start, 3).await;
    assert_eq!(bed.client.update_offset("t", "c", 0).await, Code::Ok, "nothing is gone yet");
    let keep = wire::SetTopicRetentionRequest { topic: "t".to_owned(), retention_ms: Some(1) };
    bed.admin.set_topic_retention(keep).await.expect("set");
    let began = Instant::now();
    while bed.client.query_offset("t", QueryOffsetPolicy::Beginning, None).await != (Code::Ok, 3) {
        assert!(began.elapsed() < PATIENCE, "messages expire");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let keep = wire::SetTopicRetentionRequest { topic: "t".to_owned(), retention_ms: Some(0) };
    bed.admin.set_topic_retention(keep).await.expect("set");
    bed.client.send(message("t", "id-3", "body")).await;
    for (offset, code) in [(0, Code::IllegalOffset), (2, Code::IllegalOffset), (3, Code::Ok)] {
        let (status, messages, next) = bed.client.pull("t", "c", Pull { offset, ..Pull::default() }).await;
        assert_eq!(status, code, "pull from {offset}");
        if code == Code::Ok {
            assert_eq!((messages.iter().map(id).collect::<Vec<_>>(), next), (vec!["id-3"], Some(4)));
        }
        assert_eq!(bed.client.update_offset("t", "c", offset).await, code, "commit of {offset}");
    }
    for offset in [5, i64::MAX] {
        let pull = Pull { offset, ..Pull::default() };
        assert_eq!(bed.client.pull("t", "c", pull).await.0, Code::IllegalOffset, "pull from {offset}");
        assert_eq!(bed.client.update_offset("t", "c", offset).await, Code::IllegalOffset, "{offset}");
    }
    assert_eq!(bed.client.get_offset("t", "c").await, (Code::Ok, 3), "a refused commit changes nothing");
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn offsets_are_committed_read_and_found_by_end_and_by_time() {
    let bed = bed(3).await;
    let client = &bed.client;
    assert_eq!(client.get_offset("t", "c").await, (Code::OffsetNotFound, 0));
    assert_eq!(client.update_offset("t", "c", 2).await, Code::Ok);
    assert_eq!(client.get_offset("t", "c").await, (Code::Ok, 2));
    assert_eq!(client.update_offset("t", "c", 4).await, Code::IllegalOffset);
    assert_eq!(client.get_offset("t", "c").await, (Code::Ok, 2), "a refused commit changes nothing");
    assert_eq!(client.query_offset("t", QueryOffsetPolicy::Beginning, None).await, (Code::Ok, 0));
    assert_eq!(client.query_offset("t", QueryOffsetPolicy::End, None).await, (Code::Ok, 3));
    let (_, messages, _) = client.pull("t", "c", Pull::default()).await;
    let second = system(&messages[1]).store_timestamp.expect("a store time");
    let (code, found) = client.query_offset("t", QueryOffsetPolicy::Timestamp, Some(second)).await;
    assert_eq!(code, Code::Ok);
    assert!(found <= 1, "the second message was stored then: {found}");
    let later = prost_types::Timestamp { seconds: second.seconds + 1000, nanos: 0 };
    assert_eq!(client.query_offset("t", QueryOffsetPolicy::Timestamp, Some(later)).await, (Code::Ok, 3));
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_group_is_moved_back_and_gets_its_messages_again() {
    let mut bed = bed(3).await;
    let (_, messages) = bed.client.receive("t", "c", Receive::default()).await;
    for got in &messages {
        assert_eq!(bed.client.ack("t", "c", got).await, Code::Ok);
    }
    bed.reset(1, 0).await;
    let (_, again) = bed.client.receive("t", "c", Receive::default()).await;
    assert_eq!(again.iter().map(id).collect::<Vec<_>>(), ["id-1", "id-2"]);
    let nowhere = wire::ResetOffsetsRequest {
        consumer_group: "c".to_owned(),
        topic: "none".to_owned(),
        reset_id: 0,
        to: Some(reset_offsets_request::To::End(true)),
    };
    let refused = bed.admin.reset_offsets(nowhere).await.expect_err("no such topic");
    assert_eq!(refused.code(), tonic::Code::NotFound);
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_commit_or_a_reset_that_arrives_late_moves_nothing_and_says_why() {
    let mut bed = bed(8).await;
    let (first, last) = (bed.committed().await, 8);
    assert_eq!((first.offset, first.last_reset), (None, 0), "OK without an offset");
    assert_eq!(bed.client.update_offset("t", "c", 5).await, Code::Ok);
    assert_eq!(bed.client.update_offset("t", "c", 3).await, Code::IllegalOffset, "a late one");
    let behind = bed.commit(4, 0).await;
    assert_eq!(code(behind.status.as_ref()), Code::IllegalOffset);
    assert_eq!(behind.superseded, Some(Superseded::Committed(5)));
    let text = behind.status.expect("a status").message;
    assert_eq!(text, "offset 4 is not committed: the group has committed 5, and only a reset goes back");
    assert_eq!(code(bed.commit(6, 0).await.status.as_ref()), Code::Ok);

    bed.reset(2, 77).await;
    let reset = bed.committed().await;
    assert_eq!(reset.offset, Some(2));
    assert!(reset.last_reset > 0);
    let late = bed.commit(last, 0).await;
    assert_eq!(late.superseded, Some(Superseded::LastReset(reset.last_reset)));
    assert_eq!(code(late.status.as_ref()), Code::IllegalOffset);
    assert_eq!(code(bed.commit(7, reset.last_reset).await.status.as_ref()), Code::Ok);
    // The same wish again, and then another one.
    bed.reset(2, 77).await;
    assert_eq!(bed.committed().await.offset, Some(7));
    bed.reset(2, 78).await;
    assert_eq!(bed.client.get_offset("t", "c").await, (Code::Ok, 2));
    let beyond = bed.commit(9, bed.committed().await.last_reset).await;
    assert_eq!((code(beyond.status.as_ref()), beyond.superseded), (Code::IllegalOffset, None));
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reset_while_acknowledgements_left_gaps_brings_everything_from_there_again() {
    let mut bed = bed(6).await;
    let (_, held) = bed.client.receive("t", "c", Receive::default()).await;
    for message in held.iter().step_by(2) {
        assert_eq!(bed.client.ack("t", "c", message).await, Code::Ok);
    }
    for offset in [0u64, 3] {
        bed.reset(offset, 0).await;
        let (_, again) = bed.client.receive("t", "c", Receive::default()).await;
        let expected: Vec<String> = (offset..6).map(|number| format!("id-{number}")).collect();
        assert_eq!(again.iter().map(id).collect::<Vec<_>>(), expected);
        assert!(again.iter().all(|message| system(message).delivery_attempt == Some(1)));
        assert_eq!(bed.client.ack("t", "c", &again[0]).await, Code::Ok);
    }
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn messages_are_found_by_id_key_place_and_time_a_page_at_a_time() {
    let mut bed = bed(5).await;
    let ids = |messages: &[wire::QueriedMessage]| -> Vec<String> {
        messages.iter().map(|message| message.message_id.clone()).collect()
    };
    let query = |by, from, max, with_body| wire::QueryMessagesRequest {
        topic: "t".to_owned(),
        by: Some(by),
        from,
        max,
        with_body,
    };
    let by_id = query(By::MessageId("id-3".to_owned()), None, 0, true);
    let found = bed.admin.query_messages(by_id).await.expect("found").into_inner().messages;
    assert_eq!(ids(&found), ["id-3"]);
    assert_eq!((found[0].offset, found[0].body.as_ref()), (Some(3), b"body".as_slice()));

    let mut all = Vec::new();
    let mut from = None;
    loop {
        let page = query(By::Key("k1".to_owned()), from.take(), 2, false);
        let page = bed.admin.query_messages(page).await.expect("a page").into_inner();
        assert!(page.messages.len() <= 2);
        all.extend(ids(&page.messages));
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    assert_eq!(all, ["id-0", "id-1", "id-2", "id-3", "id-4"], "every page, and each message once");
    // The cursor names the first message of the page that follows.
    for max in 1..5u32 {
        let page = query(By::Key("k1".to_owned()), None, max, false);
        let next = bed.admin.query_messages(page).await.expect("a page").into_inner().next.expect("more");
        let page = query(By::Key("k1".to_owned()), Some(next), 1, false);
        let page = bed.admin.query_messages(page).await.expect("a page").into_inner();
        assert_eq!(ids(&page.messages), [format!("id-{max}")], "it begins the page");
    }

    let place = By::Place(wire::Place { group: "g".to_owned(), queue: 0, offset: 4 });
    let found = bed.admin.query_messages(query(place, None, 0, false)).await.expect("found").into_inner();
    assert_eq!(ids(&found.messages), ["id-4"]);
    let since = found.messages[0].stored_ms.expect("visible");
    let within = By::StoredWithin(wire::StoredWithin { from_ms: since, to_ms: u64::MAX });
    let found = bed.admin.query_messages(query(within, None, 0, false)).await.expect("found").into_inner();
    assert!(ids(&found.messages).contains(&"id-4".to_owned()));
    let within = By::StoredWithin(wire::StoredWithin { from_ms: 0, to_ms: since });
    let before = bed.admin.query_messages(query(within, None, 0, false)).await.expect("found").into_inner();
    assert!(!ids(&before.messages).contains(&"id-4".to_owned()));
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn why_says_where_a_message_is_for_a_group() {
    let mut bed = bed(2).await;
    assert!(bed.why("id-0").await.contains("never consumed"), "{}", bed.why("id-0").await);
    let (_, messages) = bed.client.receive("t", "c", Receive { batch: 1, ..Receive::default() }).await;
    assert_eq!(id(&messages[0]), "id-0");
    assert!(bed.why("id-0").await.contains("attempt 1"), "{}", bed.why("id-0").await);
    assert!(bed.why("id-1").await.contains("waits"), "{}", bed.why("id-1").await);
    assert!(bed.why("id-9").await.contains("not stored"), "{}", bed.why("id-9").await);
    let receipt = system(&messages[0]).receipt_handle.clone().expect("a handle");
    assert_eq!(bed.client.forward("t", "c", &receipt, "id-0").await, Code::Ok);
    assert!(bed.why("id-0").await.contains("gave it up"), "{}", bed.why("id-0").await);
    bed.stop().await;
}

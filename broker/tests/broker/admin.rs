//! The admin RPCs, asked at any node for the whole cluster.

use std::time::Duration;

use ledgermq_proto::admin::admin_client::AdminClient;
use ledgermq_proto::admin::{
    ClusterStatusRequest, CreateTopicRequest, DeleteTopicRequest, ListTopicsRequest, ShowTopicRequest,
};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::support::client::{Receive, message};
use crate::support::{Client, Cluster};

async fn admin(cluster: &Cluster, node: usize) -> AdminClient<Channel> {
    let address = format!("http://{}", cluster.nodes[node].client_addr());
    AdminClient::new(Endpoint::from_shared(address).expect("an address").connect().await.expect("a broker"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_are_created_shown_and_deleted_through_different_nodes() {
    let start = || Cluster::start_with(3, |config| config.topics.auto_create = false);
    let cluster = tokio::task::spawn_blocking(start).await.expect("a cluster");
    let (mut first, mut second) = (admin(&cluster, 0).await, admin(&cluster, 1).await);
    let create = |name: &str, queues| CreateTopicRequest {
        name: name.to_owned(),
        queues,
        ..CreateTopicRequest::default()
    };
    let created = first.create_topic(create("orders", 6)).await.expect("created").into_inner();
    assert!(created.created);
    assert_eq!(created.topic.as_ref().map(|topic| topic.queues), Some(6));
    let again = second.create_topic(create("orders", 6)).await.expect("found").into_inner();
    assert_eq!((again.created, again.topic), (false, created.topic.clone()));
    let differs = second.create_topic(create("orders", 7)).await.expect_err("another number of queues");
    assert_eq!(differs.code(), Code::AlreadyExists, "{differs}");
    for (name, queues) in [("no spaces", 1), ("", 1), ("too-many", 65_537)] {
        let refused = first.create_topic(create(name, queues)).await.expect_err(name);
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }

    let client = Client::connect(&cluster.nodes[2].client_addr()).await;
    for at in 0..3 {
        client.send(message("orders", &format!("id-{at}"), "body")).await;
    }
    client.receive("orders", "billing", Receive { batch: 1, ..Receive::default() }).await;
    let show = ShowTopicRequest { name: "orders".to_owned() };
    let shown = second.show_topic(show.clone()).await.expect("shown").into_inner();
    assert_eq!(shown.queues.len(), 6);
    assert_eq!(shown.queues.iter().map(|queue| queue.max_offset).sum::<u64>(), 3);
    let consumption = shown.consumptions.first().expect("a consumer group");
    assert_eq!(
        (consumption.consumer_group.as_str(), consumption.ready, consumption.inflight),
        ("billing", 2, 1)
    );

    let listed = first.list_topics(ListTopicsRequest {}).await.expect("listed").into_inner().topics;
    assert_eq!(listed.iter().map(|topic| topic.name.as_str()).collect::<Vec<_>>(), ["orders"]);
    let delete = DeleteTopicRequest { name: "orders".to_owned() };
    second.delete_topic(delete.clone()).await.expect("deleted");
    assert_eq!(first.delete_topic(delete).await.expect_err("gone").code(), Code::NotFound);
    assert_eq!(first.show_topic(show).await.expect_err("gone").code(), Code::NotFound);
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_of_the_cluster_names_the_leader_and_the_node_that_is_away() {
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(3)).await.expect("a cluster");
    let (mut cluster, leader, follower) = tokio::task::spawn_blocking(move || {
        let (leader, follower) = (cluster.leader(), cluster.follower());
        (cluster, leader, follower)
    })
    .await
    .expect("roles");
    let client = Client::connect(&cluster.nodes[leader].client_addr()).await;
    client.send(message("t", "id", "body")).await;
    let mut admin = admin(&cluster, leader).await;
    let mut ask = async || {
        let mut request = tonic::Request::new(ClusterStatusRequest {});
        request.set_timeout(Duration::from_secs(5));
        admin.cluster_status(request).await.expect("a status").into_inner()
    };
    let status = ask().await;
    assert_eq!(status.cluster, "test");
    assert!(status.nodes.iter().all(|node| node.reachable), "{status:?}");
    let group = &status.groups[0];
    assert_eq!((group.name.as_str(), group.leader), ("g", leader as u64 + 1));
    assert!(group.replicas.iter().all(|replica| replica.reachable && replica.term == group.term));

    cluster = tokio::task::spawn_blocking(move || {
        cluster.nodes[follower].kill();
        cluster
    })
    .await
    .expect("the end of a node");
    let status = ask().await;
    let away: Vec<u64> = status.nodes.iter().filter(|node| !node.reachable).map(|node| node.id).collect();
    assert_eq!(away, [follower as u64 + 1]);
    assert_eq!(status.groups[0].leader, leader as u64 + 1);
    stop(cluster).await;
}

async fn stop(cluster: Cluster) {
    // A runtime must not be dropped inside another one.
    tokio::task::spawn_blocking(move || drop(cluster)).await.expect("the end of the cluster");
}

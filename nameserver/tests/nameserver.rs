//! A nameserver on real ports, fed by leaders and asked by clients.

#[path = "../../edge/tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::time::Duration;

use ledgermq_common::{NodeId, Term};
use ledgermq_edge::forward::connect::TcpConnect;
use ledgermq_edge::registry_client::{Announcement, RegistryClient};
use ledgermq_nameserver::{Nameserver, NameserverConfig};
use ledgermq_proto::rocketmq::{self as rmq, Code};
use support::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;

async fn start() -> Nameserver {
    let mut config = NameserverConfig::default();
    config.listen.client = "127.0.0.1:0".to_owned();
    config.listen.http = "127.0.0.1:0".to_owned();
    Nameserver::start(config).await.expect("starts")
}

fn announcement(cluster: &Cluster, leader: u64, term: u64) -> Announcement {
    Announcement {
        cluster: "test".to_owned(),
        group: cluster.view.clone(),
        leader: NodeId(leader),
        term: Term(term),
        cluster_groups: vec![GROUP.to_owned()],
        auto_create_topics: false,
        topics_version: 1,
        topics: Arc::new(cluster.agreed.topics.lock().values().cloned().collect()),
    }
}

fn route() -> rmq::QueryRouteRequest {
    rmq::QueryRouteRequest { topic: resource(TOPIC), endpoints: None }
}

async fn http_status(nameserver: &Nameserver, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(nameserver.http_addr()).await.expect("connects");
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("reads");
    answer
}

#[tokio::test]
async fn a_cold_nameserver_holds_requests_until_it_knows_the_cluster() {
    let cluster = Cluster::start(2).await;
    cluster.elect(Some(2));
    let nameserver = start().await;
    assert!(http_status(&nameserver, "/readyz").await.starts_with("HTTP/1.1 503"));
    let mut client = client(nameserver.client_addr()).await;
    let asking = tokio::spawn(async move {
        let route = client.query_route(java(route())).await.expect("gRPC OK").into_inner();
        (client, route)
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!asking.is_finished(), "held");

    let (_told, announcements) = watch::channel(Some(announcement(&cluster, 2, 1)));
    let addresses = [nameserver.client_addr().to_string()];
    let _registry = RegistryClient::start(&addresses, announcements, Arc::new(TcpConnect));
    let (mut client, route) = asking.await.expect("task");
    assert_eq!(code_of(&route.status), Code::Ok);
    assert_eq!(route.message_queues.len(), 4);
    assert!(http_status(&nameserver, "/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(http_status(&nameserver, "/livez").await.starts_with("HTTP/1.1 200"));
    assert!(http_status(&nameserver, "/metrics").await.contains("ledgermq_nameserver_cluster_known 1"));

    let sent = client.send_message(java(send("m"))).await.expect("gRPC OK").into_inner();
    assert_eq!(code_of(&sent.status), Code::Ok, "every RPC works through the access point");
    let (status, messages) = collect(&mut client, java(receive(Some(Duration::from_secs(1))))).await;
    assert_eq!((status.code(), messages.len()), (Code::Ok, 1));
    nameserver.shutdown().await;
}

#[tokio::test]
async fn a_nameserver_that_never_hears_of_a_cluster_says_not_now_rather_than_nothing() {
    let nameserver = start().await;
    let mut client = client(nameserver.client_addr()).await;
    let answer = client.query_route(request("JAVA", Duration::from_millis(800), route())).await;
    assert_eq!(code_of(&answer.expect("gRPC OK").into_inner().status), Code::HaNotAvailable);
}

#[tokio::test]
async fn a_new_leader_is_used_at_once_and_a_deposed_one_is_not_believed() {
    let cluster = Cluster::start(3).await;
    cluster.elect(Some(1));
    let nameserver = start().await;
    let addresses = [nameserver.client_addr().to_string()];
    let (first, announcements) = watch::channel(Some(announcement(&cluster, 1, 5)));
    let _first = RegistryClient::start(&addresses, announcements, Arc::new(TcpConnect));
    let mut client = client(nameserver.client_addr()).await;
    let sent = client.send_message(java(send("a"))).await.expect("gRPC OK").into_inner();
    assert_eq!(code_of(&sent.status), Code::Ok);

    cluster.elect(Some(3));
    let (_second, announcements) = watch::channel(Some(announcement(&cluster, 3, 6)));
    let _second_client = RegistryClient::start(&addresses, announcements, Arc::new(TcpConnect));
    // The deposed leader does not know it and goes on announcing.
    first.send_modify(|told| {
        if let Some(told) = told {
            told.topics_version += 1;
            told.topics = Arc::new(Vec::new());
        }
    });
    for id in ["b", "c", "d"] {
        let sent = client.send_message(java(send(id))).await.expect("gRPC OK").into_inner();
        assert_eq!(code_of(&sent.status), Code::Ok);
    }
    assert_eq!(cluster.agreed.stored.lock().len(), 4);
    assert_eq!(cluster.node(3).member.requests.lock().len(), 3);
}

#[tokio::test]
async fn a_port_in_use_and_a_wrong_value_are_named() {
    let nameserver = start().await;
    let mut config = NameserverConfig::default();
    config.listen.client = "127.0.0.1:0".to_owned();
    config.listen.http = nameserver.http_addr().to_string();
    let error = Nameserver::start(config.clone()).await.map(|_| ()).expect_err("port in use").to_string();
    assert!(error.contains("listen.http"), "{error}");
    config.listen.client = "nowhere".to_owned();
    let error = Nameserver::start(config).await.map(|_| ()).expect_err("wrong value").to_string();
    assert!(error.contains("listen.client") && error.contains("nowhere"), "{error}");
}

//! What a broker refuses at its start, each with the key, the value and the reason; and what the end
//! before leaves it to do.

use std::sync::Arc;

use crate::support::client::message;
use crate::support::{Client, Cluster, configs};
use ledgermq_broker::state::{BrokerState, CheckpointMode, NobodyWaits, StateConfig};
use ledgermq_broker::{Broker, BrokerConfig, StartError};
use ledgermq_raft_store::StateMachine as _;

fn config(directory: &std::path::Path) -> BrokerConfig {
    configs(1, directory).remove(0)
}

async fn refused(config: BrokerConfig) -> StartError {
    match Broker::start(config).await {
        Ok(_) => panic!("it started"),
        Err(error) => error,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_data_directory_in_use_or_of_another_cluster_is_refused_and_left_as_it_is() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let first = config(directory.path());
    let broker = Broker::start(first.clone()).await.expect("it starts");
    let mut second = config(directory.path());
    second.storage = first.storage.clone();
    let error = refused(second.clone()).await.to_string();
    assert!(error.contains("node-1") && error.contains("in use by another process"), "{error}");
    broker.shutdown().await;

    second.cluster.name = "another".to_owned();
    let error = refused(second.clone()).await.to_string();
    assert!(error.contains("belongs to cluster test"), "{error}");
    second.cluster.name = "test".to_owned();
    Broker::start(second).await.expect("its own directory").shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_port_in_use_is_named_with_its_key() {
    for key in ["listen.client", "listen.peer", "listen.http"] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut config = config(directory.path());
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("its address").to_string();
        match key {
            "listen.client" => config.listen.client = address.clone(),
            "listen.peer" => config.listen.peer = address.clone(),
            _ => config.listen.http = address.clone(),
        }
        let error = refused(config).await.to_string();
        assert!(error.starts_with(&format!("{key} = {address}: ")), "{error}");
        assert!(error.contains("in use"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_data_directory_that_cannot_be_made_is_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut config = config(directory.path());
    let file = directory.path().join("file");
    std::fs::write(&file, b"").expect("a file");
    config.storage.data_dir = file.join("below");
    let error = refused(config).await.to_string();
    assert!(error.starts_with("data directory ") && error.contains("below"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_certificate_that_cannot_be_read_is_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut config = config(directory.path());
    config.tls.cert = "/no/such/cert.pem".to_owned();
    config.tls.key = "/no/such/key.pem".to_owned();
    let error = refused(config).await.to_string();
    assert!(error.starts_with("tls: ") && error.contains("/no/such/cert.pem"), "{error}");
}

/// A restart for an upgrade need not make the state again from the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_orderly_end_leaves_a_checkpoint_of_everything_applied() {
    let mut cluster = tokio::task::spawn_blocking(|| Cluster::start(1)).await.expect("a cluster");
    let node = &cluster.nodes[0];
    let client = Client::connect(&node.client_addr()).await;
    client.send(message("orders", "id-1", "hello")).await;
    let hosted = node.hosted();
    let (group, applied) = (hosted.id(), hosted.group().status().applied);
    drop(hosted);
    let derived = node.config.storage.data_dir.join("groups").join(group.to_string()).join("derived");
    let cluster = tokio::task::spawn_blocking(move || {
        cluster.nodes[0].shut_down();
        cluster
    });
    let _cluster = cluster.await.expect("it ended");

    let config = StateConfig { group, directory: Some(derived), checkpoints: CheckpointMode::OnDemand };
    let kept = BrokerState::open(config, Arc::new(NobodyWaits)).expect("the directory is free").applied();
    assert!(applied.is_some());
    assert_eq!(kept.map(|entry| entry.index), applied);
}

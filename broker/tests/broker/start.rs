//! What a broker refuses at its start, each with the key, the value and the reason.

use crate::support::configs;
use ledgermq_broker::{Broker, BrokerConfig, StartError};

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

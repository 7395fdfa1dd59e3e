//! The HTTP port: is the process alive, can it serve, and what does it measure.
//!
//! | Path | Answer |
//! |---|---|
//! | `/livez` | 200 while the process runs its event loop |
//! | `/readyz` | 200 when every hosted group has a leader and this replica keeps up; else 503. The body is JSON and names each reason |
//! | `/metrics` | Prometheus text |
//!
//! No answer here waits for a group, so a probe never times out because of an election.

mod figures;

use std::future::Future;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use serde::Serialize;
use tokio::net::TcpListener;

use crate::process::Node;

/// A follower that has this many committed entries still to apply is not ready: it would serve
/// old routes, and a leader made of it would have to catch up first.
const APPLY_BACKLOG_ENTRIES_MAX: u64 = 10_000;

#[derive(Debug, Serialize)]
struct Readiness {
    ready: bool,
    reasons: Vec<String>,
}

/// Serves until `stopped` resolves.
pub async fn serve(
    listener: TcpListener,
    node: Arc<Node>,
    stopped: impl Future<Output = ()> + Send + 'static,
) {
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(node);
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stopped).await {
        tracing::warn!(%error, "the http port stopped");
    }
}

async fn livez() -> &'static str {
    "alive\n"
}

async fn readyz(State(node): State<Arc<Node>>) -> impl IntoResponse {
    let reasons = reasons_not_ready(&node);
    let ready = reasons.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready, reasons }))
}

async fn metrics(State(node): State<Arc<Node>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], figures::expose(&node))
}

fn reasons_not_ready(node: &Node) -> Vec<String> {
    let mut reasons = Vec::new();
    if node.is_stopping() {
        reasons.push("the node is stopping".to_owned());
    }
    for hosted in node.hosted_groups() {
        let name = hosted.name();
        let status = hosted.group().status();
        if status.leader.is_none() {
            reasons.push(format!("group {name} has no leader"));
        } else if status.is_leader && !status.is_leader_ready {
            reasons.push(format!("group {name} is led from here and not yet caught up"));
        }
        if !status.is_voter {
            reasons.push(format!("the replica of group {name} is learning the log"));
        }
        let applied = status.applied.map_or(0, |i| i.get());
        let committed = status.committed.map_or(0, |i| i.get());
        let backlog = committed.saturating_sub(applied);
        if backlog > APPLY_BACKLOG_ENTRIES_MAX {
            reasons.push(format!("group {name} has {backlog} committed entries still to apply"));
        }
    }
    reasons
}

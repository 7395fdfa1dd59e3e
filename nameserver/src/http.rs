//! The HTTP port: is the process alive, can it answer routes, and what does it count.
//!
//! | Path | Answer |
//! |---|---|
//! | `/livez` | 200 while the process runs its event loop |
//! | `/readyz` | 200 when every group of the cluster has registered; else 503 with the reasons as JSON |
//! | `/metrics` | Prometheus text |

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use tokio::net::TcpListener;
use tracing::warn;

use crate::registry::Registry;

#[derive(Debug, Serialize)]
struct Readiness {
    ready: bool,
    reasons: Vec<String>,
}

/// Serves until `stopped` resolves.
pub(crate) async fn serve(
    listener: TcpListener,
    registry: Arc<Registry>,
    stopped: impl Future<Output = ()> + Send + 'static,
) {
    let router = Router::new()
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(registry);
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stopped).await {
        warn!(%error, "the http port stopped");
    }
}

async fn readyz(State(registry): State<Arc<Registry>>) -> impl IntoResponse {
    let reasons = registry.missing();
    let ready = reasons.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready, reasons }))
}

async fn metrics(State(registry): State<Arc<Registry>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], exposition(&registry))
}

fn exposition(registry: &Registry) -> String {
    let (groups, topics) = registry.counts();
    let counters = &registry.counters;
    let mut text = String::new();
    for (name, kind, help, value) in [
        ("rocketmq_proxy_up", "gauge", "The process serves.", 1),
        ("ledgermq_nameserver_groups", "gauge", "Broker groups registered.", groups as u64),
        ("ledgermq_nameserver_topics", "gauge", "Topics in registered groups.", topics as u64),
        (
            "ledgermq_nameserver_cluster_known",
            "gauge",
            "1 when every group of the cluster has registered.",
            u64::from(registry.missing().is_empty()),
        ),
        (
            "ledgermq_nameserver_registrations_accepted_total",
            "counter",
            "Registrations accepted.",
            counters.accepted.load(Ordering::Relaxed),
        ),
        (
            "ledgermq_nameserver_registrations_refused_total",
            "counter",
            "Registrations of deposed leaders or other clusters.",
            counters.refused.load(Ordering::Relaxed),
        ),
        (
            "ledgermq_nameserver_registrations_expired_total",
            "counter",
            "Registrations forgotten because they were not renewed.",
            counters.expired.load(Ordering::Relaxed),
        ),
    ] {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    }
    text
}

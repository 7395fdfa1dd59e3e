//! Telling a client that another one took a lite topic over.
//!
//! ```text
//! this node ── AwaitTakenLite (the lite clients whose streams end here) ──► leader of each group
//!           ◄── what was taken from them ──
//!           ── NotifyUnsubscribeLiteCommand ──► the client's telemetry stream
//! client    ── SyncLiteSubscription without it ──► any node
//! ```
//!
//! What was taken stands in the state until the client leaves it out, so a leader or node that dies with
//! the word is no harm: the next one says it again. Only clients that said in their settings that they
//! are lite have a place here, and only what a client had subscribed to can be taken from it: others are
//! never told.

use std::collections::BTreeMap;
use std::sync::Arc;

use ledgermq_common::GroupName;
use ledgermq_proto::rocketmq::telemetry_command::Command;
use ledgermq_proto::rocketmq::{NotifyUnsubscribeLiteCommand, TelemetryCommand};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::codes::ok;
use crate::edge::Edge;
use crate::group_call::{AwaitTakenLite, GroupRequest, GroupResponse, TakenLite};
use crate::producers::Commands;

/// Lite clients one question names. A node with more of them asks for the first ones only; the others
/// notice by receiving nothing any more.
const CLIENTS_MAX: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct LiteStreams {
    known: Mutex<Known>,
    /// Rises when a client comes or goes.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Known {
    next: u64,
    /// By client id; a client may have opened its stream anew before the old one ended.
    streams: BTreeMap<String, BTreeMap<u64, Commands>>,
}

/// A lite client's stream, for as long as this lives.
#[derive(Debug)]
pub(crate) struct LiteStream {
    streams: Arc<LiteStreams>,
    client_id: String,
    number: u64,
}

impl LiteStreams {
    pub(crate) fn register(self: &Arc<Self>, client_id: &str, commands: Commands) -> LiteStream {
        let mut known = self.known.lock();
        known.next += 1;
        let number = known.next;
        known.streams.entry(client_id.to_owned()).or_default().insert(number, commands);
        drop(known);
        self.changed.send_modify(|changes| *changes = changes.wrapping_add(1));
        LiteStream { streams: Arc::clone(self), client_id: client_id.to_owned(), number }
    }

    /// Sorted.
    fn clients(&self) -> Vec<String> {
        self.known.lock().streams.keys().take(CLIENTS_MAX).cloned().collect()
    }

    /// On the newest stream of the client. A full queue means that it does not read; it is told again.
    fn tell(&self, taken: TakenLite) {
        let known = self.known.lock();
        let streams = known.streams.get(&taken.client_id);
        let Some((_, commands)) = streams.and_then(|streams| streams.last_key_value()) else { return };
        let notice = NotifyUnsubscribeLiteCommand { lite_topic: taken.lite_topic };
        let command = Some(Command::NotifyUnsubscribeLiteCommand(notice));
        let _ = commands.try_send(Ok(TelemetryCommand { status: Some(ok()), command }));
    }
}

impl Drop for LiteStream {
    fn drop(&mut self) {
        let mut known = self.streams.known.lock();
        if let Some(streams) = known.streams.get_mut(&self.client_id) {
            streams.remove(&self.number);
            if streams.is_empty() {
                known.streams.remove(&self.client_id);
            }
        }
        drop(known);
        self.streams.changed.send_modify(|changes| *changes = changes.wrapping_add(1));
    }
}

impl Edge {
    /// Called for every lite client's stream; the first call starts the work.
    pub(crate) fn keep_asking_for_taken(&self) {
        if !self.shared.asking_for_taken.first() {
            return;
        }
        let edge = self.clone();
        tokio::spawn(async move {
            let stopping = edge.shared.stopping.clone();
            tokio::select! {
                () = edge.ask_each_group(|edge, group| async move { edge.ask_for_taken(&group).await }) => {}
                () = stopping.cancelled() => {}
            }
        });
    }

    async fn ask_for_taken(&self, group: &GroupName) {
        let changed = self.shared.lite_streams.changed.subscribe();
        let question = |poll_until| {
            let client_ids = self.shared.lite_streams.clients();
            let ask = |client_ids| GroupRequest::AwaitTakenLite(AwaitTakenLite { client_ids, poll_until });
            (!client_ids.is_empty()).then(|| ask(client_ids))
        };
        let take = |answer| async move {
            let GroupResponse::TakenLite(taken) = answer else { return false };
            taken.into_iter().for_each(|taken| self.shared.lite_streams.tell(taken));
            true
        };
        self.keep_question_standing(group, changed, question, take).await;
    }
}

//! Sends of a producer with the same topic and message group go one after the other.
//!
//! Two requests that are under way at once may arrive, or be repeated, in either order, and no server
//! can tell which was meant to be the first. So a send waits until those before it of its message
//! groups have ended. Before means: first polled before. Sends of other groups do not wait, and what is
//! to be quick within one group goes in one request ([`Producer::send_many`](crate::Producer::send_many)),
//! which is stored in its order.
//!
//! A send stands at the end of the line of each of its groups, in all of them at the same moment, so
//! that no two wait for each other. One that gives up leaves all lines; those behind it still wait for
//! those before it.
//!
//! A send that ended without an answer may still be stored, behind those after it: its caller was told
//! that the outcome is unknown.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use ledgermq_proto::rocketmq as wire;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Topic and message group.
type Key = (String, String);

/// The sends of each message group that are under way, and behind them those that wait.
#[derive(Clone, Default)]
pub(crate) struct SendOrder {
    lines: Arc<Mutex<HashMap<Key, VecDeque<Arc<Notify>>>>>,
}

/// The place of a send, given back when it ends.
pub(crate) struct Turn<'o> {
    order: &'o SendOrder,
    keys: BTreeSet<Key>,
    /// Told when somebody before it has ended.
    told: Arc<Notify>,
}

impl SendOrder {
    /// Returns when the sends before this one have ended; at once for messages without a group.
    pub async fn turn(&self, messages: &[wire::Message]) -> Turn<'_> {
        let turn =
            Turn { order: self, keys: messages.iter().filter_map(key).collect(), told: Arc::default() };
        if !turn.keys.is_empty() {
            let mut lines = self.lines.lock();
            for key in &turn.keys {
                lines.entry(key.clone()).or_default().push_back(Arc::clone(&turn.told));
            }
        }
        while !turn.is_first() {
            turn.told.notified().await;
        }
        turn
    }
}

impl Turn<'_> {
    fn is_first(&self) -> bool {
        if self.keys.is_empty() {
            return true;
        }
        let lines = self.order.lines.lock();
        self.keys.iter().all(|key| {
            lines.get(key).and_then(VecDeque::front).is_some_and(|first| Arc::ptr_eq(first, &self.told))
        })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.keys.is_empty() {
            return;
        }
        let mut lines = self.order.lines.lock();
        for key in &self.keys {
            let Some(line) = lines.get_mut(key) else { continue };
            line.retain(|place| !Arc::ptr_eq(place, &self.told));
            match line.front() {
                Some(first) => first.notify_one(),
                None => {
                    lines.remove(key);
                }
            }
        }
    }
}

fn key(message: &wire::Message) -> Option<Key> {
    let group = message.system_properties.as_ref()?.message_group.clone()?;
    let topic = message.topic.as_ref().map_or_else(String::new, |topic| topic.name.clone());
    Some((topic, group))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn messages(groups: &[&str]) -> Vec<wire::Message> {
        let of = |group: &&str| wire::Message {
            topic: Some(wire::Resource { name: "t".to_owned(), ..Default::default() }),
            system_properties: Some(wire::SystemProperties {
                message_group: Some((*group).to_owned()),
                ..Default::default()
            }),
            ..Default::default()
        };
        groups.iter().map(of).collect()
    }

    #[tokio::test]
    async fn a_send_waits_for_those_before_it_of_its_groups_only() {
        let order = SendOrder::default();
        let first = order.turn(&messages(&["a"])).await;
        let (both, b) = (messages(&["a", "b"]), messages(&["b"]));
        let mut second = Box::pin(order.turn(&both));
        assert!(second.as_mut().now_or_never().is_none(), "it waits for the first");
        let mut third = Box::pin(order.turn(&b));
        assert!(third.as_mut().now_or_never().is_none(), "it waits for the second, which is before it in b");
        drop(order.turn(&messages(&["c"])).now_or_never().expect("nobody is before it"));
        drop(order.turn(&[wire::Message::default()]).now_or_never().expect("it has no group"));
        drop(first);
        let second = second.as_mut().now_or_never().expect("its turn");
        assert!(third.as_mut().now_or_never().is_none());
        drop(second);
        drop(third.as_mut().now_or_never().expect("its turn"));
        assert!(order.lines.lock().is_empty());
    }

    #[tokio::test]
    async fn one_that_gives_up_lets_nobody_overtake_those_before_it() {
        let order = SendOrder::default();
        let a = messages(&["a"]);
        let first = order.turn(&a).await;
        let mut second = Box::pin(order.turn(&a));
        let mut third = Box::pin(order.turn(&a));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        drop(second);
        assert!(third.as_mut().now_or_never().is_none(), "the first is still under way");
        drop(first);
        drop(third.as_mut().now_or_never().expect("its turn"));
        assert!(order.lines.lock().is_empty());
    }
}

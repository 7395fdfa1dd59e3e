//! Who leads which group, as far as this node has heard.
//!
//! Sources: the replicas hosted here, hints in replies, answers to probes, and registrations. The
//! newest term wins; within a term a leader cannot change, so a contradiction in one term is a
//! "nobody known" giving way to a name.

use std::collections::BTreeMap;
use std::sync::Arc;

use ledgermq_common::{GroupName, NodeId, Term};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::group_call::{Leadership, LocalGroups};

pub struct LeaderTable {
    local: Arc<dyn LocalGroups>,
    heard: Mutex<BTreeMap<GroupName, Leadership>>,
    version: watch::Sender<u64>,
}

impl LeaderTable {
    pub fn new(local: Arc<dyn LocalGroups>) -> Self {
        Self { local, heard: Mutex::new(BTreeMap::new()), version: watch::Sender::new(0) }
    }

    /// The newest that is known, from the local replica or from others.
    pub fn get(&self, group: &GroupName) -> Leadership {
        let heard = self.heard.lock().get(group).copied().unwrap_or_default();
        match self.local.leadership(group) {
            Some(local) => newest(*local.borrow(), heard),
            None => heard,
        }
    }

    pub fn learn(&self, group: &GroupName, told: Leadership) {
        let mut heard = self.heard.lock();
        let known = heard.entry(group.clone()).or_default();
        let better = newest(*known, told);
        if better != *known {
            *known = better;
            drop(heard);
            self.version.send_modify(|version| *version = version.wrapping_add(1));
        }
    }

    /// `node` says it does not lead. What was heard of it in terms up to `term` is void.
    pub fn denied(&self, group: &GroupName, node: NodeId, term: Term) {
        let mut heard = self.heard.lock();
        if let Some(known) = heard.get_mut(group)
            && known.leader == Some(node)
            && known.term <= term
        {
            known.leader = None;
        }
    }

    /// Rises with everything learned from others.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}

fn newest(a: Leadership, b: Leadership) -> Leadership {
    match a.term.cmp(&b.term) {
        std::cmp::Ordering::Greater => a,
        std::cmp::Ordering::Less => b,
        std::cmp::Ordering::Equal => Leadership { term: a.term, leader: a.leader.or(b.leader) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group_call::NoLocalGroups;

    #[test]
    fn an_older_term_never_replaces_a_newer_one() {
        let table = LeaderTable::new(Arc::new(NoLocalGroups));
        let group = GroupName::parse("g").expect("name");
        let leader = |term, node| Leadership { term: Term(term), leader: Some(NodeId(node)) };
        table.learn(&group, leader(5, 1));
        table.learn(&group, leader(4, 2));
        assert_eq!(table.get(&group), leader(5, 1));
        table.learn(&group, Leadership { term: Term(5), leader: None });
        assert_eq!(table.get(&group), leader(5, 1));
        table.denied(&group, NodeId(1), Term(4));
        assert_eq!(table.get(&group), leader(5, 1), "a denial from an older term is old news");
        table.denied(&group, NodeId(1), Term(5));
        assert_eq!(table.get(&group), Leadership { term: Term(5), leader: None });
        table.learn(&group, leader(6, 3));
        assert_eq!(table.get(&group), leader(6, 3));
    }
}

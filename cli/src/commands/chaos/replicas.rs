//! Are the replicas of a group the same? Asked when a run is over, of every group of its cluster.
//!
//! | Compared | When | A difference is |
//! |---|---|---|
//! | the digest of the state after the same entry | while the nodes still run, once nothing is applied any more | `state-differs`, with the index and the part of the state |
//! | the committed entries of the logs, byte by byte, bar the fields that are local | when all have ended | `log-differs`, with the index, files and positions |
//! | what no longer verifies | likewise | `log-damaged`, with file and bytes |
//! | how many logs have what was committed | likewise | `lost-by-majority`, with the index |
//!
//! What could not be compared makes the verdict unknown.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use ledgermq_checkers::{Anomaly, FINDINGS_SHOWN_MAX, Outcome, Verdict};
use ledgermq_client::{Client, ClientOptions};
use ledgermq_proto::admin::NodeStatusRequest;
use ledgermq_raft_store::io::RealDisk;
use ledgermq_raft_store::replicas::{self, Comparison, Difference};
use tokio::time::Instant;

use crate::cluster::Cluster;

/// Beside the history.
pub const FILE: &str = "replicas.json";
/// Until no entry comes any more and every node has applied the last one.
const AT_REST_WITHIN: Duration = Duration::from_secs(60);
const AT_REST_POLL: Duration = Duration::from_millis(300);
/// A digest reads the whole state.
const DIGEST_WITHIN: Duration = Duration::from_secs(120);
/// Parts of a digest, in its order.
const PARTS: [&str; 5] = ["records", "message-id window", "ConsumeQueues", "timers", "key index"];

/// What a node said of its copy of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Digest {
    node: u64,
    index: u64,
    digest: String,
}

/// What was found, on the way to a verdict.
#[derive(Debug, Default)]
pub struct Found {
    anomalies: Vec<Anomaly>,
    states: usize,
    entries: u64,
    bytes: u64,
    not_compared: Option<String>,
}

impl Found {
    fn fatal(&mut self, name: &str, count: usize, examples: Vec<String>) {
        if count == 0 {
            return;
        }
        match self.anomalies.iter_mut().find(|anomaly| anomaly.name == name) {
            Some(known) => {
                known.count += count;
                known.examples.extend(examples);
                known.examples.truncate(FINDINGS_SHOWN_MAX);
            }
            None => self.anomalies.push(Anomaly { name: name.to_owned(), count, fatal: true, examples }),
        }
    }

    fn not_compared(&mut self, why: String) {
        self.not_compared.get_or_insert(why);
    }

    /// While the nodes run and nobody sends.
    pub async fn states(&mut self, cluster: &Cluster) {
        let until = Instant::now() + AT_REST_WITHIN;
        loop {
            let why = match digests(cluster).await {
                Ok(groups) => match at_rest(&groups) {
                    None => {
                        self.states += groups.values().map(Vec::len).sum::<usize>();
                        return groups
                            .iter()
                            .for_each(|(group, digests)| self.compare_states(*group, digests));
                    }
                    Some(why) => why,
                },
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() >= until {
                return self.not_compared(format!("the states were not compared: {why}"));
            }
            tokio::time::sleep(AT_REST_POLL).await;
        }
    }

    fn compare_states(&mut self, group: u32, digests: &[Digest]) {
        let Some((first, others)) = digests.split_first() else { return };
        let differences: Vec<String> = others
            .iter()
            .filter(|other| other.digest != first.digest)
            .map(|other| {
                let parts: Vec<&str> = first
                    .digest
                    .split('-')
                    .zip(other.digest.split('-'))
                    .zip(PARTS)
                    .filter(|((one, other), _)| one != other)
                    .map(|(_, part)| part)
                    .collect();
                format!(
                    "group {group} after entry {}: nodes {} and {} differ in {}",
                    first.index,
                    first.node,
                    other.node,
                    parts.join(", ")
                )
            })
            .collect();
        self.fatal("state-differs", differences.len(), differences);
    }

    /// When all nodes have ended. Blocks.
    pub fn logs(&mut self, data_dirs: &[PathBuf]) {
        match groups_in(data_dirs) {
            Ok(groups) if groups.is_empty() => self.not_compared("there are no logs".to_owned()),
            Ok(groups) => {
                for (group, directories) in groups {
                    match replicas::compare(&RealDisk, &directories) {
                        Ok(compared) => self.compared(group, compared),
                        Err(error) => {
                            self.not_compared(format!(
                                "the logs of group {group} were not compared: {error}"
                            ));
                        }
                    }
                }
            }
            Err(error) => self.not_compared(format!("the logs were not compared: {error:#}")),
        }
    }

    fn compared(&mut self, group: u32, compared: Comparison) {
        self.entries += compared.entries;
        self.bytes += compared.bytes;
        if compared.entries == 0 {
            self.not_compared(format!("no entry of group {group} was in two logs"));
        }
        for difference in &compared.differences {
            let name = match difference {
                Difference::Entry { .. } => "log-differs",
                Difference::Damaged { .. } => "log-damaged",
                Difference::NotOnMajority { .. } => "lost-by-majority",
            };
            self.fatal(name, 1, vec![format!("group {group}: {difference}")]);
        }
        let told = compared.differences.len() as u64;
        let more = usize::try_from(compared.differences_in_all.saturating_sub(told)).unwrap_or(usize::MAX);
        self.fatal("log-differs", more, Vec::new());
    }

    pub fn verdict(self) -> Verdict {
        let outcome = match (self.anomalies.is_empty(), &self.not_compared) {
            (false, _) => Outcome::Invalid,
            (true, Some(_)) => Outcome::Unknown,
            (true, None) => Outcome::Valid,
        };
        let number = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        Verdict {
            checker: "replicas".to_owned(),
            outcome,
            reason: self.not_compared,
            anomalies: self.anomalies,
            counts: vec![
                ("states".to_owned(), self.states),
                ("entries".to_owned(), number(self.entries)),
                ("bytes".to_owned(), number(self.bytes)),
            ],
        }
    }
}

/// Why the digests say nothing yet.
fn at_rest(groups: &BTreeMap<u32, Vec<Digest>>) -> Option<String> {
    for (group, digests) in groups {
        if digests.len() < 2 {
            return Some(format!("group {group} has no two nodes that tell their state"));
        }
        if let Some(moving) = digests.iter().find(|digest| digest.digest.is_empty()) {
            return Some(format!("node {} is still applying entries of group {group}", moving.node));
        }
        let (least, greatest) = (
            digests.iter().map(|digest| digest.index).min(),
            digests.iter().map(|digest| digest.index).max(),
        );
        if least != greatest {
            return Some(format!("nodes of group {group} have applied different entries: {digests:?}"));
        }
    }
    groups.is_empty().then(|| "no node told a state".to_owned())
}

/// Of every broker, which all have to answer.
async fn digests(cluster: &Cluster) -> anyhow::Result<BTreeMap<u32, Vec<Digest>>> {
    let mut groups: BTreeMap<u32, Vec<Digest>> = BTreeMap::new();
    for member in cluster.brokers() {
        let client = Client::connect(&cluster.access_point(member)?, ClientOptions::default()).await;
        let client = client.with_context(|| format!("{member} cannot be asked"))?;
        let request = NodeStatusRequest { with_state_digest: true };
        let status = client.admin().node_status(request, DIGEST_WITHIN).await;
        for hosted in status.with_context(|| format!("{member} does not tell its state"))?.groups {
            let replica = hosted.replica.unwrap_or_default();
            groups.entry(hosted.id).or_default().push(Digest {
                node: replica.node,
                index: replica.digest_index,
                digest: replica.state_digest,
            });
        }
    }
    Ok(groups)
}

/// The directories of each group's logs, in the order of the nodes.
fn groups_in(data_dirs: &[PathBuf]) -> anyhow::Result<BTreeMap<u32, Vec<PathBuf>>> {
    let mut groups: BTreeMap<u32, Vec<PathBuf>> = BTreeMap::new();
    for data_dir in data_dirs {
        let parent = data_dir.join("groups");
        let entries =
            std::fs::read_dir(&parent).with_context(|| format!("cannot read {}", parent.display()))?;
        for entry in entries {
            let name = entry?.file_name();
            let Some(group) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            groups.entry(group).or_default().push(parent.join(name).join("log"));
        }
    }
    Ok(groups)
}

/// The verdict that a run left beside its history.
pub fn beside(history: &Path) -> Option<Verdict> {
    let path = history.parent().unwrap_or(Path::new("")).join(FILE);
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(node: u64, index: u64, digest: &str) -> Digest {
        Digest { node, index, digest: digest.to_owned() }
    }

    fn waits_for(digests: Vec<Digest>) -> Option<String> {
        at_rest(&BTreeMap::from([(1, digests)]))
    }

    #[test]
    fn states_are_compared_only_after_the_same_entry() {
        assert!(waits_for(vec![digest(1, 7, "a")]).is_some_and(|why| why.contains("no two nodes")));
        let applying = waits_for(vec![digest(1, 7, "a"), digest(2, 0, "")]);
        assert!(applying.is_some_and(|why| why.contains("node 2 is still applying")));
        assert!(waits_for(vec![digest(1, 7, "a"), digest(2, 8, "a")]).is_some());
        assert_eq!(waits_for(vec![digest(1, 7, "a"), digest(2, 7, "b")]), None);
        assert!(at_rest(&BTreeMap::new()).is_some());
    }

    #[test]
    fn states_that_differ_are_named_by_index_node_and_part() {
        let mut found = Found { entries: 9, ..Found::default() };
        let same = "1-2-3-4-5";
        found.compare_states(1, &[digest(1, 7, same), digest(2, 7, same), digest(3, 7, "1-2-9-4-8")]);
        let verdict = found.verdict();
        assert_eq!(verdict.outcome, Outcome::Invalid);
        assert_eq!(verdict.count_of("state-differs"), 1);
        let said = &verdict.anomalies[0].examples[0];
        assert_eq!(said, "group 1 after entry 7: nodes 1 and 3 differ in ConsumeQueues, key index");
    }

    #[test]
    fn what_was_not_compared_is_no_pass_and_no_excuse() {
        let mut found = Found::default();
        found.compared(1, Comparison::default());
        assert_eq!(found.verdict().outcome, Outcome::Unknown);
        let mut found = Found::default();
        found.logs(&[PathBuf::from("/nowhere")]);
        let lost =
            Difference::NotOnMajority { committed: ledgermq_common::LogIndex(4), holders: 1, replicas: 3 };
        let differences = vec![lost];
        found.compared(
            1,
            Comparison { entries: 4, differences, differences_in_all: 3, ..Comparison::default() },
        );
        let verdict = found.verdict();
        assert_eq!(verdict.outcome, Outcome::Invalid);
        assert_eq!((verdict.count_of("lost-by-majority"), verdict.count_of("log-differs")), (1, 2));
        assert!(verdict.reason.is_some_and(|reason| reason.contains("/nowhere")));
    }
}

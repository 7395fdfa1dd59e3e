//! The scenarios: a fault and whom it meets.

use super::ClusterKind;
use super::client_processes::ClientFault;
use super::clock_faults::ClockFault;
use super::disk_faults::{DiskFault, Rotten, SCRUB_EVERY_S};
use super::member_faults::MemberFault;
use super::network_faults::NetworkFault;
use crate::cluster::{COMPOSE_SIZES, ClusterPlan};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: what the figures are without a fault.
    None,
    /// SIGKILL, and a restart on the same files.
    Kill,
    /// SIGSTOP, and SIGCONT after a while: the process keeps its sockets and does nothing.
    Stop,
    /// SIGTERM, its orderly end, and a restart.
    Terminate,
    /// Leadership goes from broker to broker, again and again.
    Transfer,
    /// More sends than the cluster can take.
    Overload,
    Member(MemberFault),
    Disk(DiskFault),
    Clock(ClockFault),
    Network(NetworkFault),
    Client(ClientFault),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Leader,
    Follower,
    /// A majority, the leader among them.
    Majority,
    /// As many as the others are still a majority without, the leader among them.
    Minority,
    /// As many, all of them followers.
    Followers,
    /// All brokers at once.
    All,
    /// All brokers one after the other, each back before the next.
    EachInTurn,
    Nameservers,
    /// One of the clients that are processes of their own.
    Clients,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scenario {
    pub name: &'static str,
    pub fault: Fault,
    pub target: Target,
    pub about: &'static str,
}

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "none",
        fault: Fault::None,
        target: Target::All,
        about: "load without a fault, to compare with",
    },
    Scenario {
        name: "kill-leader",
        fault: Fault::Kill,
        target: Target::Leader,
        about: "kill -9 of the leader, then a restart",
    },
    Scenario {
        name: "kill-follower",
        fault: Fault::Kill,
        target: Target::Follower,
        about: "kill -9 of a follower, then a restart",
    },
    Scenario {
        name: "kill-majority",
        fault: Fault::Kill,
        target: Target::Majority,
        about: "kill -9 of the leader and half of the others at once",
    },
    Scenario {
        name: "kill-minority",
        fault: Fault::Kill,
        target: Target::Minority,
        about: "kill -9 of two brokers of five at once, the leader among them",
    },
    Scenario {
        name: "kill-followers",
        fault: Fault::Kill,
        target: Target::Followers,
        about: "kill -9 of two followers of five at once",
    },
    Scenario {
        name: "kill-all",
        fault: Fault::Kill,
        target: Target::All,
        about: "kill -9 of all brokers at once",
    },
    Scenario {
        name: "stop-leader",
        fault: Fault::Stop,
        target: Target::Leader,
        about: "SIGSTOP of the leader for a while",
    },
    Scenario {
        name: "stop-follower",
        fault: Fault::Stop,
        target: Target::Follower,
        about: "SIGSTOP of a follower for a while",
    },
    Scenario {
        name: "stop-majority",
        fault: Fault::Stop,
        target: Target::Majority,
        about: "SIGSTOP of the leader and half of the others for a while",
    },
    Scenario {
        name: "stop-minority",
        fault: Fault::Stop,
        target: Target::Minority,
        about: "SIGSTOP of two brokers of five for a while, the leader among them",
    },
    Scenario {
        name: "stop-followers",
        fault: Fault::Stop,
        target: Target::Followers,
        about: "SIGSTOP of two followers of five for a while",
    },
    Scenario {
        name: "stop-all",
        fault: Fault::Stop,
        target: Target::All,
        about: "SIGSTOP of all brokers for a while",
    },
    Scenario {
        name: "term-leader",
        fault: Fault::Terminate,
        target: Target::Leader,
        about: "SIGTERM of the leader: it hands over",
    },
    Scenario {
        name: "term-follower",
        fault: Fault::Terminate,
        target: Target::Follower,
        about: "SIGTERM of a follower",
    },
    Scenario {
        name: "rolling-restart",
        fault: Fault::Terminate,
        target: Target::EachInTurn,
        about: "SIGTERM and restart of all brokers, one after the other",
    },
    Scenario {
        name: "replace-follower",
        fault: Fault::Member(MemberFault::Replace),
        target: Target::Follower,
        about: "a follower's machine is lost with its disk, and another takes its place",
    },
    Scenario {
        name: "replace-leader",
        fault: Fault::Member(MemberFault::Replace),
        target: Target::Leader,
        about: "the leader's machine is lost with its disk, and another takes its place",
    },
    Scenario {
        name: "rejoin-follower",
        fault: Fault::Member(MemberFault::Rejoin),
        target: Target::Follower,
        about: "a follower is taken out of its group and comes back: the members change five times",
    },
    Scenario {
        name: "rejoin-under-kill",
        fault: Fault::Member(MemberFault::RejoinUnderKill),
        target: Target::Follower,
        about: "likewise, and the leader is killed while the members change",
    },
    Scenario {
        name: "transfer-storm",
        fault: Fault::Transfer,
        target: Target::All,
        about: "leadership is transferred to another broker again and again",
    },
    Scenario {
        name: "overload",
        fault: Fault::Overload,
        target: Target::All,
        about: "120 % of the sends the cluster can take, measured before: no election may come of it",
    },
    Scenario {
        name: "client-kill",
        fault: Fault::Client(ClientFault::Kill),
        target: Target::Clients,
        about: "kill -9 of a producer or a consumer, and another in its place",
    },
    Scenario {
        name: "client-pause",
        fault: Fault::Client(ClientFault::Pause),
        target: Target::Clients,
        about: "SIGSTOP of a producer or a consumer for longer than a lease",
    },
    Scenario {
        name: "kill-nameservers",
        fault: Fault::Kill,
        target: Target::Nameservers,
        about: "kill -9 of all nameservers",
    },
    Scenario {
        name: "power-loss-leader",
        fault: Fault::Disk(DiskFault::PowerLoss),
        target: Target::Leader,
        about: "the leader's machine loses its power and what was not synced",
    },
    Scenario {
        name: "power-loss-follower",
        fault: Fault::Disk(DiskFault::PowerLoss),
        target: Target::Follower,
        about: "a follower's machine loses its power",
    },
    Scenario {
        name: "power-loss-all",
        fault: Fault::Disk(DiskFault::PowerLoss),
        target: Target::All,
        about: "all machines lose their power at once",
    },
    Scenario {
        name: "torn-tail-all",
        fault: Fault::Disk(DiskFault::TornTail),
        target: Target::All,
        about: "all machines lose their power, and every log ends torn",
    },
    Scenario {
        name: "eio-write-leader",
        fault: Fault::Disk(DiskFault::FailingWrite),
        target: Target::Leader,
        about: "a write to the log fails on the leader",
    },
    Scenario {
        name: "eio-write-follower",
        fault: Fault::Disk(DiskFault::FailingWrite),
        target: Target::Follower,
        about: "a write to the log fails on a follower",
    },
    Scenario {
        name: "eio-sync-leader",
        fault: Fault::Disk(DiskFault::FailingSync),
        target: Target::Leader,
        about: "a sync of the log fails on the leader",
    },
    Scenario {
        name: "eio-sync-follower",
        fault: Fault::Disk(DiskFault::FailingSync),
        target: Target::Follower,
        about: "a sync of the log fails on a follower",
    },
    Scenario {
        name: "disk-full-leader",
        fault: Fault::Disk(DiskFault::Full),
        target: Target::Leader,
        about: "the leader's disk is full for a while",
    },
    Scenario {
        name: "disk-full-follower",
        fault: Fault::Disk(DiskFault::Full),
        target: Target::Follower,
        about: "a follower's disk is full for a while",
    },
    Scenario {
        name: "disk-full-all",
        fault: Fault::Disk(DiskFault::Full),
        target: Target::All,
        about: "all disks are full for a while",
    },
    Scenario {
        name: "slow-disk-leader",
        fault: Fault::Disk(DiskFault::Slow),
        target: Target::Leader,
        about: "each sync of the leader takes 50 to 500 ms longer",
    },
    Scenario {
        name: "slow-disk-follower",
        fault: Fault::Disk(DiskFault::Slow),
        target: Target::Follower,
        about: "each sync of a follower takes 50 to 500 ms longer",
    },
    Scenario {
        name: "stalled-disk-leader",
        fault: Fault::Disk(DiskFault::Stalled),
        target: Target::Leader,
        about: "no write or sync of the leader comes back for a while: another must lead within 3 s",
    },
    Scenario {
        name: "stalled-disk-follower",
        fault: Fault::Disk(DiskFault::Stalled),
        target: Target::Follower,
        about: "no write or sync of a follower comes back for a while",
    },
    Scenario {
        name: "corrupt-log",
        fault: Fault::Disk(DiskFault::Rotten(Rotten::Log)),
        target: Target::Follower,
        about: "a bit of the log rots while a follower is down: it is repaired from its peers",
    },
    Scenario {
        name: "corrupt-superblock",
        fault: Fault::Disk(DiskFault::Rotten(Rotten::Superblock)),
        target: Target::Follower,
        about: "a bit in both copies of the superblock rots while a follower is down: likewise",
    },
    Scenario {
        name: "corrupt-superblock-slot",
        fault: Fault::Disk(DiskFault::Rotten(Rotten::SuperblockSlot)),
        target: Target::Follower,
        about: "a bit in one copy of the superblock rots while a follower is down",
    },
    Scenario {
        name: "corrupt-snapshot",
        fault: Fault::Disk(DiskFault::Rotten(Rotten::Snapshot)),
        target: Target::Follower,
        about: "a bit of the newest snapshot rots while a follower is down",
    },
    Scenario {
        name: "corrupt-index",
        fault: Fault::Disk(DiskFault::Rotten(Rotten::Index)),
        target: Target::Follower,
        about: "4 KiB of every derived file rots while a follower is down",
    },
    Scenario {
        name: "corrupt-log-leader",
        fault: Fault::Disk(DiskFault::Rotten(Rotten::Log)),
        target: Target::Leader,
        about: "a bit of the log of a leader rots while it is down",
    },
    Scenario {
        name: "corrupt-running-follower",
        fault: Fault::Disk(DiskFault::RottenBelow),
        target: Target::Follower,
        about: "a bit of the log rots below a running follower",
    },
    Scenario {
        name: "corrupt-running-leader",
        fault: Fault::Disk(DiskFault::RottenBelow),
        target: Target::Leader,
        about: "a bit of the log rots below a running broker that led a moment ago",
    },
    Scenario {
        name: "eio-sync-all",
        fault: Fault::Disk(DiskFault::FailingSync),
        target: Target::All,
        about: "a sync of the log fails on every member",
    },
    Scenario {
        name: "slow-disk-all",
        fault: Fault::Disk(DiskFault::Slow),
        target: Target::All,
        about: "each sync of all members takes 50 to 500 ms longer",
    },
    Scenario {
        name: "stalled-disk-all",
        fault: Fault::Disk(DiskFault::Stalled),
        target: Target::All,
        about: "no write or sync of any member comes back for a while",
    },
    Scenario {
        name: "clock-step-one",
        fault: Fault::Clock(ClockFault::Step),
        target: Target::Follower,
        about: "the clock of a follower is an hour off for a while",
    },
    Scenario {
        name: "clock-step-leader",
        fault: Fault::Clock(ClockFault::Step),
        target: Target::Leader,
        about: "the clock of the leader is an hour off for a while",
    },
    Scenario {
        name: "clock-step-all",
        fault: Fault::Clock(ClockFault::Step),
        target: Target::All,
        about: "the clock of all machines is an hour off for a while",
    },
    Scenario {
        name: "clock-drift-leader",
        fault: Fault::Clock(ClockFault::Drift),
        target: Target::Leader,
        about: "the clock of the leader runs a tenth too fast or too slow",
    },
    Scenario {
        name: "clock-strobe-leader",
        fault: Fault::Clock(ClockFault::Strobe),
        target: Target::Leader,
        about: "the clock of the leader goes an hour forward and back every 50 ms",
    },
    Scenario {
        name: "isolate-leader",
        fault: Fault::Network(NetworkFault::Isolated),
        target: Target::Leader,
        about: "the leader and the others do not reach each other; clients still reach it",
    },
    Scenario {
        name: "isolate-follower",
        fault: Fault::Network(NetworkFault::Isolated),
        target: Target::Follower,
        about: "a follower and the others do not reach each other",
    },
    Scenario {
        name: "isolate-majority",
        fault: Fault::Network(NetworkFault::Isolated),
        target: Target::Majority,
        about: "the leader and half of the others reach no other member each",
    },
    Scenario {
        name: "isolate-minority",
        fault: Fault::Network(NetworkFault::Isolated),
        target: Target::Minority,
        about: "two brokers of five reach no other member each, the leader among them",
    },
    Scenario {
        name: "isolate-followers",
        fault: Fault::Network(NetworkFault::Isolated),
        target: Target::Followers,
        about: "two followers of five reach no other member each",
    },
    Scenario {
        name: "isolate-each",
        fault: Fault::Network(NetworkFault::Isolated),
        target: Target::EachInTurn,
        about: "one broker after the other is isolated",
    },
    Scenario {
        name: "cut-off-leader",
        fault: Fault::Network(NetworkFault::CutOff),
        target: Target::Leader,
        about: "nobody reaches the leader, clients neither",
    },
    Scenario {
        name: "deaf-leader",
        fault: Fault::Network(NetworkFault::Deaf),
        target: Target::Leader,
        about: "the leader is heard and hears no other member",
    },
    Scenario {
        name: "mute-leader",
        fault: Fault::Network(NetworkFault::Mute),
        target: Target::Leader,
        about: "the leader hears the other members and is not heard by them",
    },
    Scenario {
        name: "halves",
        fault: Fault::Network(NetworkFault::Halves),
        target: Target::Leader,
        about: "the leader is on the side without a majority",
    },
    Scenario {
        name: "bridge",
        fault: Fault::Network(NetworkFault::Bridge),
        target: Target::Leader,
        about: "two halves, and one broker that reaches both",
    },
    Scenario {
        name: "ring",
        fault: Fault::Network(NetworkFault::Ring),
        target: Target::Leader,
        about: "each broker reaches a majority, no two the same",
    },
    Scenario {
        name: "flapping-leader",
        fault: Fault::Network(NetworkFault::Flapping),
        target: Target::Leader,
        about: "the leader is isolated and not by turns of 200 ms",
    },
    Scenario {
        name: "isolate-nameservers",
        fault: Fault::Network(NetworkFault::Isolated),
        target: Target::Nameservers,
        about: "nameservers and brokers do not reach each other",
    },
    Scenario {
        name: "loss",
        fault: Fault::Network(NetworkFault::Lossy),
        target: Target::All,
        about: "a fifth of all packets between members is lost",
    },
    Scenario {
        name: "delay",
        fault: Fault::Network(NetworkFault::Slow),
        target: Target::All,
        about: "packets between members take 50 to 150 ms",
    },
    Scenario {
        name: "duplication",
        fault: Fault::Network(NetworkFault::Repeating),
        target: Target::All,
        about: "a fifth of all packets between members comes twice",
    },
    Scenario {
        name: "reordering",
        fault: Fault::Network(NetworkFault::Reordering),
        target: Target::All,
        about: "a quarter of all packets between members is overtaken",
    },
    Scenario {
        name: "corruption",
        fault: Fault::Network(NetworkFault::Corrupting),
        target: Target::All,
        about: "a bit of each twentieth packet between members is turned over",
    },
    Scenario {
        name: "rate",
        fault: Fault::Network(NetworkFault::Narrow),
        target: Target::All,
        about: "links between members carry 250 kB/s",
    },
];

/// Segments so small that a full disk is noticed soon.
const SMALL_SEGMENT_BYTES: u64 = 32 * 1024 * 1024;
const MESSAGE_BYTES: u32 = 1024;
const FILLING_MESSAGE_BYTES: u32 = 16 * 1024;
/// Snapshots so often that there is one to rot.
const SNAPSHOT_EVERY_BYTES: u64 = 1024 * 1024;
const CHECKPOINT_EVERY_BYTES: u64 = 1024 * 1024;

impl Scenario {
    /// What the cluster needs for this fault to be possible.
    pub fn prepare(self, plan: &mut ClusterPlan) {
        match self.fault {
            Fault::Disk(fault) => {
                plan.faulty_disks = true;
                match fault {
                    DiskFault::Full => plan.segment_size_bytes = SMALL_SEGMENT_BYTES,
                    DiskFault::Rotten(Rotten::Snapshot) => plan
                        .broker_settings
                        .push(format!("storage.snapshot_interval_bytes={SNAPSHOT_EVERY_BYTES}")),
                    DiskFault::RottenBelow => {
                        plan.broker_settings.push(format!("storage.scrub_interval_s={SCRUB_EVERY_S}"));
                    }
                    DiskFault::Rotten(Rotten::Index) => plan
                        .broker_settings
                        .push(format!("storage.checkpoint_interval_bytes={CHECKPOINT_EVERY_BYTES}")),
                    _ => {}
                }
            }
            Fault::Clock(_) => plan.skewed_clocks = true,
            Fault::Network(_) => plan.faulty_network = true,
            Fault::None
            | Fault::Kill
            | Fault::Stop
            | Fault::Terminate
            | Fault::Transfer
            | Fault::Member(_)
            | Fault::Overload
            | Fault::Client(_) => {}
        }
    }

    /// A disk only becomes full when much is written.
    pub fn message_size(self) -> u32 {
        if self.fault == Fault::Disk(DiskFault::Full) { FILLING_MESSAGE_BYTES } else { MESSAGE_BYTES }
    }

    /// Fewer brokers make this no scenario of its own.
    pub fn brokers_min(self) -> u64 {
        let is_of_five = matches!(self.fault, Fault::Network(NetworkFault::Bridge | NetworkFault::Ring))
            || matches!(self.target, Target::Minority | Target::Followers);
        match self.fault {
            _ if is_of_five => 5,
            Fault::Transfer => 2,
            Fault::Member(_) => 3,
            _ => 1,
        }
    }

    /// How many brokers a run of it has where so many are wanted.
    pub fn brokers_on(self, cluster: ClusterKind, wanted: u64) -> u64 {
        let least = wanted.max(self.brokers_min());
        match cluster {
            ClusterKind::Local | ClusterKind::Netns => least,
            // More than there can be is refused by `check`.
            ClusterKind::Compose => COMPOSE_SIZES.into_iter().find(|size| *size >= least).unwrap_or(least),
        }
    }

    /// The clusters on which the fault can happen.
    pub fn clusters(self) -> &'static [ClusterKind] {
        use ClusterKind::{Compose, Local, Netns};
        match self.fault {
            Fault::None
            | Fault::Kill
            | Fault::Stop
            | Fault::Terminate
            | Fault::Transfer
            | Fault::Overload
            | Fault::Client(_) => &[Local, Netns, Compose],
            // The directories of containers are volumes.
            Fault::Member(MemberFault::Replace) => &[Local, Netns],
            Fault::Member(_) => &[Local, Netns, Compose],
            Fault::Disk(_) | Fault::Clock(_) => &[Local, Netns],
            // Such a run makes networks of its own either way.
            Fault::Network(fault) if fault.is_cut() => &[Local, Netns, Compose],
            Fault::Network(_) => &[Local, Netns],
        }
    }

    /// An error that says why this scenario cannot run there. A project of somebody's own has as many
    /// brokers as it has.
    pub fn check(self, cluster: ClusterKind, brokers: Option<u64>) -> Result<(), String> {
        if !self.clusters().contains(&cluster) {
            let why = match self.fault {
                Fault::Member(_) => "the directories of containers are volumes of docker",
                Fault::Disk(_) => "the disks of containers are those of the machine",
                Fault::Clock(_) => "the clock of containers is that of the machine",
                _ => "links of containers can be cut, not made slow or lossy",
            };
            let name = self.name;
            return Err(format!("{name} cannot run with --cluster compose: {why}; --cluster local can"));
        }
        let Some(brokers) = brokers else { return Ok(()) };
        if brokers < self.brokers_min() {
            let (name, least) = (self.name, self.brokers_min());
            return Err(format!(
                "{name} needs {least} brokers (--nodes {least}), this cluster has {brokers}"
            ));
        }
        if cluster == ClusterKind::Compose && !COMPOSE_SIZES.contains(&brokers) {
            let sizes = COMPOSE_SIZES.map(|size| size.to_string()).join(" or ");
            return Err(format!(
                "--nodes {brokers}: the compose cluster of its own has {sizes} brokers; \
                 --project takes one of yours"
            ));
        }
        Ok(())
    }

    pub fn can_run_on(self, cluster: ClusterKind) -> bool {
        self.check(cluster, Some(self.brokers_on(cluster, 1))).is_ok()
    }

    pub fn loses_power(self) -> bool {
        matches!(self.fault, Fault::Disk(DiskFault::PowerLoss | DiskFault::TornTail))
    }
}

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Terminate => "term",
            Self::Transfer => "transfer",
            Self::Member(fault) => fault.name(),
            Self::Overload => "overload",
            Self::Disk(fault) => fault.name(),
            Self::Clock(fault) => fault.name(),
            Self::Network(fault) => fault.name(),
            Self::Client(fault) => fault.name(),
        }
    }
}

/// As clap parses it.
pub fn parse(name: &str) -> Result<Scenario, String> {
    SCENARIOS
        .iter()
        .find(|scenario| scenario.name == name)
        .copied()
        .ok_or_else(|| "no such scenario; `ledgermq chaos list` names them".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_stands_once_and_is_found() {
        for scenario in SCENARIOS {
            assert_eq!(parse(scenario.name), Ok(*scenario));
        }
        assert!(parse("kill-everything").is_err());
    }

    #[test]
    fn a_scenario_that_cannot_run_somewhere_is_refused_with_the_reason() {
        let refused =
            |name: &str, cluster, brokers| parse(name).unwrap().check(cluster, brokers).unwrap_err();
        let disks = refused("slow-disk-leader", ClusterKind::Compose, Some(3));
        assert!(disks.contains("--cluster compose") && disks.contains("disks of containers"), "{disks}");
        assert!(refused("clock-step-one", ClusterKind::Compose, None).contains("clock"));
        assert!(refused("loss", ClusterKind::Compose, Some(3)).contains("cut, not made slow"));
        let few = refused("kill-minority", ClusterKind::Local, Some(3));
        assert!(few.contains("needs 5 brokers (--nodes 5)") && few.contains("has 3"), "{few}");
        assert!(refused("ring", ClusterKind::Netns, Some(4)).contains("needs 5 brokers"));
        assert!(refused("kill-minority", ClusterKind::Compose, Some(3)).contains("--nodes 5"));
        assert!(refused("kill-leader", ClusterKind::Compose, Some(4)).contains("has 3 or 5 brokers"));
        assert!(refused("kill-leader", ClusterKind::Compose, Some(7)).contains("--nodes 7"));
        for scenario in SCENARIOS {
            for cluster in scenario.clusters() {
                assert_eq!(scenario.check(*cluster, Some(5)), Ok(()), "{}", scenario.name);
            }
        }
        assert_eq!(parse("isolate-leader").unwrap().check(ClusterKind::Compose, Some(3)), Ok(()));
        assert_eq!(parse("ring").unwrap().check(ClusterKind::Compose, None), Ok(()), "somebody's own");
    }

    #[test]
    fn a_run_has_the_least_brokers_that_are_enough_for_it_and_that_the_cluster_can_have() {
        let on = |name: &str, cluster, wanted| parse(name).unwrap().brokers_on(cluster, wanted);
        assert_eq!(on("kill-leader", ClusterKind::Local, 1), 1);
        assert_eq!(on("ring", ClusterKind::Local, 3), 5);
        assert_eq!(on("kill-leader", ClusterKind::Compose, 1), 3);
        assert_eq!(on("kill-leader", ClusterKind::Compose, 4), 5);
        assert_eq!(on("ring", ClusterKind::Compose, 3), 5);
        assert_eq!(on("kill-leader", ClusterKind::Compose, 7), 7);
    }
}

//! The scenarios: a fault and whom it meets.

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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Leader,
    Follower,
    /// A majority, the leader among them.
    Majority,
    /// All brokers at once.
    All,
    /// All brokers one after the other, each back before the next.
    EachInTurn,
    Nameservers,
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
        name: "kill-nameservers",
        fault: Fault::Kill,
        target: Target::Nameservers,
        about: "kill -9 of all nameservers",
    },
];

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Terminate => "term",
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
}

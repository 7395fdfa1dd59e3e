//! The links between the members of a cluster, whoever carries their packets.

use std::collections::BTreeMap;

use ledgermq_faultnet::{Counters, Firewalls, Link, Network};

/// For the time of one fault; dropping it heals what filters cut.
pub enum Links<'a> {
    /// A network of our own: links may be bad in every way.
    Switch(&'a Network),
    /// Filters in the namespaces of containers: links are cut or good.
    Filters(Firewalls),
}

impl Links<'_> {
    pub fn set(&mut self, links: &[(usize, usize, Link)]) -> anyhow::Result<()> {
        match self {
            Self::Switch(network) => {
                for (from, to, link) in links {
                    network.set_link(*from, *to, *link);
                }
            }
            Self::Filters(walls) => walls.set(links)?,
        }
        Ok(())
    }

    /// All links are good again.
    pub fn heal(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Switch(network) => network.heal(),
            Self::Filters(walls) => walls.heal()?,
        }
        Ok(())
    }

    /// What the links from each to each of these hosts did so far.
    pub fn counters(&self, hosts: &[usize]) -> anyhow::Result<BTreeMap<(usize, usize), Counters>> {
        let counted = match self {
            Self::Switch(_) => BTreeMap::new(),
            Self::Filters(walls) => walls.counters()?,
        };
        let of = |from, to| match self {
            Self::Switch(network) => network.counters(from, to),
            Self::Filters(_) => counted.get(&(from, to)).copied().unwrap_or_default(),
        };
        let pairs = hosts.iter().flat_map(|from| hosts.iter().map(move |to| (*from, *to)));
        Ok(pairs.map(|(from, to)| ((from, to), of(from, to))).collect())
    }
}

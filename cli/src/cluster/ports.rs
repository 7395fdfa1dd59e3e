//! Free TCP ports for children. They lie below the range from which the kernel takes the local
//! ports of outgoing connections, or a connection could take one between its choice and its use.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;

use anyhow::bail;

const FIRST: u16 = 15_000;
const LAST: u16 = 32_000;

/// Handed out by this process already, whether or not something listens there yet.
static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

pub fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    let mut taken = TAKEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let range = usize::from(LAST - FIRST);
    // Processes that choose at the same time begin at different places.
    let start = (std::process::id() as usize).wrapping_mul(7_919);
    let mut ports = Vec::with_capacity(count);
    for step in 0..range {
        if ports.len() == count {
            return Ok(ports);
        }
        let offset = u16::try_from((start + step) % range).unwrap_or(0);
        let port = FIRST + offset;
        if !taken.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            taken.insert(port);
            ports.push(port);
        }
    }
    bail!("fewer than {count} free ports between {FIRST} and {LAST}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_handed_out_once_and_can_be_bound() {
        let mut ports = free_ports(20).unwrap();
        ports.extend(free_ports(20).unwrap());
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 40);
        for port in ports {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        }
    }
}

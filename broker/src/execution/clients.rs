//! Which clients are alive, as far as their heartbeats say.
//!
//! Held in memory on each leader and never in the log: it only decides whether leases are renewed,
//! and a new leader hears every living client again within a heartbeat. Until it has, it takes
//! clients it does not know for alive ([`Liveness::is_alive`]): to let leases of a living client
//! lapse would deliver its messages twice.

use hashbrown::HashMap;
use ledgermq_common::limits::CLIENT_EXPIRY_MS;
use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

use crate::state::ClientHash;

const CLIENT_EXPIRY: Duration = Duration::from_millis(CLIENT_EXPIRY_MS);
/// Remembered clients; beyond that nobody new is remembered until the next sweep, and the unknown
/// ones count by the age of this memory alone.
const CLIENTS_MAX: usize = 500_000;

#[derive(Debug)]
pub struct Liveness {
    since: Mutex<Instant>,
    heard: Mutex<HashMap<ClientHash, Instant>>,
}

impl Default for Liveness {
    fn default() -> Self {
        Self { since: Mutex::new(Instant::now()), heard: Mutex::default() }
    }
}

impl Liveness {
    /// This node became leader: what it heard before is old.
    pub fn leadership_began(&self) {
        *self.since.lock() = Instant::now();
    }

    pub fn heard_of(&self, client: ClientHash) {
        let mut heard = self.heard.lock();
        if heard.len() < CLIENTS_MAX || heard.contains_key(&client) {
            heard.insert(client, Instant::now());
        }
    }

    pub fn terminated(&self, client: ClientHash) {
        self.heard.lock().remove(&client);
    }

    pub fn is_alive(&self, client: ClientHash) -> bool {
        let since = *self.since.lock();
        match self.heard.lock().get(&client) {
            Some(heard) => heard.max(&since).elapsed() < CLIENT_EXPIRY,
            None => since.elapsed() < CLIENT_EXPIRY,
        }
    }

    /// When word of the client last came, in whatever term.
    pub fn last_heard(&self, client: ClientHash) -> Option<Instant> {
        self.heard.lock().get(&client).copied()
    }

    /// Forgets who was not heard of for long.
    pub fn sweep(&self) {
        self.heard.lock().retain(|_, heard| heard.elapsed() < CLIENT_EXPIRY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_lives_as_long_as_it_is_heard_of_and_a_new_leader_gives_everybody_time() {
        let liveness = Liveness::default();
        let (silent, speaking) = (ClientHash::of("silent"), ClientHash::of("speaking"));
        assert!(liveness.is_alive(silent), "a new leader knows nobody yet");
        tokio::time::advance(CLIENT_EXPIRY).await;
        liveness.heard_of(speaking);
        assert!(!liveness.is_alive(silent));
        assert!(liveness.is_alive(speaking));
        tokio::time::advance(CLIENT_EXPIRY).await;
        liveness.sweep();
        assert!(!liveness.is_alive(speaking));
        assert!(liveness.heard.lock().is_empty());
        liveness.leadership_began();
        assert!(liveness.is_alive(silent));
    }
}

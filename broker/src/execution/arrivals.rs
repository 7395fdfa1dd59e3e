//! Deliveries of which this node knows that they were passed on to their client.
//!
//! In memory only, for leases that are renewed by the server: a new leader knows of none, so what the
//! one before delivered is renewed only if that one had renewed it already ([`super::renewal`]). Kept
//! for longer than the first lease lasts; afterwards the renewal itself is the proof.

use hashbrown::HashSet;
use ledgermq_edge::validate::AUTO_RENEW_LEASE_MS;
use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

use crate::state::DeliveryEpoch;

/// How long a generation collects; what it holds is kept for as long again.
const GENERATION: Duration = Duration::from_millis(2 * AUTO_RENEW_LEASE_MS);
/// In one generation. Beyond that deliveries are not remembered, and their leases end once.
const ARRIVED_MAX: usize = 4_000_000;

#[derive(Debug)]
pub struct Arrivals(Mutex<Generations>);

#[derive(Debug)]
struct Generations {
    began: Instant,
    current: HashSet<DeliveryEpoch>,
    former: HashSet<DeliveryEpoch>,
}

impl Default for Arrivals {
    fn default() -> Self {
        let (current, former) = (HashSet::new(), HashSet::new());
        Self(Mutex::new(Generations { began: Instant::now(), current, former }))
    }
}

impl Arrivals {
    pub fn arrived(&self, deliveries: &[DeliveryEpoch]) {
        let mut generations = self.0.lock();
        generations.turn();
        let room = ARRIVED_MAX.saturating_sub(generations.current.len());
        generations.current.extend(deliveries.iter().take(room));
    }

    pub fn contains(&self, delivery: DeliveryEpoch) -> bool {
        let generations = self.0.lock();
        generations.current.contains(&delivery) || generations.former.contains(&delivery)
    }

    /// Forgets what is old.
    pub fn sweep(&self) {
        self.0.lock().turn();
    }
}

impl Generations {
    fn turn(&mut self) {
        if self.began.elapsed() >= GENERATION {
            self.began = Instant::now();
            self.former = std::mem::take(&mut self.current);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_arrival_is_known_for_longer_than_the_first_lease_and_then_forgotten() {
        let arrivals = Arrivals::default();
        tokio::time::advance(GENERATION - Duration::from_millis(1)).await;
        arrivals.arrived(&[DeliveryEpoch(7)]);
        tokio::time::advance(Duration::from_millis(AUTO_RENEW_LEASE_MS)).await;
        arrivals.sweep();
        assert!(arrivals.contains(DeliveryEpoch(7)), "its lease is renewed for the first time now");
        assert!(!arrivals.contains(DeliveryEpoch(8)));
        for _ in 0..2 {
            tokio::time::advance(GENERATION).await;
            arrivals.sweep();
        }
        assert!(!arrivals.contains(DeliveryEpoch(7)));
        assert!(arrivals.0.lock().former.is_empty());
    }
}

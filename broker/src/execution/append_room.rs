//! Room for messages on their way through the log, and the line in front of it.
//!
//! Everything goes through the log in one order. Were all that producers have in flight inside, an
//! acknowledgement or a lease would wait for all of it; so [`APPEND_BYTES_MAX`] may be inside at once,
//! and the rest waits outside, first come, first served.
//!
//! | Condition | Answer |
//! |---|---|
//! | the line moves, and a send has stood in it for [`MOVING_WAIT_MAX`] | `Overloaded`: more is sent than the log takes, and the producer is told before its deadline (RocketMQ's `waitTimeMillsInSendQueue`) |
//! | the line stands: no quorum, a disk that stalls | it is held: an election is not a load |
//! | the deadline of the send | `DeadlinePassed` |
//!
//! Nothing of a send that ends here is in the log.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ledgermq_edge::group_call::NotExecuted;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

/// Bytes of messages that may be on their way through the log at once. 16 MiB were a quarter of a
/// second for an acknowledgement behind them. This much keeps a disk of 1 GB/s busy through a sync of
/// 4 ms.
pub const APPEND_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long a send stands in a line that moves. Longer than what gathers while a leader is elected
/// takes to go through.
pub const MOVING_WAIT_MAX: Duration = Duration::from_millis(MOVING_LOOKS_MAX as u64 * LOOK_INTERVAL_MS);
const LOOK_INTERVAL_MS: u64 = 250;
const MOVING_LOOKS_MAX: u32 = 4;

#[derive(Debug)]
pub struct AppendRoom {
    room: Semaphore,
    /// Commands that have left the room so far.
    left: AtomicU64,
}

/// Held until the command is answered.
#[derive(Debug)]
pub struct Inside<'a> {
    room: &'a AppendRoom,
    _permit: SemaphorePermit<'a>,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.room.left.fetch_add(1, Ordering::Relaxed);
    }
}

impl Default for AppendRoom {
    fn default() -> Self {
        Self { room: Semaphore::new(APPEND_BYTES_MAX), left: AtomicU64::new(0) }
    }
}

impl AppendRoom {
    /// Waits until messages of `bytes` may go into the log; they have left it when what is returned is
    /// dropped.
    pub async fn enter(&self, bytes: usize, deadline: Instant) -> Result<Inside<'_>, NotExecuted> {
        // One command may be larger than all the room: it then has the room to itself.
        let permits = u32::try_from(bytes.min(APPEND_BYTES_MAX)).expect("a few MiB");
        let mut permit = std::pin::pin!(self.room.acquire_many(permits));
        let mut looks_while_moving = 0;
        loop {
            let left = self.left.load(Ordering::Relaxed);
            let look_again = Instant::now() + Duration::from_millis(LOOK_INTERVAL_MS);
            if let Ok(permit) = timeout_at(deadline.min(look_again), permit.as_mut()).await {
                return Ok(Inside { room: self, _permit: permit.expect("the room is never closed") });
            }
            if Instant::now() >= deadline {
                return Err(NotExecuted::DeadlinePassed);
            }
            looks_while_moving += u32::from(self.left.load(Ordering::Relaxed) != left);
            if looks_while_moving >= MOVING_LOOKS_MAX {
                let limit = format!(
                    "{} ms in the line for the log, which takes less than is sent",
                    MOVING_WAIT_MAX.as_millis()
                );
                return Err(NotExecuted::Overloaded { limit });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_time() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[tokio::test(start_paused = true)]
    async fn a_send_in_a_line_that_moves_too_slowly_is_refused_long_before_its_deadline() {
        let room = AppendRoom::default();
        let mut inside = Vec::new();
        for _ in 0..64 {
            inside.push(room.enter(APPEND_BYTES_MAX / 64, in_time()).await.expect("room"));
        }
        let began = Instant::now();
        let leaving = async {
            while inside.pop().is_some() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        // It needs all the room, and a command leaves every 100 ms.
        let waiting = async { (room.enter(APPEND_BYTES_MAX, in_time()).await.err(), began.elapsed()) };
        let (_, (refused, after)) = tokio::join!(leaving, waiting);
        assert!(matches!(refused, Some(NotExecuted::Overloaded { .. })), "{refused:?}");
        assert!((MOVING_WAIT_MAX..2 * MOVING_WAIT_MAX).contains(&after), "{after:?}");
        room.enter(APPEND_BYTES_MAX, in_time()).await.expect("nobody stands in its way any more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_stands_is_held_through_an_election() {
        let room = AppendRoom::default();
        let inside = room.enter(APPEND_BYTES_MAX, in_time()).await.expect("room");
        let began = Instant::now();
        let election = async {
            tokio::time::sleep(5 * MOVING_WAIT_MAX).await;
            drop(inside);
        };
        let (_, entered) = tokio::join!(election, room.enter(1, in_time()));
        drop(entered.expect("it went in when there was room"));
        assert!(began.elapsed() < 6 * MOVING_WAIT_MAX);

        let _inside = room.enter(2 * APPEND_BYTES_MAX, in_time()).await.expect("larger than the room");
        let refused = room.enter(1, in_time()).await.err();
        assert!(matches!(refused, Some(NotExecuted::DeadlinePassed)), "{refused:?}");
    }
}

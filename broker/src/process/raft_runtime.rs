//! Threads of its own for Raft.
//!
//! A runtime serves its tasks in turn. With twenty thousand requests in it a turn takes longer than
//! an election timeout: heartbeats wait in line behind requests, followers take a busy leader for a dead
//! one, and the election makes the queue longer still. So the replicas, their connections and the peer
//! port run here, and everything that a client can make more of runs on the other runtime; the kernel
//! shares the processor between the two, however long either queue is.
//!
//! | Runs here | Does not |
//! |---|---|
//! | openraft's core, replication, votes, apply | requests of clients |
//! | reading and writing the connections of the peer port | requests that came over the peer port: `edge::forward` runs them where it was made |

use std::future::Future;

use tokio::runtime::{Handle, Runtime};
use tokio::task::JoinHandle;

pub struct RaftRuntime {
    own: Option<Runtime>,
    handle: Handle,
}

impl RaftRuntime {
    /// `threads` of its own; with 0 the threads of the runtime it is made in.
    pub fn start(threads: usize) -> std::io::Result<Self> {
        if threads == 0 {
            return Ok(Self { own: None, handle: Handle::current() });
        }
        let own = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("raft")
            .enable_all()
            .build()?;
        let handle = own.handle().clone();
        Ok(Self { own: Some(own), handle })
    }

    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.handle.spawn(task)
    }
}

impl Drop for RaftRuntime {
    fn drop(&mut self) {
        // Whoever drops a broker may be a task: waiting for threads is not allowed there.
        if let Some(own) = self.own.take() {
            own.shutdown_background();
        }
    }
}

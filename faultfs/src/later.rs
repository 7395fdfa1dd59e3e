//! Work that is put off: for some time, or until somebody lets it go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

type Work = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    /// By the moment it is due and the order it came in.
    delayed: BTreeMap<(Instant, u64), Work>,
    held: Vec<Work>,
    next: u64,
    is_over: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// Ends its thread when dropped; what still waits is dropped undone.
pub struct Later {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Later {
    pub fn start() -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("later".to_owned()).spawn(move || run(&of_thread))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub fn after(&self, delay: Duration, work: Work) {
        let mut queue = self.shared.queue.lock();
        let key = (Instant::now() + delay, queue.next);
        queue.next += 1;
        queue.delayed.insert(key, work);
        self.shared.changed.notify_one();
    }

    pub fn hold(&self, work: Work) {
        self.shared.queue.lock().held.push(work);
    }

    /// What is held goes on, in its order.
    pub fn release(&self) {
        let held = std::mem::take(&mut self.shared.queue.lock().held);
        held.into_iter().for_each(|work| work());
    }
}

impl Drop for Later {
    fn drop(&mut self) {
        self.shared.queue.lock().is_over = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(shared: &Shared) {
    let mut queue = shared.queue.lock();
    while !queue.is_over {
        let now = Instant::now();
        match queue.delayed.first_key_value().map(|((due, _), _)| *due) {
            Some(due) if due <= now => {
                let work = queue.delayed.pop_first();
                parking_lot::MutexGuard::unlocked(&mut queue, || {
                    if let Some((_, work)) = work {
                        work();
                    }
                });
            }
            Some(due) => {
                shared.changed.wait_until(&mut queue, due);
            }
            None => shared.changed.wait(&mut queue),
        }
    }
}

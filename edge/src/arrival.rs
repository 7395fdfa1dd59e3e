//! Whether the answer of a receive was passed on to its client.
//!
//! A leader renews leases only of deliveries of which it knows that (`broker::execution::renewal`):
//! what was lost on the way would be hidden for as long as the client lives. The answer carries an
//! [`Arrival`]; the edge that gives it to the client's connection confirms it when the last item is
//! taken. Between nodes it travels as a frame of its own, back along the link the answer came by.
//!
//! | Failure | What the leader learns |
//! |---|---|
//! | client gone before it took the last item | nothing is confirmed; the link says that the answer is not wanted |
//! | the node that passes the answer on ends, or its link does | nothing |
//! | the confirmation is lost with the link, or finds it full | nothing, although the client has the messages: their leases end once |
//! | the client's connection breaks with the answer in its buffers | confirmed, and lost |

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Tells nobody by default. Clones are of one answer.
#[derive(Clone, Default)]
pub struct Arrival(Option<Arc<Awaited>>);

struct Awaited {
    tell: Box<dyn Fn(bool) + Send + Sync>,
    is_confirmed: AtomicBool,
}

impl Arrival {
    /// `tell` is called once: with `true` when the answer was passed on, or with `false` when the last
    /// clone is dropped before.
    pub fn new(tell: impl Fn(bool) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(Awaited { tell: Box::new(tell), is_confirmed: AtomicBool::new(false) })))
    }

    /// Whether anybody wants to know.
    pub fn is_awaited(&self) -> bool {
        self.0.is_some()
    }

    pub fn confirm(&self) {
        if let Some(awaited) = &self.0
            && !awaited.is_confirmed.swap(true, Ordering::AcqRel)
        {
            (awaited.tell)(true);
        }
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        if !*self.is_confirmed.get_mut() {
            (self.tell)(false);
        }
    }
}

/// It is no part of what is answered.
impl PartialEq for Arrival {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl std::fmt::Debug for Arrival {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_awaited() { "awaited" } else { "not awaited" })
    }
}

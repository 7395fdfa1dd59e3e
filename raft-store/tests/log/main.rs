//! The log store as its users meet it: what was acknowledged is there after every kind of end.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

mod crashes;
mod damage;
mod model;
mod operation;
mod replicas;

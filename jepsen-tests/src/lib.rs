//! What the tests against real processes share: the cluster of child processes, the official SDKs
//! as load, recorded histories and their verdict.

pub mod bed;
pub mod history;
pub mod kill;
pub mod python;
pub mod python_program;
pub mod recorded;
pub mod transactions;

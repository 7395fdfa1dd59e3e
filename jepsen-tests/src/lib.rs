//! What the tests against real processes share: the Python SDK in a virtual environment of its
//! own, recorded histories, and their verdict.

pub mod history;
pub mod python;

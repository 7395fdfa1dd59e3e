//! Hand-made histories, good and bad: every anomaly a checker claims to find is found where it is and
//! nowhere else.

mod compact;
mod file;
mod script;
mod verdicts;

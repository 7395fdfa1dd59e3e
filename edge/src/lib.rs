//! The front end of any node: `apache.rocketmq.v2.MessagingService` in full, whoever leads.
//!
//! | Module | What lives there |
//! |---|---|
//! | [`context`] | headers of a call |
//! | [`group_call`] | what is asked of a broker group, and who executes it |
//! | [`topology`] | where groups and topics are |

pub mod context;
pub mod group_call;
pub mod topology;
pub mod codes;
pub mod validate;

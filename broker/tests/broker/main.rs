//! Brokers as a client and an operator see them: real logs, real ports, one process.

mod admin;
mod one_node;
mod start;
mod support;
mod three_nodes;
mod transactions;

//! Brokers as a client and an operator see them: real logs, real ports, one process.

mod admin;
mod batches;
mod dead_letters;
mod delayed;
mod differing_filters;
mod growth;
mod lite;
mod offsets;
mod one_node;
mod order;
mod retention;
mod start;
mod support;
mod three_nodes;
mod trace;
mod transaction_steps;
mod transactions;

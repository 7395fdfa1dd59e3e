//! The Rust client of LedgerMQ. It speaks `apache.rocketmq.v2`, so it also works against other
//! servers of that protocol.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use ledgermq_client::{Client, ClientOptions, ConsumerOptions, Message};
//!
//! let client = Client::connect("127.0.0.1:8081;127.0.0.1:8082", ClientOptions::default()).await?;
//! let receipt = client.producer().send(Message::new("orders", "hello")).await?;
//! println!("stored as {}", receipt.message_id);
//!
//! let consumer = client.simple_consumer(ConsumerOptions::new("billing").subscribe("orders", "*"));
//! for message in consumer.receive(16).await? {
//!     consumer.ack(&message).await?;
//! }
//! # Ok(()) }
//! ```
//!
//! Messages of several topics that belong together, and a topic that every instance reads in full:
//!
//! ```no_run
//! # async fn example(client: ledgermq_client::Client) -> Result<(), Box<dyn std::error::Error>> {
//! use ledgermq_client::{Batch, BroadcastOptions, Message};
//!
//! let batch = Batch::new()
//!     .message(Message::new("debits", "alice 5"))
//!     .message(Message::new("credits", "bob 5"));
//! client.producer().send_batch(batch).await?;
//!
//! let prices = client.broadcast_consumer(BroadcastOptions::new("caches", "host-1", "prices")).await?;
//! for message in prices.receive().await? {
//!     println!("{:?}", message.body);
//! }
//! prices.close().await?;
//! # Ok(()) }
//! ```
//!
//! What must hold:
//! * a send is repeated under its one message id until an answer or the deadline, so a repeat can
//!   never store a second message;
//! * a lost connection costs no waiting while another access point answers;
//! * a body that does not match its digest never reaches the application.

mod access_point;
mod admin;
mod batch;
mod broadcast;
mod client;
mod connection;
mod consumer;
mod error;
mod hedging;
mod message;
mod message_id;
mod options;
mod producer;
mod pull;
mod retry;
mod send_order;
mod session;
mod tls;
mod transaction;

pub use access_point::{AccessPoint, AccessPoints};
pub use admin::Admin;
pub use batch::{Batch, BatchReceipt, BatchedReceipt};
pub use broadcast::{BROADCAST_QUEUES_MAX, BroadcastConsumer, BroadcastOptions};
pub use client::Client;
pub use consumer::{ConsumerOptions, Filter, SimpleConsumer};
pub use error::{
    AccessPointSyntaxError, AckError, AdminError, BatchError, ConnectError, CorruptBody, EndTransactionError,
    GroupWasReset, MalformedAnswer, NoAnswerInTime, OffsetBehind, OffsetOutOfRange, PullError, ReceiveError,
    Refused, SendError, TlsSetupError, UnreachableAccessPoint,
};
pub use message::{Message, PulledMessage, ReceivedHalf, ReceivedMessage, SendReceipt};
pub use message_id::MessageIdSource;
pub use options::{ClientOptions, TlsMode};
pub use producer::Producer;
pub use pull::{Position, PullConsumer, PullOptions, Pulled, Queue};
pub use transaction::{Outcome, Transaction, TransactionChecker, TransactionalProducer};

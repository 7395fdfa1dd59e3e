//! The wire contracts of LedgerMQ as Rust types: generated code and nothing else.
//!
//! | Module | Package | Spoken between |
//! |---|---|---|
//! | [`rocketmq`] | `apache.rocketmq.v2` | RocketMQ 5 clients and any node |
//! | [`raft`] | `ledgermq.raft.v1` | nodes of one broker group |
//! | [`forward`] | `ledgermq.forward.v1` | a node and the leader of a group |
//! | [`registry`] | `ledgermq.registry.v1` | brokers and the name server |
//! | [`admin`] | `ledgermq.admin.v1` | the command line and any node |
//! | [`messaging`] | `ledgermq.messaging.v1` | our own clients and any node |
//!
//! Invariants:
//! * names, numbers and types in `apache.rocketmq.v2` belong to RocketMQ and never change here;
//! * in our own packages a released field number keeps its meaning for ever, and a removed one is `reserved`;
//! * every `bytes` field is [`bytes::Bytes`], a slice of the frame it arrived in;
//! * every map is a `BTreeMap`, so equal messages encode to equal bytes on every replica.

#![allow(
    clippy::large_enum_variant,
    reason = "the large variant of a generated oneof is the message itself, the usual case; a box would cost every \
              delivery an allocation"
)]
#![allow(
    clippy::enum_variant_names,
    clippy::doc_lazy_continuation,
    reason = "generated from names and comments"
)]

// The nesting repeats the package names because generated code refers to other packages by relative `super::` paths.
mod apache {
    pub mod rocketmq {
        pub mod v2 {
            tonic::include_proto!("apache.rocketmq.v2");
        }
    }
}

mod ledgermq {
    pub mod raft {
        pub mod v1 {
            tonic::include_proto!("ledgermq.raft.v1");
        }
    }
    pub mod forward {
        pub mod v1 {
            tonic::include_proto!("ledgermq.forward.v1");
        }
    }
    pub mod registry {
        pub mod v1 {
            tonic::include_proto!("ledgermq.registry.v1");
        }
    }
    pub mod admin {
        pub mod v1 {
            tonic::include_proto!("ledgermq.admin.v1");
        }
    }
    pub mod messaging {
        pub mod v1 {
            tonic::include_proto!("ledgermq.messaging.v1");
        }
    }
}

pub use apache::rocketmq::v2 as rocketmq;
pub use ledgermq::admin::v1 as admin;
pub use ledgermq::forward::v1 as forward;
pub use ledgermq::messaging::v1 as messaging;
pub use ledgermq::raft::v1 as raft;
pub use ledgermq::registry::v1 as registry;

/// Every file of every package, including the imported `google.protobuf` ones, as an encoded `FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("ledgermq_descriptors");

//! What is fuzzed: every decoder of bytes that come from a disk, a peer, a client or a user.
//!
//! A target takes any bytes and must neither panic nor allocate by a length it has not seen the
//! bytes of. What it lets through must also be the encoding of what was understood, so that no two
//! byte strings mean the same and nothing is understood that was not written.
//!
//! | Run by | How |
//! |---|---|
//! | `cargo test -p ledgermq-fuzz` | the corpus, then a few seconds of mutations of it from a fresh seed, which is printed |
//! | `cargo fuzz run --fuzz-dir fuzz/libfuzzer TARGET` | libFuzzer, guided by coverage, for as long as wanted |
//!
//! The corpus is in `fuzz/corpus/TARGET`, one input a file; findings are added to it when they are
//! mended.

mod handles;
mod samples;
mod state;
mod text;

/// A decoder under test.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Also the folder of its corpus and the name for `cargo fuzz`.
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Inputs made by the real encoders, from which the corpus starts.
    pub samples: fn() -> Vec<Vec<u8>>,
}

pub const TARGETS: &[Target] = &[
    Target {
        name: "frame",
        run: ledgermq_raft_store::fuzzing::frame_header,
        samples: || vec![ledgermq_raft_store::fuzzing::a_frame_header()],
    },
    Target {
        name: "superblock",
        run: ledgermq_raft_store::fuzzing::superblock_slot,
        samples: || vec![ledgermq_raft_store::fuzzing::a_superblock_slot()],
    },
    Target {
        name: "snapshot_file",
        run: ledgermq_raft_store::fuzzing::snapshot_file,
        samples: samples::snapshot_files,
    },
    Target { name: "state_snapshot", run: state::snapshot, samples: samples::state_snapshots },
    Target {
        name: "peer_message",
        run: ledgermq_raft_store::fuzzing::peer_message,
        samples: samples::peer_messages,
    },
    Target { name: "command", run: state::command, samples: samples::commands },
    Target { name: "receipt_handle", run: handles::receipt, samples: samples::receipt_handles },
    Target { name: "recall_handle", run: handles::recall, samples: samples::recall_handles },
    Target { name: "transaction_id", run: handles::transaction, samples: samples::transaction_ids },
    Target { name: "filter", run: text::filter, samples: samples::filters },
    Target {
        name: "client_request",
        run: ledgermq_edge::fuzzing::client_request,
        samples: samples::client_requests,
    },
    Target {
        name: "forwarded_request",
        run: ledgermq_edge::fuzzing::forwarded_request,
        samples: samples::forwarded_requests,
    },
    Target { name: "config", run: text::config, samples: samples::configs },
];

/// Runs the target of this name.
///
/// # Panics
/// When there is none, and when the target finds something.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    (target.run)(bytes);
}

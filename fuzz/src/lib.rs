//! What is fuzzed: every decoder of bytes that come from a disk, a peer, a client or a user.
//!
//! A target takes any bytes and must neither panic nor allocate by a length it has not seen the
//! bytes of. What it lets through must also be the encoding of what was understood, so that no two
//! byte strings mean the same and nothing is understood that was not written.
//!
//! | Run by | How |
//! |---|---|
//! | `cargo test -p ledgermq-fuzz` | the corpus, then a few seconds of mutations of it from a fresh seed, which is printed |
//! | the same | libFuzzer (`libfuzzer.rs`), guided by coverage, for some seconds |
//! | `cargo fuzz`, see `fuzz/README.md` | libFuzzer with a sanitizer of memory, for as long as wanted |
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
    /// Also the folder of its corpus, and what `LEDGERMQ_FUZZ_TARGET` says.
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

/// No decoder, but a fault that mutations do not find and that coverage leads to step by step:
/// with it a run of libFuzzer shows that it is guided.
pub const PLANTED: Target = Target { name: "planted", run: planted, samples: || vec![vec![0; 16]] };

fn planted(bytes: &[u8]) {
    let (Some(first), Some(second)) = (bytes.first_chunk::<8>(), bytes.last_chunk::<4>()) else { return };
    if u64::from_le_bytes(*first) == 0x1357_9bdf_0246_8ace && bytes.len() > 12 {
        assert_ne!(u32::from_be_bytes(*second), 0xfedc_ba98, "the planted fault");
    }
}

/// The target of this name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().chain([&PLANTED]).find(|target| target.name == name)
}

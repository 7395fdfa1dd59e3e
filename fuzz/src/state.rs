//! What the log and a snapshot say to the state machine.

use std::io::{Cursor, Read as _};
use std::sync::Arc;

use bytes::Bytes;
use ledgermq_broker::state::{BrokerState, CheckpointMode, Command, NobodyWaits, StateConfig, StoredMessage};
use ledgermq_common::{GroupId, LogIndex, Term};
use ledgermq_raft_store::{EntryId, StateMachine as _};

/// A command of the log: one that is understood comes back from its own encoding.
pub(crate) fn command(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    if let Ok((stamped_at, command)) = Command::decode(&bytes) {
        let again = Command::decode(&command.encode(stamped_at));
        assert_eq!(again.ok(), Some((stamped_at, command)), "a command does not come back");
    }
    if let Ok(message) = StoredMessage::decode(&bytes) {
        assert!(message.body.len() <= bytes.len(), "a body longer than its record");
    }
}

/// The stream of a snapshot. The input is one as it stands, or a list of sections (kind u8, length
/// u16, content) that gets the checksums which make it one: what lies behind them is then reached.
/// A state that is let through gives a snapshot that is let through, of the same state.
pub(crate) fn snapshot(bytes: &[u8]) {
    restore(bytes);
    restore(&with_checksums(bytes));
}

fn with_checksums(mut sections: &[u8]) -> Vec<u8> {
    let mut stream = b"LMQSNP01".to_vec();
    while let Some(([kind, low, high], rest)) = sections.split_first_chunk::<3>() {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (content, rest) = rest.split_at(len);
        stream.push(*kind);
        stream.extend_from_slice(&(len as u32).to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&[*kind]), content);
        stream.extend_from_slice(&crc.to_le_bytes());
        stream.extend_from_slice(content);
        sections = rest;
    }
    stream
}

fn empty_state() -> Option<Arc<BrokerState>> {
    let config = StateConfig { group: GroupId(1), directory: None, checkpoints: CheckpointMode::OnDemand };
    BrokerState::open(config, Arc::new(NobodyWaits)).ok()
}

fn restore(stream: &[u8]) {
    let last = EntryId { term: Term(u64::MAX), index: LogIndex(u64::MAX) };
    let (Some(state), Some(other)) = (empty_state(), empty_state()) else { return };
    if state.restore(last, Box::new(Cursor::new(stream.to_vec()))).is_err() {
        return;
    }
    let mut again = Vec::new();
    let (_, mut reader) = state.snapshot().expect("a restored state can be captured");
    reader.read_to_end(&mut again).expect("a restored state can be written");
    other.restore(last, Box::new(Cursor::new(again))).expect("the snapshot of a restored state is refused");
    assert_eq!(state.state_digest(), other.state_digest(), "a snapshot restores another state");
}

/// The stream of a state that some commands made.
pub(crate) fn stream_of(commands: &[Bytes]) -> Vec<u8> {
    let mut stream = Vec::new();
    let Some(state) = empty_state() else { return stream };
    let mut payload_at = 64;
    let mut entries = Vec::new();
    for (command, index) in commands.iter().zip(1..) {
        entries.push(ledgermq_raft_store::AppliedEntry {
            id: EntryId { term: Term(1), index: LogIndex(index) },
            payload_at: ledgermq_common::PhysicalOffset(payload_at),
            payload: command.clone(),
        });
        payload_at += command.len() as u64 + 64;
    }
    let mut answers = Vec::new();
    if state.apply(&entries, &mut answers).is_ok()
        && let Ok((_, mut reader)) = state.snapshot()
    {
        let _ = reader.read_to_end(&mut stream);
    }
    stream
}

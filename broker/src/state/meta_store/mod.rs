//! Where a checkpoint of the state's records is kept: derived, and never trusted more than that.
//!
//! A checkpoint is a header and records, committed together or not at all. Loading gives back what
//! the last commit left, or says that it cannot; then the directory is moved aside and the state is
//! made again from a snapshot or the log.

mod sled_store;

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;

pub(crate) use sled_store::SledStore;

/// One record: its key, and its value unless it is deleted.
pub(crate) type Change = (Vec<u8>, Option<Bytes>);

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Checkpoint {
    pub(crate) header: Bytes,
    pub(crate) records: BTreeMap<Vec<u8>, Bytes>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum MetaStoreError {
    #[error("the checkpoint is damaged: {reason}")]
    Damaged { reason: String },
    #[error(transparent)]
    Io(#[from] io::Error),
}

pub(crate) trait MetaStore: Send {
    /// The last committed checkpoint; `None` when there is none yet.
    fn load(&mut self) -> Result<Option<Checkpoint>, MetaStoreError>;

    /// Replaces the header and changes records, in one atomic and durable step.
    fn commit(&mut self, header: &[u8], changes: &[Change]) -> Result<(), MetaStoreError>;

    /// Starts again with nothing; what was there is kept aside for inspection when it was damaged.
    fn reset(&mut self, damaged: bool) -> Result<(), MetaStoreError>;
}

/// A checkpoint in memory: for simulations, and as the model the durable one is tested against.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct MemoryStore {
    checkpoint: Option<Checkpoint>,
}

#[cfg(test)]
impl MetaStore for MemoryStore {
    fn load(&mut self) -> Result<Option<Checkpoint>, MetaStoreError> {
        Ok(self.checkpoint.clone())
    }

    fn commit(&mut self, header: &[u8], changes: &[Change]) -> Result<(), MetaStoreError> {
        let checkpoint = self.checkpoint.get_or_insert_default();
        checkpoint.header = Bytes::copy_from_slice(header);
        for (key, value) in changes {
            match value {
                Some(value) => checkpoint.records.insert(key.clone(), value.clone()),
                None => checkpoint.records.remove(key),
            };
        }
        Ok(())
    }

    fn reset(&mut self, _damaged: bool) -> Result<(), MetaStoreError> {
        self.checkpoint = None;
        Ok(())
    }
}

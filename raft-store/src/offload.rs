//! Where work runs that blocks on the disk: on the runtime's blocking threads, or, in the
//! simulation, in place, because threads would not be deterministic.

use std::io;

use crate::store::WriterSpawn;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Offload {
    BlockingThreads,
    InPlace,
}

impl Offload {
    pub(crate) fn beside(writer: &WriterSpawn) -> Self {
        match writer {
            WriterSpawn::Thread => Self::BlockingThreads,
            WriterSpawn::Task { .. } => Self::InPlace,
        }
    }

    pub(crate) async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        match self {
            Self::BlockingThreads => tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?,
            Self::InPlace => work(),
        }
    }
}

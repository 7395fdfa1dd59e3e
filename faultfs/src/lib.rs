//! A file system that fails as disks and machines do: it forgets what nobody synced when the power
//! goes, answers errors, fills up, stalls, and rots.
//!
//! It is mounted (FUSE) where a process keeps its data. What the process wrote and did not sync is
//! kept in memory; what it synced lies in *objects*, plain files outside of the mount:
//!
//! ```text
//! process ──► kernel ──► Mount ──► Disk: names and sectors, live and durable
//!                                   │ sync
//!                                   ▼
//!                           FILES/objects/INODE         durable bytes
//!                           FILES/last/...              the tree as it was at the last unmount
//! ```
//!
//! | Module | What it holds |
//! |---|---|
//! | [`contents`] | one file: durable bytes and, per 512-byte sector, what was written since |
//! | [`names`] | directories: live and durable, and the changes between them in order |
//! | [`rules`] | which operations fail, wait or stand still |
//! | [`disk`] | all of it behind one lock, and what each fault did |
//! | [`mount`] | mounting, unmounting, and the mounts that a dead process left |
//! | [`control`] | the line protocol of a disk in a process of its own |
//!
//! # What survives the power cut
//!
//! | Change | Durable after |
//! |---|---|
//! | bytes and length of a file | `fsync` or `fdatasync` of the file |
//! | a name made, renamed, removed | `fsync` of its directory; not of the file |
//! | a directory | the same, with its parent's `fsync` |
//! | reserved space (`fallocate`) | at once; it has no content |
//!
//! Real file systems promise more than that here and there; a program that needs no more than that
//! is safe on all of them.
//!
//! # Faults and what proves them
//!
//! | Fault | Effect | Counter |
//! |---|---|---|
//! | power cut | the unsynced is lost, torn or reordered by seed ([`disk::Survival`]) | `power_cuts`, `dropped_bytes`, `dropped_names`, `kept_bytes`, `torn_files` |
//! | error rule | EIO; after a failed sync the bytes look written and are not | `failed_writes`, `failed_syncs`, ... |
//! | capacity | ENOSPC for what would need more space | `no_space` |
//! | delay rule | the operation takes longer | `delayed`, `delayed_ms` |
//! | stall rule, power off | the operation does not come back until the rule goes or the mount does | `held` |
//! | corruption | durable bytes change below the file system | `corrupted_bytes` |
//!
//! # What must hold
//!
//! - A byte that was synced is never dropped by a power cut.
//! - A process that looks sees its own writes, whatever is durable.
//! - The mount ends with the process that serves it; what a killed one left is found by name
//!   ([`mount::remove_leftovers`]).

pub mod contents;
pub mod control;
pub mod disk;
mod fuse;
mod later;
pub mod mount;
pub mod names;
pub mod rules;

pub use control::{Command, DiskProcess};
pub use disk::{Corruption, Counters, Disk, PowerCut, Survival};
pub use mount::{Mount, remove_leftovers};
pub use rules::{Effect, Operation, Rule};

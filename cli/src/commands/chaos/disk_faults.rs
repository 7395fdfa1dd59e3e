//! Faults of disks: what is done to them, what proves it, and what the product must do about it.
//!
//! | Fault | Proof | The member must |
//! |---|---|---|
//! | power loss | the cut is counted, and what it dropped | start again and serve |
//! | failing write or sync | the disk counts the error | end by itself with status 70, and start again |
//! | full | the disk counts refusals | end with status 70 or go on; start again once there is room |
//! | slow | the disk counts delays | go on |
//! | stalled | the disk counts what it holds | go on afterwards; a leader loses its place within [`LEADER_MOVES_WITHIN`] |
//! | rotten log or superblock | bytes changed | say so, set its log aside, be repaired from its peers and serve |
//! | rotten log below a running process | bytes changed | find it, end with status 70, and likewise at the next start |
//! | rotten slot, snapshot, index | bytes changed | start and serve |
//!
//! But for the last one corruption comes while the member is down.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use ledgermq_faultfs::disk::Entry;
use ledgermq_faultfs::{Command, Corruption, Counters, Effect, Operation, Rule, Survival};
use tokio::time::Instant;

use super::nemesis::Nemesis;
use super::scenario::Target;
use crate::cluster::Member;

/// How a process ends whose disk failed; see `ledgermq_broker`.
const FAULT_EXIT_STATUS: i32 = 70;
/// A replica that lost its disk must be noticed by itself this soon.
const ENDS_WITHIN: Duration = Duration::from_secs(20);
/// ... and a fault that waits for the load must meet it this soon.
const MEETS_WITHIN: Duration = Duration::from_secs(60);
const ALL_MEET_WITHIN: Duration = Duration::from_secs(3);
const LEADER_MOVES_WITHIN: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(20);
const KILLED_WITHIN: Duration = Duration::from_secs(20);
const STOPPED_WITHIN: Duration = Duration::from_secs(20);
/// Where the files of the log are, below a member's directory.
const LOG_FILES: &str = "/log/";
/// How long syncs do not come back before the power goes, at most.
const UNSYNCED_MS_MAX: u64 = 100;
/// A replica receives its whole log again.
const REPAIRED_WITHIN: Duration = Duration::from_secs(90);
/// The log is looked through every [`SCRUB_EVERY_S`] and takes a moment itself.
const FOUND_WITHIN: Duration = Duration::from_secs(60);
pub const SCRUB_EVERY_S: u64 = 2;
const SLOT_BYTES: u64 = 4096;
const SLOW_MS: std::ops::RangeInclusive<u64> = 50..=500;
/// What a full disk still has room for, at most.
const ROOM_LEFT_BYTES: u64 = 256 * 1024;
/// Segment headers are one page; what lies behind is log.
const SEGMENT_HEADER_BYTES: u64 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFault {
    /// The machine loses its power: unsynced data is dropped, torn or reordered.
    PowerLoss,
    /// The same, and the log is cut somewhere in its tail.
    TornTail,
    FailingWrite,
    FailingSync,
    Full,
    /// Each sync takes 50 to 500 ms longer.
    Slow,
    /// No write and no sync comes back for a while.
    Stalled,
    Rotten(Rotten),
    /// A bit of the log turns over below a running process.
    RottenBelow,
}

/// What decays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotten {
    Log,
    Superblock,
    /// One of its two copies.
    SuperblockSlot,
    Snapshot,
    Index,
}

impl DiskFault {
    pub fn name(self) -> &'static str {
        match self {
            Self::PowerLoss => "power-loss",
            Self::TornTail => "torn-tail",
            Self::FailingWrite => "eio-write",
            Self::FailingSync => "eio-sync",
            Self::Full => "disk-full",
            Self::Slow => "slow-disk",
            Self::Stalled => "stalled-disk",
            Self::Rotten(Rotten::Log) => "corrupt-log",
            Self::Rotten(Rotten::Superblock) => "corrupt-superblock",
            Self::Rotten(Rotten::SuperblockSlot) => "corrupt-superblock-slot",
            Self::Rotten(Rotten::Snapshot) => "corrupt-snapshot",
            Self::Rotten(Rotten::Index) => "corrupt-index",
            Self::RottenBelow => "corrupt-running",
        }
    }
}

impl Nemesis<'_> {
    /// Injects it, proves it, and leaves all members running; answers what was seen.
    pub(super) async fn disk_fault(
        &mut self,
        fault: DiskFault,
        targets: &[Member],
    ) -> anyhow::Result<String> {
        match fault {
            DiskFault::PowerLoss => {
                let survivals = [Survival::Nothing, Survival::Prefix, Survival::Sectors, Survival::Pages];
                let chosen = self.dice.below(survivals.len() as u64) as usize;
                self.lose_power(survivals.get(chosen).copied().unwrap_or(Survival::Nothing), targets).await
            }
            DiskFault::TornTail => self.lose_power(Survival::Prefix, targets).await,
            DiskFault::FailingWrite => self.fail(Operation::Write, targets).await,
            DiskFault::FailingSync => self.fail(Operation::Sync, targets).await,
            DiskFault::Full => self.fill(targets).await,
            DiskFault::Slow => {
                let ms = SLOW_MS.start() + self.dice.below(SLOW_MS.end() - SLOW_MS.start() + 1);
                let rule = Rule::new([Operation::Sync], Effect::Delay { ms });
                let seen = self.hold_up(&rule, |counters| counters.delayed, targets).await?;
                Ok(format!("{ms} ms per sync, {seen}"))
            }
            DiskFault::Stalled => {
                let operations = [Operation::Write, Operation::Sync, Operation::SyncDirectory];
                let rule = Rule::new(operations, Effect::Stall);
                self.hold_up(&rule, |counters| counters.held, targets).await
            }
            DiskFault::Rotten(what) => {
                let mut seen = Vec::new();
                for member in targets {
                    seen.push(self.rot(what, *member).await?);
                }
                Ok(seen.join("; "))
            }
            DiskFault::RottenBelow => {
                let mut seen = Vec::new();
                for member in targets {
                    seen.push(self.rot_below(*member).await?);
                }
                Ok(seen.join("; "))
            }
        }
    }

    async fn lose_power(&mut self, survival: Survival, targets: &[Member]) -> anyhow::Result<String> {
        // A sync is so fast that the power would hardly ever go between a write and its sync.
        let rule = Rule::new([Operation::Sync, Operation::SyncDirectory], Effect::Stall);
        for member in targets {
            self.cluster.disk(*member)?.ask(&Command::AddRule { rule: rule.clone() })?;
        }
        tokio::time::sleep(Duration::from_millis(self.dice.below(UNSYNCED_MS_MAX))).await;
        for member in targets {
            self.cluster.disk(*member)?.ask(&Command::PowerOff)?;
        }
        for member in targets {
            self.cluster.send_kill(*member)?;
        }
        let mut seen = Vec::new();
        for member in targets {
            let before = self.cluster.disk(*member)?.counters()?;
            let seed = self.dice.below(u64::MAX);
            let cut = self.cluster.disk(*member)?.power_on(survival, seed)?;
            let after = self.cluster.disk(*member)?.counters()?;
            ensure!(after.power_cuts == before.power_cuts + 1, "the power of {member} was not cut");
            self.must_be_killed(*member).await?;
            self.dropped_bytes += cut.dropped_bytes;
            seen.push(format!(
                "{member} {survival:?}: {} bytes dropped, {} kept, {} files torn, {} names dropped, {} kept",
                cut.dropped_bytes, cut.kept_bytes, cut.torn_files, cut.dropped_names, cut.kept_names
            ));
        }
        tokio::time::sleep(self.fault_time).await;
        for member in targets {
            self.cluster.restart(*member)?;
        }
        Ok(seen.join("; "))
    }

    /// An operation on the log fails, once or from then on; the power goes afterwards every other
    /// time, and with it what the failed sync only seemed to have written.
    async fn fail(&mut self, operation: Operation, targets: &[Member]) -> anyhow::Result<String> {
        let always = self.dice.below(2) == 0;
        let power = self.dice.below(2) == 0;
        let failures: fn(&Counters) -> u64 = |counters| counters.failed_writes + counters.failed_syncs;
        let mut before = Vec::new();
        for member in targets {
            let rule = Rule::new([operation], Effect::Fail).at(LOG_FILES).skip(self.dice.below(10));
            let rule = if always { rule } else { rule.times(1) };
            let disk = self.cluster.disk(*member)?;
            before.push(failures(&disk.counters()?));
            disk.ask(&Command::AddRule { rule })?;
        }
        let mut seen = Vec::new();
        let deadline = Instant::now() + MEETS_WITHIN;
        while !self.any_met(targets, &before, failures)? {
            ensure!(Instant::now() < deadline, "no disk error was met");
            tokio::time::sleep(POLL).await;
        }
        // Without a majority nobody has anything to write, so one that met none may meet none.
        let patience = if targets.len() > 1 { ALL_MEET_WITHIN } else { ENDS_WITHIN };
        for (member, before) in targets.iter().zip(before) {
            let ended = self.cluster.wait_end(*member, patience).await?;
            let failed = failures(&self.cluster.disk(*member)?.counters()?) - before;
            let Some(status) = ended else {
                ensure!(failed == 0, "{member} goes on after {failed} disk errors");
                seen.push(format!("{member}: no error, it goes on"));
                continue;
            };
            ensure!(failed > 0, "{member} met no disk error and ended with {status}");
            ensure!(
                status.code() == Some(FAULT_EXIT_STATUS),
                "{member} ended with {status} after a disk error"
            );
            seen.push(format!("{member}: {failed} errors, then it ended with {status}"));
        }
        tokio::time::sleep(self.fault_time).await;
        for member in targets {
            let seed = self.dice.below(u64::MAX);
            let has_ended = self.cluster.has_ended(*member)?;
            let disk = self.cluster.disk(*member)?;
            if !has_ended {
                disk.ask(&Command::ClearRules)?;
                continue;
            }
            if power {
                let cut = disk.power_on(Survival::Sectors, seed)?;
                seen.push(format!("{member} lost {} bytes with its power", cut.dropped_bytes));
            }
            disk.ask(&Command::ClearRules)?;
            self.cluster.restart(*member)?;
        }
        Ok(seen.join("; "))
    }

    /// Whether a disk error came to any of them since `before`.
    fn any_met(
        &mut self,
        targets: &[Member],
        before: &[u64],
        failures: fn(&Counters) -> u64,
    ) -> anyhow::Result<bool> {
        for (member, before) in targets.iter().zip(before) {
            if failures(&self.cluster.disk(*member)?.counters()?) > *before {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn fill(&mut self, targets: &[Member]) -> anyhow::Result<String> {
        let mut before = Vec::new();
        for member in targets {
            let room = self.dice.below(ROOM_LEFT_BYTES);
            let disk = self.cluster.disk(*member)?;
            before.push(disk.counters()?.no_space);
            let bytes = Some(disk.used_bytes()? + room);
            disk.ask(&Command::SetCapacity { bytes })?;
        }
        let deadline = Instant::now() + MEETS_WITHIN;
        for (member, before) in targets.iter().zip(&before) {
            while self.cluster.disk(*member)?.counters()?.no_space == *before {
                ensure!(Instant::now() < deadline, "{member} asked for no more space");
                tokio::time::sleep(POLL).await;
            }
        }
        tokio::time::sleep(self.fault_time).await;
        let mut seen = Vec::new();
        for (member, before) in targets.iter().zip(before) {
            let disk = self.cluster.disk(*member)?;
            let refused = disk.counters()?.no_space - before;
            disk.ask(&Command::SetCapacity { bytes: None })?;
            let ended = self.cluster.wait_end(*member, Duration::ZERO).await?;
            match ended {
                None => seen.push(format!("{member}: refused {refused} times, it goes on")),
                Some(status) => {
                    let code = status.code();
                    ensure!(code == Some(FAULT_EXIT_STATUS), "{member} ended with {status} on a full disk");
                    seen.push(format!("{member}: refused {refused} times, it ended with {status}"));
                    self.cluster.restart(*member)?;
                }
            }
        }
        Ok(seen.join("; "))
    }

    async fn hold_up(
        &mut self,
        rule: &Rule,
        met: fn(&Counters) -> u64,
        targets: &[Member],
    ) -> anyhow::Result<String> {
        let mut before = Vec::new();
        for member in targets {
            let disk = self.cluster.disk(*member)?;
            before.push(met(&disk.counters()?));
            disk.ask(&Command::AddRule { rule: rule.clone() })?;
        }
        let started = Instant::now();
        let mut seen = String::new();
        if let ([was], Target::Leader, Effect::Stall) = (targets, self.scenario.target, rule.effect) {
            // The other members are asked: the one that stalls may believe what it likes.
            let moved = self.leader_other_than(*was, LEADER_MOVES_WITHIN).await?;
            seen = format!("{moved} leads after {} ms; ", started.elapsed().as_millis());
        }
        tokio::time::sleep_until(started + self.fault_time).await;
        for (member, before) in targets.iter().zip(before) {
            let disk = self.cluster.disk(*member)?;
            let count = met(&disk.counters()?) - before;
            ensure!(count > 0, "the disk of {member} held nothing up");
            disk.ask(&Command::ClearRules)?;
            seen.push_str(&format!("{member}: {count} operations held up "));
        }
        Ok(seen)
    }

    async fn leader_other_than(&mut self, was: Member, within: Duration) -> anyhow::Result<Member> {
        let deadline = Instant::now() + within;
        loop {
            let leader = self.cluster.wait_leader(super::nemesis::GROUP, within).await;
            match leader {
                Ok(leader) if leader != was => return Ok(leader),
                _ if Instant::now() >= deadline => {
                    bail!("{was} still leads {} ms after its disk stalled", within.as_millis())
                }
                _ => tokio::time::sleep(POLL).await,
            }
        }
    }

    async fn rot(&mut self, what: Rotten, member: Member) -> anyhow::Result<String> {
        match what {
            Rotten::Snapshot => self.wait_file(member, |file| file.path.contains("/snapshot-")).await?,
            Rotten::Index => self.wait_file(member, is_of_index).await?,
            Rotten::Log | Rotten::Superblock | Rotten::SuperblockSlot => {}
        }
        if what == Rotten::Log {
            // After an orderly end a start reads nothing again; that is for `rot_below`.
            self.cluster.kill_all(&[member])?;
        } else {
            let status = self.cluster.terminate(member, STOPPED_WITHIN).await?;
            ensure!(status.success(), "{member} ended with {status} after SIGTERM");
        }
        let seed = self.dice.below(u64::MAX);
        let places = self.places(what, member).await?;
        ensure!(!places.is_empty(), "{member} has nothing that could rot");
        let how = if what == Rotten::Index { Corruption::Random } else { Corruption::FlipBit };
        let mut seen = Vec::new();
        let mut all = 0;
        for (path, at, len) in &places {
            let disk = self.cluster.disk(member)?;
            let changed = match disk.corrupt(path, *at, *len, how, seed)? {
                // Of a short stretch the random bytes may be those that were there.
                0 => disk.corrupt(path, *at, *len, Corruption::FlipBit, seed)?,
                changed => changed,
            };
            all += changed;
            seen.push(format!("{changed} bytes of {path} at {at}"));
        }
        ensure!(all > 0, "nothing changed: {}", seen.join(", "));
        let seen = format!("{member}: {}", seen.join(", "));
        let heard = std::fs::metadata(self.cluster.log_path(member))?.len();
        self.cluster.restart(member)?;
        if !matches!(what, Rotten::Log | Rotten::Superblock) {
            self.cluster.wait_member_ready(member, ENDS_WITHIN * 3).await?;
            return Ok(format!("{seen}: it serves"));
        }
        let (path, ..) = places.first().context("there is a place")?;
        let name = path.rsplit('/').next().unwrap_or(path);
        let repaired = self.is_repaired(member, heard, name).await?;
        Ok(format!("{seen}: {repaired}"))
    }

    /// Old bytes, which are in no cache of the process: it is started anew before.
    async fn rot_below(&mut self, member: Member) -> anyhow::Result<String> {
        let status = self.cluster.terminate(member, STOPPED_WITHIN).await?;
        ensure!(status.success(), "{member} ended with {status} after SIGTERM");
        let places = self.places(Rotten::Log, member).await?;
        self.cluster.restart(member)?;
        self.cluster.wait_member_ready(member, REPAIRED_WITHIN).await?;
        let (path, at, len) = places.first().context("there is a place")?;
        let seed = self.dice.below(u64::MAX);
        let changed = self.cluster.disk(member)?.corrupt(path, *at, *len, Corruption::FlipBit, seed)?;
        ensure!(changed > 0, "nothing changed of {path} at {at}");
        let rotten = Instant::now();
        let ended = self.cluster.wait_end(member, FOUND_WITHIN).await?;
        let status =
            ended.with_context(|| format!("{member} does not find what rotted in {path} at {at}"))?;
        ensure!(status.code() == Some(FAULT_EXIT_STATUS), "{member} ended with {status} on a rotten log");
        let found_ms = rotten.elapsed().as_millis();
        let heard = std::fs::metadata(self.cluster.log_path(member))?.len();
        self.cluster.restart(member)?;
        let repaired = self.is_repaired(member, heard, "rotten").await?;
        Ok(format!("{member}: a bit of {path} at {at}, found after {found_ms} ms; {repaired}"))
    }

    /// It named the damage in its log behind `heard`, kept what was damaged, and has all of the log again.
    async fn is_repaired(&mut self, member: Member, heard: u64, damaged: &str) -> anyhow::Result<String> {
        let began = Instant::now();
        self.cluster.wait_member_ready(member, REPAIRED_WITHIN).await?;
        let mut said = String::new();
        let mut log = std::fs::File::open(self.cluster.log_path(member))?;
        log.seek(SeekFrom::Start(heard))?;
        log.take(1 << 20).read_to_string(&mut said)?;
        let why = said.lines().find(|line| line.contains("stays out of its group")).unwrap_or_default();
        ensure!(why.contains(damaged), "{member} does not say that {damaged} is damaged, but: {why}");
        let files = self.cluster.disk(member)?.files()?;
        ensure!(
            files.iter().any(|file| file.path.contains("/log.damaged/")),
            "{member} did not keep the damaged log"
        );
        Ok(format!("repaired and a voter after {} ms", began.elapsed().as_millis()))
    }

    /// File, place and length of what is to rot. The member is down.
    async fn places(&mut self, what: Rotten, member: Member) -> anyhow::Result<Vec<(String, u64, u64)>> {
        let files = self.cluster.disk(member)?.files()?;
        let last = |part: &str, end: &str| {
            let found = files.iter().filter(|file| file.path.contains(part) && file.path.ends_with(end));
            found.max_by(|one, other| one.path.cmp(&other.path)).map(|file| file.path.clone())
        };
        let superblock = last(LOG_FILES, "superblock");
        Ok(match what {
            Rotten::Log => {
                let path = last(LOG_FILES, ".log").context("there is no segment")?;
                let (file, dice) = (self.cluster.data_dir(member).join(&path), self.dice.below(u64::MAX));
                // The load goes on meanwhile, on this thread.
                let at = tokio::task::spawn_blocking(move || written_byte(&file, dice)).await??;
                vec![(path, at, 1)]
            }
            Rotten::Superblock => superblock
                .into_iter()
                .flat_map(|path| [(path.clone(), 16, 1), (path, SLOT_BYTES + 16, 1)])
                .collect(),
            Rotten::SuperblockSlot => {
                let slot = self.dice.below(2);
                superblock.map(|path| (path, slot * SLOT_BYTES + 16, 1)).into_iter().collect()
            }
            Rotten::Snapshot => {
                let path = last("/snapshots/", "").filter(|path| path.contains("snapshot-"));
                let path = path.context("there is no snapshot yet")?;
                let bytes = files.iter().find(|file| file.path == path).map_or(0, |file| file.bytes);
                vec![(path, self.dice.below(bytes.max(1)), 1)]
            }
            Rotten::Index => {
                let mut places = Vec::new();
                for file in files.iter().filter(|file| is_of_index(file)) {
                    places.push((file.path.clone(), self.dice.below(file.bytes), 4096));
                }
                places
            }
        })
    }

    /// A member that has just begun has made none yet.
    async fn wait_file(&mut self, member: Member, is_wanted: impl Fn(&Entry) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + MEETS_WITHIN;
        while !self.cluster.disk(member)?.files()?.iter().any(&is_wanted) {
            ensure!(Instant::now() < deadline, "{member} made no such file");
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    async fn must_be_killed(&mut self, member: Member) -> anyhow::Result<()> {
        use std::os::unix::process::ExitStatusExt as _;
        let status = self.cluster.wait_end(member, KILLED_WITHIN).await?;
        ensure!(
            status.and_then(|status| status.signal()) == Some(libc::SIGKILL),
            "{member} was not killed: {status:?}"
        );
        Ok(())
    }
}

/// The place of a byte of the log that was written: not padding between frames, which means nothing.
fn written_byte(segment: &Path, dice: u64) -> anyhow::Result<u64> {
    let bytes = std::fs::read(segment)?;
    let first = SEGMENT_HEADER_BYTES as usize;
    let zeros = bytes.rchunks(SLOT_BYTES as usize).take_while(|chunk| chunk.iter().all(|byte| *byte == 0));
    let end = bytes.len() - zeros.map(<[u8]>::len).sum::<usize>();
    ensure!(end > first, "{} is empty", segment.display());
    let from = first + (dice % (end - first) as u64) as usize;
    let written = |at: &usize| bytes.get(*at).is_some_and(|byte| *byte != 0);
    let at = (from..end).find(written).or_else(|| (first..from).rfind(written));
    Ok(at.context("the log has written bytes")? as u64)
}

/// What the settings of sled are in is written once and never synced: no bytes of it are on the disk.
fn is_of_index(file: &Entry) -> bool {
    file.path.contains("/derived/") && !file.path.ends_with("/sled/conf") && file.bytes > 0
}

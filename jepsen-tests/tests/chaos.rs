//! The chaos harness itself: a short run on real processes passes and leaves its files; a history
//! with a message taken out is caught; one that shows nothing is no pass. A short run of each workload,
//! and replicas of which one was changed.

use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ledgermq::cluster::{Cluster, ClusterPlan};
use ledgermq_client::{Client, ClientOptions, Message};
use ledgermq_jepsen_tests::bed::binary;
use ledgermq_jepsen_tests::python::interpreter;

fn chaos(arguments: &[&str]) -> Result<Output> {
    Command::new(binary()?).arg("chaos").args(arguments).output().context("running ledgermq chaos")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).display().to_string()
}

#[test]
fn a_run_is_judged_and_a_spoilt_history_is_not_passed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().display().to_string();
    let run = chaos(&[
        "run",
        "--scenario",
        "kill-leader",
        "--injections",
        "1",
        "--duration",
        "30",
        "--rate",
        "200",
        "--seed",
        "5",
        "--fault-ms",
        "500",
        "--pause-ms",
        "1000",
        "--out",
        &out,
        "--json",
    ])?;
    ensure!(run.status.success(), "{}\n{}\n{}", run.status, text(&run.stdout), text(&run.stderr));
    let report: serde_json::Value = serde_json::from_slice(&run.stdout)?;
    ensure!(report["outcome"] == "valid" && report["injections"] == 1, "{report:#}");
    ensure!(report["without_success"] == 0, "the cluster came back: {report:#}");
    ensure!(report["seed"] == 5 && report["scenario"] == "kill-leader");
    for file in ["history.jsonl", "history.edn", "report.html", "report.json"] {
        ensure!(std::fs::metadata(folder.path().join(file))?.len() > 0, "{file} is empty");
    }
    let edn = std::fs::read_to_string(folder.path().join("history.edn"))?;
    ensure!(edn.contains(":process :nemesis, :type :info, :f :start-kill"), "the fault is in the history");

    let history = std::fs::read_to_string(folder.path().join("history.jsonl"))?;
    let check = |name: &str, lines: &[String]| -> Result<(Option<i32>, String)> {
        std::fs::write(folder.path().join(name), lines.join("\n"))?;
        let output = chaos(&["check", &path(folder.path(), name)])?;
        Ok((output.status.code(), text(&output.stdout) + &text(&output.stderr)))
    };
    let lines: Vec<String> = history.lines().map(str::to_owned).collect();
    let (code, said) = check("same.jsonl", &lines)?;
    ensure!(code == Some(0), "{said}");

    // One message is taken out of the only answer that brought it.
    let delivered = lines
        .iter()
        .position(|line| line.contains("\"k\":\"ok\"") && line.contains("\"messages\":[{"))
        .context("an answer with messages")?;
    let mut lost = lines.clone();
    let mut event: serde_json::Value = serde_json::from_str(&lost[delivered])?;
    event["op"]["messages"].as_array_mut().context("messages")?.remove(0);
    lost[delivered] = event.to_string();
    let (code, said) = check("lost.jsonl", &lost)?;
    ensure!(code == Some(1) && said.contains("lost-"), "{code:?}: {said}");

    let unread: Vec<String> =
        lines.iter().filter(|line| !line.contains("\"f\":\"receive\"")).cloned().collect();
    let (code, said) = check("unread.jsonl", &unread)?;
    ensure!(code == Some(2) && said.contains("nobody received anything"), "{code:?}: {said}");

    std::fs::write(folder.path().join("nonsense.jsonl"), "nonsense\n")?;
    let refused = chaos(&["check", &path(folder.path(), "nonsense.jsonl")])?;
    ensure!(text(&refused.stderr).contains("nonsense.jsonl: line 1"), "{}", text(&refused.stderr));
    Ok(())
}

const DISKS_THAT_FAIL: &str = "/dev/fuse";
const NETWORKS_THAT_FAIL: &str = "/dev/net/tun";

/// Whether what needs this device and root can be had here.
fn can_have(device: &str) -> Result<bool> {
    let can = std::fs::metadata(device).is_ok() && std::fs::metadata("/proc/self")?.uid() == 0;
    ensure!(can || std::env::var_os("CI").is_none(), "CI runs as root and has {device}");
    if !can {
        eprintln!("not run: needs root and {device}");
    }
    Ok(can)
}

/// Nobody reads the byte that rots but the look through the log. The broker finds it, keeps out of its
/// group, is sent the log again, and votes with it, while no send fails.
#[test]
fn a_log_that_rots_below_a_running_broker_is_repaired_from_its_peers() -> Result<()> {
    if !can_have(DISKS_THAT_FAIL)? {
        return Ok(());
    }
    let (report, proofs) = run_briefly("corrupt-running-follower", &[])?;
    ensure!(proofs.contains("found after") && proofs.contains("repaired and a voter after"), "{proofs}");
    ensure!(report["unknown_sends"] == 0, "{report:#}");
    Ok(())
}

/// All machines lose their power under load, and nothing acknowledged is lost. With this seed the
/// first cut leaves nothing that was not synced, names included, and the second tears by sectors.
#[test]
fn a_power_cut_of_all_machines_loses_nothing_that_was_acknowledged() -> Result<()> {
    if !can_have(DISKS_THAT_FAIL)? {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let out = folder.path().display().to_string();
    let arguments = [
        "run",
        "--scenario",
        "power-loss-all",
        "--injections",
        "2",
        "--duration",
        "20",
        "--rate",
        "200",
        "--seed",
        "24",
        "--fault-ms",
        "200",
        "--pause-ms",
        "1000",
        "--out",
        &out,
        "--json",
    ];
    // Its disks are mounted below this folder, so that those of other runs are not taken for its own.
    let run = Command::new(binary()?).arg("chaos").args(arguments).env("TMPDIR", folder.path()).output()?;
    ensure!(run.status.success(), "{}\n{}\n{}", run.status, text(&run.stdout), text(&run.stderr));
    let report: serde_json::Value = serde_json::from_slice(&run.stdout)?;
    ensure!(report["outcome"] == "valid" && report["injections"] == 2, "{report:#}");
    ensure!(report["without_success"] == 0, "the cluster came back: {report:#}");
    let proofs = std::fs::read_to_string(folder.path().join("faults.txt"))?;
    ensure!(proofs.contains("Nothing") && proofs.contains("Sectors"), "{proofs}");
    ensure!(proofs.lines().count() == 2 && proofs.matches("bytes dropped").count() == 6, "{proofs}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let left = mounts.lines().filter(|line| line.contains(&out));
    ensure!(left.count() == 0, "a disk is still mounted: {mounts}");
    Ok(())
}

/// One short run: its report, and what showed that the faults happened.
fn run_briefly(scenario: &str, more: &[&str]) -> Result<(serde_json::Value, String)> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().display().to_string();
    let briefly = ["--injections", "1", "--duration", "20", "--rate", "200", "--seed", "7"];
    let fixed = ["run", "--scenario", scenario, "--pause-ms", "1000", "--out", &out, "--json"];
    let run = chaos(&[&fixed[..], &briefly[..], more].concat())?;
    ensure!(run.status.success(), "{}\n{}\n{}", run.status, text(&run.stdout), text(&run.stderr));
    let report: serde_json::Value = serde_json::from_slice(&run.stdout)?;
    ensure!(report["outcome"] == "valid" && report["injections"] == 1, "{report:#}");
    // Registers hold no messages, so no send succeeds after the fault.
    let has_sends = !more.contains(&"registers");
    ensure!(report["failed_sends"] == 0 && (report["without_success"] == 0 || !has_sends), "{report:#}");
    Ok((report, std::fs::read_to_string(folder.path().join("faults.txt"))?))
}

/// The others elect one of theirs, the clients go on, and the report says how long each part took.
#[test]
fn a_leader_that_is_cut_from_its_peers_is_replaced() -> Result<()> {
    if !can_have(NETWORKS_THAT_FAIL)? {
        return Ok(());
    }
    let (report, proofs) = run_briefly("isolate-leader", &["--fault-ms", "4000"])?;
    ensure!(proofs.contains("packets dropped") && !proofs.contains(" 0 packets dropped"), "{proofs}");
    let election = &report["election"];
    ensure!(election["ready_ms"]["count"] == 1, "nobody else was ready to serve: {report:#}");
    let at = |stage: &str| election[stage]["max"].as_f64().unwrap_or(f64::NAN);
    ensure!(at("elected_ms") <= at("ready_ms") && at("ready_ms") < 4000.0, "{report:#}");
    Ok(())
}

/// Leadership moves again and again under load, and no send fails.
#[test]
fn a_storm_of_transfers_is_not_felt_by_a_sender() -> Result<()> {
    let (report, proofs) = run_briefly("transfer-storm", &["--fault-ms", "3000"])?;
    ensure!(proofs.contains("transfers") && !proofs.contains(" 0 transfers"), "{proofs}");
    ensure!(report["election"]["ready_ms"]["count"] == 1, "{report:#}");
    Ok(())
}

/// What a checker looked at.
fn count(report: &serde_json::Value, checker: &str, name: &str) -> u64 {
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let of_checker = list(&report["verdicts"]).into_iter().find(|verdict| verdict["checker"] == checker);
    let counts = of_checker.map(|verdict| list(&verdict["counts"])).unwrap_or_default();
    counts.iter().find(|count| count[0] == name).and_then(|count| count[1].as_u64()).unwrap_or(0)
}

/// Numbers in front of a word, in what showed that something happened.
fn numbers_before(proofs: &str, word: &str) -> Vec<u64> {
    let words: Vec<&str> = proofs.split_whitespace().collect();
    let pairs = words.windows(2).filter(|pair| pair[1].trim_end_matches(',') == word);
    pairs.filter_map(|pair| pair[0].parse().ok()).collect()
}

#[test]
fn queues_read_by_offset_hold_what_was_acknowledged_where_it_was() -> Result<()> {
    let (report, _) = run_briefly("kill-leader", &["--workload", "log", "--fault-ms", "500"])?;
    let acknowledged = count(&report, "total-queue", "acknowledged");
    // Three readers, each a group that gets all of it, one of them again and again.
    let deliveries = count(&report, "queue-log", "deliveries");
    ensure!(acknowledged > 100 && deliveries >= 3 * acknowledged, "{report:#}");
    ensure!(count(&report, "queue-log", "places") >= acknowledged, "{report:#}");
    ensure!(count(&report, "replicas", "entries") > 0, "{report:#}");
    ensure!(count(&report, "replicas", "states") == 3, "{report:#}");
    Ok(())
}

#[test]
fn groups_that_grow_and_shrink_get_everything() -> Result<()> {
    let more = ["--workload", "groups", "--fault-ms", "4000"];
    let (report, proofs) = run_briefly("kill-follower", &more)?;
    let acknowledged = count(&report, "total-queue", "acknowledged");
    ensure!(acknowledged > 100, "{report:#}");
    ensure!(count(&report, "total-queue", "deliveries") >= 3 * acknowledged, "three groups: {report:#}");
    for change in ["joined", "left", "died"] {
        ensure!(numbers_before(&proofs, change).iter().sum::<u64>() > 0, "nobody {change}: {proofs}");
    }
    Ok(())
}

/// A tenth of the producers die before they say an outcome, and some while they say it.
#[test]
fn transactions_of_producers_that_died_have_one_outcome() -> Result<()> {
    let more = ["--workload", "transactions", "--fault-ms", "500"];
    let (report, proofs) = run_briefly("kill-leader", &more)?;
    ensure!(numbers_before(&proofs, "producers").iter().sum::<u64>() > 3, "{proofs}");
    ensure!(count(&report, "transactions", "halves") > 50, "{report:#}");
    let verdicts = report["verdicts"].to_string();
    ensure!(!verdicts.contains("undecided"), "the cluster was asked what has no outcome: {verdicts}");
    Ok(())
}

#[test]
fn settings_offsets_and_topics_are_registers() -> Result<()> {
    let more = ["--workload", "registers", "--fault-ms", "2000"];
    let (report, _) = run_briefly("stop-leader", &more)?;
    ensure!(count(&report, "linearizable", "registers") >= 6, "{report:#}");
    ensure!(count(&report, "linearizable", "operations") > 100, "{report:#}");
    Ok(())
}

#[test]
fn all_kinds_of_messages_go_through_one_fault_together() -> Result<()> {
    let more = ["--workload", "mixed", "--fault-ms", "500"];
    let (report, _) = run_briefly("kill-leader", &more)?;
    for (checker, name) in [
        ("total-queue of chaos-queue", "acknowledged"),
        ("fifo of chaos-fifo", "deliveries"),
        ("transactions of chaos-transactions", "halves"),
        ("timers of chaos-delay", "timers"),
        ("leases of chaos-leases", "lease changes"),
    ] {
        ensure!(count(&report, checker, name) > 0, "{checker} saw no {name}: {report:#}");
    }
    Ok(())
}

/// A leader dies under producers and consumers that are an unmodified SDK; a group of our client reads the
/// same.
fn run_with_foreign_clients(client: &[&str]) -> Result<()> {
    for workload in ["queue", "fifo", "transactions"] {
        let more = ["--workload", workload, "--producers", "2", "--fault-ms", "500"];
        let (report, _) = run_briefly("kill-leader", &[client, &more[..]].concat())?;
        let acknowledged = count(&report, "total-queue", "acknowledged");
        // Two groups; of the halves more than half are committed.
        let least = if workload == "transactions" { acknowledged } else { 2 * acknowledged };
        let deliveries = count(&report, "total-queue", "deliveries");
        ensure!(acknowledged > 10 && deliveries >= least, "{report:#}");
        ensure!((count(&report, "transactions", "halves") > 0) == (workload == "transactions"), "{report:#}");
        ensure!((count(&report, "fifo", "message groups") > 0) == (workload == "fifo"), "{report:#}");
    }
    Ok(())
}

#[test]
fn a_foreign_client_loses_nothing_either() -> Result<()> {
    let Some(python) = interpreter()? else {
        eprintln!("left out: this machine has no python3");
        return Ok(());
    };
    let python = python.display().to_string();
    run_with_foreign_clients(&["--client", "python", "--python", &python])
}

#[test]
fn the_rust_sdk_loses_nothing_either() -> Result<()> {
    run_with_foreign_clients(&["--client", "rust", "--rust-client", env!("CARGO_BIN_EXE_rust_sdk_client")])
}

#[test]
fn a_foreign_client_that_cannot_be_started_is_refused_before_there_is_a_cluster() -> Result<()> {
    let refused = |more: &[&str]| -> Result<String> {
        let run = chaos(&[&["run", "--scenario", "kill-leader", "--client"], more].concat())?;
        ensure!(!run.status.success(), "{}", text(&run.stdout));
        Ok(text(&run.stderr))
    };
    let said = refused(&["rust", "--rust-client", "/nowhere/rust_sdk_client"])?;
    let command = "cargo build --package ledgermq-jepsen-tests --bin rust_sdk_client";
    ensure!(said.contains("/nowhere/rust_sdk_client") && said.contains(command), "{said}");
    let said = refused(&["python", "--workload", "delay"])?;
    ensure!(said.contains("queue, fifo, transactions and not delay"), "{said}");
    Ok(())
}

#[test]
fn a_folder_that_another_run_writes_to_is_refused_and_left_as_it_is() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let of_another = folder.path().join("history.bin");
    std::fs::write(&of_another, "half of it")?;
    let held = std::fs::File::open(folder.path())?;
    // SAFETY: the descriptor is open for as long as `held` lives.
    let locked = unsafe { libc::flock(held.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    ensure!(locked == 0, "the test does not hold its own folder");
    let out = folder.path().display().to_string();
    let run = chaos(&["run", "--scenario", "kill-leader", "--compact", "--out", &out])?;
    ensure!(!run.status.success(), "{}", text(&run.stdout));
    ensure!(text(&run.stderr).contains("another run writes to"), "{}", text(&run.stderr));
    ensure!(std::fs::read_to_string(&of_another)? == "half of it");
    Ok(())
}

/// The history is written as it happens, and is judged from the file alone as it was by the run.
#[test]
fn a_run_ends_with_its_messages_and_leaves_a_compact_history() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().display().to_string();
    let size = ["--messages", "10000", "--batch", "20", "--rate", "0", "--message-size", "64", "--compact"];
    let fixed = ["run", "--scenario", "none", "--duration", "120", "--seed", "3", "--json", "--out", &out];
    let run = chaos(&[&fixed[..], &size[..]].concat())?;
    ensure!(run.status.success(), "{}\n{}\n{}", run.status, text(&run.stdout), text(&run.stderr));
    let report: serde_json::Value = serde_json::from_slice(&run.stdout)?;
    let acknowledged = count(&report, "total-queue", "acknowledged");
    ensure!(report["outcome"] == "valid" && acknowledged >= 10_000, "{report:#}");
    let history = folder.path().join("history.bin");
    let bytes = std::fs::metadata(&history)?.len();
    ensure!(bytes < 100 * acknowledged, "{bytes} bytes for {acknowledged} messages");
    let check = chaos(&["check", "--json", &history.display().to_string()])?;
    ensure!(check.status.success(), "{}", text(&check.stderr));
    let checked: serde_json::Value = serde_json::from_slice(&check.stdout)?;
    ensure!(checked["verdicts"] == report["verdicts"], "{checked:#}\n{report:#}");

    let cut = folder.path().join("cut.bin");
    std::fs::write(&cut, &std::fs::read(&history)?[..usize::try_from(bytes)? - 3])?;
    let refused = chaos(&["check", &cut.display().to_string()])?;
    ensure!(text(&refused.stderr).contains("the file ends inside a record"), "{}", text(&refused.stderr));
    Ok(())
}

/// The frame in front of `at` that holds the last of `payload`, made right again around a changed byte.
fn forge(segment: &Path, payload: &[u8]) -> Result<u64> {
    const HEADER: usize = 80;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(segment)?;
    let contents = std::fs::read(segment)?;
    let found = contents.windows(payload.len()).rposition(|bytes| bytes == payload);
    let changed = found.context("the message is in the segment")?;
    let starts = (0..=changed).rev().filter(|at| at % 8 == 0);
    let is_frame = |at: &usize| contents[*at..].starts_with(b"LMQF");
    let frame = starts.into_iter().find(is_frame).context("a frame in front of it")?;
    let mut header = contents[frame..frame + HEADER].to_vec();
    let len = usize::try_from(u32::from_le_bytes(header[8..12].try_into()?))?;
    let mut bytes = contents[frame + HEADER..frame + HEADER + len].to_vec();
    let at = changed.checked_sub(frame + HEADER).filter(|at| *at < len).context("inside the frame")?;
    bytes[at] ^= 1;
    header[56..60].copy_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    let crc = crc32c::crc32c(&header[..76]);
    header[76..80].copy_from_slice(&crc.to_le_bytes());
    file.write_all_at(&header, frame as u64)?;
    file.write_all_at(&bytes, (frame + HEADER) as u64)?;
    Ok(frame as u64)
}

/// One byte of one message on one node, with every checksum of its frame made right again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_with_one_changed_byte_is_convicted() -> Result<()> {
    let files = tempfile::tempdir()?;
    let mut cluster = Cluster::start(ClusterPlan::new(binary()?, files.path()))?;
    cluster.wait_ready(Duration::from_secs(60)).await?;
    let client = Client::connect(&cluster.broker_access_points(), ClientOptions::default()).await?;
    let producer = client.producer();
    for number in 0..20 {
        producer.send(Message::new("orders", format!("message-{number:04}-of-the-test"))).await?;
    }
    producer.close().await;
    let data_dirs: Vec<PathBuf> = cluster.brokers().map(|member| cluster.data_dir(member)).collect();
    cluster.stop(Duration::from_secs(20)).await?;
    let compare = || -> Result<(Option<i32>, serde_json::Value)> {
        let dirs: Vec<String> = data_dirs.iter().map(|dir| dir.display().to_string()).collect();
        let dirs: Vec<&str> = dirs.iter().map(String::as_str).collect();
        let output = chaos(&[&["replicas", "--json"], &dirs[..]].concat())?;
        let verdict = serde_json::from_slice(&output.stdout).context(text(&output.stderr))?;
        Ok((output.status.code(), verdict))
    };
    let (code, verdict) = compare()?;
    ensure!(code == Some(0) && verdict["outcome"] == "valid", "{verdict:#}");

    let segment = data_dirs[1].join("groups/1/log/00000000000000000000.log");
    let frame = forge(&segment, b"message-0013-of-the-test")?;
    let (code, verdict) = compare()?;
    ensure!(code == Some(1) && verdict["outcome"] == "invalid", "{verdict:#}");
    let said = verdict.to_string();
    let place = format!("{}:{frame}", segment.display());
    ensure!(said.contains("log-differs") && said.contains(&place), "{place}: {said}");
    Ok(())
}

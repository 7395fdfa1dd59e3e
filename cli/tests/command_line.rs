//! What a person at a terminal sees when a command line or a file is wrong.

#![allow(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn ledgermq(arguments: &[&str], env: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ledgermq"))
        .args(arguments)
        .env_remove("LEDGERMQ_ENDPOINT")
        .envs(env.iter().copied())
        .output()
        .unwrap()
}

/// The one line on standard error of a command that must fail.
fn complaint(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(!output.status.success(), "{text}");
    assert_eq!(text.lines().count(), 1, "more than one line:\n{text}");
    assert!(text.starts_with("ledgermq: "), "{text}");
    text
}

struct File(tempfile::TempDir, PathBuf);

impl File {
    fn with(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledgermq.toml");
        std::fs::write(&path, text).unwrap();
        Self(dir, path)
    }

    fn path(&self) -> &str {
        assert!(self.1.starts_with(self.0.path()));
        self.1.to_str().unwrap()
    }
}

#[test]
fn config_check_names_key_value_and_nearest_name() {
    for (text, expected) in [
        ("[listen]\nclinet = '127.0.0.1:1'\n", "unknown key `listen.clinet`"),
        ("[listen]\nclinet = '127.0.0.1:1'\n", "the nearest known key is `listen.client`"),
        ("worker_threads = 'many'\n", "key `worker_threads`"),
        ("worker_threads = 'many'\n", "is the string \"many\", expected a whole number"),
        ("[[nodes]]\nid = 1\n", "key `nodes.0.peer` is missing and has no default"),
        ("[topics]\ndefault_queues = 0\n", "topics.default_queues = 0: must lie between 1"),
        ("[registry]\nexpiry_ms = 1\n", "registry.expiry_ms"),
        ("listen = [\n", "is not TOML: line "),
    ] {
        let file = File::with(text);
        let line = complaint(&ledgermq(&["config", "check", file.path()], &[]));
        assert!(line.contains(expected), "{line}");
    }
}

#[test]
fn the_shown_defaults_pass_the_check_of_either_process() {
    for process in ["broker", "nameserver"] {
        let shown = ledgermq(&["config", "show-defaults", "--process", process], &[]);
        assert!(shown.status.success());
        let file = File::with(std::str::from_utf8(&shown.stdout).unwrap());
        let checked = ledgermq(&["config", "check", file.path()], &[]);
        let told = String::from_utf8(checked.stdout).unwrap();
        assert!(
            checked.status.success() && told.contains(&format!("usable {process} configuration")),
            "{told}"
        );
    }
}

#[test]
fn every_key_is_a_flag_and_an_environment_variable() {
    let line = complaint(&ledgermq(&["broker", "--topics.default_queues", "none"], &[]));
    assert!(
        line.contains("key `topics.default_queues` in flag --topics.default_queues is \"none\""),
        "{line}"
    );
    let line = complaint(&ledgermq(&["broker", "--set", "topics.default_queues=none"], &[]));
    assert!(line.contains("key `topics.default_queues`"), "{line}");
    let line = complaint(&ledgermq(&["broker"], &[("LEDGERMQ_BROKER__RAFT__HEARTBEAT_MS", "soon")]));
    assert!(line.contains("environment variable LEDGERMQ_BROKER__RAFT__HEARTBEAT_MS is \"soon\""), "{line}");
    let line = complaint(&ledgermq(&["nameserver"], &[("LEDGERMQ_NAMESERVER__LISTEN__CLIENTS", "x")]));
    assert!(line.contains("unknown key `listen.clients`"), "{line}");
}

#[test]
fn a_missing_file_and_an_unreachable_cluster_are_one_line_each() {
    assert!(!Path::new("/nonexistent").exists());
    let line = complaint(&ledgermq(&["broker", "--config", "/nonexistent/b.toml"], &[]));
    assert!(line.contains("cannot read configuration file /nonexistent/b.toml"), "{line}");
    let port = ledgermq::cluster::free_ports(1).unwrap()[0];
    let endpoint = format!("127.0.0.1:{port}");
    let arguments = ["send", "--endpoint", &endpoint, "--timeout-ms", "200", "--topic", "t", "--body", "b"];
    let line = complaint(&ledgermq(&arguments, &[]));
    assert!(line.contains(&format!("cannot reach {endpoint}")), "{line}");
}

use std::io::Write as _;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::*;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Sample {
    listen: Listen,
    nodes: Vec<SampleNode>,
    nameservers: Vec<String>,
    mode: Mode,
    cert: Option<String>,
    flush_interval_ms: u32,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Listen {
    client: SocketAddr,
    enabled: bool,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SampleNode {
    id: u64,
    peer: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Mode {
    SelfSigned,
    Off,
    Files { cert: String },
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            listen: Listen::default(),
            nodes: Vec::new(),
            nameservers: Vec::new(),
            mode: Mode::SelfSigned,
            cert: None,
            flush_interval_ms: 5,
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self { client: "127.0.0.1:8081".parse().unwrap(), enabled: true }
    }
}

struct Case {
    file: &'static str,
    env: &'static [(&'static str, &'static str)],
    flags: &'static [&'static str],
}

fn load_case(case: &Case) -> Result<Sample, String> {
    let path = std::env::temp_dir().join(format!(
        "ledgermq-config-{}-{:?}.toml",
        std::process::id(),
        std::thread::current().id()
    ));
    std::fs::File::create(&path).unwrap().write_all(case.file.as_bytes()).unwrap();
    let env = case.env.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    let mut sources = Sources::with_environment("LEDGERMQ_BROKER", env).file(&path);
    for flag in case.flags {
        sources = sources.set(flag).map_err(|error| error.to_string())?;
    }
    let outcome = load(&sources).map_err(|error| error.to_string());
    std::fs::remove_file(&path).unwrap();
    outcome.map_err(|message| message.replace(&path.display().to_string(), "FILE"))
}

fn refused(file: &'static str) -> String {
    load_case(&Case { file, env: &[], flags: &[] }).expect_err("the file must be refused")
}

#[test]
fn an_empty_file_gives_the_defaults() {
    assert_eq!(load_case(&Case { file: "", env: &[], flags: &[] }), Ok(Sample::default()));
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let file = "flush_interval_ms = 1\n[listen]\nclient = '127.0.0.1:1'\nenabled = false\n";
    let env = &[
        ("LEDGERMQ_BROKER__LISTEN__CLIENT", "127.0.0.1:2"),
        ("LEDGERMQ_BROKER__FLUSH_INTERVAL_MS", "2"),
        ("LEDGERMQ_NAMESERVER__LISTEN__CLIENT", "127.0.0.1:9"),
    ];
    let loaded = load_case(&Case { file, env, flags: &["listen.client=127.0.0.1:3"] }).unwrap();
    assert_eq!(loaded.listen.client.port(), 3);
    assert_eq!(loaded.flush_interval_ms, 2);
    assert!(!loaded.listen.enabled);
}

#[test]
fn texts_become_what_the_key_asks_for() {
    let env = &[
        ("LEDGERMQ_BROKER__LISTEN__ENABLED", "false"),
        ("LEDGERMQ_BROKER__NAMESERVERS", "127.0.0.1:1, 127.0.0.1:2"),
        ("LEDGERMQ_BROKER__NODES", "[{id = 1, peer = 'a'}]"),
        ("LEDGERMQ_BROKER__NODES__1__ID", "2"),
        ("LEDGERMQ_BROKER__CERT", "17"),
    ];
    let refused = load_case(&Case { file: "", env, flags: &[] }).unwrap_err();
    assert!(refused.contains("plain value"), "{refused}");
    let file = "[[nodes]]\nid = 1\npeer = 'a'\n";
    let env = &[
        ("LEDGERMQ_BROKER__LISTEN__ENABLED", "false"),
        ("LEDGERMQ_BROKER__NAMESERVERS", "127.0.0.1:1, 127.0.0.1:2"),
        ("LEDGERMQ_BROKER__NODES__0__PEER", "b"),
        ("LEDGERMQ_BROKER__NODES__1__ID", "2"),
        ("LEDGERMQ_BROKER__NODES__1__PEER", "c"),
        ("LEDGERMQ_BROKER__CERT", "17"),
    ];
    let loaded = load_case(&Case { file, env, flags: &["mode={files = {cert = 'x'}}"] }).unwrap();
    assert!(!loaded.listen.enabled);
    assert_eq!(loaded.nameservers, ["127.0.0.1:1", "127.0.0.1:2"]);
    let peers: Vec<_> = loaded.nodes.iter().map(|node| (node.id, node.peer.as_str())).collect();
    assert_eq!(peers, [(1, "b"), (2, "c")]);
    assert_eq!(loaded.cert.as_deref(), Some("17"));
    assert_eq!(loaded.mode, Mode::Files { cert: "x".to_owned() });
}

#[test]
fn an_unknown_key_is_refused_with_its_nearest_name() {
    assert_eq!(
        refused("[listen]\nclinet = '127.0.0.1:1'\n"),
        "unknown key `listen.clinet` in FILE; the nearest known key is `listen.client`"
    );
    assert_eq!(
        refused("[[nodes]]\nid = 1\npear = 'a'\n"),
        "unknown key `nodes.0.pear` in FILE; the nearest known key is `nodes.0.peer`"
    );
    let env = &[("LEDGERMQ_BROKER__LISTEN__CLIENTS", "127.0.0.1:1")];
    assert_eq!(
        load_case(&Case { file: "", env, flags: &[] }).unwrap_err(),
        "unknown key `listen.clients` in environment variable LEDGERMQ_BROKER__LISTEN__CLIENTS; \
         the nearest known key is `listen.client`"
    );
}

#[test]
fn a_value_of_another_type_names_key_value_and_expectation() {
    assert_eq!(
        refused("flush_interval_ms = 'soon'\n"),
        "key `flush_interval_ms` in FILE is the string \"soon\", \
         expected a whole number from 0 to 4294967295"
    );
    assert_eq!(
        refused("flush_interval_ms = -1\n"),
        "key `flush_interval_ms` in FILE is the integer -1, expected a whole number from 0 to 4294967295"
    );
    assert_eq!(refused("listen = 3\n"), "key `listen` in FILE is the integer 3, expected a table");
    assert_eq!(
        refused("[listen]\nenabled = 1\n"),
        "key `listen.enabled` in FILE is the integer 1, expected true or false"
    );
    assert_eq!(
        refused("[listen]\nclient = 'nowhere'\n"),
        "key `listen.client` in FILE is the string \"nowhere\", \
         expected a usable value (invalid socket address syntax)"
    );
    assert_eq!(
        refused("mode = 'of'\n"),
        "key `mode` in FILE is the string \"of\", \
         expected one of \"self_signed\", \"off\", \"files\"; the nearest is \"off\""
    );
    assert_eq!(
        load_case(&Case { file: "", env: &[], flags: &["flush_interval_ms=many"] }).unwrap_err(),
        "key `flush_interval_ms` in flag --flush_interval_ms is \"many\", \
         expected a whole number from 0 to 4294967295"
    );
}

#[test]
fn a_missing_key_and_broken_toml_are_named() {
    assert_eq!(refused("[[nodes]]\nid = 1\n"), "key `nodes.0.peer` is missing and has no default");
    let broken = refused("listen = \n");
    assert!(broken.starts_with("configuration file FILE is not TOML: line 1, column "), "{broken}");
}

#[test]
fn a_missing_file_is_named() {
    let sources = Sources::with_environment("X", []).file("/nonexistent/ledgermq.toml");
    let message = load::<Sample>(&sources).unwrap_err().to_string();
    assert!(message.starts_with("cannot read configuration file /nonexistent/ledgermq.toml: "), "{message}");
}

#[test]
fn the_shown_defaults_load_as_the_defaults() {
    let text = defaults_as_toml::<Sample>("LEDGERMQ_BROKER").unwrap();
    let table: toml::Table = text.parse().unwrap();
    let node = Node::from_toml(toml::Value::Table(table), "text");
    let loaded = Sample::deserialize(read::At::root(&node)).unwrap();
    assert_eq!(loaded, Sample::default());
    assert!(text.contains("# LEDGERMQ_BROKER__CERT  --cert (unset)"), "{text}");
    assert!(text.contains("# LEDGERMQ_BROKER__LISTEN__CLIENT  --listen.client\n"), "{text}");
}

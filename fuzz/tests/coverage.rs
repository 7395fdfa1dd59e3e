//! Every target under libFuzzer, guided by coverage, for a short time from the corpus.
//!
//! `LEDGERMQ_FUZZ_SEED` repeats a run as far as one that ends by the clock can be repeated,
//! `LEDGERMQ_FUZZ_SECONDS` makes it longer (per target). What it finds is below
//! `target/tmp/coverage`. Left out, with the reason, where there is no C++ compiler: libFuzzer is
//! written in it.

mod support;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;

use ledgermq_fuzz::{PLANTED, TARGETS, Target};

use self::support::{corpus_folder, hexadecimal, variable};

const SECONDS_DEFAULT: f64 = 8.0;
/// libFuzzer has to find the planted fault within this; it takes it less than a second.
const PLANTED_SECONDS_MAX: f64 = 60.0;
/// What one input may take, on a machine that has much else to do.
const INPUT_SECONDS_MAX: u64 = 20;
const INPUT_BYTES_MAX: usize = 4096;
const MEMORY_MIB_MAX: u64 = 1024;

/// Half of what the corpus of the smallest target reaches. Without instrumentation it is none.
const EDGES_MIN: u64 = 75;
/// Half of what the corpus of this one reaches, nearly all of it in the crate of the broker: also a
/// crate that lost its instrumentation is noticed.
const STATE_SNAPSHOT_EDGES_MIN: u64 = 3000;

/// Below the build directory, where cargo gives integration tests a place.
fn scratch() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("coverage")
}

fn is_missing(program: &str) -> bool {
    let asked = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    asked.is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// What cargo tells a test about its package. Build scripts ask for some of it, and would run
/// again, with everything that needs what they build, for a cargo that was itself told.
fn is_of_this_package(variable: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|prefix| variable.starts_with(prefix))
        || ["CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE", "OUT_DIR"].contains(&variable)
}

/// Builds the one binary with all targets.
///
/// Everything here is chosen so that the crates of others are those which `cargo test --workspace`
/// has built: the same build directory, a wrapper for workspace members only, and a test build
/// (though of a binary) of the whole workspace, which asks for the same features of them.
fn build() -> PathBuf {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target_directory = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the build directory");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_of_this_package) {
            cargo.env_remove(name);
        }
    }
    let output = cargo
        .current_dir(fuzz.join(".."))
        .env("RUSTC_WORKSPACE_WRAPPER", fuzz.join("instrument.sh"))
        // Compiled once and run for a minute: what an incremental build keeps is not worth its time.
        .env("CARGO_INCREMENTAL", "0")
        .args(["test", "--workspace", "--no-run", "--bin", "libfuzzer"])
        .args(["--features", "ledgermq-fuzz/libfuzzer"])
        .args(["--message-format", "json-render-diagnostics", "--target-dir"])
        .arg(target_directory)
        .output()
        .expect("cargo starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "building with coverage ended with {}:\n{said}", output.status);
    output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "libfuzzer")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .expect("cargo names the binary")
}

/// Runs libFuzzer on new copies of the samples and on the committed corpus, which stays as it is.
fn fuzz(libfuzzer: &Path, target: &Target, seed: u64, seconds: f64) -> Output {
    let folder = scratch().join(target.name);
    let _ = std::fs::remove_dir_all(&folder);
    let (found, artifacts) = (folder.join("corpus"), folder.join("artifacts"));
    std::fs::create_dir_all(&found).expect("a folder for new inputs");
    std::fs::create_dir_all(&artifacts).expect("a folder for findings");
    for (number, sample) in (target.samples)().iter().enumerate() {
        std::fs::write(found.join(format!("sample-{number}")), sample).expect("a sample is written");
    }
    let mut command = Command::new(libfuzzer);
    command
        .env("LEDGERMQ_FUZZ_TARGET", target.name)
        // libFuzzer takes 32 bits, and 0 for one of its own choice.
        .arg(format!("-seed={}", (seed as u32).max(1)))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
        .arg(format!("-max_len={INPUT_BYTES_MAX}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(&found);
    let committed = corpus_folder(target);
    if committed.is_dir() {
        command.arg(committed);
    }
    command.output().expect("libFuzzer starts")
}

/// The number behind `name` in the last line of libFuzzer's that has one.
fn last(said: &str, name: &str) -> u64 {
    said.lines()
        .rev()
        .filter_map(|line| line.split_once(name)?.1.split_whitespace().next()?.parse().ok())
        .next()
        .unwrap_or(0)
}

/// The file that libFuzzer wrote an input to, and the input.
fn artifact(said: &str) -> Option<(PathBuf, Vec<u8>)> {
    let path = said.lines().find_map(|line| line.split_once("Test unit written to "))?.1;
    let bytes = std::fs::read(path).ok()?;
    Some((path.into(), bytes))
}

/// What is wrong with a run, in words that repeat it.
fn judge(target: &Target, seed: u64, output: &Output) -> Result<String, String> {
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let words: Vec<_> = said.lines().filter(|line| !line.starts_with('#')).collect();
        let input = match artifact(&said) {
            Some((path, bytes)) => format!("{} in {}", hexadecimal(&bytes), path.display()),
            None => format!("an input that was not written; LEDGERMQ_FUZZ_SEED={seed} repeats it"),
        };
        let name = target.name;
        return Err(format!("{name} ended with {} by {input}\n{}", output.status, words.join("\n")));
    }
    let (edges, features) = (last(&said, " cov: "), last(&said, " ft: "));
    let edges_min = if target.name == "state_snapshot" { STATE_SNAPSHOT_EDGES_MIN } else { EDGES_MIN };
    let ran = format!("{}: {edges} edges, {features} features", target.name);
    if edges < edges_min {
        return Err(format!("{ran}; at least {edges_min} edges are expected: is it instrumented?\n{said}"));
    }
    Ok(ran)
}

#[test]
fn nothing_that_coverage_leads_to_breaks_a_decoder() {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    if is_missing(&compiler) {
        let why = format!("there is no {compiler}, which libFuzzer is compiled with; Debian has it in `g++`");
        assert!(std::env::var_os("CI").is_none(), "{why}");
        eprintln!("left out: {why}");
        return;
    }
    let seed = variable("LEDGERMQ_FUZZ_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let seconds = variable("LEDGERMQ_FUZZ_SECONDS").unwrap_or(SECONDS_DEFAULT).ceil();
    println!("LEDGERMQ_FUZZ_SEED={seed}");
    let libfuzzer = build();

    // Found only by being led there, and told of in libFuzzer's words that findings are read from.
    let output = fuzz(&libfuzzer, &PLANTED, seed, PLANTED_SECONDS_MAX);
    let said = String::from_utf8_lossy(&output.stderr);
    let is_found = said.contains("the planted fault") && artifact(&said).is_some();
    assert!(is_found, "the planted fault is not found:\n{said}");

    let waiting = Mutex::new(TARGETS.iter());
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let Some(target) = waiting.lock().expect("the targets").next() else { return };
                    match judge(target, seed, &fuzz(&libfuzzer, target, seed, seconds)) {
                        Ok(ran) => println!("{ran}"),
                        Err(why) => wrong.lock().expect("the findings").push(why),
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().expect("the findings");
    assert!(wrong.is_empty(), "LEDGERMQ_FUZZ_SEED={seed}\n{}", wrong.join("\n"));
}

//! The corpus through every target, then mutations of it for a bounded time.
//!
//! `LEDGERMQ_FUZZ_SEED` repeats a run, `LEDGERMQ_FUZZ_SECONDS` makes it longer (per target),
//! `LEDGERMQ_FUZZ_WRITE=1` writes the samples of the encoders into the corpus.

mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use ledgermq_fuzz::{TARGETS, Target};
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

use self::support::{corpus_folder, hexadecimal, variable};

const SECONDS_DEFAULT: f64 = 1.0;
/// Mutations are looked at in batches of this many between two looks at the clock.
const BATCH: usize = 64;
const INPUT_BYTES_MAX: usize = 64 * 1024;
const MUTATIONS_PER_INPUT_MAX: u32 = 6;

/// The committed inputs, and what the encoders make today.
fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(corpus_folder(target))
        .unwrap_or_else(|error| panic!("the corpus of {}: {error}", target.name))
        .map(|entry| entry.expect("an entry of the corpus").path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no corpus", target.name);
    let read = |path: &PathBuf| std::fs::read(path).expect("an input of the corpus");
    let mut inputs: Vec<Vec<u8>> = files.iter().map(read).collect();
    inputs.extend((target.samples)());
    inputs
}

/// What decoders compare with: ends of ranges, small numbers, signs.
const NUMBERS: [u64; 10] =
    [0, 1, 7, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 0xffff_ffff_ffff_ffff];

fn mutate(input: &mut Vec<u8>, other: &[u8], dice: &mut StdRng) {
    let len = input.len();
    let at = if len == 0 { 0 } else { dice.random_range(0..len) };
    match dice.random_range(0..8) {
        0 if len > 0 => input[at] ^= 1 << dice.random_range(0..8),
        1 if len > 0 => input[at] = dice.random(),
        2 if len > 0 => {
            let width = [1, 2, 4, 8][dice.random_range(0..4)].min(len - at);
            let number = NUMBERS[dice.random_range(0..NUMBERS.len())].to_le_bytes();
            input[at..at + width].copy_from_slice(&number[..width]);
        }
        3 if len > 0 => {
            let end = dice.random_range(at..=len);
            input.drain(at..end);
        }
        4 if len > 0 => {
            let end = dice.random_range(at..=len.min(at + 256));
            let piece = input[at..end].to_vec();
            input.splice(at..at, piece);
        }
        5 if !other.is_empty() => {
            let from = dice.random_range(0..other.len());
            let to = dice.random_range(from..=other.len().min(from + 256));
            input.splice(at..at, other[from..to].iter().copied());
        }
        6 => input.truncate(at),
        _ => {
            let mut piece = vec![0; dice.random_range(1..=8)];
            dice.fill_bytes(&mut piece);
            input.splice(at..at, piece);
        }
    }
    input.truncate(INPUT_BYTES_MAX);
}

#[test]
fn nothing_that_a_disk_a_peer_a_client_or_a_user_says_breaks_a_decoder() {
    let seed = variable("LEDGERMQ_FUZZ_SEED").unwrap_or_else(rand::random::<u64>);
    let seconds = variable("LEDGERMQ_FUZZ_SECONDS").unwrap_or(SECONDS_DEFAULT);
    println!("LEDGERMQ_FUZZ_SEED={seed}");
    for target in TARGETS {
        let inputs = corpus(target);
        inputs.iter().for_each(|input| (target.run)(input));
        let mut dice = StdRng::seed_from_u64(seed);
        let ends = Instant::now() + Duration::from_secs_f64(seconds);
        let mut tried = 0u64;
        while Instant::now() < ends {
            for _ in 0..BATCH {
                let mut input = inputs[dice.random_range(0..inputs.len())].clone();
                let other = &inputs[dice.random_range(0..inputs.len())];
                for _ in 0..dice.random_range(1..=MUTATIONS_PER_INPUT_MAX) {
                    mutate(&mut input, other, &mut dice);
                }
                let outcome = std::panic::catch_unwind(|| (target.run)(&input));
                if outcome.is_err() {
                    panic!("{} breaks by {}", target.name, hexadecimal(&input));
                }
                tried += 1;
            }
        }
        println!("{}: {} inputs of the corpus, {tried} mutations", target.name, inputs.len());
    }
}

/// The corpus keeps the forms of today: a format that changes without its old inputs going on to
/// be read, or refused, in order would otherwise go unnoticed here.
#[test]
fn every_target_has_a_corpus() {
    for target in TARGETS {
        let samples = (target.samples)();
        assert!(samples.iter().all(|sample| !sample.is_empty()), "{}: an empty sample", target.name);
        if std::env::var_os("LEDGERMQ_FUZZ_WRITE").is_some() {
            let folder = corpus_folder(target);
            std::fs::create_dir_all(&folder).expect("the folder of the corpus");
            for (number, sample) in samples.iter().enumerate() {
                std::fs::write(folder.join(format!("sample-{number}")), sample).expect("written");
            }
        }
        assert!(corpus_folder(target).is_dir(), "{} has no corpus", target.name);
    }
}

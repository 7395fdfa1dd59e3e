//! The unmodified Python SDK's push consumer with a listener that fails: after the attempts its group
//! allows, the message is read from the dead-letter topic with its origin. Once without a fault, once
//! with the leader killed between two attempts.

use anyhow::{Result, ensure};
use ledgermq_jepsen_tests::bed::Bed;
use ledgermq_jepsen_tests::python_program::{Fault, run};

const ATTEMPTS: &str = "3";
/// As many as `dead_letters.py` fails.
const LETTERS: usize = 5;

async fn letters(bed: &mut Bed, name: &str, fault: Fault) -> Result<()> {
    let group = format!("{name}-group");
    bed.admin(&["group", "set", &group, "--max-attempts", ATTEMPTS, "--backoff-ms", "1000"])?;
    if run(bed, "dead_letters.py", name, &["--attempts", ATTEMPTS], fault).await?.is_none() {
        return Ok(());
    }
    let listed = bed.admin(&["dlq", "list", &group])?;
    let redriven = bed.admin(&["dlq", "redrive", &group, "--filter", "key=key-0", "--rate", "50"])?;
    ensure!(listed.as_array().is_some_and(|letters| letters.len() == LETTERS), "{name}: {listed}");
    ensure!(redriven["redriven"] == 1, "{name}: {redriven}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_push_consumer_cannot_consume_goes_to_its_dead_letters_with_its_origin() -> Result<()> {
    let mut bed = Bed::make(|_| {}).await?;
    letters(&mut bed, "plain", Fault::None).await?;
    letters(&mut bed, "killed", Fault::LeaderKilled).await?;
    bed.passed().await
}

//! A producer of transactions as a process of its own, so that it can be killed. Sends its share one after the
//! other and stays, to answer for what it and others left open, until standard input ends.
//!
//! `transaction_producer ACCESS_POINTS FIRST STEP END` sends the numbers FIRST, FIRST + STEP, … below END.
//!
//! | Line on standard input | Means |
//! |---|---|
//! | `until N` | numbers below N may be sent, none before the first such line |
//! | `hold` | leave the next half without an end and wait to be killed |
//!
//! One JSON line per event on standard output:
//!
//! | `e` | Means |
//! |---|---|
//! | `invoke` | the half is on its way |
//! | `half` | it is stored |
//! | `ended` | the outcome was taken |
//! | `open` | left without an outcome, as one of ten is |
//! | `held` | left without an outcome as the last thing before being killed |
//! | `fail` | the client raised `error` |
//! | `done` | all are sent |

use std::io::{BufRead as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result};
use ledgermq_client::{Client, ClientOptions, Message};
use ledgermq_jepsen_tests::transactions::{LEFT_OPEN_EVERY, TOPIC, decide, is_to_commit, name_of};
use serde_json::json;
use tokio::sync::watch;

fn record(event: &str, name: &str, error: Option<String>) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", json!({ "e": event, "n": name, "error": error }))?;
    Ok(out.flush()?)
}

#[derive(Default)]
struct Told {
    until: u64,
    hold: bool,
}

fn read_input() -> watch::Receiver<Told> {
    let (teller, told) = watch::channel(Told::default());
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(std::result::Result::ok) {
            let until = line.strip_prefix("until ").and_then(|number| number.parse().ok());
            teller.send_modify(|told| {
                told.until = until.unwrap_or(told.until);
                told.hold |= line == "hold";
            });
        }
    });
    told
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let access_points = arguments.next().context("no access points")?;
    let numbers = arguments.map(|text| text.parse()).collect::<Result<Vec<u64>, _>>()?;
    let &[first, step, end] = numbers.as_slice() else { anyhow::bail!("expected FIRST STEP END") };
    let mut told = read_input();
    let options = ClientOptions { total_deadline: Duration::from_secs(60), ..ClientOptions::default() };
    let client = Client::connect(&access_points, options).await?;
    let producer = client.transactional_producer([TOPIC], decide);
    for number in (first..end).step_by(usize::try_from(step)?) {
        if told.wait_for(|told| told.hold || number < told.until).await.is_err() {
            return Ok(());
        }
        let name = name_of(number);
        record("invoke", &name, None)?;
        let transaction = match producer.send(Message::new(TOPIC, name.clone())).await {
            Ok(transaction) => transaction,
            Err(error) => {
                record("fail", &name, Some(error.to_string()))?;
                continue;
            }
        };
        record("half", &name, None)?;
        if told.borrow().hold {
            record("held", &name, None)?;
            break;
        }
        if number % LEFT_OPEN_EVERY == LEFT_OPEN_EVERY - 1 {
            record("open", &name, None)?;
            continue;
        }
        let ended =
            if is_to_commit(&name) { transaction.commit().await } else { transaction.rollback().await };
        match ended {
            Ok(()) => record("ended", &name, None)?,
            Err(error) => record("fail", &name, Some(error.to_string()))?,
        }
    }
    if !told.borrow().hold {
        record("done", "", None)?;
    }
    // An error is the end of the input.
    while told.changed().await.is_ok() {}
    producer.close().await;
    Ok(())
}

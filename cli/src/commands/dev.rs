//! `ledgermq dev`: a cluster on this machine, kept running until Ctrl-C.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tokio::time::Instant;

use super::asked_to_stop;
use crate::cluster::{Cluster, ClusterPlan, Member};

const READY_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(12);
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// A child that keeps dying is not started more often than this.
const RESTART_INTERVAL: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub struct DevArgs {
    /// Where the cluster keeps its data between runs.
    #[arg(long, default_value = "ledgermq-dev", value_name = "DIR")]
    data: PathBuf,
    /// The nameserver listens here, the brokers 10, 20 and 30 above it.
    #[arg(long, default_value_t = 8081, value_name = "PORT")]
    port_base: u16,
}

pub async fn run(arguments: DevArgs) -> anyhow::Result<ExitCode> {
    let binary = std::env::current_exe().context("cannot find this binary")?;
    let mut plan = ClusterPlan::new(binary, &arguments.data);
    plan.port_base = Some(arguments.port_base);
    let mut cluster = Cluster::start(plan)?;
    let mut stop = std::pin::pin!(asked_to_stop());
    let ready = tokio::select! {
        ready = cluster.wait_ready(READY_WITHIN) => Some(ready),
        _ = &mut stop => None,
    };
    if let Some(ready) = ready {
        ready?;
        println!("{}", welcome(&cluster)?);
        let mut restarted: BTreeMap<Member, Instant> = BTreeMap::new();
        loop {
            tokio::select! {
                outcome = &mut stop => {
                    outcome?;
                    break;
                }
                () = tokio::time::sleep(LOOK_INTERVAL) => restart_fallen(&mut cluster, &mut restarted)?,
            }
        }
    }
    eprintln!("stopping");
    cluster.stop(STOP_WITHIN).await?;
    Ok(ExitCode::SUCCESS)
}

fn restart_fallen(cluster: &mut Cluster, restarted: &mut BTreeMap<Member, Instant>) -> anyhow::Result<()> {
    for (member, status) in cluster.fallen()? {
        if restarted.get(&member).is_some_and(|last| last.elapsed() < RESTART_INTERVAL) {
            continue;
        }
        eprintln!(
            "{member} ended ({status}), starting it again; log: {}",
            cluster.log_path(member).display()
        );
        cluster.restart(member)?;
        restarted.insert(member, Instant::now());
    }
    Ok(())
}

fn welcome(cluster: &Cluster) -> anyhow::Result<String> {
    let point = cluster.nameserver_access_points();
    let http = cluster.http_address(Member::Broker(1))?;
    Ok(format!(
        "LedgerMQ runs: one nameserver, three brokers, data and logs in {dir}\n\
         access point   {point}\n\
         brokers        {brokers}\n\
         metrics        http://{http}/metrics\n\
         \n\
         Python   p = Producer(ClientConfiguration(\"{point}\", Credentials()), (\"demo\",)); p.startup(); \
         m = Message(); m.topic = \"demo\"; m.body = b\"hello\"; print(p.send(m).message_id)\n\
         Rust     Client::connect(\"{point}\", ClientOptions::default()).await?.producer()\
         .send(Message::new(\"demo\", \"hello\")).await?;\n\
         CLI      ledgermq send --endpoint {point} --topic demo --body hello && \
         ledgermq receive --endpoint {point} --topic demo --group readers\n\
         \n\
         Topics and replicas: ledgermq admin --endpoint '{brokers}' cluster status\n\
         Ctrl-C stops it.",
        dir = cluster.dir().display(),
        brokers = cluster.broker_access_points(),
    ))
}

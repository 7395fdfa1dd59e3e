//! `ledgermq admin`: topics and the state of the cluster.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use comfy_table::{Table, presets};
use ledgermq_client::Admin;
use ledgermq_proto::admin as wire;
use ledgermq_proto::rocketmq::MessageType;
use serde_json::{Value, json};

use super::admin_dead_letters::{self, DeadLetterCommand};
use super::admin_groups::{self, GroupCommand};
use super::admin_lite::{self, LiteCommand};
use super::admin_messages::{self, MessageCommand};
use super::admin_retention::{self, Retention};
use super::connection::ConnectionArgs;
use super::transaction::{TransactionCommand, transaction};

#[derive(Debug, Args)]
pub struct AdminArgs {
    #[command(flatten)]
    connection: ConnectionArgs,
    /// Print JSON instead of tables.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    area: Area,
}

#[derive(Debug, Subcommand)]
enum Area {
    #[command(subcommand)]
    Topic(TopicCommand),
    #[command(subcommand)]
    Transaction(TransactionCommand),
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Consumer groups.
    #[command(subcommand)]
    Group(GroupCommand),
    /// Lite topics.
    #[command(subcommand)]
    Lite(LiteCommand),
    /// Find messages.
    #[command(subcommand)]
    Message(MessageCommand),
    /// Say why a message is where it is for a consumer group.
    Why { topic: String, message_id: String, consumer_group: String },
    /// Show what each broker group keeps of its log, and what it is kept for.
    Retention {
        /// Also how long this topic keeps its messages, and what its readers missed.
        topic: Option<String>,
    },
    /// Messages that consumer groups gave up.
    #[command(subcommand)]
    Dlq(DeadLetterCommand),
}

#[derive(Debug, Subcommand)]
enum TopicCommand {
    /// Create a topic in every group, or in the groups named.
    Create {
        name: String,
        /// Queues in each group; the broker's default unless given.
        #[arg(long, default_value_t = 0)]
        queues: u32,
        #[arg(long = "type", value_enum, default_value_t = TopicType::Normal)]
        message_type: TopicType,
        /// May be repeated.
        #[arg(long = "group")]
        groups: Vec<String>,
    },
    /// List the topics, with where they are and how many queues they have.
    List,
    /// Show a topic's queues and who reads it.
    Show { name: String },
    /// Change a topic.
    Set {
        name: String,
        /// How long messages are kept, read or not: 30s, 15m, 72h, 7d, forever; default is the broker's.
        #[arg(long, value_parser = admin_retention::parse)]
        retention: Retention,
    },
    /// Give a topic more queues. A topic with order grows by a generation of queues: consumer groups
    /// with order consume what is there before what comes.
    Update {
        name: String,
        /// Queues in each group; never fewer than now.
        #[arg(long)]
        queues: u32,
    },
    /// Delete a topic with its messages.
    Delete { name: String },
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Show nodes, groups, leaders and how far each replica is.
    Status,
    /// Give the leadership of a group to one of its nodes.
    Transfer { group: String, node: u64 },
    /// Take a node's replica out of a group; if its process runs it joins anew.
    Rejoin { group: String, node: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TopicType {
    Normal,
    Fifo,
    Delay,
    Transaction,
    Lite,
    Priority,
}

pub async fn run(arguments: AdminArgs) -> anyhow::Result<ExitCode> {
    let admin = arguments.connection.connect().await?.admin();
    let (text, value) = match arguments.area {
        Area::Topic(command) => topic(&admin, command).await?,
        Area::Transaction(command) => transaction(&admin, command).await?,
        Area::Group(command) => admin_groups::run(&admin, command).await?,
        Area::Lite(command) => admin_lite::run(&admin, command).await?,
        Area::Message(command) => admin_messages::run(&admin, command).await?,
        Area::Why { topic, message_id, consumer_group } => {
            admin_messages::why(&admin, topic, message_id, consumer_group).await?
        }
        Area::Retention { topic } => admin_retention::show(&admin, topic).await?,
        Area::Dlq(command) => admin_dead_letters::run(&admin, command).await?,
        Area::Cluster(ClusterCommand::Status) => {
            let status = admin.cluster_status(wire::ClusterStatusRequest {}).await?;
            (status_as_text(&status), status_as_json(&status))
        }
        Area::Cluster(ClusterCommand::Transfer { group, node }) => {
            let request = wire::TransferLeadershipRequest {
                group: group.clone(),
                node,
                ..wire::TransferLeadershipRequest::default()
            };
            let answer = admin.transfer_leadership(request).await?;
            let text = if answer.moved {
                format!("node {node} leads {group}, as node {} did", answer.from)
            } else {
                format!("node {node} leads {group} already")
            };
            (text, json!({ "group": group, "node": node, "from": answer.from, "moved": answer.moved }))
        }
        Area::Cluster(ClusterCommand::Rejoin { group, node }) => {
            let request = wire::RejoinReplicaRequest {
                group: group.clone(),
                node,
                ..wire::RejoinReplicaRequest::default()
            };
            admin.rejoin_replica(request).await?;
            let text = format!(
                "the replica of node {node} is out of {group}; it joins anew if its process runs (see cluster status)"
            );
            (text, json!({ "group": group, "node": node, "out": true }))
        }
    };
    if arguments.json {
        println!("{value}");
    } else {
        println!("{text}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn topic(admin: &Admin, command: TopicCommand) -> anyhow::Result<(String, Value)> {
    Ok(match command {
        TopicCommand::Create { name, queues, message_type, groups } => {
            let message_type = message_type.on_the_wire() as i32;
            let request = wire::CreateTopicRequest { name: name.clone(), queues, message_type, groups };
            let answer = admin.create_topic(request).await?;
            let topic = answer.topic.unwrap_or_default();
            let text = if answer.created {
                format!(
                    "created topic {name}: {} queues in each of {}",
                    topic.queues,
                    topic.groups.join(", ")
                )
            } else {
                format!("topic {name} exists with these settings")
            };
            (text, json!({ "created": answer.created, "topic": topic_as_json(&topic) }))
        }
        TopicCommand::List => {
            let topics = admin.list_topics(wire::ListTopicsRequest {}).await?.topics;
            let mut table = table(&["topic", "type", "queues per group", "groups", "generation", "draining"]);
            for topic in &topics {
                table.add_row([
                    topic.name.clone(),
                    type_name(topic.message_type),
                    topic.queues.to_string(),
                    topic.groups.join(", "),
                    generation_of(topic),
                    topic.draining.join(", "),
                ]);
            }
            (table.to_string(), topics.iter().map(topic_as_json).collect())
        }
        TopicCommand::Show { name } => {
            let shown = admin.show_topic(wire::ShowTopicRequest { name }).await?;
            (shown_as_text(&shown), shown_as_json(&shown))
        }
        TopicCommand::Set { name, retention } => admin_retention::set(admin, name, retention).await?,
        TopicCommand::Update { name, queues } => {
            let request = wire::UpdateTopicRequest { name: name.clone(), queues };
            let answer = admin.update_topic(request).await?;
            let topic = answer.topic.unwrap_or_default();
            let text = match (answer.changed, topic.draining.as_slice()) {
                (false, _) => format!("topic {name} has {queues} queues in each group already"),
                (true, []) => {
                    format!("topic {name} has {queues} queues in each of {}", topic.groups.join(", "))
                }
                (true, draining) => format!(
                    "topic {name} has {queues} queues in each of {}; these drain what was before: {}",
                    topic.groups.join(", "),
                    draining.join(", ")
                ),
            };
            (text, json!({ "changed": answer.changed, "topic": topic_as_json(&topic) }))
        }
        TopicCommand::Delete { name } => {
            admin.delete_topic(wire::DeleteTopicRequest { name: name.clone() }).await?;
            (format!("deleted topic {name}"), json!({ "deleted": name }))
        }
    })
}

impl TopicType {
    fn on_the_wire(self) -> MessageType {
        match self {
            Self::Normal => MessageType::Normal,
            Self::Fifo => MessageType::Fifo,
            Self::Delay => MessageType::Delay,
            Self::Transaction => MessageType::Transaction,
            Self::Lite => MessageType::Lite,
            Self::Priority => MessageType::Priority,
        }
    }
}

pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header.iter().map(|name| name.to_uppercase()));
    table
}

fn type_name(number: i32) -> String {
    MessageType::try_from(number).map_or_else(|_| number.to_string(), |t| t.as_str_name().to_lowercase())
}

fn topic_as_json(topic: &wire::Topic) -> Value {
    json!({
        "name": topic.name,
        "type": type_name(topic.message_type),
        "queues": topic.queues,
        "groups": topic.groups,
        "created_ms": topic.created_ms,
        "generation": topic.generation,
        "growing_to": topic.growing_to,
        "draining": topic.draining,
    })
}

/// Empty for a topic that never grew by generations.
fn generation_of(topic: &wire::Topic) -> String {
    match (topic.generation, topic.growing_to) {
        (0, None) => String::new(),
        (generation, None) => generation.to_string(),
        (generation, Some(queues)) => format!("{generation}, growing to {queues} queues"),
    }
}

fn shown_as_text(shown: &wire::ShowTopicResponse) -> String {
    let topic = shown.topic.clone().unwrap_or_default();
    let mut queues = table(&["group", "queue", "first offset", "next offset", "messages"]);
    for queue in &shown.queues {
        queues.add_row([
            queue.group.clone(),
            queue.id.to_string(),
            queue.min_offset.to_string(),
            queue.max_offset.to_string(),
            queue.max_offset.saturating_sub(queue.min_offset).to_string(),
        ]);
    }
    let mut readers = table(&["group", "consumer group", "ready", "in flight"]);
    for reader in &shown.consumptions {
        readers.add_row([
            reader.group.clone(),
            reader.consumer_group.clone(),
            reader.ready.to_string(),
            reader.inflight.to_string(),
        ]);
    }
    let mut growth = String::new();
    if !shown.generations.is_empty() {
        let mut generations = table(&["group", "generation", "state", "queues over all groups"]);
        for of in &shown.generations {
            generations.add_row([
                of.group.clone(),
                of.number.to_string(),
                of.state.clone(),
                of.queues.to_string(),
            ]);
        }
        let mut draining = table(&["group", "consumer group", "drains generation", "left"]);
        for of in &shown.draining {
            draining.add_row([
                of.group.clone(),
                of.consumer_group.clone(),
                of.generation.to_string(),
                of.left.to_string(),
            ]);
        }
        growth = format!("\n\n{generations}\n\n{draining}");
    }
    format!(
        "topic {} ({}, {} queues in each of {})\n\n{queues}\n\n{readers}{growth}",
        topic.name,
        type_name(topic.message_type),
        topic.queues,
        topic.groups.join(", ")
    )
}

fn shown_as_json(shown: &wire::ShowTopicResponse) -> Value {
    json!({
        "topic": shown.topic.as_ref().map(topic_as_json),
        "queues": shown.queues.iter().map(|queue| json!({
            "group": queue.group, "id": queue.id,
            "min_offset": queue.min_offset, "max_offset": queue.max_offset,
        })).collect::<Vec<_>>(),
        "consumptions": shown.consumptions.iter().map(|reader| json!({
            "group": reader.group, "consumer_group": reader.consumer_group,
            "ready": reader.ready, "inflight": reader.inflight,
        })).collect::<Vec<_>>(),
        "generations": shown.generations.iter().map(|of| json!({
            "group": of.group, "number": of.number, "state": of.state, "queues": of.queues,
        })).collect::<Vec<_>>(),
        "draining": shown.draining.iter().map(|of| json!({
            "group": of.group, "consumer_group": of.consumer_group,
            "generation": of.generation, "left": of.left,
        })).collect::<Vec<_>>(),
    })
}

fn status_as_text(status: &wire::ClusterStatusResponse) -> String {
    let mut nodes = table(&["node", "client", "peer", "reachable"]);
    for node in &status.nodes {
        nodes.add_row([
            node.id.to_string(),
            node.client_address.clone(),
            node.peer_address.clone(),
            yes_or_no(node.reachable),
        ]);
    }
    let mut replicas =
        table(&["group", "node", "role", "term", "last", "flushed", "committed", "applied", "lag"]);
    for group in &status.groups {
        for replica in &group.replicas {
            let role = match (replica.reachable, replica.node == group.leader, replica.is_voter) {
                (false, ..) => "unreachable",
                (true, true, _) => "leader",
                (true, false, true) => "follower",
                (true, false, false) => "learner",
            };
            replicas.add_row([
                group.name.clone(),
                replica.node.to_string(),
                role.to_owned(),
                replica.term.to_string(),
                replica.last_index.to_string(),
                replica.flushed_index.to_string(),
                replica.committed_index.to_string(),
                replica.applied_index.to_string(),
                replica.lag_entries.to_string(),
            ]);
        }
    }
    format!("cluster {}\n\n{nodes}\n\n{replicas}", status.cluster)
}

fn status_as_json(status: &wire::ClusterStatusResponse) -> Value {
    json!({
        "cluster": status.cluster,
        "nodes": status.nodes.iter().map(|node| json!({
            "id": node.id, "client": node.client_address, "peer": node.peer_address,
            "reachable": node.reachable,
        })).collect::<Vec<_>>(),
        "groups": status.groups.iter().map(|group| json!({
            "id": group.id, "name": group.name, "term": group.term, "leader": group.leader,
            "replicas": group.replicas.iter().map(|replica| json!({
                "node": replica.node, "reachable": replica.reachable, "term": replica.term,
                "leader": replica.leader, "last_index": replica.last_index,
                "flushed_index": replica.flushed_index, "committed_index": replica.committed_index,
                "applied_index": replica.applied_index, "lag_entries": replica.lag_entries,
                "voter": replica.is_voter, "replica": replica.replica,
            })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    })
}

fn yes_or_no(truth: bool) -> String {
    if truth { "yes" } else { "no" }.to_owned()
}

//! Topics with order that grow, on the leaders: the steps of a growth, and the drain of what was before.
//!
//! The home of a growth is the first broker group of the topic's layout, by name. The entry that
//! prepares the next generation there decides its layout; from then on the leader of the home drives the
//! steps from nothing but what its state says, so the next leader goes on where the last one died:
//!
//! | The home's state says | Done, each step repeatable |
//! |---|---|
//! | next prepared, not closed | prepare in all others, close in all others, close at home |
//! | closed | open in all others, open at home |
//!
//! Home is the last to close and the last to open: "closed at home" means closed everywhere, and
//! "open at home" open everywhere.
//!
//! Draining is each broker group's own: its leader looks for consumer groups that have consumed its
//! share of a generation, asks the leaders of the generation's other broker groups, and when all say so
//! proposes the entry that lets the group go on here.
//!
//! | Failure | Consequence |
//! |---|---|
//! | a leader does not answer, or is lost between two steps | the step is repeated by whoever leads; sends are held meanwhile |
//! | the leader of the home is an old one | what it proposes at home fails; what it asks of others was decided by the log and may be repeated |
//! | the topic is gone in a broker group | the growth waits, and ends with the topic at home |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use ledgermq_common::limits::TOPIC_QUEUES_MAX;
use ledgermq_common::{GroupName, QueueLayout};
use ledgermq_edge::Edge;
use ledgermq_edge::codes::topic_not_found;
use ledgermq_edge::context::CallContext;
use ledgermq_edge::group_call::{GroupRequest, GroupResponse, Refused};
use ledgermq_proto::admin as wire;
use ledgermq_proto::admin::group_operation::Operation;
use ledgermq_proto::admin::group_operation_result::Result as Answered;
use ledgermq_proto::admin::growth_step::{Prepare, Step};
use ledgermq_proto::rocketmq::Code;
use tokio::time::Instant;

use super::hosted_group::{Ended, HostedGroup, refused, unexpected};
use super::offsets::barrier;
use crate::state::{
    Answer, CloseGeneration, Command, ConsumerGroupId, DrainCandidate, DrainGeneration, Generation, Growth,
    MessageType, OpenGeneration, PrepareGeneration, TopicId, TopicSettings, TopicView, UpdateTopic,
};

/// The leader looks this often for a growth to go on with and for generations that are drained.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Consumer groups asked about at one look.
const DRAINS_PER_LOOK_MAX: usize = 256;
/// A consumer group that is behind in another broker group is asked about less and less often.
const ASK_AGAIN_MAX: Duration = Duration::from_millis(800);
/// One step in another broker group; it is repeated afterwards.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// Drives growths and drains while this node leads.
pub async fn grow_topics(hosted: Weak<HostedGroup>, edge: Edge) {
    let Some(news) = hosted.upgrade().map(|hosted| Arc::clone(&hosted.growth_began)) else { return };
    let mut asked = Asked::new();
    loop {
        {
            let Some(hosted) = hosted.upgrade() else { return };
            if hosted.leads() {
                look(&hosted, &edge, &mut asked).await;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            () = news.notified() => {}
        }
    }
}

/// When to ask again about a consumer group and a generation, and how long to wait after that.
type Asked = BTreeMap<(ConsumerGroupId, TopicId, Generation), (Instant, Duration)>;

async fn look(hosted: &HostedGroup, edge: &Edge, asked: &mut Asked) {
    for growth in hosted.state.growths().into_iter().filter(|growth| growth.former.home() == &hosted.name) {
        if let Err(why) = drive(hosted, edge, &growth).await {
            tracing::debug!(group = %hosted.name, topic = growth.name, %why, "a growth waits for its next step");
        }
    }
    let mut candidates = hosted.state.drain_candidates(DRAINS_PER_LOOK_MAX);
    let key = |of: &DrainCandidate| (of.consumer_group, of.topic, of.generation);
    let known: BTreeSet<_> = candidates.iter().map(key).collect();
    asked.retain(|of, _| known.contains(of));
    let now = Instant::now();
    candidates.retain(|of| asked.get(&key(of)).is_none_or(|(again, _)| *again <= now));
    join_all(candidates.iter().map(|candidate| drain(hosted, edge, candidate))).await;
    for candidate in &candidates {
        let (again, pause) = asked.entry(key(candidate)).or_insert((now, LOOK_AGAIN));
        *again = Instant::now() + *pause;
        *pause = (*pause * 2).min(ASK_AGAIN_MAX);
    }
}

/// Why a step was not done now; the next look tries again.
#[derive(Debug, thiserror::Error)]
enum NotNow {
    #[error("broker group {group}: {why}")]
    There { group: GroupName, why: String },
    #[error("here: {0:?}")]
    Here(Ended),
}

impl From<Ended> for NotNow {
    fn from(ended: Ended) -> Self {
        Self::Here(ended)
    }
}

/// From where the growth is to its end.
async fn drive(hosted: &HostedGroup, edge: &Edge, growth: &Growth) -> Result<(), NotNow> {
    let others: Vec<(&GroupName, u32)> = growth
        .layout
        .groups()
        .iter()
        .filter(|(group, _)| *group != hosted.name)
        .map(|(group, queues)| (group, *queues))
        .collect();
    let in_all = |step: &(dyn Fn(u32) -> Step + Sync)| {
        let steps: Vec<_> = others.iter().map(|(group, queues)| (*group, step(*queues))).collect();
        async move {
            let done = steps.into_iter().map(|(group, step)| step_there(edge, group, &growth.name, step));
            try_join_all(done).await.map(|_| ())
        }
    };
    if !growth.is_closed {
        in_all(&|queues| {
            Step::Prepare(Prepare {
                generation: growth.next.get(),
                queues,
                former: write_layout(&growth.former),
                layout: write_layout(&growth.layout),
            })
        })
        .await?;
        in_all(&|_| Step::Close(growth.current.get())).await?;
        let close = CloseGeneration { topic: growth.topic, generation: growth.current };
        step_here(hosted, Command::CloseGeneration(close)).await?;
    }
    in_all(&|_| Step::Open(growth.next.get())).await?;
    let open = OpenGeneration { topic: growth.topic, generation: growth.next };
    step_here(hosted, Command::OpenGeneration(open)).await?;
    tracing::info!(group = %hosted.name, topic = growth.name, generation = growth.next.get(), "a topic grew");
    Ok(())
}

async fn step_here(hosted: &HostedGroup, command: Command) -> Result<(), Ended> {
    match hosted.propose(command.encode(hosted.now())).await? {
        Answer::Generation(_) => {
            hosted.topics_changed();
            Ok(())
        }
        Answer::Refused(refusal) => Err(refused(refusal, "").into()),
        other => Err(unexpected("a step of a growth", &other)),
    }
}

/// The step names the topic by its number, so that it never meets another topic of the same name.
async fn step_there(edge: &Edge, group: &GroupName, topic: &str, step: Step) -> Result<(), NotNow> {
    let describe = Operation::DescribeGrowth(wire::DescribeGrowth { topic: topic.to_owned() });
    let topic_id = match operate(edge, group, describe).await? {
        Answered::Growth(state) => state.topic_id,
        _ => return Err(not_understood(group)),
    };
    match operate(edge, group, Operation::GrowthStep(wire::GrowthStep { topic_id, step: Some(step) })).await?
    {
        Answered::Growth(_) => Ok(()),
        _ => Err(not_understood(group)),
    }
}

async fn drain(hosted: &HostedGroup, edge: &Edge, candidate: &DrainCandidate) {
    let others =
        candidate.layout.groups().iter().map(|(group, _)| group).filter(|group| **group != hosted.name);
    let answers = join_all(others.map(|group| ask_drained(edge, group, candidate))).await;
    if !answers.into_iter().all(|is_drained| is_drained.unwrap_or(false)) {
        return;
    }
    let command = DrainGeneration {
        consumer_group: candidate.consumer_group,
        topic: candidate.topic,
        generation: candidate.generation,
        resets: candidate.resets,
    };
    match hosted.propose(Command::DrainGeneration(command).encode(hosted.now())).await {
        Ok(Answer::Drained(true)) => tracing::info!(
            group = %hosted.name,
            topic = candidate.topic_name,
            consumer_group = candidate.consumer_group_name,
            generation = candidate.generation.get(),
            "a generation is drained"
        ),
        // Reset, deleted or led by another meanwhile.
        Ok(other) => tracing::debug!(group = %hosted.name, ?other, "a drain was not recorded"),
        Err(ended) => tracing::debug!(group = %hosted.name, ?ended, "a drain waits for the next leader"),
    }
}

async fn ask_drained(edge: &Edge, group: &GroupName, candidate: &DrainCandidate) -> Result<bool, NotNow> {
    let ask = wire::AskDrained {
        topic: candidate.topic_name.clone(),
        consumer_group: candidate.consumer_group_name.clone(),
        generation: candidate.generation.get(),
    };
    match operate(edge, group, Operation::AskDrained(ask)).await? {
        Answered::Drained(is_drained) => Ok(is_drained),
        _ => Err(not_understood(group)),
    }
}

async fn operate(edge: &Edge, group: &GroupName, operation: Operation) -> Result<Answered, NotNow> {
    let request = GroupRequest::Operation(wire::GroupOperation { operation: Some(operation) });
    let there = |why: String| NotNow::There { group: group.clone(), why };
    match edge.call(group, &CallContext::internal(STEP_TIMEOUT), &request).await {
        Ok(GroupResponse::Operation(wire::GroupOperationResult { result: Some(result) })) => Ok(result),
        Ok(GroupResponse::Refused(refused)) => Err(there(refused.to_string())),
        Ok(_) => Err(not_understood(group)),
        Err(failed) => Err(there(failed.to_string())),
    }
}

fn not_understood(group: &GroupName) -> NotNow {
    NotNow::There { group: group.clone(), why: "it answered with something else".to_owned() }
}

/// Begins a growth here, which is its home. The same growth again is the one that is under way.
pub async fn begin(hosted: &HostedGroup, request: &wire::GrowTopic) -> Result<wire::GrowthState, Ended> {
    check_queues(request.queues)?;
    let topic = topic_of(hosted, &request.topic)?;
    if topic.settings.message_type != MessageType::Fifo {
        return Err(bad(format!("topic {} has no order; it needs no generations", topic.name)));
    }
    let (current, former) = match &topic.placement {
        Some(placement) => (placement.generation, Arc::clone(&placement.layout)),
        None => (Generation(0), read_layout("present", &request.present)?),
    };
    if former.home() != &hosted.name {
        return Err(bad(format!("topic {} grows from broker group {}", topic.name, former.home())));
    }
    if let Some((group, queues)) = former.groups().iter().find(|(_, queues)| *queues > request.queues) {
        return Err(bad(format!(
            "queues is {}; topic {} has {queues} in broker group {group}, and queues cannot become fewer",
            request.queues, topic.name
        )));
    }
    // A broker group that carries the topic and is not placed to joins with this generation.
    let joining = read_layout("present", &request.present)?;
    let mut groups: Vec<(GroupName, u32)> = former.groups().to_vec();
    groups.extend(joining.groups().iter().filter(|(group, _)| former.queues_of(group) == 0).cloned());
    let groups = groups.into_iter().map(|(group, queues)| (group, queues.max(request.queues)));
    let layout = QueueLayout::new(groups).map_err(|error| bad(error.to_string()))?;
    let under_way = hosted.state.growth(topic.id);
    if let Some(growth) = under_way.filter(|growth| *growth.layout != layout) {
        return Err(Refused::new(
            Code::PreconditionFailed,
            format!(
                "topic {} is growing to {} queues in each broker group; wait for that",
                topic.name,
                growth.layout.queues_of(&hosted.name)
            ),
        )
        .into());
    }
    if layout != *former {
        let prepare = PrepareGeneration {
            topic: topic.id,
            generation: Generation(current.get().saturating_add(1)),
            queues: layout.queues_of(&hosted.name),
            former,
            layout: Arc::new(layout),
        };
        step_here(hosted, Command::PrepareGeneration(prepare)).await?;
        hosted.growth_began.notify_one();
    }
    describe(hosted, &request.topic)
}

pub fn describe(hosted: &HostedGroup, topic: &str) -> Result<wire::GrowthState, Ended> {
    Ok(state_of(hosted, &topic_of(hosted, topic)?))
}

fn state_of(hosted: &HostedGroup, topic: &TopicView) -> wire::GrowthState {
    let growth = hosted.state.growth(topic.id);
    wire::GrowthState {
        topic_id: topic.id.get(),
        generation: topic.placement.as_ref().map_or(0, |placement| placement.generation.get()),
        closed: growth.as_ref().is_some_and(|growth| growth.is_closed),
        next: growth.as_ref().map(|growth| growth.next.get()),
        groups: topic.placement.as_ref().map(|placement| write_layout(&placement.layout)).unwrap_or_default(),
        next_groups: growth.map(|growth| write_layout(&growth.layout)).unwrap_or_default(),
    }
}

/// A step that the home asks of this broker group.
pub async fn step(hosted: &HostedGroup, request: &wire::GrowthStep) -> Result<wire::GrowthState, Ended> {
    let topic = TopicId(request.topic_id);
    let command = match &request.step {
        Some(Step::Prepare(prepare)) => Command::PrepareGeneration(PrepareGeneration {
            topic,
            generation: Generation(prepare.generation),
            queues: prepare.queues,
            former: read_layout("former", &prepare.former)?,
            layout: read_layout("layout", &prepare.layout)?,
        }),
        Some(Step::Close(generation)) => {
            Command::CloseGeneration(CloseGeneration { topic, generation: Generation(*generation) })
        }
        Some(Step::Open(generation)) => {
            Command::OpenGeneration(OpenGeneration { topic, generation: Generation(*generation) })
        }
        None => return Err(bad("step is missing or of a kind this node does not know".to_owned())),
    };
    step_here(hosted, command).await?;
    match hosted.state.topic_by_id(topic) {
        Some(topic) => Ok(state_of(hosted, &topic)),
        None => Err(topic_not_found(&topic.to_string()).into()),
    }
}

/// Answered from what every earlier leader has acknowledged: a reset that is answered counts.
pub async fn has_drained(hosted: &HostedGroup, ask: &wire::AskDrained) -> Result<bool, Ended> {
    barrier(hosted).await?;
    hosted
        .state
        .has_drained(&ask.consumer_group, &ask.topic, Generation(ask.generation))
        .ok_or_else(|| topic_not_found(&ask.topic).into())
}

/// Gives a topic without order more queues here.
pub async fn set_queues(hosted: &HostedGroup, request: &wire::SetTopicQueues) -> Result<u32, Ended> {
    check_queues(request.queues)?;
    let topic = topic_of(hosted, &request.topic)?;
    let settings = TopicSettings { queues: request.queues, ..topic.settings };
    if settings != topic.settings {
        let command = Command::UpdateTopic(UpdateTopic { name: topic.name.clone(), settings });
        match hosted.propose(command.encode(hosted.now())).await? {
            Answer::Topic { .. } => hosted.topics_changed(),
            Answer::Refused(refusal) => return Err(refused(refusal, &topic.name).into()),
            other => return Err(unexpected("UpdateTopic", &other)),
        }
    }
    Ok(request.queues)
}

fn check_queues(queues: u32) -> Result<(), Ended> {
    if (1..=TOPIC_QUEUES_MAX).contains(&queues) {
        return Ok(());
    }
    Err(bad(format!("queues is {queues}; it must be within 1..={TOPIC_QUEUES_MAX}")))
}

fn topic_of(hosted: &HostedGroup, name: &str) -> Result<TopicView, Refused> {
    hosted.state.topic(name).ok_or_else(|| topic_not_found(name))
}

pub fn write_layout(layout: &QueueLayout) -> Vec<wire::GroupQueues> {
    let groups = layout.groups().iter();
    groups.map(|(group, queues)| wire::GroupQueues { group: group.to_string(), queues: *queues }).collect()
}

fn read_layout(field: &str, groups: &[wire::GroupQueues]) -> Result<Arc<QueueLayout>, Ended> {
    let groups = groups
        .iter()
        .map(|of| GroupName::parse(&of.group).map(|group| (group, of.queues)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| bad(format!("{field}: {error}")))?;
    QueueLayout::new(groups).map(Arc::new).map_err(|error| bad(format!("{field}: {error}")))
}

fn bad(message: String) -> Ended {
    Refused::new(Code::BadRequest, message).into()
}

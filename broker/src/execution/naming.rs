//! Topics and consumer groups on the leader: look them up, create, delete.

use ledgermq_common::{ConsumerGroupName, QueueLayout, TopicName};
use ledgermq_edge::codes::topic_not_found;
use ledgermq_edge::group_call::{
    ConsumerGroupDescription, CreateTopic, DescribeTopic, FormerGeneration, GroupResponse, Placement,
    Refused, TopicDescription,
};
use ledgermq_proto::admin::ShowTopicResponse;
use ledgermq_proto::admin::show_topic_response::{self as wire, Consumption, Queue};
use ledgermq_proto::rocketmq::Code;
use std::sync::Arc;
use std::time::Duration;

use super::hosted_group::{Ended, HostedGroup, unexpected};
use super::{delivery, intake};
use crate::state::{
    Answer, Backoff, Command, ConsumerGroupView, DeleteTopic, Generation, GroupAttributes, Permission,
    PlacementView, TopicSettings, TopicView,
};

/// Steps shown of an exponential backoff; they end where the maximum is reached.
const BACKOFF_STEPS_MAX: u32 = 18;

pub async fn describe_topic(hosted: &HostedGroup, describe: &DescribeTopic) -> Result<GroupResponse, Ended> {
    let topic = if describe.create_if_missing && hosted.settings.auto_create_topics {
        Some(hosted.topic_or_create(&describe.name).await?)
    } else {
        hosted.state.topic(describe.name.as_str())
    };
    Ok(GroupResponse::Topics(topic.as_ref().and_then(describe_view).into_iter().collect()))
}

pub async fn create_topic(hosted: &HostedGroup, create: &CreateTopic) -> Result<GroupResponse, Ended> {
    let settings = TopicSettings {
        message_type: intake::stored_type(create.message_type),
        permission: Permission::ReadWrite,
        queues: if create.queues == 0 { hosted.settings.default_queues } else { create.queues },
    };
    hosted.create_topic(&create.name, settings).await?;
    let topic = hosted
        .state
        .topic(create.name.as_str())
        .ok_or_else(|| Refused::from(topic_not_found(create.name.as_str())))?;
    // Whoever asked for the default is content with what is there.
    let differs = topic.settings.message_type != settings.message_type
        || create.queues != 0 && topic.settings.queues != settings.queues;
    if differs {
        return Err(Refused::new(
            Code::BadRequest,
            format!(
                "topic {} exists already with {} queues and type {}",
                create.name,
                topic.settings.queues,
                delivery::message_type(topic.settings.message_type).as_str_name()
            ),
        )
        .into());
    }
    Ok(GroupResponse::Topics(describe_view(&topic).into_iter().collect()))
}

pub async fn delete_topic(hosted: &HostedGroup, name: &TopicName) -> Result<GroupResponse, Ended> {
    let delete = DeleteTopic { name: name.to_string() };
    match hosted.propose(Command::DeleteTopic(delete).encode(hosted.now())).await? {
        // A repeat of a lost answer finds nothing to delete.
        Answer::Deleted(existed) => {
            if existed {
                hosted.topics_changed();
            }
            Ok(GroupResponse::Done)
        }
        other => Err(unexpected("DeleteTopic", &other)),
    }
}

pub fn list_topics(hosted: &HostedGroup) -> GroupResponse {
    GroupResponse::Topics(hosted.state.topics().iter().filter_map(describe_view).collect())
}

pub fn show_topic(hosted: &HostedGroup, name: &TopicName) -> Result<GroupResponse, Ended> {
    let not_found = || Refused::from(topic_not_found(name.as_str()));
    let topic = hosted.state.topic(name.as_str()).ok_or_else(not_found)?;
    let ranges = hosted.state.queue_ranges(topic.id).ok_or_else(not_found)?;
    let queues = (0u32..)
        .zip(ranges)
        .map(|(id, range)| Queue {
            group: hosted.name.to_string(),
            id,
            min_offset: range.start,
            max_offset: range.end,
        })
        .collect();
    let consumptions = hosted
        .state
        .consumer_groups()
        .into_iter()
        .filter(|group| hosted.state.subscribed_topics(group.id).contains(&topic.id))
        .map(|group| {
            let lag = hosted.state.lag(group.id, topic.id);
            Consumption {
                group: hosted.name.to_string(),
                consumer_group: group.name,
                ready: lag.ready,
                inflight: lag.in_flight,
            }
        })
        .collect();
    Ok(GroupResponse::ShowTopic(ShowTopicResponse {
        topic: None,
        queues,
        consumptions,
        generations: generations(hosted, &topic),
        draining: draining(hosted, &topic),
    }))
}

fn generations(hosted: &HostedGroup, topic: &TopicView) -> Vec<wire::Generation> {
    let Some(placement) = &topic.placement else { return Vec::new() };
    let shown = |number: Generation, layout: &QueueLayout, state: &str| wire::Generation {
        group: hosted.name.to_string(),
        number: number.get(),
        state: state.to_owned(),
        queues: layout.groups().iter().map(|(_, queues)| queues).sum(),
    };
    let ended = hosted.state.ended_generations(topic.id).into_iter();
    let mut all: Vec<wire::Generation> = ended
        .filter(|ended| ended.generation < placement.generation)
        .map(|ended| shown(ended.generation, &ended.layout, "ended"))
        .collect();
    let state = if placement.is_closed { "closed" } else { "current" };
    all.push(shown(placement.generation, &placement.layout, state));
    if let Some(growth) = hosted.state.growth(topic.id) {
        all.push(shown(growth.next, &growth.layout, "next"));
    }
    all
}

fn draining(hosted: &HostedGroup, topic: &TopicView) -> Vec<wire::Draining> {
    let draining = hosted.state.draining(topic.id).into_iter();
    draining
        .map(|of| wire::Draining {
            group: hosted.name.to_string(),
            consumer_group: of.consumer_group,
            generation: of.generation.get(),
            left: of.left,
        })
        .collect()
}

/// A group nobody has consumed with yet has the defaults; its first receive makes it.
pub fn describe_consumer_group(hosted: &HostedGroup, name: &ConsumerGroupName) -> GroupResponse {
    GroupResponse::ConsumerGroup(
        hosted.state.consumer_group(name.as_str()).map_or_else(Default::default, |view| {
            consumer_group(&view, &hosted.state.group_attributes(view.id))
        }),
    )
}

/// What the edge shows of a topic. A name the rules of today refuse is not shown.
pub fn describe_view(topic: &TopicView) -> Option<TopicDescription> {
    Some(TopicDescription {
        name: TopicName::parse(&topic.name).ok()?,
        message_type: delivery::message_type(topic.settings.message_type),
        queues: topic.settings.queues,
        created: topic.created_at,
        placement: topic.placement.as_ref().map(placement),
    })
}

fn placement(view: &PlacementView) -> Arc<Placement> {
    let former = view.former.iter().map(|(generation, layout)| FormerGeneration {
        generation: generation.get(),
        layout: Arc::clone(layout),
    });
    Arc::new(Placement {
        generation: view.generation.get(),
        layout: Arc::clone(&view.layout),
        former: former.collect(),
    })
}

pub fn consumer_group(view: &ConsumerGroupView, attributes: &GroupAttributes) -> ConsumerGroupDescription {
    let backoff = match &view.settings.backoff {
        Backoff::Customised { steps_ms } => steps_ms.clone(),
        exponential @ Backoff::Exponential { max_ms, .. } => {
            let mut steps_ms = Vec::new();
            for attempt in 1..=BACKOFF_STEPS_MAX {
                let step_ms = exponential.delay_ms(attempt);
                steps_ms.push(step_ms);
                if step_ms >= *max_ms {
                    break;
                }
            }
            steps_ms
        }
    };
    ConsumerGroupDescription {
        fifo: view.settings.fifo,
        max_attempts: view.settings.attempts_max,
        backoff: backoff.into_iter().map(Duration::from_millis).collect(),
        lite_quota: attributes.client_quota,
    }
}

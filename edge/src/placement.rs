//! By what sends to a topic with order are placed, on the wire.

use std::sync::Arc;

use ledgermq_common::{GroupName, QueueLayout};
use ledgermq_proto::registry as pb;
use ledgermq_proto::registry::placement::{Former, GroupQueues};

use crate::group_call::{FormerGeneration, Placement};

pub fn write(placement: &Placement) -> pb::Placement {
    pb::Placement {
        generation: placement.generation,
        groups: write_layout(&placement.layout),
        former: placement
            .former
            .iter()
            .map(|former| Former { generation: former.generation, groups: write_layout(&former.layout) })
            .collect(),
    }
}

/// `None` if it is malformed. A send without a placement is refused by the leader where that is wrong.
pub fn read(placement: pb::Placement) -> Option<Arc<Placement>> {
    let former = placement
        .former
        .into_iter()
        .map(|former| {
            Some(FormerGeneration { generation: former.generation, layout: read_layout(former.groups)? })
        })
        .collect::<Option<_>>()?;
    Some(Arc::new(Placement {
        generation: placement.generation,
        layout: read_layout(placement.groups)?,
        former,
    }))
}

fn write_layout(layout: &QueueLayout) -> Vec<GroupQueues> {
    let groups = layout.groups().iter();
    groups.map(|(group, queues)| GroupQueues { group: group.to_string(), queues: *queues }).collect()
}

fn read_layout(groups: Vec<GroupQueues>) -> Option<Arc<QueueLayout>> {
    let groups = groups
        .into_iter()
        .map(|of| Some((GroupName::parse(&of.group).ok()?, of.queues)))
        .collect::<Option<Vec<_>>>()?;
    QueueLayout::new(groups).ok().map(Arc::new)
}

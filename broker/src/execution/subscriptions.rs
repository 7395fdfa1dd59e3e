//! What the members of consumer groups subscribe to, as far as their receives and heartbeats say; and
//! whether they agree.
//!
//! Memory of the leader. While all members of a group want the same of a topic nothing else is kept. Once
//! they differ, the filters are in the log as well (`SetFilters`), before the first receive of the newcomer
//! is planned: so a later leader, which has not heard the members yet, knows what it must not pass over.
//! It takes what it finds there for alive until the time to lapse is over.
//!
//! | A member | Its filter |
//! |---|---|
//! | receives, or waits for messages | is alive |
//! | was silent, no receive and no heartbeat, for the time to lapse | is dropped |
//! | says that it ends, or receives by another filter | is dropped at once |
//!
//! When a filter is dropped, what was left for it is judged anew.
//!
//! | Bound | Value | Beyond it |
//! |---|---|---|
//! | filters of one consumer group and topic | 16 | the receive is refused: TOO_MANY_REQUESTS |
//! | members remembered of one filter | 4,096 | only the filter is remembered, for the time to lapse |
//! | log lines about one consumer group and topic | 1 a minute | left out |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ledgermq_common::Term;
use ledgermq_edge::group_call::{Filter, Refused};
use ledgermq_proto::rocketmq::Code;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior};

use super::clients::Liveness;
use super::hosted_group::{Ended, HostedGroup, refused, unexpected};
use super::wanted::Wanted;
use crate::state::{
    Answer, ClientHash, Command, ConsumerGroupId, LeftPlaces, OthersWant, SetFilters, StoredMessage,
    TagFilter, TopicId,
};

pub const FILTERS_MAX: usize = 16;
const MEMBERS_OF_FILTER_MAX: usize = 4_096;
/// Clients that a report names for one filter.
const CLIENTS_NAMED_MAX: usize = 4;
const LOG_INTERVAL: Duration = Duration::from_secs(60);
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Members that joined within this time may not have come to all of their topics yet.
const TOPICS_SETTLE: Duration = Duration::from_secs(60);

type Key = (ConsumerGroupId, TopicId);

/// A filter as text, the same for the same subscription: `*`, `tag A||B` with the tags in order, or
/// `sql ` and the expression.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FilterText(String);

impl FilterText {
    pub fn of(filter: &Filter) -> Self {
        Self(match filter {
            Filter::All => "*".to_owned(),
            Filter::Tags(tags) => {
                let tags: BTreeSet<&str> = tags.iter().map(String::as_str).collect();
                format!("tag {}", tags.into_iter().collect::<Vec<_>>().join("||"))
            }
            Filter::Sql(expression) => format!("sql {}", expression.text()),
        })
    }

    /// What an earlier leader wrote. One that cannot be read wants everything: nothing is passed over for
    /// as long as it is held.
    fn wanted(&self) -> Wanted {
        let text = self.0.as_str();
        let filter = if let Some(tags) = text.strip_prefix("tag ") {
            Filter::Tags(tags.split("||").map(str::to_owned).collect())
        } else if let Some(expression) = text.strip_prefix("sql ") {
            ledgermq_filter::parse_cached(expression).map_or(Filter::All, Filter::Sql)
        } else {
            Filter::All
        };
        Wanted::of(&filter)
    }
}

#[derive(Debug)]
pub struct Subscriptions {
    reign: Mutex<Reign>,
    /// One `SetFilters` at a time, so that the log ends with what is true last.
    recording: tokio::sync::Mutex<()>,
    /// A member left: somebody should look at once.
    changed: Arc<Notify>,
    lapse: Duration,
}

/// What this leader learnt in one term. What it knew of an earlier one is old.
#[derive(Debug, Default)]
struct Reign {
    term: Term,
    known: BTreeMap<Key, Subscribed>,
}

/// One consumer group and topic.
#[derive(Debug, Default)]
struct Subscribed {
    filters: BTreeMap<FilterText, HeldFilter>,
    logged: Option<Instant>,
}

#[derive(Debug)]
struct HeldFilter {
    wanted: Arc<Wanted>,
    left: Arc<LeftPlaces>,
    members: BTreeMap<ClientHash, Member>,
    /// It may have members that are not remembered: kept until then at least.
    kept_until: Option<Instant>,
}

#[derive(Debug)]
struct Member {
    client_id: String,
    joined: Instant,
    heard: Instant,
    /// Receives that are under way.
    polls: u32,
    /// It receives by another filter now.
    is_gone: bool,
}

/// Members of a consumer group do not agree about a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    pub consumer_group: ConsumerGroupId,
    pub topic: TopicId,
    /// Each filter, and some of the clients that have it.
    pub filters: Vec<(String, Vec<String>)>,
}

/// What one receive has to know of the others.
#[derive(Debug, Clone, Default)]
pub struct Others {
    pub plan: OthersWant,
    wanted: Vec<Arc<Wanted>>,
}

impl Others {
    /// Whether a message is for another member of the group.
    pub fn want(&self, stored: &StoredMessage) -> bool {
        self.wanted.iter().any(|wanted| wanted.wants(stored))
    }
}

impl HeldFilter {
    fn new(wanted: Wanted) -> Self {
        Self { wanted: Arc::new(wanted), left: Arc::default(), members: BTreeMap::new(), kept_until: None }
    }
}

impl Subscriptions {
    pub fn new(lapse: Duration) -> Self {
        let changed = Arc::default();
        Self { reign: Mutex::default(), recording: tokio::sync::Mutex::default(), changed, lapse }
    }

    fn reign(&self, term: Term) -> MutexGuard<'_, Reign> {
        let mut reign = self.reign.lock();
        if reign.term < term {
            *reign = Reign { term, known: BTreeMap::new() };
        }
        reign
    }

    /// A client receives by a filter. `recorded` is what the log says of the group and topic.
    fn join(
        &self,
        term: Term,
        key: Key,
        (client, client_id): (ClientHash, &str),
        filter: &Filter,
        recorded: impl FnOnce() -> Vec<String>,
    ) -> Result<(), TooManyFilters> {
        let (text, now) = (FilterText::of(filter), Instant::now());
        let mut reign = self.reign(term);
        let lapses = now + self.lapse;
        let subscribed = reign.known.entry(key).or_insert_with(|| Subscribed::recorded(recorded(), lapses));
        if !subscribed.filters.contains_key(&text) && subscribed.filters.len() >= FILTERS_MAX {
            return Err(TooManyFilters);
        }
        let mut is_dropped = false;
        for (other, held) in &mut subscribed.filters {
            if *other == text {
                continue;
            }
            if let Some(member) = held.members.get_mut(&client) {
                member.is_gone = true;
                is_dropped = true;
            }
        }
        let held =
            subscribed.filters.entry(text.clone()).or_insert_with(|| HeldFilter::new(Wanted::of(filter)));
        if held.members.len() < MEMBERS_OF_FILTER_MAX || held.members.contains_key(&client) {
            let member = held.members.entry(client).or_insert_with(|| Member {
                client_id: client_id.to_owned(),
                joined: now,
                heard: now,
                polls: 0,
                is_gone: false,
            });
            member.is_gone = false;
            member.heard = now;
            member.polls += 1;
        } else {
            held.kept_until = Some(lapses);
        }
        if is_dropped {
            subscribed.drop_lapsed(|_, member| !member.is_over());
        }
        Ok(())
    }

    /// Whether a receive that was counted in is so still.
    fn has_joined(&self, term: Term, key: Key, client: ClientHash, text: &FilterText) -> bool {
        let reign = self.reign(term);
        let held = reign.known.get(&key).and_then(|subscribed| subscribed.filters.get(text));
        held.is_some_and(|held| held.kept_until.is_some() || held.members.contains_key(&client))
    }

    /// The receive is over.
    fn leave(&self, key: Key, client: ClientHash, text: &FilterText) {
        let mut reign = self.reign.lock();
        let held = reign.known.get_mut(&key).and_then(|subscribed| subscribed.filters.get_mut(text));
        let Some(member) = held.and_then(|held| held.members.get_mut(&client)) else { return };
        member.polls = member.polls.saturating_sub(1);
        member.heard = Instant::now();
        if member.is_over() {
            self.changed.notify_one();
        }
    }

    /// The client says that it ends.
    pub fn terminated(&self, consumer_group: ConsumerGroupId, client: ClientHash) {
        let mut reign = self.reign.lock();
        for (_, subscribed) in reign.known.range_mut(of_group(consumer_group)) {
            for held in subscribed.filters.values_mut() {
                if let Some(member) = held.members.get_mut(&client) {
                    member.is_gone = true;
                    member.polls = 0;
                }
            }
        }
        drop(reign);
        self.changed.notify_one();
    }

    /// What the members with other filters want.
    fn others(&self, key: Key, own: &FilterText) -> Others {
        let reign = self.reign.lock();
        let Some(subscribed) = reign.known.get(&key).filter(|subscribed| subscribed.differs()) else {
            return Others::default();
        };
        let left = subscribed.filters.get(own).map(|held| Arc::clone(&held.left)).unwrap_or_default();
        let others = subscribed.filters.iter().filter(|(text, _)| *text != own);
        let wanted: Vec<Arc<Wanted>> = others.map(|(_, held)| Arc::clone(&held.wanted)).collect();
        let tags: Vec<TagFilter> = wanted.iter().map(|wanted| wanted.tags()).collect();
        Others { plan: OthersWant { tags, left }, wanted }
    }

    /// What the log should say of a group and topic: nothing while all agree.
    fn to_record(&self, key: Key) -> Vec<String> {
        self.reign.lock().known.get(&key).map(Subscribed::to_record).unwrap_or_default()
    }

    /// Drops the filters nobody alive has. What the log says is known from here on.
    fn sweep(&self, term: Term, recorded: Vec<(Key, Vec<String>)>, liveness: &Liveness) {
        let lapses = Instant::now() + self.lapse;
        let mut reign = self.reign(term);
        for (key, filters) in recorded {
            reign.known.entry(key).or_insert_with(|| Subscribed::recorded(filters, lapses));
        }
        let is_alive = |client: ClientHash, member: &Member| {
            let heard = liveness.last_heard(client).map_or(member.heard, |heard| heard.max(member.heard));
            !member.is_over() && (member.polls > 0 || heard.elapsed() < self.lapse)
        };
        reign.known.values_mut().for_each(|subscribed| subscribed.drop_lapsed(is_alive));
        reign.known.retain(|_, subscribed| !subscribed.filters.is_empty());
    }

    /// Groups and topics about which members do not agree, at most `max` of them.
    pub fn conflicts(&self, max: usize) -> Vec<Conflict> {
        let reign = self.reign.lock();
        let differing = reign.known.iter().filter(|(_, subscribed)| subscribed.differs());
        differing.take(max).map(|(key, subscribed)| subscribed.conflict(*key)).collect()
    }

    pub fn conflicts_of(&self, consumer_group: ConsumerGroupId) -> Vec<Conflict> {
        let reign = self.reign.lock();
        let differing =
            reign.known.range(of_group(consumer_group)).filter(|(_, subscribed)| subscribed.differs());
        differing.map(|(key, subscribed)| subscribed.conflict(*key)).collect()
    }

    /// The id of a client that is a member of any group.
    pub fn name_of(&self, client: ClientHash) -> Option<String> {
        let reign = self.reign.lock();
        let held = reign.known.values().flat_map(|subscribed| subscribed.filters.values());
        held.filter_map(|held| held.members.get(&client)).map(|member| member.client_id.clone()).next()
    }

    /// The topics that members of a group receive from, if they are not the same ones for all; with some
    /// of the clients each. Members that came a moment ago do not count.
    pub fn differing_topics(&self, consumer_group: ConsumerGroupId) -> Vec<(Vec<TopicId>, Vec<String>)> {
        let reign = self.reign.lock();
        let mut topics: BTreeMap<&str, (BTreeSet<TopicId>, Instant)> = BTreeMap::new();
        for (&(_, topic), subscribed) in reign.known.range(of_group(consumer_group)) {
            for member in subscribed.filters.values().flat_map(|held| held.members.values()) {
                let (of, joined) =
                    topics.entry(&member.client_id).or_insert((BTreeSet::new(), member.joined));
                of.insert(topic);
                *joined = member.joined.min(*joined);
            }
        }
        let mut sets: BTreeMap<BTreeSet<TopicId>, Vec<String>> = BTreeMap::new();
        for (client_id, (of, joined)) in topics {
            if joined.elapsed() >= TOPICS_SETTLE {
                let clients = sets.entry(of).or_default();
                if clients.len() < CLIENTS_NAMED_MAX {
                    clients.push(client_id.to_owned());
                }
            }
        }
        if sets.len() < 2 {
            return Vec::new();
        }
        sets.into_iter().map(|(topics, clients)| (topics.into_iter().collect(), clients)).collect()
    }

    /// A conflict to write into the process's log, unless that was done a moment ago.
    fn conflict_to_log(&self, key: Key) -> Option<Conflict> {
        let mut reign = self.reign.lock();
        let subscribed = reign.known.get_mut(&key).filter(|subscribed| subscribed.differs())?;
        if subscribed.logged.is_some_and(|logged| logged.elapsed() < LOG_INTERVAL) {
            return None;
        }
        subscribed.logged = Some(Instant::now());
        Some(subscribed.conflict(key))
    }
}

impl Member {
    fn is_over(&self) -> bool {
        self.is_gone && self.polls == 0
    }
}

impl Subscribed {
    /// Their members are not known yet.
    fn recorded(filters: Vec<String>, lapses: Instant) -> Self {
        let filters = filters.into_iter().map(FilterText);
        let held = filters.map(|text| {
            let held = HeldFilter { kept_until: Some(lapses), ..HeldFilter::new(text.wanted()) };
            (text, held)
        });
        Self { filters: held.collect(), logged: None }
    }

    fn differs(&self) -> bool {
        self.filters.len() > 1
    }

    fn drop_lapsed(&mut self, is_alive: impl Fn(ClientHash, &Member) -> bool) {
        let now = Instant::now();
        let mut is_dropped = false;
        self.filters.retain(|_, held| {
            held.members.retain(|client, member| is_alive(*client, member));
            held.kept_until = held.kept_until.filter(|until| *until > now);
            let keeps = !held.members.is_empty() || held.kept_until.is_some();
            is_dropped |= !keeps;
            keeps
        });
        if is_dropped {
            self.filters.values().for_each(|held| held.left.forget());
        }
    }

    fn to_record(&self) -> Vec<String> {
        if !self.differs() {
            return Vec::new();
        }
        self.filters.keys().map(|text| text.0.clone()).collect()
    }

    fn conflict(&self, (consumer_group, topic): Key) -> Conflict {
        let filters = self.filters.iter().map(|(text, held)| {
            let clients = held.members.values().take(CLIENTS_NAMED_MAX);
            (text.0.clone(), clients.map(|member| member.client_id.clone()).collect())
        });
        Conflict { consumer_group, topic, filters: filters.collect() }
    }
}

fn of_group(consumer_group: ConsumerGroupId) -> std::ops::RangeInclusive<Key> {
    (consumer_group, TopicId(0))..=(consumer_group, TopicId(u32::MAX))
}

/// No room for another filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TooManyFilters;

/// A receive is under way; its client's filter counts for as long as this lives.
pub struct Membership<'h> {
    hosted: &'h HostedGroup,
    key: Key,
    client: ClientHash,
    client_id: &'h str,
    filter: &'h Filter,
    text: FilterText,
}

impl Membership<'_> {
    /// What the other members want, now.
    pub async fn others(&self) -> Result<Others, Ended> {
        let subscriptions = &self.hosted.subscriptions;
        if !subscriptions.has_joined(self.hosted.term(), self.key, self.client, &self.text) {
            // Leadership went and came back while it waited.
            count_in(self.hosted, self.key, (self.client, self.client_id), self.filter).await?;
        }
        Ok(subscriptions.others(self.key, &self.text))
    }
}

impl Drop for Membership<'_> {
    fn drop(&mut self) {
        self.hosted.subscriptions.leave(self.key, self.client, &self.text);
    }
}

/// Counts a receive in. Where members differ, their filters are in the log when this returns.
pub async fn join<'h>(
    hosted: &'h HostedGroup,
    key: Key,
    (client, client_id): (ClientHash, &'h str),
    filter: &'h Filter,
) -> Result<Membership<'h>, Ended> {
    let text = FilterText::of(filter);
    // Made first: the receive may be given up while its filter is on its way into the log.
    let membership = Membership { hosted, key, client, client_id, filter, text };
    count_in(hosted, key, (client, client_id), filter).await?;
    Ok(membership)
}

async fn count_in(
    hosted: &HostedGroup,
    key: Key,
    client: (ClientHash, &str),
    filter: &Filter,
) -> Result<(), Ended> {
    let recorded = || hosted.state.filters_of(key.0, key.1);
    let joined = hosted.subscriptions.join(hosted.term(), key, client, filter, recorded);
    joined.map_err(|TooManyFilters| {
        let message = format!("members of the consumer group have {FILTERS_MAX} other filters for the topic");
        Refused::new(Code::TooManyRequests, format!("{message}; the limit is {FILTERS_MAX}"))
    })?;
    record(hosted, key).await?;
    if let Some(conflict) = hosted.subscriptions.conflict_to_log(key) {
        log(hosted, &conflict);
    }
    Ok(())
}

/// Has the log say what the members want.
async fn record(hosted: &HostedGroup, key: Key) -> Result<(), Ended> {
    let is_recorded = |filters: &[String]| filters == hosted.state.filters_of(key.0, key.1);
    if is_recorded(&hosted.subscriptions.to_record(key)) {
        return Ok(());
    }
    let _one = hosted.subscriptions.recording.lock().await;
    let filters = hosted.subscriptions.to_record(key);
    if is_recorded(&filters) {
        return Ok(());
    }
    let command = SetFilters { consumer_group: key.0, topic: key.1, filters };
    match hosted.propose(Command::SetFilters(command).encode(hosted.now())).await? {
        Answer::FiltersSet => Ok(()),
        Answer::Refused(refusal) => Err(refused(refusal, "").into()),
        other => Err(unexpected("SetFilters", &other)),
    }
}

fn log(hosted: &HostedGroup, conflict: &Conflict) {
    let name = hosted.state.consumer_group_by_id(conflict.consumer_group).map(|view| view.name);
    let topic = hosted.state.topic_by_id(conflict.topic).map(|view| view.name);
    let filters: Vec<String> = conflict
        .filters
        .iter()
        .map(|(filter, clients)| format!("\"{filter}\" of {}", clients.join(", ")))
        .collect();
    tracing::warn!(
        group = %hosted.name(),
        consumer_group = name.unwrap_or_default(),
        topic = topic.unwrap_or_default(),
        filters = filters.join("; "),
        "members of a consumer group subscribe to a topic by different filters"
    );
}

/// Drops what nobody alive wants any more, while this replica leads.
pub async fn watch_subscriptions(hosted: Weak<HostedGroup>) {
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let Some(hosted) = hosted.upgrade() else { return };
        let changed = Arc::clone(&hosted.subscriptions.changed);
        if hosted.leads() {
            let recorded = hosted.state.differing_filters();
            let keys: Vec<Key> = recorded.iter().map(|(key, _)| *key).collect();
            hosted.subscriptions.sweep(hosted.term(), recorded, &hosted.liveness);
            for key in keys {
                if let Err(ended) = record(&hosted, key).await {
                    tracing::debug!(group = %hosted.name(), ?ended, "lapsed filters stay recorded for now");
                }
            }
        }
        drop(hosted);
        tokio::select! {
            _ = sweep.tick() => {}
            () = changed.notified() => {}
        }
    }
}

#[cfg(test)]
mod tests;

use super::*;

const LAPSE: Duration = Duration::from_secs(30);
const KEY: Key = (ConsumerGroupId(1), TopicId(1));
const TERM: Term = Term(3);

fn tags(tags: &[&str]) -> Filter {
    Filter::Tags(tags.iter().map(|tag| (*tag).to_owned()).collect())
}

struct Bed {
    subscriptions: Subscriptions,
    liveness: Liveness,
    recorded: Vec<String>,
}

impl Bed {
    fn new() -> Self {
        let (subscriptions, liveness) = (Subscriptions::new(LAPSE), Liveness::default());
        Self { subscriptions, liveness, recorded: Vec::new() }
    }

    fn join(&self, client: &str, filter: &Filter) -> Result<(), TooManyFilters> {
        self.join_in(TERM, KEY, client, filter)
    }

    fn join_in(&self, term: Term, key: Key, client: &str, filter: &Filter) -> Result<(), TooManyFilters> {
        let of = (ClientHash::of(client), client);
        self.subscriptions.join(term, key, of, filter, || self.recorded.clone())
    }

    fn leave(&self, client: &str, filter: &Filter) {
        self.subscriptions.leave(KEY, ClientHash::of(client), &FilterText::of(filter));
    }

    fn sweep(&self) {
        self.subscriptions.sweep(TERM, Vec::new(), &self.liveness);
    }

    fn to_record(&self) -> Vec<String> {
        self.subscriptions.to_record(KEY)
    }
}

#[tokio::test(start_paused = true)]
async fn members_that_agree_are_no_conflict_whatever_the_order_of_their_tags() {
    let bed = Bed::new();
    bed.join("a", &tags(&["x", "y"])).expect("room");
    bed.join("b", &tags(&["y", "x"])).expect("room");
    assert_eq!(bed.to_record(), Vec::<String>::new());
    assert_eq!(bed.subscriptions.conflicts(10), []);
    assert!(bed.subscriptions.others(KEY, &FilterText::of(&tags(&["x", "y"]))).plan.tags.is_empty());
    bed.join("c", &Filter::All).expect("room");
    assert_eq!(bed.to_record(), ["*", "tag x||y"]);
    let conflict = &bed.subscriptions.conflicts(10)[0];
    assert_eq!(conflict.filters[0], ("*".to_owned(), vec!["c".to_owned()]));
    assert_eq!(conflict.filters[1].1.len(), 2);
    assert!(bed.subscriptions.conflict_to_log(KEY).is_some());
    assert!(bed.subscriptions.conflict_to_log(KEY).is_none(), "once a minute");
    tokio::time::advance(LOG_INTERVAL).await;
    assert!(bed.subscriptions.conflict_to_log(KEY).is_some());
}

#[tokio::test(start_paused = true)]
async fn the_filter_of_a_dead_member_lapses_and_that_of_one_that_waits_or_is_heard_of_does_not() {
    let bed = Bed::new();
    let (x, y, z) = (tags(&["x"]), tags(&["y"]), tags(&["z"]));
    for (client, filter) in [("silent", &x), ("waits", &y), ("speaks", &z)] {
        bed.join(client, filter).expect("room");
    }
    bed.leave("silent", &x);
    bed.leave("speaks", &z);
    let left = bed.subscriptions.others(KEY, &FilterText::of(&y)).plan.left;
    assert!(left.add(0, 7));
    tokio::time::advance(LAPSE - Duration::from_millis(1)).await;
    bed.sweep();
    assert_eq!(bed.to_record().len(), 3);
    assert!(left.contains(0, 7));
    bed.liveness.heard_of(ClientHash::of("speaks"));
    tokio::time::advance(Duration::from_millis(1)).await;
    bed.sweep();
    assert_eq!(bed.to_record(), ["tag y", "tag z"]);
    assert!(!left.contains(0, 7), "what was left for the dead one is judged anew");
}

#[tokio::test(start_paused = true)]
async fn a_member_that_ends_or_receives_by_another_filter_gives_its_old_one_up_at_once() {
    let bed = Bed::new();
    let (x, y, z) = (tags(&["x"]), tags(&["y"]), tags(&["z"]));
    for (client, filter) in [("a", &x), ("b", &y)] {
        bed.join(client, filter).expect("room");
        bed.leave(client, filter);
    }
    bed.join("b", &z).expect("room");
    assert_eq!(bed.to_record(), ["tag x", "tag z"]);
    bed.join("b", &y).expect("room");
    bed.sweep();
    assert_eq!(bed.to_record().len(), 3, "its receive by z is under way");
    bed.leave("b", &z);
    bed.sweep();
    assert_eq!(bed.to_record(), ["tag x", "tag y"]);
    bed.subscriptions.terminated(KEY.0, ClientHash::of("a"));
    bed.sweep();
    assert_eq!(bed.to_record(), Vec::<String>::new(), "one filter is agreement");
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_holds_what_the_log_says_until_it_lapses() {
    let mut bed = Bed::new();
    bed.recorded = vec!["sql a > 1".to_owned(), "tag x".to_owned(), "tag y".to_owned()];
    let x = tags(&["x"]);
    bed.join("a", &x).expect("room");
    assert_eq!(bed.to_record(), bed.recorded);
    let others = bed.subscriptions.others(KEY, &FilterText::of(&x));
    assert_eq!(others.plan.tags.len(), 2);
    assert!(others.plan.may_match(crate::state::tag_code("y")));
    bed.subscriptions.terminated(KEY.0, ClientHash::of("a"));
    bed.sweep();
    assert_eq!(bed.to_record().len(), 3, "others of the filter may not have been heard of yet");
    bed.join("a", &x).expect("room");
    tokio::time::advance(LAPSE).await;
    bed.sweep();
    assert_eq!(bed.to_record(), Vec::<String>::new());
    assert!(bed.subscriptions.has_joined(TERM, KEY, ClientHash::of("a"), &FilterText::of(&x)));
    assert!(!bed.subscriptions.has_joined(Term(4), KEY, ClientHash::of("a"), &FilterText::of(&x)));
}

#[tokio::test(start_paused = true)]
async fn there_is_an_end_to_the_filters_of_a_group_and_to_the_members_of_a_filter() {
    let bed = Bed::new();
    for number in 0..FILTERS_MAX {
        bed.join(&format!("client-{number}"), &tags(&[&format!("tag-{number}")])).expect("room");
    }
    assert_eq!(bed.join("more", &Filter::All), Err(TooManyFilters));
    for number in 0..=MEMBERS_OF_FILTER_MAX {
        bed.join(&format!("member-{number}"), &tags(&["tag-0"])).expect("a filter that is known");
    }
    for number in 0..=MEMBERS_OF_FILTER_MAX {
        bed.subscriptions.terminated(KEY.0, ClientHash::of(&format!("member-{number}")));
    }
    bed.subscriptions.terminated(KEY.0, ClientHash::of("client-0"));
    bed.sweep();
    assert_eq!(bed.to_record().len(), FILTERS_MAX, "somebody has it who is not remembered");
    tokio::time::advance(LAPSE).await;
    bed.sweep();
    assert_eq!(bed.to_record().len(), FILTERS_MAX - 1);
}

#[tokio::test(start_paused = true)]
async fn members_with_other_topics_are_told_apart_once_they_had_time_to_come_to_all() {
    let bed = Bed::new();
    let other = (KEY.0, TopicId(2));
    for (client, key) in [("a", KEY), ("a", other), ("b", KEY), ("c", KEY), ("c", other)] {
        bed.join_in(TERM, key, client, &Filter::All).expect("room");
    }
    assert_eq!(bed.subscriptions.differing_topics(KEY.0), []);
    tokio::time::advance(TOPICS_SETTLE).await;
    let (one, both) = (vec![TopicId(1)], vec![TopicId(1), TopicId(2)]);
    let differing = bed.subscriptions.differing_topics(KEY.0);
    assert_eq!(differing, [(one, vec!["b".to_owned()]), (both, vec!["a".to_owned(), "c".to_owned()])]);
    bed.join_in(TERM, other, "b", &Filter::All).expect("room");
    assert_eq!(bed.subscriptions.differing_topics(KEY.0), []);
}

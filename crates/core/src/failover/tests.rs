//! Stories first, then whatever chance comes up with.

use super::*;
use proptest::prelude::*;

const START: SystemTime = SystemTime::UNIX_EPOCH;

/// A group over time, as a controller sees it whose writes succeed.
#[derive(Debug)]
struct Story {
    policy: Policy,
    members: Vec<Member>,
    state: Option<State>,
    now: SystemTime,
}

impl Story {
    /// `web:1 a:3` are backends with what a user wrote; all are ready.
    fn new(backends: &str) -> Self {
        let member = |word: &str| {
            let (service, weight) = word.split_once(':').expect("service:weight");
            Member {
                service: service.parse().expect("a legal name"),
                weight: weight.parse().expect("a weight"),
                remembered: None,
                ready: true,
                measured: None,
                drilled: false,
            }
        };
        Self {
            policy: Policy::default(),
            members: backends.split_whitespace().map(member).collect(),
            state: None,
            now: START,
        }
    }

    fn member(&mut self, service: &str) -> &mut Member {
        let mut members = self.members.iter_mut();
        members
            .find(|member| member.service.as_str() == service)
            .expect("a member")
    }

    fn ready(&mut self, service: &str, ready: bool) -> &mut Self {
        self.member(service).ready = ready;
        self
    }

    fn measured(&mut self, service: &str, requests: u64, failures: u64) -> &mut Self {
        self.member(service).measured = Some(Measured {
            requests,
            failures,
            latency: None,
        });
        self
    }

    fn drilled(&mut self, service: &str, drilled: bool) -> &mut Self {
        self.member(service).drilled = drilled;
        self
    }

    fn edit(&mut self, service: &str, weight: &str) -> &mut Self {
        self.member(service).weight = weight.parse().expect("a weight");
        self
    }

    fn after(&mut self, seconds: u64) -> &mut Self {
        self.now += Duration::from_secs(seconds);
        self
    }

    fn look(&self) -> Plan {
        plan(&self.policy, &self.members, self.state.as_ref(), self.now)
    }

    fn write(&mut self, plan: Plan) {
        for ((member, weight), preferred) in self.members.iter_mut().zip(plan.weights).zip(plan.preferred) {
            (member.weight, member.remembered) = (weight, Some(preferred));
        }
        self.state = Some(plan.state);
    }

    /// Plans and writes once; then nothing may be left to do but to begin a return.
    fn step(&mut self) -> Plan {
        let plan = self.look();
        if plan.change.is_some() {
            self.write(plan.clone());
            let second = self.look().change;
            let begins = |reason: &Reason| matches!(reason, Reason::Returning { step: 1, .. });
            assert!(second.as_ref().is_none_or(begins), "{second:?} at a second look");
        }
        plan
    }

    #[track_caller]
    fn expect(&mut self, expected: &str) -> &mut Self {
        let plan = self.step();
        let weights: Vec<String> = plan.weights.iter().map(Weight::to_string).collect();
        let why = plan
            .change
            .map_or_else(|| "stays".into(), |reason| reason.to_string());
        assert_eq!(format!("{}: {why}", weights.join("/")), expected);
        self
    }
}

#[test]
fn traffic_leaves_an_unready_primary_at_once_and_returns_in_steps() {
    let mut story = Story::new("web:1 web-east:0");
    story.expect("1/0: stays");
    story
        .after(60)
        .ready("web", false)
        .expect("0/1: web has no ready endpoints");
    story.after(9).ready("web", true).expect("0/1: stays");
    story.after(1).expect("1/4: web is back, step 1 of 5");
    story.after(7).expect("1/4: stays");
    story.after(1).expect("2/3: web is back, step 2 of 5");
    story.after(8).expect("3/2: web is back, step 3 of 5");
    story.after(8).expect("4/1: web is back, step 4 of 5");
    story.after(8).expect("1/0: web has returned");
    story.after(99).expect("1/0: stays");
}

#[test]
fn a_drill_moves_traffic_like_a_failure_and_gives_it_back_in_steps_without_a_dwell() {
    let mut story = Story::new("web:1 web-east:0");
    story.expect("1/0: stays");
    story
        .after(60)
        .drilled("web", true)
        .expect("0/1: web is left for a drill");
    assert_eq!(story.look().drill, Drill::Held);
    story.after(60).expect("0/1: stays");
    story
        .drilled("web", false)
        .expect("1/4: web is back, step 1 of 5");
    story.after(8).expect("2/3: web is back, step 2 of 5");
    story.after(8).expect("3/2: web is back, step 3 of 5");
    story.after(8).expect("4/1: web is back, step 4 of 5");
    story.after(8).expect("1/0: web has returned");
}

#[test]
fn a_drill_does_not_begin_where_nobody_could_stand_in() {
    let mut story = Story::new("web:1 web-east:0");
    story.ready("web-east", false).expect("1/0: stays");
    story.drilled("web", true).expect("1/0: stays");
    assert_eq!(story.look().drill, Drill::Broken);
    story.drilled("web-east", true).ready("web-east", true);
    story.expect("1/0: stays");
}

#[test]
fn a_drill_ends_at_once_when_the_stand_in_fails() {
    let mut story = Story::new("web:1 web-east:0");
    story.expect("1/0: stays");
    story
        .after(60)
        .drilled("web", true)
        .expect("0/1: web is left for a drill");
    story
        .after(5)
        .ready("web-east", false)
        .expect("1/0: web-east has no ready endpoints");
    assert_eq!(story.look().drill, Drill::Broken);
    // The stand-in stays away for its dwell, as always.
    story.after(5).ready("web-east", true).expect("1/0: stays");

    let mut story = Story::new("web:1 web-east:0");
    story.policy.thresholds.success_min = Some(0.9);
    story.drilled("web", true).step();
    story
        .after(5)
        .measured("web-east", 100, 50)
        .expect("1/0: web-east fails: 50.0 % of 100 requests succeeded, wanted are 90 %");
}

#[test]
fn a_split_is_taken_over_without_steps() {
    Story::new("web:0 web-east:1").expect("1/0: the primary is ready");
    Story::new("web:50 web-east:50").expect("50/0: the primary is ready");
    Story::new("web:1 web-east:0")
        .ready("web", false)
        .expect("0/1: web has no ready endpoints");
}

#[test]
fn the_next_look_is_due_when_a_hold_or_a_step_ends() {
    let mut story = Story::new("web:1 web-east:0");
    story.ready("web", false).step();
    story.after(4).ready("web", true);
    assert_eq!(story.look().due, Some(START + Duration::from_secs(10)));
    story.after(6).step();
    assert_eq!(story.look().due, Some(story.now + Duration::from_millis(7_500)));
}

#[test]
fn a_relapse_ends_the_return_and_every_further_one_keeps_away_for_longer() {
    let mut story = Story::new("web:1 web-east:0");
    story.ready("web", false).step();
    for hold in [10, 20, 40, 80, 160, 160] {
        story.after(hold - 1).ready("web", true).expect("0/1: stays");
        story.after(1).expect("1/4: web is back, step 1 of 5");
        story
            .ready("web", false)
            .expect("0/1: web has no ready endpoints");
    }
    // Once it lasted, all is forgotten.
    story.after(160).ready("web", true).step();
    for _ in 0..4 {
        story.after(8).step();
    }
    story
        .after(300)
        .ready("web", false)
        .expect("0/1: web has no ready endpoints");
    story
        .after(10)
        .ready("web", true)
        .expect("1/4: web is back, step 1 of 5");
}

#[test]
fn a_return_is_completed_at_once_when_the_fallback_goes() {
    let mut story = Story::new("web:1 web-east:0");
    story.ready("web", false).step();
    story.after(10).ready("web", true).step();
    story
        .ready("web-east", false)
        .expect("1/0: web-east has no ready endpoints");
}

#[test]
fn without_a_way_back_in_steps_it_is_one() {
    for (over, steps) in [(0, 5), (30, 1), (30, 0)] {
        let mut story = Story::new("web:1 web-east:0");
        story.policy.return_over = Duration::from_secs(over);
        story.policy.return_steps = steps;
        story.ready("web", false).step();
        story
            .after(10)
            .ready("web", true)
            .expect("1/0: web is ready again");
    }
}

#[test]
fn the_dwell_keeps_nobody_from_the_only_backend_that_is_ready() {
    let mut story = Story::new("web:1 web-east:0");
    story
        .ready("web", false)
        .expect("0/1: web has no ready endpoints");
    story.after(1).ready("web", true).expect("0/1: stays");
    story
        .ready("web-east", false)
        .expect("1/0: web-east has no ready endpoints");
}

#[test]
fn weights_stay_when_nobody_is_ready() {
    let mut story = Story::new("web:7 web-east:3");
    story
        .ready("web", false)
        .ready("web-east", false)
        .expect("7/3: no backend is ready; the weights stay as they are");
    story.expect("7/3: stays");
    story.ready("web", true).expect("7/0: web is ready again");
}

#[test]
fn an_unknown_primary_changes_nothing() {
    let mut story = Story::new("web:7 web-east:3");
    story.policy.primary = "wbe".parse().ok();
    story.expect("7/3: the primary service is not a backend; the weights stay as they are");
    story.policy.primary = "web-east".parse().ok();
    story.expect("0/3: web-east is ready again");
}

#[test]
fn a_split_without_backends_needs_nothing() {
    Story::new("").expect(": stays");
}

#[test]
fn secondaries_share_by_the_users_ratios() {
    let mut story = Story::new("web:50 a:30 b:10");
    story.expect("50/0/0: the primary is ready");
    story
        .ready("web", false)
        .expect("0/30/10: web has no ready endpoints");
    story.ready("b", false).expect("0/30/0: b has no ready endpoints");
    story
        .after(10)
        .ready("b", true)
        .expect("0/30/10: b is ready and shares the traffic");
    // In steps, primary to secondaries; among these as before.
    story.ready("web", true).expect("1/3/1: web is back, step 1 of 5");
    for expected in ["8/9/3", "6/3/1", "16/3/1"] {
        let plan = story.after(8).step();
        let weights: Vec<String> = plan.weights.iter().map(Weight::to_string).collect();
        assert_eq!(weights.join("/"), expected);
    }
    story.after(8).expect("50/0/0: web has returned");
    story
        .after(20)
        .ready("web", false)
        .expect("0/30/10: web has no ready endpoints");
}

#[test]
fn edits_become_the_new_ratios() {
    let mut story = Story::new("web:1 a:1 b:1");
    story.expect("1/0/0: the primary is ready");
    story
        .ready("web", false)
        .expect("0/1/1: web has no ready endpoints");
    story.edit("a", "3").expect("0/3/1: stays");
    story
        .edit("web", "4")
        .edit("a", "0")
        .expect("0/1/1: the weights were edited");
    story.edit("a", "3").after(10).ready("web", true).step();
    for _ in 0..4 {
        story.after(8).step();
    }
    story.expect("4/0/0: stays");
    story
        .after(500)
        .ready("web", false)
        .expect("0/3/1: web has no ready endpoints");
}

#[test]
fn quantities_are_written_as_whole_numbers_of_the_same_ratio() {
    let mut story = Story::new("web:500m a:500m b:1500m");
    story
        .ready("web", false)
        .expect("0/1/3: web has no ready endpoints");
    let remembered: Vec<String> = story
        .members
        .iter()
        .filter_map(|member| member.remembered.map(|weight| weight.to_string()))
        .collect();
    assert_eq!(remembered, ["500m", "500m", "1500m"]);
}

#[test]
fn named_secondaries_come_before_the_others_and_in_their_order() {
    let mut story = Story::new("web:1 a:1 b:1 c:1 d:1");
    story.policy.order = ["c", "b", "nobody", "web"]
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect();
    story.expect("1/0/0/0/0: the primary is ready");
    story
        .ready("web", false)
        .expect("0/0/0/1/0: web has no ready endpoints");
    story
        .ready("c", false)
        .expect("0/0/1/0/0: c has no ready endpoints");
    story
        .ready("b", false)
        .expect("0/1/0/0/1: b has no ready endpoints");
    story
        .after(10)
        .ready("c", true)
        .expect("0/2/0/1/2: c is back, step 1 of 5");
    story
        .ready("c", false)
        .expect("0/1/0/0/1: c has no ready endpoints");
}

fn judged() -> Story {
    let mut story = Story::new("web:1 web-east:0");
    story.policy.thresholds = Thresholds {
        success_min: Some(0.9),
        latency_max: None,
        requests_min: 20,
    };
    story
}

#[test]
fn traffic_leaves_a_primary_that_fails_too_often() {
    let mut story = judged();
    story.measured("web", 100, 10).expect("1/0: stays");
    story
        .measured("web", 100, 11)
        .expect("0/1: web fails: 89.0 % of 100 requests succeeded, wanted are 90 %");
    // What was counted before it left is no news.
    story.after(10).expect("0/1: stays");
    story
        .measured("web", 19, 19)
        .expect("1/4: web is back, step 1 of 5");
    story.after(8).measured("web", 50, 5).expect("1/4: stays");
    story
        .after(8)
        .measured("web", 50, 2)
        .expect("2/3: web is back, step 2 of 5");
    story
        .after(2)
        .measured("web", 50, 6)
        .expect("0/1: web fails: 88.0 % of 50 requests succeeded, wanted are 90 %");
    story.after(19).measured("web", 0, 0).expect("0/1: stays");
    story.after(1).expect("1/4: web is back, step 1 of 5");
}

#[test]
fn traffic_does_not_move_between_backends_that_all_fail() {
    let mut story = judged();
    story.measured("web", 100, 50).step();
    story.after(20).measured("web-east", 100, 90).expect("0/1: stays");
    story
        .ready("web-east", false)
        .expect("1/0: web-east has no ready endpoints");
}

#[test]
fn nobody_is_blamed_without_a_threshold() {
    Story::new("web:1 web-east:0")
        .measured("web", 100, 100)
        .expect("1/0: stays");
}

#[test]
fn a_clock_that_jumps_back_keeps_nobody_away() {
    let mut story = Story::new("web:1 web-east:0");
    story.after(10_000).ready("web", false).step();
    story.now = START;
    story.ready("web", true).expect("1/4: web is back, step 1 of 5");
}

/// Something that happens in a cluster.
#[derive(Clone, Debug)]
enum Happening {
    Ready(usize, bool),
    Measured(usize, u64),
    Edit(usize, u32),
    Wait(u64),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        3 => (0usize..4, any::<bool>()).prop_map(|(member, ready)| Happening::Ready(member, ready)),
        2 => (0usize..4, 0u64..100).prop_map(|(member, failures)| Happening::Measured(member, failures)),
        1 => (0usize..4, 0u32..9_000).prop_map(|(member, milli)| Happening::Edit(member, milli)),
        4 => (0u64..20_000).prop_map(Happening::Wait),
    ]
}

fn policy() -> impl Strategy<Value = Policy> {
    let order = prop::collection::vec(0usize..4, 0..4);
    (0u64..20, 0u64..40, 0u32..9, order, any::<bool>()).prop_map(|(dwell, over, steps, order, judged)| {
        Policy {
            primary: Some("m0".parse().expect("a legal name")),
            order: order
                .into_iter()
                .filter_map(|index| format!("m{index}").parse().ok())
                .collect(),
            dwell: Duration::from_secs(dwell),
            return_over: Duration::from_secs(over),
            return_steps: steps,
            thresholds: Thresholds {
                success_min: judged.then_some(0.9),
                latency_max: None,
                requests_min: 20,
            },
        }
    })
}

fn group() -> impl Strategy<Value = Story> {
    let member = (0u32..200_000, any::<bool>());
    (policy(), prop::collection::vec(member, 1..5)).prop_map(|(policy, members)| {
        let member = |(index, (milli, ready)): (usize, (u32, bool))| Member {
            service: format!("m{index}").parse().expect("a legal name"),
            weight: Weight::from_milli(milli),
            remembered: None,
            ready,
            measured: None,
            drilled: false,
        };
        Story {
            policy,
            members: members.into_iter().enumerate().map(member).collect(),
            state: None,
            now: START,
        }
    })
}

impl Story {
    fn happen(&mut self, happening: &Happening) {
        let count = self.members.len();
        match *happening {
            Happening::Ready(index, ready) => self.members[index % count].ready = ready,
            Happening::Measured(index, failures) => {
                self.members[index % count].measured = Some(Measured {
                    requests: 100,
                    failures,
                    latency: None,
                });
            }
            Happening::Edit(index, milli) => {
                self.members[index % count].weight = Weight::from_milli(milli);
            }
            Happening::Wait(milliseconds) => self.now += Duration::from_millis(milliseconds),
        }
    }

    fn good(&self, member: &Member) -> bool {
        let verdict = self.policy.thresholds.judge(member.measured.as_ref());
        member.ready && !matches!(verdict, Verdict::Bad(_))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn only_ready_members_have_traffic_whenever_there_is_one(
        mut story in group(), happenings in prop::collection::vec(happening(), 0..40),
    ) {
        for happening in &happenings {
            story.happen(happening);
            let plan = story.step();
            if story.members.iter().any(|member| member.ready) {
                for (member, weight) in story.members.iter().zip(&plan.weights) {
                    prop_assert!(member.ready || weight.is_zero(), "{member:?}");
                }
                prop_assert!(plan.weights.iter().any(|weight| !weight.is_zero()));
            }
        }
    }

    #[test]
    fn a_drill_takes_traffic_only_from_whom_it_names_and_never_from_everybody(
        mut story in group(), happenings in prop::collection::vec((happening(), 0usize..4, any::<bool>()), 0..40),
    ) {
        for (happening, index, drilled) in &happenings {
            story.happen(happening);
            let count = story.members.len();
            story.members[index % count].drilled = *drilled;
            let plan = story.step();
            let members = || story.members.iter().zip(&plan.weights);
            if plan.drill == Drill::Held {
                prop_assert!(members().all(|(member, weight)| !member.drilled || weight.is_zero()));
                prop_assert!(members().any(|(member, weight)| member.ready && !weight.is_zero()));
            }
            if story.members.iter().any(|member| member.ready) {
                prop_assert!(members().any(|(member, weight)| member.ready && !weight.is_zero()));
            }
        }
    }

    #[test]
    fn nobody_comes_back_before_the_dwell_unless_all_others_are_gone(
        mut story in group(), happenings in prop::collection::vec(happening(), 0..60),
    ) {
        let mut left: BTreeMap<ServiceName, SystemTime> = BTreeMap::new();
        story.step();
        for happening in &happenings {
            let before = story.members.clone();
            let served: BTreeMap<_, _> = story.state.as_ref().map_or_else(
                || before.iter().map(|member| (member.service.clone(), member.weight)).collect(),
                |state| state.weights.clone(),
            );
            let had = |member: &Member| !served[&member.service].is_zero();
            story.happen(happening);
            let plan = story.step();
            let others_can = story.members.iter().any(|member| had(member) && member.ready);
            for (member, weight) in story.members.iter().zip(&plan.weights) {
                if had(member) && weight.is_zero() && !story.good(member) {
                    left.insert(member.service.clone(), story.now);
                }
                let comes = !had(member) && !weight.is_zero();
                if let Some(left) = left.get(&member.service).filter(|_| comes && others_can) {
                    let gone = story.now.duration_since(*left).unwrap_or_default();
                    prop_assert!(gone >= story.policy.dwell, "{} after {gone:?}", member.service);
                }
            }
        }
    }

    #[test]
    fn a_returns_steps_only_go_forward_and_its_end_restores_the_ratios(
        mut story in group(), over in 1u64..40, steps in 2u32..9,
        waits in prop::collection::vec(1u64..20_000, 0..60),
    ) {
        (story.policy.return_over, story.policy.return_steps) = (Duration::from_secs(over), steps);
        for member in &mut story.members {
            member.ready = member.service.as_str() != "m0";
        }
        let wanted = story.step().preferred;
        story.ready("m0", true);
        story.now += story.policy.dwell;
        let (mut last, began) = ((0, 1), story.now);
        for wait in waits {
            let plan = story.step();
            let sum: u128 = plan.weights.iter().map(|weight| milli(*weight)).sum();
            let share = (milli(plan.weights[0]), sum);
            prop_assert!(share.0 * last.1 >= last.0 * share.1, "{share:?} after {last:?}");
            last = share;
            story.now += Duration::from_millis(wait);
        }
        // What is left of it, step by step.
        for _ in 0..steps {
            story.now += story.policy.return_over;
            story.step();
        }
        let plan = story.step();
        prop_assert_eq!(plan.state.phase, Phase::Primary);
        prop_assert!(plan.weights[1..].iter().all(|weight| weight.is_zero()));
        prop_assert_eq!(plan.preferred, wanted);
        let took = plan.state.since.duration_since(began).unwrap_or_default();
        prop_assert!(story.members.len() == 1 || took >= story.policy.return_over.mul_f64(0.99), "{took:?}");
    }

    #[test]
    fn ratios_are_those_that_were_wanted_whoever_serves(
        mut story in group(), happenings in prop::collection::vec(happening(), 0..40),
    ) {
        for happening in &happenings {
            // Edits change what is wanted, and so does nothing else.
            let is_edit = matches!(happening, Happening::Edit(..));
            let before = story.look().preferred;
            story.happen(happening);
            let plan = story.step();
            if !is_edit {
                prop_assert_eq!(&plan.preferred, &before);
            }
            if matches!(plan.state.phase, Phase::Primary | Phase::Fallback) {
                let serving: Vec<_> = plan.weights.iter().zip(&plan.preferred).filter(|(w, _)| !w.is_zero()).collect();
                let wanted: Vec<Weight> = serving.iter().map(|(_, wanted)| **wanted).collect();
                prop_assert!(same_ratios(serving.iter().map(|(weight, _)| **weight), &wanted), "{serving:?}");
            }
        }
    }

    #[test]
    fn whatever_happened_the_primary_has_all_traffic_in_the_end(
        mut story in group(), happenings in prop::collection::vec(happening(), 0..40),
    ) {
        for happening in &happenings {
            story.happen(happening);
            story.step();
        }
        for member in &mut story.members {
            (member.ready, member.measured) = (true, None);
        }
        // A return to a better secondary may have to end before that to the primary can begin.
        for _ in 0..50 {
            story.after(160).step();
        }
        let plan = story.step();
        prop_assert_eq!(plan.state.phase, Phase::Primary);
        prop_assert_eq!(plan.change, None);
        prop_assert!(plan.weights[1..].iter().all(|weight| weight.is_zero()));
    }

    #[test]
    fn any_weights_survive(
        weights in prop::collection::vec(any::<u32>(), 1..6), steps in 0u32..200,
    ) {
        let mut story = Story::new("m0:1");
        story.policy.return_steps = steps;
        story.members = weights.iter().enumerate().map(|(index, milli)| Member {
            service: format!("m{index}").parse().expect("a legal name"),
            weight: Weight::from_milli(*milli),
            remembered: None,
            ready: index > 0,
            measured: None,
            drilled: false,
        }).collect();
        story.step();
        story.ready("m0", true);
        for _ in 0..(steps + 2) {
            let plan = story.after(10).step();
            prop_assert!(plan.weights.iter().any(|weight| !weight.is_zero()));
        }
        prop_assert!(!story.members[0].weight.is_zero());
    }
}

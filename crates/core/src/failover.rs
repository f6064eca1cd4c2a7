//! Decides which members of a failover group receive traffic, and how much.
//!
//! [`plan`] is a pure function of what is seen, of what was decided before and of the time: no clock, no client, no
//! randomness. Whoever applies the answer may do so at any time and again; the [`State`] in it is kept with the
//! weights, so a restart changes nothing. Traffic leaves a member that isn't ready at once. Everything else is
//! voluntary and takes its time: who left stays away for a while, and comes back step by step.
//! Source: `spec/multicluster.md` 8.3, with the decision that weights stay as they were when nobody is ready.

mod health;

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

pub use health::{Fault, Measured, Thresholds};

use crate::names::ServiceName;
use crate::weight::Weight;
use health::Verdict;

/// How much longer each relapse in a row keeps a member away, at most.
const HOLD_GROWTH_MAX: u32 = 16;
/// A relapse counts as one when it comes this many dwells after the last departure's end, or sooner.
const MEMORY_DWELLS: u32 = 10;
/// Where we choose the scale, no weight is larger: in the proxies' terms, thousandths times ten, it must fit 32 bits.
const UNITS_MAX: u128 = 400_000;

/// What the user wants.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// The first member when no name is given.
    pub primary: Option<ServiceName>,
    /// Secondaries from the most to the least wanted. Those that aren't named share what is left to them.
    pub order: Vec<ServiceName>,
    /// Who left stays away for at least this long while others can serve.
    pub dwell: Duration,
    /// Over how long traffic returns to a better member; zero for all at once.
    pub return_over: Duration,
    /// In how many steps it does.
    pub return_steps: u32,
    pub thresholds: Thresholds,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            primary: None,
            order: Vec::new(),
            dwell: Duration::from_secs(10),
            return_over: Duration::from_secs(30),
            return_steps: 5,
            thresholds: Thresholds::default(),
        }
    }
}

/// One backend of a TrafficSplit, as observed.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    pub service: ServiceName,
    /// What the split says now.
    pub weight: Weight,
    /// What the user wanted when last known.
    pub remembered: Option<Weight>,
    /// Has at least one ready endpoint.
    pub ready: bool,
    pub measured: Option<Measured>,
    /// To be left although it can serve, for a drill. Heeded only while another member can.
    pub drilled: bool,
}

/// What was decided, kept with the weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub phase: Phase,
    /// Time of the decision.
    pub since: SystemTime,
    /// The weights that were decided; others in the split are a user's.
    pub weights: BTreeMap<ServiceName, Weight>,
    /// Who left, lately.
    pub away: BTreeMap<ServiceName, Away>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The primary has all traffic.
    Primary,
    /// Others have it.
    Fallback,
    /// It moves to a better member: so many steps were taken.
    Returning { to: ServiceName, step: u32 },
    /// The weights stay as they were.
    NobodyReady,
    /// The weights stay as they were: zeroing everything for a typing error in an annotation would cut all traffic.
    NoPrimary,
}

/// A member that traffic left because it wasn't ready, or failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Away {
    pub since: SystemTime,
    /// For how long it isn't taken back voluntarily.
    pub hold: Duration,
}

/// Why the weights change; shown in Events and by the command line.
#[derive(Clone, Debug, PartialEq)]
pub enum Reason {
    PrimaryReady,
    NotReady(ServiceName),
    Drilled(ServiceName),
    Failing(ServiceName, Fault),
    Returning { to: ServiceName, step: u32, steps: u32 },
    Returned(ServiceName),
    Recovered(ServiceName),
    Joined(ServiceName),
    Edited,
    NobodyReady,
    PrimaryIsNotABackend,
}

/// The weights that the group should have, in the members' order.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Whole numbers, because one of the resource's versions knows nothing else.
    pub weights: Vec<Weight>,
    /// The ratios that the user wants among the members, to be remembered.
    pub preferred: Vec<Weight>,
    pub state: State,
    /// Why weights and state must be written; nothing when they are as they should be.
    pub change: Option<Reason>,
    /// When to look again even if nothing changes until then.
    pub due: Option<SystemTime>,
    pub drill: Drill,
}

/// What became of the wish that members be left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drill {
    None,
    /// They are.
    Held,
    /// Nobody else can serve.
    Broken,
}

/// Weighs the members.
pub fn plan(policy: &Policy, members: &[Member], before: Option<&State>, now: SystemTime) -> Plan {
    Group::new(policy, members, before, now).plan()
}

/// What is to be done, in terms of tiers.
#[derive(Clone, Copy, Debug)]
enum Course {
    Serve(usize),
    Return { to: usize, from: usize, step: u32 },
    Keep,
}

/// The members with everything that is derived from them.
struct Group<'a> {
    policy: &'a Policy,
    members: &'a [Member],
    before: Option<&'a State>,
    now: SystemTime,
    verdicts: Vec<Verdict>,
    drill: Drill,
    /// Members who are wanted equally, by their index; the best first. Empty when the primary isn't a member.
    tiers: Vec<Vec<usize>>,
}

impl<'a> Group<'a> {
    fn new(policy: &'a Policy, members: &'a [Member], before: Option<&'a State>, now: SystemTime) -> Self {
        let find = |name: &ServiceName| members.iter().position(|member| member.service == *name);
        let primary = match &policy.primary {
            Some(name) => find(name),
            None => (!members.is_empty()).then_some(0),
        };
        let mut tiers: Vec<Vec<usize>> = Vec::new();
        if let Some(primary) = primary {
            tiers.push(vec![primary]);
            for named in policy.order.iter().filter_map(find) {
                if !tiers.iter().flatten().any(|known| *known == named) {
                    tiers.push(vec![named]);
                }
            }
            let is_left = |index: &usize| !tiers.iter().flatten().any(|known| known == index);
            let left: Vec<usize> = (0..members.len()).filter(is_left).collect();
            tiers.push(left);
        }
        let judge = |member: &Member| policy.thresholds.judge(member.measured.as_ref());
        let mut group = Self {
            policy,
            members,
            before,
            now,
            verdicts: members.iter().map(judge).collect(),
            drill: Drill::None,
            tiers,
        };
        let (drilled, others): (Vec<usize>, Vec<usize>) =
            (0..members.len()).partition(|index| members[*index].drilled);
        if !drilled.is_empty() {
            let can_serve = others.into_iter().any(|index| group.usable(index));
            group.drill = if can_serve { Drill::Held } else { Drill::Broken };
        }
        group
    }

    fn ready(&self, index: usize) -> bool {
        self.members[index].ready && !self.drilled(index)
    }

    fn drilled(&self, index: usize) -> bool {
        self.members[index].drilled && self.drill == Drill::Held
    }

    fn bad(&self, index: usize) -> bool {
        matches!(self.verdicts[index], Verdict::Bad(_))
    }

    /// Had traffic until now.
    fn served(&self, index: usize) -> bool {
        let member = &self.members[index];
        let weight = match self.before {
            Some(before) => before.weights.get(&member.service).copied().unwrap_or_default(),
            None => member.weight,
        };
        !weight.is_zero()
    }

    /// May go on.
    fn keeps(&self, index: usize) -> bool {
        self.served(index) && self.ready(index) && !self.bad(index)
    }

    /// May be given traffic when nothing forces us to.
    fn fit(&self, index: usize) -> bool {
        let good = matches!(self.verdicts[index], Verdict::Unknown | Verdict::Good);
        self.ready(index) && good && !self.held(index)
    }

    fn usable(&self, index: usize) -> bool {
        self.keeps(index) || self.fit(index)
    }

    fn held(&self, index: usize) -> bool {
        self.away(index)
            .is_some_and(|away| self.elapsed(away.since) < away.hold)
    }

    fn away(&self, index: usize) -> Option<&Away> {
        self.before?.away.get(&self.members[index].service)
    }

    /// A time that lies in the future is a clock's error, and must not keep anyone away for long.
    fn elapsed(&self, since: SystemTime) -> Duration {
        self.now.duration_since(since).unwrap_or(Duration::MAX)
    }

    fn any(&self, tier: usize, test: impl Fn(&Self, usize) -> bool) -> bool {
        self.tiers[tier].iter().any(|index| test(self, *index))
    }

    fn first(&self, test: impl Fn(&Self, usize) -> bool) -> Option<usize> {
        (0..self.tiers.len()).find(|tier| self.any(*tier, &test))
    }

    fn tier_of(&self, service: &ServiceName) -> Option<usize> {
        self.first(|group, index| group.members[index].service == *service)
    }

    fn course(&self) -> Course {
        let Some(before) = self.before else {
            return self.forced(None);
        };
        if let Phase::Returning { to, step } = &before.phase
            && let Some(to) = self.tier_of(to)
            && let Some(from) =
                (0..self.tiers.len()).find(|tier| *tier != to && self.any(*tier, Self::served))
        {
            return self.advance(to, from, *step);
        }
        match self.first(Self::served) {
            Some(current) => self.settled(current),
            None => self.forced(None),
        }
    }

    /// Traffic is on its way from one tier to another.
    fn advance(&self, to: usize, from: usize, step: u32) -> Course {
        if !self.any(to, Self::usable) {
            return self.settled(from);
        }
        if !self.any(from, Self::usable) {
            return Course::Serve(to);
        }
        let Some(pause) = self.pause() else {
            return Course::Serve(to);
        };
        let poor = |group: &Self, index: usize| group.verdicts[index] == Verdict::Poor;
        let is_due = self
            .before
            .is_some_and(|before| self.elapsed(before.since) >= pause);
        let step = step + u32::from(is_due && !self.any(to, poor));
        if step >= self.policy.return_steps {
            return Course::Serve(to);
        }
        Course::Return { to, from, step }
    }

    /// A tier has the traffic.
    fn settled(&self, current: usize) -> Course {
        if !self.any(current, Self::usable) {
            return self.forced(Some(current));
        }
        match (0..current).find(|better| self.any(*better, Self::fit)) {
            None => Course::Serve(current),
            Some(to) if self.pause().is_none() => Course::Serve(to),
            Some(to) => Course::Return {
                to,
                from: current,
                step: 1,
            },
        }
    }

    /// Nobody in the current tier can go on, or nobody is known to have had the traffic.
    fn forced(&self, current: Option<usize>) -> Course {
        self.first(Self::usable)
            // All fail alike: moving traffic to and fro would help nobody.
            .or_else(|| current.filter(|current| self.any(*current, Self::ready)))
            .or_else(|| self.first(|group, index| group.ready(index) && !group.bad(index)))
            .or_else(|| self.first(Self::ready))
            .map_or(Course::Keep, Course::Serve)
    }

    /// Time between two steps of a return; nothing when there is only one.
    fn pause(&self) -> Option<Duration> {
        let pauses = self.policy.return_steps.saturating_sub(1);
        self.policy
            .return_over
            .checked_div(pauses)
            .filter(|pause| !pause.is_zero())
    }

    /// Who of a tier has traffic when the tier has.
    fn staff(&self, tier: usize) -> Vec<usize> {
        let choose = |test: &dyn Fn(usize) -> bool| {
            let chosen: Vec<usize> = self.tiers[tier].iter().copied().filter(|i| test(*i)).collect();
            (!chosen.is_empty()).then_some(chosen)
        };
        choose(&|index| self.usable(index))
            .or_else(|| choose(&|index| self.served(index) && self.ready(index)))
            .or_else(|| choose(&|index| self.ready(index) && !self.bad(index)))
            .or_else(|| choose(&|index| self.ready(index)))
            .unwrap_or_default()
    }

    /// The user's ratios. Any weight that we didn't write is the user's newest word, except zero: that is how everyone
    /// writes down a secondary that isn't needed now.
    fn preferred(&self) -> Vec<Weight> {
        let preferred = |member: &Member| {
            let written = self.before.and_then(|before| before.weights.get(&member.service));
            let edited = Some(member.weight).filter(|weight| !weight.is_zero() && Some(weight) != written);
            edited
                .or(member.remembered)
                .filter(|weight| !weight.is_zero())
                .unwrap_or(Weight::ONE)
        };
        self.members.iter().map(preferred).collect()
    }

    fn plan(&self) -> Plan {
        let course = if self.tiers.is_empty() {
            Course::Keep
        } else {
            self.course()
        };
        let preferred = self.preferred();
        let weights = self.weights(course, &preferred);
        let phase = self.phase(course);
        let is_written = same_ratios(self.members.iter().map(|member| member.weight), &weights)
            && match self.before {
                Some(before) => before.phase == phase,
                // Nothing was ever decided here, and nothing needs to be.
                None => phase == Phase::Primary,
            };
        let change = (!is_written && !self.members.is_empty()).then(|| self.reason(course, &phase, &weights));
        let state = match (self.before, &change) {
            (Some(before), None) => before.clone(),
            _ => State {
                phase,
                since: self.now,
                weights: self.named(&weights),
                away: self.absentees(&weights),
            },
        };
        let due = self.due(&state);
        Plan {
            weights,
            preferred,
            state,
            change,
            due,
            drill: self.drill,
        }
    }

    fn named(&self, weights: &[Weight]) -> BTreeMap<ServiceName, Weight> {
        let names = self.members.iter().map(|member| member.service.clone());
        names.zip(weights.iter().copied()).collect()
    }

    fn weights(&self, course: Course, preferred: &[Weight]) -> Vec<Weight> {
        let mut weights = vec![Weight::ZERO; self.members.len()];
        match course {
            Course::Keep => {
                let current: Vec<Weight> = self.members.iter().map(|member| member.weight).collect();
                weights = whole(&current);
            }
            Course::Serve(tier) => {
                let whole = whole(preferred);
                for index in self.staff(tier) {
                    weights[index] = whole[index];
                }
            }
            Course::Return { to, from, step } => {
                let (to, from) = (self.staff(to), self.staff(from));
                let sum = |staff: &[usize]| staff.iter().map(|index| milli(preferred[*index])).sum::<u128>();
                // Each side times the other's sum: now both sides weigh the same, whatever their ratios.
                let (to_sum, from_sum) = (sum(&to), sum(&from));
                let (come, stay) = (step, self.policy.return_steps - step);
                let balanced = |staff: Vec<usize>, other: u128, share: u32| {
                    staff
                        .into_iter()
                        .map(move |index| (index, milli(preferred[index]) * other, u128::from(share)))
                };
                let parts: Vec<_> = balanced(to, from_sum, come)
                    .chain(balanced(from, to_sum, stay))
                    .collect();
                // Reduced before the step is multiplied in, so that rounding can't turn a step backwards.
                let base = reduced(
                    parts.iter().map(|(_, base, _)| *base),
                    (UNITS_MAX / u128::from(self.policy.return_steps)).max(1),
                );
                let scaled = parts.iter().zip(base).map(|((_, _, share), base)| base * share);
                let units = reduced(scaled, UNITS_MAX);
                for ((index, ..), units) in parts.iter().zip(units) {
                    weights[*index] = in_units(units);
                }
            }
        }
        weights
    }

    fn phase(&self, course: Course) -> Phase {
        match course {
            Course::Serve(0) => Phase::Primary,
            Course::Serve(_) => Phase::Fallback,
            Course::Return { to, step, .. } => Phase::Returning {
                to: self.members[self.lead(to)].service.clone(),
                step,
            },
            Course::Keep if self.tiers.is_empty() => Phase::NoPrimary,
            Course::Keep => Phase::NobodyReady,
        }
    }

    /// The member that a tier is named after.
    fn lead(&self, tier: usize) -> usize {
        // The same through all steps, whoever of the tier comes and goes.
        self.tiers[tier].first().copied().unwrap_or_default()
    }

    /// Why a member can't serve.
    fn trouble(&self, index: usize) -> Option<Reason> {
        let service = self.members[index].service.clone();
        match self.verdicts[index] {
            _ if self.drilled(index) => Some(Reason::Drilled(service)),
            _ if !self.ready(index) => Some(Reason::NotReady(service)),
            Verdict::Bad(fault) => Some(Reason::Failing(service, fault)),
            _ => None,
        }
    }

    fn left(&self, index: usize, weights: &[Weight]) -> bool {
        self.served(index) && weights[index].is_zero() && self.trouble(index).is_some()
    }

    fn reason(&self, course: Course, phase: &Phase, weights: &[Weight]) -> Reason {
        let leader = |tier: usize| {
            let staff = self.staff(tier).first().copied();
            self.members[staff.unwrap_or_else(|| self.lead(tier))]
                .service
                .clone()
        };
        let tier = match (course, phase) {
            (_, Phase::NoPrimary) => return Reason::PrimaryIsNotABackend,
            (Course::Keep, _) => return Reason::NobodyReady,
            (Course::Serve(tier), _) => tier,
            (Course::Return { from, .. }, _) => from,
        };
        if let Some(Phase::NobodyReady | Phase::NoPrimary) = self.before.map(|before| &before.phase) {
            return Reason::Recovered(leader(tier));
        }
        let Some(before) = self.before else {
            let trouble = self.trouble(self.lead(0)).filter(|_| tier > 0);
            return trouble.unwrap_or(Reason::PrimaryReady);
        };
        let mut wanted = self.tiers.iter().flatten().copied();
        if let Some(left) = wanted.find(|index| self.left(*index, weights)) {
            return self.trouble(left).unwrap_or(Reason::Edited);
        }
        match (&before.phase, course) {
            (Phase::Returning { step: taken, .. }, Course::Return { step, .. }) if step <= *taken => {}
            (_, Course::Return { to, step, .. }) => {
                return Reason::Returning {
                    to: leader(to),
                    step,
                    steps: self.policy.return_steps,
                };
            }
            (Phase::Returning { .. }, _) => return Reason::Returned(leader(tier)),
            _ if self.first(Self::served).is_some_and(|served| tier < served) => {
                return Reason::Recovered(leader(tier));
            }
            _ => {}
        }
        let joined = |index: &usize| !self.served(*index) && !weights[*index].is_zero();
        match self.tiers.iter().flatten().copied().find(joined) {
            Some(index) => Reason::Joined(self.members[index].service.clone()),
            None => Reason::Edited,
        }
    }

    /// Who is away once these weights are written.
    fn absentees(&self, weights: &[Weight]) -> BTreeMap<ServiceName, Away> {
        let memory = self.policy.dwell.saturating_mul(MEMORY_DWELLS);
        let was_returning = |index: usize| {
            self.before.is_some_and(|before| {
                matches!(&before.phase, Phase::Returning { to, .. }
                    if self.tier_of(to).is_some_and(|tier| self.tiers[tier].contains(&index)))
            })
        };
        let mut away = BTreeMap::new();
        for (index, member) in self.members.iter().enumerate() {
            let known = self
                .away(index)
                .filter(|away| self.elapsed(away.since) < away.hold.saturating_add(memory));
            // Who was left for a drill did no wrong, and needn't stay away when it ends.
            let record = if self.left(index, weights) && !self.drilled(index) {
                let relapse = known.filter(|_| was_returning(index) || self.bad(index));
                Some(Away {
                    since: self.now,
                    hold: relapse.map_or(self.policy.dwell, |known| {
                        let longest = self.policy.dwell.saturating_mul(HOLD_GROWTH_MAX);
                        known.hold.saturating_mul(2).min(longest)
                    }),
                })
            } else {
                known.copied()
            };
            if let Some(record) = record {
                away.insert(member.service.clone(), record);
            }
        }
        away
    }

    /// When time alone changes the answer.
    fn due(&self, state: &State) -> Option<SystemTime> {
        let holds = state.away.values().map(|away| away.since.checked_add(away.hold));
        let step = match state.phase {
            Phase::Returning { .. } => self.pause().map(|pause| state.since.checked_add(pause)),
            _ => None,
        };
        holds.chain(step).flatten().filter(|due| *due > self.now).min()
    }
}

impl Reason {
    /// One word, for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::PrimaryReady => "PrimaryReady",
            Self::NotReady(_) => "NotReady",
            Self::Drilled(_) => "Drill",
            Self::Failing(_, Fault::Success { .. }) => "SuccessRate",
            Self::Failing(_, Fault::Latency { .. }) => "Latency",
            Self::Returning { .. } => "Returning",
            Self::Returned(_) => "Returned",
            Self::Recovered(_) => "Recovered",
            Self::Joined(_) => "Joined",
            Self::Edited => "Edited",
            Self::NobodyReady => "NobodyReady",
            Self::PrimaryIsNotABackend => "PrimaryIsNotABackend",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PrimaryReady => f.write_str("the primary is ready"),
            Self::NotReady(service) => write!(f, "{service} has no ready endpoints"),
            Self::Drilled(service) => write!(f, "{service} is left for a drill"),
            Self::Failing(service, fault) => write!(f, "{service} fails: {fault}"),
            Self::Returning { to, step, steps } => write!(f, "{to} is back, step {step} of {steps}"),
            Self::Returned(service) => write!(f, "{service} has returned"),
            Self::Recovered(service) => write!(f, "{service} is ready again"),
            Self::Joined(service) => write!(f, "{service} is ready and shares the traffic"),
            Self::Edited => f.write_str("the weights were edited"),
            Self::NobodyReady => f.write_str("no backend is ready; the weights stay as they are"),
            Self::PrimaryIsNotABackend => {
                f.write_str("the primary service is not a backend; the weights stay as they are")
            }
        }
    }
}

fn milli(weight: Weight) -> u128 {
    u128::from(weight.milli())
}

fn in_units(units: u128) -> Weight {
    Weight::from_units(u32::try_from(units).unwrap_or(u32::MAX))
}

/// The same ratios in whole numbers; weights that are whole already stay as they are.
fn whole(weights: &[Weight]) -> Vec<Weight> {
    if weights.iter().all(|weight| weight.milli().is_multiple_of(1_000)) {
        return weights.to_vec();
    }
    let units = reduced(weights.iter().map(|weight| milli(*weight)), UNITS_MAX);
    units.into_iter().map(in_units).collect()
}

/// The same ratios in the smallest numbers. Only what is still larger than `max` loses precision; what isn't zero
/// never becomes zero.
fn reduced(parts: impl Iterator<Item = u128>, max: u128) -> Vec<u128> {
    let parts: Vec<u128> = parts.collect();
    let divisor = parts.iter().copied().fold(0, gcd).max(1);
    let largest = parts.iter().copied().max().unwrap_or_default() / divisor;
    let shrink = |part: u128| match part / divisor {
        part if largest > max => (part * max).div_ceil(largest),
        part => part,
    };
    parts.into_iter().map(shrink).collect()
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Whether two lists of weights share traffic alike.
fn same_ratios(current: impl Iterator<Item = Weight>, wanted: &[Weight]) -> bool {
    let current = reduced(current.map(milli), u128::MAX);
    current == reduced(wanted.iter().map(|weight| milli(*weight)), u128::MAX)
}

#[cfg(test)]
mod tests;

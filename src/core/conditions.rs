//! How `status.conditions` moves: a transition time only when the status flips, an Event only for a transition.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::plan::Note;
use crate::api::{ConditionType, Reason};

/// One condition as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Which one.
    pub kind: ConditionType,
    /// True or False.
    pub holds: bool,
    /// Why.
    pub reason: Reason,
    /// For people.
    pub message: String,
}

impl Wanted {
    /// A condition that exists only while true.
    #[must_use]
    pub fn while_true(kind: ConditionType, reason: Reason, message: &str) -> Self {
        Self { kind, holds: true, reason, message: message.to_owned() }
    }
}

/// Ready, and what kstatus needs beside it: Stalled while a person must act, Reconciling while the operator works.
#[must_use]
pub fn readiness(ready: bool, reason: Reason, stalled: bool, message: &str) -> Vec<Wanted> {
    let mut wanted = vec![Wanted { kind: ConditionType::Ready, holds: ready, reason, message: message.to_owned() }];
    if !ready {
        let kind = if stalled { ConditionType::Stalled } else { ConditionType::Reconciling };
        wanted.push(Wanted::while_true(kind, reason, message));
    }
    wanted
}

/// The conditions that replace `old`.
#[must_use]
pub fn update(old: &[Condition], wanted: &[Wanted], generation: Option<i64>, now: Timestamp) -> Vec<Condition> {
    let condition = |wanted: &Wanted| {
        let status = if wanted.holds { "True" } else { "False" };
        let unmoved = find(old, wanted.kind).filter(|before| before.status == status);
        Condition {
            type_: wanted.kind.as_str().to_owned(),
            status: status.to_owned(),
            reason: wanted.reason.as_str().to_owned(),
            message: wanted.message.clone(),
            observed_generation: generation,
            last_transition_time: unmoved.map_or(Time(now), |before| before.last_transition_time.clone()),
        }
    };
    wanted.iter().map(condition).collect()
}

/// `old` with these conditions set and all others left as they are.
#[must_use]
pub fn merge(old: &[Condition], wanted: &[Wanted], generation: Option<i64>, now: Timestamp) -> Vec<Condition> {
    let set = update(old, wanted, generation, now);
    let kept = old.iter().filter(|before| set.iter().all(|condition| condition.type_ != before.type_)).cloned();
    kept.chain(set.iter().cloned()).collect()
}

/// At most one Event for a transition: the first condition of `wanted` whose reason has changed tells it, as the
/// others follow from it.
#[must_use]
pub fn note(old: &[Condition], wanted: &[Wanted]) -> Option<Note> {
    let told =
        [ConditionType::DeletionBlocked, ConditionType::Ready, ConditionType::Active, ConditionType::ExpiringSoon];
    let changed = |kind: &ConditionType| {
        let now = wanted.iter().find(|wanted| wanted.kind == *kind)?;
        let same = find(old, *kind).is_some_and(|before| before.reason == now.reason.as_str());
        (!same).then_some(now)
    };
    told.iter().find_map(changed).map(|wanted| Note {
        reason: wanted.reason,
        message: wanted.message.clone(),
        warning: match wanted.kind {
            ConditionType::Ready => !wanted.holds && wanted.reason.stalls(),
            ConditionType::Active | ConditionType::Reconciling => false,
            ConditionType::DeletionBlocked | ConditionType::ExpiringSoon | ConditionType::Stalled => true,
        },
    })
}

fn find(conditions: &[Condition], kind: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|condition| condition.type_ == kind.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_transition_time_moves_only_with_the_status() {
        let ready = |holds, reason| vec![Wanted { kind: ConditionType::Ready, holds, reason, message: String::new() }];
        let first = update(&[], &ready(true, Reason::Issued), Some(1), at(10));
        let second = update(&first, &ready(true, Reason::Disabled), Some(2), at(20));
        let third = update(&second, &ready(false, Reason::Expired), Some(2), at(30));
        let times = [first, second, third].map(|conditions| conditions[0].last_transition_time.0.as_second());
        assert_eq!(times, [10, 10, 30]);
    }

    #[test]
    fn one_event_a_transition() {
        let wanted = readiness(false, Reason::KeyLimitExceeded, true, "full");
        let told = note(&[], &wanted).unwrap();
        assert_eq!((told.reason, told.warning), (Reason::KeyLimitExceeded, true));
        let conditions = update(&[], &wanted, Some(1), at(1));
        assert_eq!(note(&conditions, &wanted), None);
    }
}

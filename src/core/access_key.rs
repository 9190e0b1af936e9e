//! What to do about an AccessKey: issue its pair, keep its status true, let it go.
//!
//! A pair is made only with a place in the Subuser's ledger, in this order: the Secret, then the record in status, which
//! carries the version of the AccessKey that the decision was made from. A Secret that holds a revision without a
//! record may be another replica's half-done work; it is neither recorded nor rewritten: the next revision is asked
//! for instead. This is what `tests/ledger_model.rs` explores.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource;

use super::{
    conditions::{self, Wanted, readiness},
    credential::{Entropy, Pair, fingerprint},
    plan::{Next, Plan, Write},
    secret::{PairSecret, SecretSeen, new_pair},
    standing::{Facts, blocked, expired, judge, recorded, revoked, wake},
    subuser::entries_of,
};
use crate::api::{AccessKey, AccessKeyStatus, Binding, ConditionType, Invalid, Reason, Stored, Subuser};

/// Everything that is known when deciding about one AccessKey, absence included.
pub struct Observed<'a> {
    /// The AccessKey.
    pub key: &'a Stored<AccessKey>,
    /// The Subuser that it names, if there is one and it reads.
    pub subuser: Option<&'a Subuser>,
    /// What has the name of its Secret.
    pub secret: SecretSeen,
    /// Whether its namespace is being deleted.
    pub namespace_terminating: bool,
}

/// Decides about one AccessKey. `entropy` becomes the secret, if one is made; it must be fresh for each call.
#[must_use]
pub fn plan(seen: &Observed<'_>, now: Timestamp, entropy: &Entropy) -> Plan<AccessKeyStatus> {
    if seen.key.meta().deletion_timestamp.is_some() {
        return finalize(seen, now);
    }
    if seen.namespace_terminating {
        return leave(seen.key);
    }
    match seen.key {
        Stored::Invalid(invalid) => report_invalid(invalid, now),
        Stored::Valid(_) if !seen.key.has_finalizer() => Plan::step([Write::AddFinalizer]),
        Stored::Valid(key) => pursue(&Facts { key, subuser: seen.subuser, secret: &seen.secret, now }, entropy),
    }
}

/// Whether the cached Secret contradicts the recorded pair. A cache may simply be late, so this must be settled by a
/// live read before a pair is given up as lost.
#[must_use]
pub fn needs_live_secret(key: &AccessKey, cached: &SecretSeen) -> bool {
    let status = key.status.as_ref();
    recorded(status).is_some_and(|(_, id, print)| match cached {
        SecretSeen::Ours(secret) => !secret.holds(key, id, print),
        SecretSeen::Absent | SecretSeen::Foreign => true,
        SecretSeen::Refused(_) => false,
    })
}

/// The revisions for which a key may hold a place, recorded ones first. A key without a status has asked for nothing
/// but its first pair; yet its status may have been cleared, so until it says so it wants every place that it holds.
#[must_use]
pub fn wants(key: &AccessKey, revision: i64) -> bool {
    let status = key.status.as_ref();
    match (status.and_then(|status| status.revision), status.and_then(|status| status.pending_revision)) {
        (None, None) => status.and_then(|status| status.last_revision).is_none(),
        (current, pending) => current == Some(revision) || pending == Some(revision),
    }
}

/// The revision that the key has a recorded pair of.
#[must_use]
pub fn recorded_revision(key: &AccessKey) -> Option<i64> {
    recorded(key.status.as_ref()).map(|(revision, ..)| revision)
}

/// The revision that the key asks a place for: its first, as long as it has no status and holds no place.
#[must_use]
pub fn asked_revision(key: &AccessKey, held: &[i64]) -> Option<i64> {
    let status = key.status.as_ref();
    let pending = status.and_then(|status| status.pending_revision);
    let blank = status.is_none_or(|status| status.revision.is_none() && status.last_revision.is_none());
    pending.or_else(|| (blank && held.is_empty()).then_some(1))
}

/// Brings a key that is there to stay a step further.
fn pursue(facts: &Facts<'_>, entropy: &Entropy) -> Plan<AccessKeyStatus> {
    let key = facts.key;
    match recorded(key.status.as_ref()) {
        Some((revision, id, print)) => match facts.secret {
            SecretSeen::Ours(secret) => match secret.pair(key).filter(|_| secret.holds(key, id, print)) {
                Some(pair) => maintain(facts, revision, &pair, secret),
                None => replace_lost(facts),
            },
            SecretSeen::Absent => replace_lost(facts),
            SecretSeen::Foreign | SecretSeen::Refused(_) => report(facts, facts.status()),
        },
        None => match spent_revision(facts) {
            Some(spent) => ask_next(facts, spent),
            None => issue(facts, entropy),
        },
    }
}

/// A revision that must not be issued any more, although the status does not record it: its pair may be in use.
fn spent_revision(facts: &Facts<'_>) -> Option<i64> {
    let status = facts.key.status.as_ref();
    let pending = status.and_then(|status| status.pending_revision);
    let in_secret = match facts.secret {
        SecretSeen::Ours(secret) => Some(secret.revision().unwrap_or(1)),
        SecretSeen::Absent | SecretSeen::Foreign | SecretSeen::Refused(_) => None,
    };
    if let Some(pending) = pending {
        return in_secret.filter(|held| *held >= pending);
    }
    let last = status.and_then(|status| status.last_revision).unwrap_or(0);
    let in_ledger =
        facts.subuser.and_then(|subuser| entries_of(subuser, facts.uid()).map(|entry| entry.revision).max());
    let spent = in_secret.into_iter().chain(in_ledger.filter(|revision| *revision > 1)).chain([last]).max();
    spent.filter(|revision| *revision > 0)
}

/// Gives up what there was and asks for the revision after every one that was ever used.
fn ask_next(facts: &Facts<'_>, spent: i64) -> Plan<AccessKeyStatus> {
    let before = facts.status();
    let next = spent.max(before.last_revision.unwrap_or(0)) + 1;
    let asking = AccessKeyStatus {
        revision: None,
        access_key_id: None,
        fingerprint: None,
        last_revision: Some(next),
        pending_revision: Some(next),
        ..before
    };
    Plan { next: Next::Again, ..report(facts, asking) }
}

/// The Secret no longer holds the recorded pair. A pair that nothing accepts any more is not replaced.
fn replace_lost(facts: &Facts<'_>) -> Plan<AccessKeyStatus> {
    match revoked(facts).or_else(|| expired(facts)) {
        Some(_) => report(facts, facts.status()),
        None => ask_next(facts, recorded_revision(facts.key).unwrap_or(0)),
    }
}

/// Makes the pair that the ledger grants, then records it.
fn issue(facts: &Facts<'_>, entropy: &Entropy) -> Plan<AccessKeyStatus> {
    let blocked = blocked(facts);
    let Some(revision) = facts.granted().filter(|_| blocked.is_none()) else {
        return if blocked.is_some() || facts.key.status.as_ref().is_some_and(|status| status.pending_revision.is_some())
        {
            report(facts, facts.status())
        } else {
            // The place is free: the ledger's answer is a moment away, and not worth a write.
            Plan::nothing(Next::Wait)
        };
    };
    let pair = new_pair(facts.key, revision, entropy);
    let before = match facts.secret {
        SecretSeen::Ours(secret) => Some(secret),
        SecretSeen::Absent | SecretSeen::Foreign | SecretSeen::Refused(_) => None,
    };
    let secret = PairSecret::lay_out(facts.key, &pair, revision, before);
    let first = if before.is_some() { Write::ReplaceSecret(secret) } else { Write::CreateSecret(secret) };
    let issued_at = facts.issued_at();
    let status = AccessKeyStatus {
        revision: Some(revision),
        last_revision: Some(facts.status().last_revision.unwrap_or(0).max(revision)),
        pending_revision: None,
        access_key_id: Some(pair.id.to_string()),
        fingerprint: Some(fingerprint(pair.secret.expose().as_bytes())),
        issued_at: Some(Time(issued_at)),
        binding: Some(Binding { name: facts.key.secret_name() }),
        ..facts.status()
    };
    let mut plan = report(facts, status);
    plan.writes.insert(0, first);
    plan
}

/// Keeps the Secret laid out as the spec says, around the same pair.
fn maintain(facts: &Facts<'_>, revision: i64, pair: &Pair, secret: &PairSecret) -> Plan<AccessKeyStatus> {
    let wanted = PairSecret::lay_out(facts.key, pair, revision, Some(secret));
    let mut plan = report(facts, facts.status());
    if wanted != *secret {
        plan.writes.insert(0, Write::ReplaceSecret(wanted));
    }
    plan
}

/// The status that says how things stand, written only if it says anything new, and when that changes by itself.
fn report(facts: &Facts<'_>, mut status: AccessKeyStatus) -> Plan<AccessKeyStatus> {
    let issued = status.revision.is_some();
    status.observed_generation = facts.key.metadata.generation;
    if revoked(facts).is_some() && status.revoked_at.is_none() {
        status.revoked_at = Some(Time(facts.now));
    }
    if issued {
        status.expires_at = facts.expiry().map(Time);
    }
    let wanted = judge(facts, &status);
    let old = facts.key.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let notes = conditions::note(old, &wanted).into_iter().collect();
    status.conditions = conditions::update(old, &wanted, status.observed_generation, facts.now);
    let changed = facts.key.status.as_ref() != Some(&status);
    let next = match facts.secret {
        SecretSeen::Foreign | SecretSeen::Refused(_) => Next::Retry,
        SecretSeen::Absent | SecretSeen::Ours(_) => wake(facts),
    };
    Plan { writes: changed.then(|| Write::Status(Box::new(status))).into_iter().collect(), notes, next }
}

/// Deletion comes before everything else and needs no other object: the disabling is committed, the Secret goes, then
/// the finalizer.
fn finalize(seen: &Observed<'_>, now: Timestamp) -> Plan<AccessKeyStatus> {
    if !seen.key.has_finalizer() {
        return Plan::nothing(Next::Wait);
    }
    if seen.key.is_enabled() {
        return if seen.namespace_terminating || seen.key.disables_first() {
            Plan::step([Write::Disable])
        } else {
            block_deletion(seen.key, now)
        };
    }
    let secret = match &seen.secret {
        SecretSeen::Ours(secret) => Some(Write::DeleteSecret(secret.clone())),
        SecretSeen::Absent | SecretSeen::Foreign | SecretSeen::Refused(_) => None,
    };
    Plan { next: Next::Wait, ..Plan::step(secret.into_iter().chain([Write::RemoveFinalizer]).collect::<Vec<_>>()) }
}

fn block_deletion(key: &Stored<AccessKey>, now: Timestamp) -> Plan<AccessKeyStatus> {
    let message = "the key is enabled, and only a disabled one is deleted: set spec.enabled to false";
    let blocked = Wanted::while_true(ConditionType::DeletionBlocked, Reason::KeyEnabled, message);
    add_conditions(key, &[blocked], now)
}

/// In a terminating namespace a key does not wait for the namespace controller, which begins after five seconds: it is
/// off at once, and gone before that one looks.
fn leave(key: &Stored<AccessKey>) -> Plan<AccessKeyStatus> {
    Plan::step([if key.is_enabled() { Write::Disable } else { Write::Delete }])
}

fn report_invalid(invalid: &Invalid, now: Timestamp) -> Plan<AccessKeyStatus> {
    let message = format!("the stored object does not read: {}", invalid.error);
    let key = Stored::Invalid(invalid.clone());
    add_conditions(&key, &readiness(false, Reason::InvalidSpec, true, &message), now)
}

/// Sets these conditions and leaves everything else in the status as it is.
fn add_conditions(key: &Stored<AccessKey>, wanted: &[Wanted], now: Timestamp) -> Plan<AccessKeyStatus> {
    let before = key.status();
    let conditions = conditions::merge(&before.conditions, wanted, key.meta().generation, now);
    let notes = conditions::note(&before.conditions, wanted).into_iter().collect();
    let status = AccessKeyStatus { observed_generation: key.meta().generation, conditions, ..before.clone() };
    let changed = status != before;
    Plan { writes: changed.then(|| Write::Status(Box::new(status))).into_iter().collect(), notes, next: Next::Wait }
}

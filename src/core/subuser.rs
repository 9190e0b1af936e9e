//! What to do about a Subuser: keep the ledger of its keys, and stay until the last one is gone.
//!
//! The ledger in `status.keys` is what holds a Subuser to two credentials. It is written with the version of the Subuser
//! that the decision was made from, and an entry leaves it only after a live read: never because a cache says so.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Resource, ResourceExt};

use super::{
    access_key::{asked_revision, recorded_revision, wants},
    conditions::{self, Wanted, readiness},
    credential::principal_id,
    ledger::{Place, Rank, settle},
    plan::{Next, Plan, Write},
    standing::barred,
};
use crate::api::{AccessKey, ConditionType, Invalid, KeyEntry, REVOKED, Reason, Stored, Subuser, SubuserStatus};

/// The most keys that one Subuser may have.
pub const KEY_LIMIT: usize = 2;

/// A place in the ledger: `metadata.uid` of the AccessKey, and the revision of its pair.
pub type Holder = (String, i64);

/// Everything that is known when deciding about one Subuser.
pub struct Observed<'a> {
    /// The Subuser.
    pub subuser: &'a Stored<Subuser>,
    /// The AccessKeys that name it, as the cache has them.
    pub keys: &'a [Arc<Stored<AccessKey>>],
    /// The entries that a live read has shown to be wanted no longer.
    pub departed: &'a BTreeSet<Holder>,
    /// The AccessKeys that name it, from one live list: only where the ledger is missing.
    pub listed: Option<&'a [Stored<AccessKey>]>,
    /// Whether its namespace is being deleted.
    pub namespace_terminating: bool,
}

impl Place for KeyEntry {
    type Holder = Holder;

    fn holder(&self) -> Holder {
        (self.uid.clone(), self.revision)
    }
}

/// Decides about one Subuser.
#[must_use]
pub fn plan(seen: &Observed<'_>, now: Timestamp) -> Plan<SubuserStatus> {
    let deleting = seen.subuser.meta().deletion_timestamp.is_some();
    if !deleting && seen.namespace_terminating {
        return Plan::step([Write::Delete]);
    }
    if !seen.subuser.has_finalizer() {
        return if deleting { Plan::nothing(Next::Wait) } else { Plan::step([Write::AddFinalizer]) };
    }
    let held = still_held(seen);
    if deleting && held.is_empty() && seen.keys.is_empty() {
        return Plan { next: Next::Wait, ..Plan::step([Write::RemoveFinalizer]) };
    }
    match seen.subuser {
        Stored::Invalid(invalid) => report_invalid(seen, invalid, held, now),
        Stored::Valid(_) if deleting => block_deletion(seen, held, now),
        Stored::Valid(subuser) => allot(seen, subuser, held, now),
    }
}

/// The entries that nothing in the cache stands behind, and which only a live read may withdraw.
#[must_use]
pub fn suspects(subuser: &Stored<Subuser>, keys: &[Arc<Stored<AccessKey>>]) -> Vec<KeyEntry> {
    let backed = |entry: &KeyEntry| keys.iter().any(|key| is_wanted_by(key, entry));
    subuser.status().keys.unwrap_or_default().into_iter().filter(|entry| !backed(entry)).collect()
}

/// Whether this object is the AccessKey of the entry and wants its place. One that does not read wants whatever it has.
#[must_use]
pub fn is_wanted_by(key: &Stored<AccessKey>, entry: &KeyEntry) -> bool {
    key.meta().uid.as_deref() == Some(&entry.uid) && key.valid().is_none_or(|key| wants(key, entry.revision))
}

/// Whether the ledger is missing: then only a live list tells who holds a place, because absent is not empty.
#[must_use]
pub fn needs_list(subuser: &Stored<Subuser>) -> bool {
    subuser.status().keys.is_none()
}

/// The entries of one AccessKey.
pub fn entries_of<'a>(subuser: &'a Subuser, uid: &'a str) -> impl Iterator<Item = &'a KeyEntry> {
    entries(subuser).filter(move |entry| entry.uid == uid)
}

/// Whether other AccessKeys hold every place.
#[must_use]
pub fn is_full(subuser: &Subuser, uid: &str) -> bool {
    entries(subuser).filter(|entry| entry.uid != uid).count() >= KEY_LIMIT
}

/// Whether the quotas of the other keys leave room for this one.
#[must_use]
pub fn room_for(subuser: &Subuser, uid: &str, quota: i32) -> bool {
    let others = entries(subuser).filter(|entry| entry.uid != uid);
    quota_fits(subuser, others, quota)
}

/// Whether it was revoked, now or ever.
#[must_use]
pub fn is_revoked(subuser: &Subuser) -> bool {
    let latched = subuser.status.as_ref().is_some_and(|status| status.revoked_at.is_some());
    latched || subuser.annotations().contains_key(REVOKED)
}

fn entries(subuser: &Subuser) -> impl Iterator<Item = &KeyEntry> {
    subuser.status.iter().flat_map(|status| status.keys.iter().flatten())
}

fn quota_fits<'a>(subuser: &Subuser, others: impl Iterator<Item = &'a KeyEntry>, quota: i32) -> bool {
    let taken: i64 = others.map(|entry| i64::from(entry.cluster_quota)).sum();
    subuser.spec.cluster_quota.is_none_or(|limit| taken + i64::from(quota) <= i64::from(limit))
}

/// The ledger less what has departed; where it is missing, every recorded pair that the live list has shown.
fn still_held(seen: &Observed<'_>) -> Vec<KeyEntry> {
    let stored = seen.subuser.status().keys;
    let listed = seen.listed.into_iter().flatten().filter_map(Stored::valid);
    let held = stored.unwrap_or_else(|| ranked(listed.filter_map(recorded_claim).collect()));
    held.into_iter().filter(|entry| !seen.departed.contains(&entry.holder())).collect()
}

/// As many entries as the ledger holds, best rank first.
fn ranked(claims: Vec<(Rank, KeyEntry)>) -> Vec<KeyEntry> {
    settle(vec![], &BTreeSet::new(), claims, |places: &[KeyEntry], _| places.len() < KEY_LIMIT)
}

/// Grants places and quotas, and says how the Subuser is.
fn allot(seen: &Observed<'_>, subuser: &Subuser, mut held: Vec<KeyEntry>, now: Timestamp) -> Plan<SubuserStatus> {
    let keys = || seen.keys.iter().filter_map(|key| key.valid());
    // Before anything is granted, and twice: what one key gives back, another may have been waiting for.
    for key in keys().chain(keys()) {
        adjust_quota(&mut held, subuser, key);
    }
    let claims = keys().flat_map(|key| [recorded_claim(key), new_claim(key, subuser, &held, now)]).flatten().collect();
    let places = settle(held, seen.departed, claims, |places, claim| {
        let others = places.iter().filter(|place| place.uid != claim.uid);
        places.len() < KEY_LIMIT && quota_fits(subuser, others, claim.cluster_quota)
    });
    let (ready, reason, message) = standing(subuser);
    let wanted = readiness(ready, reason, true, message);
    let later = keys().filter_map(|key| barred(key, Some(subuser), now).and_then(|(_, later)| later)).min();
    Plan { next: later.map_or(Next::Wait, Next::At), ..report(seen, places, &wanted, now) }
}

/// A pair that is recorded holds its place whatever else is wrong with the key.
fn recorded_claim(key: &AccessKey) -> Option<(Rank, KeyEntry)> {
    recorded_revision(key).map(|revision| claim(key, revision, false))
}

/// A key that could be issued now asks for a place for its next pair.
fn new_claim(key: &AccessKey, subuser: &Subuser, held: &[KeyEntry], now: Timestamp) -> Option<(Rank, KeyEntry)> {
    let uid = key.metadata.uid.as_deref().unwrap_or_default();
    let held: Vec<i64> = held.iter().filter(|entry| entry.uid == uid).map(|entry| entry.revision).collect();
    let revision =
        asked_revision(key, &held).filter(|_| !key.is_deleting() && barred(key, Some(subuser), now).is_none());
    revision.map(|revision| claim(key, revision, true))
}

fn claim(key: &AccessKey, revision: i64, new: bool) -> (Rank, KeyEntry) {
    let created = key.creation_timestamp().map_or(0, |time| time.0.as_second());
    let entry = KeyEntry {
        access_key: key.name_any(),
        uid: key.uid().unwrap_or_default(),
        revision,
        cluster_quota: key.spec.cluster_quota.unwrap_or(0),
    };
    (Rank { new, created, name: key.name_any() }, entry)
}

/// Lets the quota of a key that holds a place follow its spec: downwards always, upwards as far as there is room.
fn adjust_quota(places: &mut [KeyEntry], subuser: &Subuser, key: &AccessKey) {
    let uid = key.metadata.uid.as_deref().unwrap_or_default();
    let quota = key.spec.cluster_quota.unwrap_or(0);
    let fits = quota_fits(subuser, places.iter().filter(|entry| entry.uid != uid), quota);
    for entry in places.iter_mut().filter(|entry| entry.uid == uid && (fits || quota < entry.cluster_quota)) {
        entry.cluster_quota = quota;
    }
}

fn block_deletion(seen: &Observed<'_>, held: Vec<KeyEntry>, now: Timestamp) -> Plan<SubuserStatus> {
    let message = "the Subuser has AccessKeys: disable and delete them, and it goes";
    let before = seen.subuser.status();
    let blocked = Wanted::while_true(ConditionType::DeletionBlocked, Reason::HasAccessKeys, message);
    let kept =
        conditions::merge(&before.conditions, std::slice::from_ref(&blocked), seen.subuser.meta().generation, now);
    let status = SubuserStatus {
        observed_generation: seen.subuser.meta().generation,
        conditions: kept,
        keys: Some(held),
        ..before.clone()
    };
    write(&before, status, conditions::note(&before.conditions, &[blocked]))
}

fn report_invalid(seen: &Observed<'_>, invalid: &Invalid, held: Vec<KeyEntry>, now: Timestamp) -> Plan<SubuserStatus> {
    let message = format!("the stored object does not read: {}", invalid.error);
    report(seen, held, &readiness(false, Reason::InvalidSpec, true, &message), now)
}

fn report(seen: &Observed<'_>, keys: Vec<KeyEntry>, wanted: &[Wanted], now: Timestamp) -> Plan<SubuserStatus> {
    let before = seen.subuser.status();
    let meta = seen.subuser.meta();
    let revoked = meta.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(REVOKED));
    let status = SubuserStatus {
        observed_generation: meta.generation,
        conditions: conditions::update(&before.conditions, wanted, meta.generation, now),
        id: Some(principal_id(meta.uid.as_deref().unwrap_or_default())),
        revoked_at: before.revoked_at.clone().or_else(|| revoked.then_some(Time(now))),
        keys: Some(keys),
    };
    write(&before, status, conditions::note(&before.conditions, wanted))
}

fn write(before: &SubuserStatus, status: SubuserStatus, note: Option<super::Note>) -> Plan<SubuserStatus> {
    let changed = status != *before;
    Plan {
        writes: changed.then(|| Write::Status(Box::new(status))).into_iter().collect(),
        notes: note.into_iter().collect(),
        next: Next::Wait,
    }
}

/// Whether a Subuser is Ready, why, and what a person reads of it.
fn standing(subuser: &Subuser) -> (bool, Reason, &'static str) {
    if is_revoked(subuser) {
        (false, Reason::Revoked, "revoked by annotation accesskey.dev/revoked; this is final: create another Subuser")
    } else if subuser.spec.enabled {
        (true, Reason::Enabled, "its keys are accepted as far as they are enabled themselves")
    } else {
        (true, Reason::Disabled, "spec.enabled is false: every request made with one of its keys is refused")
    }
}

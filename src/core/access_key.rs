//! What to do about an AccessKey: issue its pair, keep its status true, let it go.
//!
//! A pair is made only with a place in the Subuser's ledger, in this order: the Secret, then the record in status, which
//! carries the version of the AccessKey that the decision was made from. A Secret that holds a revision without a
//! record may be another replica's half-done work; it is neither recorded nor rewritten: the next revision is asked
//! for instead. This is what `tests/ledger_model.rs` explores.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Resource, ResourceExt};

use super::{
    conditions::{self, Wanted, readiness},
    credential::{Entropy, Pair, fingerprint},
    plan::{Next, Plan, Write},
    secret::{PairSecret, SecretSeen, new_pair},
    subuser::{self, entries_of, room_for},
};
use crate::api::{AccessKey, AccessKeyStatus, Binding, ConditionType, Invalid, REVOKED, Reason, Stored, Subuser};

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

/// How long a key may be ahead of its Subuser before a person is called: both may come in one `kubectl apply`.
const SUBUSER_GRACE: SignedDuration = SignedDuration::from_secs(10);

/// ExpiringSoon starts a tenth of the lifetime before the expiry, and at most this long before it.
const EXPIRING_SOON: SignedDuration = SignedDuration::from_hours(7 * 24);

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
        Stored::Valid(key) => pursue(&Facts::new(key, seen, now), entropy),
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

/// The pair that the status records: revision, id and fingerprint.
fn recorded(status: Option<&AccessKeyStatus>) -> Option<(i64, &str, &str)> {
    let status = status?;
    Some((status.revision?, status.access_key_id.as_deref()?, status.fingerprint.as_deref()?))
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

/// Why the key may not be issued now, apart from the ledger; `None` if it may. And when that may change by itself.
#[must_use]
pub fn barred(key: &AccessKey, subuser: Option<&Subuser>, now: Timestamp) -> Option<(Reason, Option<Timestamp>)> {
    let facts = Facts { key, subuser, secret: &SecretSeen::Absent, now };
    let reason = BEFORE_GRANT.iter().find_map(|check| check(&facts))?;
    let later = (reason == Reason::LifetimeTooLong).then(|| facts.short_enough_from()).flatten();
    Some((reason, later))
}

/// What the checks look at.
struct Facts<'a> {
    key: &'a AccessKey,
    subuser: Option<&'a Subuser>,
    secret: &'a SecretSeen,
    now: Timestamp,
}

/// One reason for which a key is not Ready.
type Check = fn(&Facts<'_>) -> Option<Reason>;

/// What keeps a key from asking for a place at all, and an issued one from being Ready; the first that fails is told.
const BEFORE_GRANT: &[Check] = &[revoked, expired, subuser_missing, role_not_permitted, lifetime_too_long];

/// What keeps a key from having its pair in its Secret.
const BEFORE_ISSUE: &[Check] = &[key_limit_exceeded, cluster_quota_exceeded, secret_conflict, secret_forbidden];

/// Why a request with the key would be refused now, given that it has a pair.
const INACTIVE: &[Check] = &[revoked, expired, disabled, subuser_missing, subuser_disabled, role_not_permitted];

fn revoked(facts: &Facts<'_>) -> Option<Reason> {
    let latched = facts.key.status.as_ref().is_some_and(|status| status.revoked_at.is_some());
    let by_subuser = facts.subuser.is_some_and(subuser::is_revoked);
    (latched || by_subuser || facts.key.annotations().contains_key(REVOKED)).then_some(Reason::Revoked)
}

fn expired(facts: &Facts<'_>) -> Option<Reason> {
    facts.expiry().is_some_and(|expiry| expiry <= facts.now).then_some(Reason::Expired)
}

fn disabled(facts: &Facts<'_>) -> Option<Reason> {
    (!facts.key.spec.enabled).then_some(Reason::Disabled)
}

fn subuser_missing(facts: &Facts<'_>) -> Option<Reason> {
    let there = facts.subuser.is_some_and(|subuser| subuser.meta().deletion_timestamp.is_none());
    (!there).then_some(Reason::SubuserNotFound)
}

fn subuser_disabled(facts: &Facts<'_>) -> Option<Reason> {
    facts.subuser.is_some_and(|subuser| !subuser.spec.enabled).then_some(Reason::SubuserDisabled)
}

fn role_not_permitted(facts: &Facts<'_>) -> Option<Reason> {
    let role = facts.key.spec.role.as_ref()?;
    let permitted = facts.subuser.is_some_and(|subuser| subuser.spec.roles.contains(role));
    (!permitted).then_some(Reason::RoleNotPermitted)
}

fn lifetime_too_long(facts: &Facts<'_>) -> Option<Reason> {
    let too_long = facts.own_expiry().zip(facts.longest_expiry()).is_some_and(|(own, longest)| own > longest);
    too_long.then_some(Reason::LifetimeTooLong)
}

fn key_limit_exceeded(facts: &Facts<'_>) -> Option<Reason> {
    let subuser = facts.subuser?;
    let full = facts.granted().is_none() && subuser::is_full(subuser, facts.uid());
    (recorded(facts.key.status.as_ref()).is_none() && full).then_some(Reason::KeyLimitExceeded)
}

fn cluster_quota_exceeded(facts: &Facts<'_>) -> Option<Reason> {
    let subuser = facts.subuser?;
    let quota = facts.key.spec.cluster_quota.unwrap_or(0);
    let granted = entries_of(subuser, facts.uid()).map(|entry| entry.cluster_quota).max();
    let exceeded = granted != Some(quota) && !room_for(subuser, facts.uid(), quota);
    exceeded.then_some(Reason::ClusterQuotaExceeded)
}

fn secret_conflict(facts: &Facts<'_>) -> Option<Reason> {
    matches!(facts.secret, SecretSeen::Foreign).then_some(Reason::SecretConflict)
}

fn secret_forbidden(facts: &Facts<'_>) -> Option<Reason> {
    matches!(facts.secret, SecretSeen::Refused(_)).then_some(Reason::SecretForbidden)
}

impl<'a> Facts<'a> {
    fn new(key: &'a AccessKey, seen: &'a Observed<'_>, now: Timestamp) -> Self {
        Self { key, subuser: seen.subuser, secret: &seen.secret, now }
    }

    fn uid(&self) -> &str {
        self.key.metadata.uid.as_deref().unwrap_or_default()
    }

    fn status(&self) -> AccessKeyStatus {
        self.key.status.clone().unwrap_or_default()
    }

    /// From when the lifetime counts: from now on, for a key that is yet to be issued.
    fn issued_at(&self) -> Timestamp {
        self.key.status.as_ref().and_then(|status| status.issued_at.as_ref()).map_or(self.now, |time| time.0)
    }

    /// The expiry that the key itself asks for.
    fn own_expiry(&self) -> Option<Timestamp> {
        let spec = &self.key.spec;
        let by_ttl = spec.ttl.and_then(|ttl| self.issued_at().checked_add(ttl.duration()).ok());
        spec.expires_at.as_ref().map(|time| time.0).or(by_ttl)
    }

    /// The latest expiry that the Subuser allows.
    fn longest_expiry(&self) -> Option<Timestamp> {
        let longest = self.subuser?.spec.max_key_lifetime?;
        self.issued_at().checked_add(longest.duration()).ok()
    }

    /// When the key stops being accepted: never later than the Subuser allows, or, while that one is missing, than was
    /// recorded when it was there.
    fn expiry(&self) -> Option<Timestamp> {
        let known = self.key.status.as_ref().and_then(|status| status.expires_at.as_ref()).map(|time| time.0);
        let longest = if self.subuser.is_some() { self.longest_expiry() } else { known };
        self.own_expiry().into_iter().chain(longest).min()
    }

    /// From when on a fixed expiry is near enough for the Subuser's limit.
    fn short_enough_from(&self) -> Option<Timestamp> {
        let longest = self.subuser?.spec.max_key_lifetime?;
        self.key.spec.expires_at.as_ref()?.0.checked_sub(longest.duration()).ok()
    }

    fn expiring_soon_from(&self, expiry: Timestamp) -> Timestamp {
        let tenth = expiry.duration_since(self.issued_at()) / 10;
        expiry.checked_sub(tenth.min(EXPIRING_SOON)).unwrap_or(expiry)
    }

    /// The revision that the ledger grants and the key asks for.
    fn granted(&self) -> Option<i64> {
        let pending = self.key.status.as_ref().and_then(|status| status.pending_revision).unwrap_or(1);
        entries_of(self.subuser?, self.uid()).any(|entry| entry.revision == pending).then_some(pending)
    }

    /// Whether the Subuser has only just not come yet.
    fn subuser_may_come(&self) -> bool {
        self.subuser.is_none() && recorded(self.key.status.as_ref()).is_none() && self.grace_ends() > Some(self.now)
    }

    fn grace_ends(&self) -> Option<Timestamp> {
        self.key.creation_timestamp()?.0.checked_add(SUBUSER_GRACE).ok()
    }
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
    let blocked = BEFORE_GRANT.iter().chain(BEFORE_ISSUE).find_map(|check| check(facts));
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

fn judge(facts: &Facts<'_>, status: &AccessKeyStatus) -> Vec<Wanted> {
    let issued = status.revision.is_some();
    let blocked = BEFORE_GRANT.iter().chain(BEFORE_ISSUE).find_map(|check| check(facts));
    let (ready, reason) = match blocked {
        Some(reason) => (false, reason),
        None if !issued => (false, Reason::Issuing),
        None if facts.key.spec.enabled => (true, Reason::Issued),
        None => (true, Reason::Disabled),
    };
    let stalled = reason.stalls() && !(reason == Reason::SubuserNotFound && facts.subuser_may_come());
    let mut wanted = readiness(ready, reason, stalled, &explain(facts, reason));
    let inactive = if issued { INACTIVE.iter().find_map(|check| check(facts)) } else { Some(Reason::NotIssued) };
    let reason = inactive.unwrap_or(Reason::Enabled);
    wanted.push(Wanted {
        kind: ConditionType::Active,
        holds: inactive.is_none(),
        reason,
        message: explain(facts, reason),
    });
    let soon =
        facts.expiry().filter(|expiry| issued && *expiry > facts.now && facts.expiring_soon_from(*expiry) <= facts.now);
    wanted.extend(soon.map(|expiry| {
        Wanted::while_true(ConditionType::ExpiringSoon, Reason::ExpiryNear, &format!("the key expires at {expiry}"))
    }));
    wanted
}

/// The next moment at which something changes although nobody has touched anything.
fn wake(facts: &Facts<'_>) -> Next {
    let expiry = facts.expiry();
    let moments = [
        expiry,
        expiry.map(|expiry| facts.expiring_soon_from(expiry)),
        facts.short_enough_from(),
        facts.grace_ends().filter(|_| facts.subuser_may_come()),
    ];
    moments.into_iter().flatten().filter(|moment| *moment > facts.now).min().map_or(Next::Wait, Next::At)
}

/// What a person reads: the object, the field, and the way out.
fn explain(facts: &Facts<'_>, reason: Reason) -> String {
    let spec = &facts.key.spec;
    let subuser = &spec.subuser_ref.name;
    let secret = facts.key.secret_name();
    match reason {
        Reason::Issued => format!("Secret {secret} holds the pair"),
        Reason::Disabled => "spec.enabled is false: every request is refused until it is true again".into(),
        Reason::Enabled => "requests are accepted".into(),
        Reason::Issuing => "the next pair is being issued".into(),
        Reason::NotIssued => "no pair was issued yet".into(),
        Reason::SubuserNotFound => {
            format!(
                "spec.subuserRef: there is no readable Subuser {subuser} in this namespace: create it, or delete this key"
            )
        }
        Reason::SubuserDisabled => format!("Subuser {subuser} is disabled: set its spec.enabled to true"),
        Reason::RoleNotPermitted => format!(
            "spec.role: {} is not in spec.roles of Subuser {subuser}: add it there, or choose another role",
            spec.role.as_deref().unwrap_or_default()
        ),
        Reason::LifetimeTooLong => format!(
            "the key would live longer than the {} that Subuser {subuser} allows (spec.maxKeyLifetime): shorten spec.ttl \
             or spec.expiresAt",
            facts.subuser.and_then(|subuser| subuser.spec.max_key_lifetime).map(String::from).unwrap_or_default()
        ),
        Reason::KeyLimitExceeded => format!(
            "Subuser {subuser} has two keys already (its status.keys): disable and delete one of them, and this one is issued"
        ),
        Reason::ClusterQuotaExceeded => format!(
            "spec.clusterQuota: {} does not fit into what is left of spec.clusterQuota of Subuser {subuser}",
            spec.cluster_quota.unwrap_or(0)
        ),
        Reason::SecretConflict => format!(
            "Secret {secret} exists and is not controlled by this AccessKey, so it is not touched: delete or rename it, or \
             create an AccessKey with another spec.secret.name"
        ),
        Reason::SecretForbidden => match facts.secret {
            SecretSeen::Refused(words) => format!("the API server refused to write Secret {secret}: {words}"),
            SecretSeen::Absent | SecretSeen::Ours(_) | SecretSeen::Foreign => String::new(),
        },
        Reason::Expired => format!(
            "the key expired at {}: set a later spec.expiresAt or spec.ttl, or disable and delete it",
            facts.expiry().map(|expiry| expiry.to_string()).unwrap_or_default()
        ),
        Reason::Revoked => format!("revoked by annotation {REVOKED}; this is final: disable and delete the key"),
        // Told of a coming expiry, of an object that does not read, that is being deleted, or of a Subuser: never by a check.
        Reason::ExpiryNear | Reason::InvalidSpec | Reason::KeyEnabled | Reason::HasAccessKeys => String::new(),
    }
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

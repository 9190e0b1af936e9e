//! How an AccessKey stands: what keeps it from being issued, Ready or Active, in words and in conditions, and when that
//! changes although nobody touches anything.
//!
//! Each check is one reason; the order of the lists is the order in which reasons are told. What to do about it is not
//! decided here.

use jiff::{SignedDuration, Timestamp};
use kube::{Resource, ResourceExt};

use super::{
    conditions::{Wanted, readiness},
    plan::Next,
    secret::SecretSeen,
    subuser::{self, entries_of, room_for},
};
use crate::api::{AccessKey, AccessKeyStatus, ConditionType, REVOKED, Reason, Subuser};

/// How long a key may be ahead of its Subuser before a person is called: both may come in one `kubectl apply`.
const SUBUSER_GRACE: SignedDuration = SignedDuration::from_secs(10);

/// ExpiringSoon starts a tenth of the lifetime before the expiry, and at most this long before it.
const EXPIRING_SOON: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Why the key may not be issued now, apart from the ledger; `None` if it may. And when that may change by itself.
#[must_use]
pub fn barred(key: &AccessKey, subuser: Option<&Subuser>, now: Timestamp) -> Option<(Reason, Option<Timestamp>)> {
    let facts = Facts { key, subuser, secret: &SecretSeen::Absent, now };
    let reason = BEFORE_GRANT.iter().find_map(|check| check(&facts))?;
    let later = (reason == Reason::LifetimeTooLong).then(|| facts.short_enough_from()).flatten();
    Some((reason, later))
}

/// The pair that the status records: revision, id and fingerprint.
pub(super) fn recorded(status: Option<&AccessKeyStatus>) -> Option<(i64, &str, &str)> {
    let status = status?;
    Some((status.revision?, status.access_key_id.as_deref()?, status.fingerprint.as_deref()?))
}

/// What the checks look at.
pub(super) struct Facts<'a> {
    pub(super) key: &'a AccessKey,
    pub(super) subuser: Option<&'a Subuser>,
    pub(super) secret: &'a SecretSeen,
    pub(super) now: Timestamp,
}

/// One reason for which a key is not Ready.
type Check = fn(&Facts<'_>) -> Option<Reason>;

/// What keeps a key from asking for a place at all, and an issued one from being Ready; the first that fails is told.
const BEFORE_GRANT: &[Check] = &[revoked, expired, subuser_missing, role_not_permitted, lifetime_too_long];

/// What keeps a key from having its pair in its Secret.
const BEFORE_ISSUE: &[Check] = &[key_limit_exceeded, cluster_quota_exceeded, secret_conflict, secret_forbidden];

/// Why a request with the key would be refused now, given that it has a pair.
const INACTIVE: &[Check] = &[revoked, expired, disabled, subuser_missing, subuser_disabled, role_not_permitted];

pub(super) fn revoked(facts: &Facts<'_>) -> Option<Reason> {
    let latched = facts.key.status.as_ref().is_some_and(|status| status.revoked_at.is_some());
    let by_subuser = facts.subuser.is_some_and(subuser::is_revoked);
    (latched || by_subuser || facts.key.annotations().contains_key(REVOKED)).then_some(Reason::Revoked)
}

pub(super) fn expired(facts: &Facts<'_>) -> Option<Reason> {
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

impl Facts<'_> {
    pub(super) fn uid(&self) -> &str {
        self.key.metadata.uid.as_deref().unwrap_or_default()
    }

    pub(super) fn status(&self) -> AccessKeyStatus {
        self.key.status.clone().unwrap_or_default()
    }

    /// From when the lifetime counts: from now on, for a key that is yet to be issued.
    pub(super) fn issued_at(&self) -> Timestamp {
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
    pub(super) fn expiry(&self) -> Option<Timestamp> {
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
    pub(super) fn granted(&self) -> Option<i64> {
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

/// The first thing that keeps the key from being Ready.
pub(super) fn blocked(facts: &Facts<'_>) -> Option<Reason> {
    BEFORE_GRANT.iter().chain(BEFORE_ISSUE).find_map(|check| check(facts))
}

/// Every condition of the key, given the status that it is about to have.
pub(super) fn judge(facts: &Facts<'_>, status: &AccessKeyStatus) -> Vec<Wanted> {
    let issued = status.revision.is_some();
    let (ready, reason) = match blocked(facts) {
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
pub(super) fn wake(facts: &Facts<'_>) -> Next {
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

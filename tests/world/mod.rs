//! A simulated API server, users who do all sorts of things to it, and replicas that act on views as old as they like.
//!
//! It knows what the real one guarantees to the operator, and no more: versions, uids, finalizers, preconditions, owner
//! references, `maxItems`. After each write it checks what must always hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
};

use accesskey_operator::{
    api::{AccessKey, AccessKeySpec, FINALIZER, KeyEntry, Reason, Stored, Subuser, SubuserSpec},
    core::{
        Write, access_key,
        credential::{Entropy, fingerprint},
        secret::{PairSecret, SecretSeen, new_pair},
        subuser,
    },
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::{Resource, ResourceExt};

const NAMESPACE: &str = "ns";

/// All objects at one moment, by name.
#[derive(Clone, Default)]
pub struct Objects {
    pub subusers: BTreeMap<String, Rc<Stored<Subuser>>>,
    pub keys: BTreeMap<String, Arc<Stored<AccessKey>>>,
    pub secrets: BTreeMap<String, Rc<PairSecret>>,
    pub terminating: bool,
}

/// A mistake to plant, to see that it is caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    Nothing,
    /// Who holds a place is counted from the cached AccessKeys.
    CountFromCache,
    /// Writes do not say which version, and deletions not which uid, they mean.
    NoPreconditions,
    /// The record comes before the Secret.
    StatusBeforeSecret,
    /// A Secret is ours if it has the right name.
    AdoptByName,
}

/// What a user or the cluster does.
#[derive(Clone, Debug)]
pub enum Deed {
    CreateSubuser(u8, SubuserShape),
    CreateKey(u8, KeyShape),
    EnableKey(u8, bool),
    EnableSubuser(u8, bool),
    ChangeKey(u8, KeyShape),
    DeleteKey(u8),
    DeleteSubuser(u8),
    DeleteSecret(u8),
    TamperSecret(u8),
    StrayForeignSecret(u8),
    RemoveForeignSecret(u8),
    StripOwner(u8),
    StripFinalizer(u8),
    ClearKeyStatus(u8),
    ClearLedger(u8),
    Revoke(u8),
    EndNamespace,
    Wait(u16),
    /// A replica looks at a key, with views this much older than now: of Subusers, keys, Secrets.
    LookAtKey(u8, [u8; 3]),
    /// The same for a Subuser.
    LookAtSubuser(u8, [u8; 3]),
    /// The n-th plan under way makes its next write.
    Proceed(u8),
    /// All plans under way are lost.
    Crash,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct SubuserShape {
    pub roles: bool,
    pub limited: bool,
    pub quota: Option<u8>,
}

#[allow(clippy::struct_excessive_bools, reason = "each is a choice of its own")]
#[derive(Clone, Copy, Debug, Default)]
pub struct KeyShape {
    pub subuser: u8,
    pub role: bool,
    pub quota: Option<u8>,
    pub ttl: Option<u16>,
    pub shared_secret: bool,
    pub disable_first: bool,
    pub formats: bool,
}

/// The first thing found that must never be.
pub type Violation = String;

/// What was decided, on which object, and how far it got.
#[derive(Clone)]
enum Work {
    Key { name: String, base: Arc<Stored<AccessKey>>, writes: Vec<Write<accesskey_operator::api::AccessKeyStatus>> },
    Subuser { name: String, base: Rc<Stored<Subuser>>, writes: Vec<Write<accesskey_operator::api::SubuserStatus>> },
}

#[derive(Clone)]
pub struct World {
    pub now: Timestamp,
    pub objects: Objects,
    history: Vec<Objects>,
    under_way: Vec<Work>,
    plant: Plant,
    counter: u64,
    /// Every id that was ever recorded: whose, and of which secret.
    recorded: BTreeMap<String, (String, i64, String)>,
    /// AccessKeys that were let go without us: their finalizer was stripped by hand.
    released: BTreeSet<String>,
    foreign: BTreeMap<String, Rc<PairSecret>>,
    /// Every pair that a Secret ever held: id and fingerprint.
    made: BTreeSet<(String, String)>,
    pub writes: usize,
}

impl World {
    pub fn new(plant: Plant) -> Self {
        Self {
            now: Timestamp::from_second(1_800_000_000).unwrap(),
            objects: Objects::default(),
            history: vec![],
            under_way: vec![],
            plant,
            counter: 0,
            recorded: BTreeMap::new(),
            released: BTreeSet::new(),
            foreign: BTreeMap::new(),
            made: BTreeSet::new(),
            writes: 0,
        }
    }

    /// Does it, and checks what must always hold.
    pub fn act(&mut self, deed: &Deed) -> Result<(), Violation> {
        self.history.push(self.objects.clone());
        match deed {
            Deed::CreateSubuser(n, shape) => self.create_subuser(*n, *shape),
            Deed::CreateKey(n, shape) => self.create_key(*n, *shape),
            Deed::EnableKey(n, enabled) => self.edit_key(*n, |key| key.spec.enabled = *enabled),
            Deed::ChangeKey(n, shape) => self.edit_key(*n, |key| {
                // The fields that may change; the rest is immutable.
                let fresh = key_spec(*shape, "");
                key.spec = AccessKeySpec {
                    subuser_ref: key.spec.subuser_ref.clone(),
                    secret: key.spec.secret.clone().map(|mut secret| {
                        secret.formats = fresh.secret.clone().unwrap_or_default().formats;
                        secret
                    }),
                    enabled: key.spec.enabled,
                    ..fresh
                };
            }),
            Deed::EnableSubuser(n, enabled) => self.edit_subuser(*n, |subuser| subuser.spec.enabled = *enabled),
            Deed::DeleteKey(n) => self.delete_key(&key_name(*n)),
            Deed::DeleteSubuser(n) => self.delete_subuser(&subuser_name(*n)),
            Deed::DeleteSecret(n) => self.remove_secret(*n, false),
            Deed::RemoveForeignSecret(n) => self.remove_secret(*n, true),
            Deed::TamperSecret(n) => self.tamper(*n),
            Deed::StrayForeignSecret(n) => self.stray(*n),
            Deed::StripOwner(n) => self.strip_owner(*n),
            Deed::StripFinalizer(n) => self.strip_finalizer(*n),
            Deed::ClearKeyStatus(n) => self.clear_status(*n),
            Deed::ClearLedger(n) => self.clear_ledger(*n),
            Deed::Revoke(n) => self.edit_key_metadata(*n, |meta| {
                let annotations = meta.annotations.get_or_insert_default();
                annotations.insert(accesskey_operator::api::REVOKED.into(), "leaked".into());
            }),
            Deed::EndNamespace => self.objects.terminating = true,
            Deed::Wait(seconds) => self.now += SignedDuration::from_secs(i64::from(*seconds)),
            Deed::LookAtKey(n, ages) => self.look_at_key(&key_name(*n), &self.view(*ages)),
            Deed::LookAtSubuser(n, ages) => self.look_at_subuser(&subuser_name(*n), &self.view(*ages)),
            Deed::Proceed(n) => self.proceed(usize::from(*n)),
            Deed::Crash => self.under_way.clear(),
        }
        self.check()
    }

    /// Everything that there is to decide now, with views that are up to date: the writes of each plan.
    pub fn plans(&self) -> Vec<(String, usize)> {
        let mut world = self.clone();
        world.under_way.clear();
        let view = world.objects.clone();
        for name in self.objects.keys.keys() {
            world.look_at_key(name, &view);
        }
        for name in self.objects.subusers.keys() {
            world.look_at_subuser(name, &view);
        }
        let count = |work: &Work| match work {
            Work::Key { name, writes, .. } => (format!("key {name}: {writes:?}"), writes.len()),
            Work::Subuser { name, writes, .. } => (format!("subuser {name}: {writes:?}"), writes.len()),
        };
        world.under_way.iter().map(count).collect()
    }

    /// The worlds that a crash after each prefix of each plan leaves behind.
    pub fn crashes(&self) -> Vec<World> {
        let mut calm = self.clone();
        calm.under_way.clear();
        let view = calm.objects.clone();
        let mut worlds = vec![];
        let looks = self
            .objects
            .keys
            .keys()
            .map(|name| (true, name))
            .chain(self.objects.subusers.keys().map(|name| (false, name)));
        for (is_key, name) in looks {
            let mut world = calm.clone();
            if is_key {
                world.look_at_key(name, &view);
            } else {
                world.look_at_subuser(name, &view);
            }
            for _ in 0..world.under_way.first().map_or(0, work_left) {
                world.proceed(0);
                let mut crashed = world.clone();
                crashed.under_way.clear();
                worlds.push(crashed);
            }
        }
        worlds
    }

    /// Lets everything run with views that are up to date until nothing is left to do; then the wanted state must be there.
    pub fn converge(&mut self) -> Result<(), Violation> {
        self.under_way.clear();
        for _ in 0..60 {
            let before = self.writes;
            self.collect_garbage();
            let view = self.objects.clone();
            for name in view.subusers.keys() {
                self.run_alone(|world| world.look_at_subuser(name, &view))?;
            }
            let view = self.objects.clone();
            for name in view.keys.keys() {
                self.run_alone(|world| world.look_at_key(name, &view))?;
            }
            if self.writes == before {
                let plans: Vec<_> = self.plans().into_iter().filter(|(_, writes)| *writes > 0).collect();
                // Writing a Secret that is not ours to write is tried again and again, and changes nothing.
                let left: Vec<_> = plans.iter().filter(|(text, _)| !text.contains("CreateSecret")).collect();
                return if left.is_empty() {
                    self.check_settled()
                } else {
                    Err(format!("not an empty plan: {left:?}"))
                };
            }
        }
        Err(format!("does not converge: {:?}", self.plans()))
    }

    fn run_alone(&mut self, look: impl FnOnce(&mut Self)) -> Result<(), Violation> {
        look(self);
        while !self.under_way.is_empty() {
            self.proceed(0);
            self.check()?;
        }
        Ok(())
    }

    fn view(&self, ages: [u8; 3]) -> Objects {
        let past = |age: u8| {
            let back = self.history.len().checked_sub(usize::from(age));
            back.and_then(|index| self.history.get(index)).unwrap_or(&self.objects).clone()
        };
        let [subusers, keys, secrets] = ages.map(past);
        Objects {
            subusers: subusers.subusers,
            keys: keys.keys,
            secrets: secrets.secrets,
            terminating: self.objects.terminating,
        }
    }

    /// What `kube::controllers::reconcile_key` does up to its first write.
    fn look_at_key(&mut self, name: &str, view: &Objects) {
        let Some(key) = view.keys.get(name) else { return };
        let mut subuser =
            key.subuser_name().and_then(|name| view.subusers.get(name)).map(|subuser| (**subuser).clone());
        if self.plant == Plant::CountFromCache {
            subuser = subuser.map(|subuser| counted_from_cache(subuser, key, view));
        }
        let cached = self.seen(key, view.secrets.get(&key.secret_name()));
        let secret = match key.valid() {
            Some(valid) if !valid.is_deleting() && access_key::needs_live_secret(valid, &cached) => {
                self.seen(key, self.objects.secrets.get(&key.secret_name()))
            }
            _ => cached,
        };
        self.plan_key(name, key, subuser.as_ref(), secret);
    }

    fn plan_key(
        &mut self,
        name: &str,
        key: &Arc<Stored<AccessKey>>,
        subuser: Option<&Stored<Subuser>>,
        secret: SecretSeen,
    ) {
        let seen = access_key::Observed {
            key,
            subuser: subuser.and_then(Stored::valid),
            secret,
            namespace_terminating: self.objects.terminating,
        };
        let mut writes = access_key::plan(&seen, self.now, &self.entropy()).writes;
        if self.plant == Plant::StatusBeforeSecret {
            writes.reverse();
        }
        self.counter += 1;
        if !writes.is_empty() {
            self.under_way.push(Work::Key { name: name.to_owned(), base: Arc::clone(key), writes });
        }
    }

    fn look_at_subuser(&mut self, name: &str, view: &Objects) {
        let Some(subuser) = view.subusers.get(name) else { return };
        let keys: Vec<_> = view.keys.values().filter(|key| key.subuser_name() == Some(name)).cloned().collect();
        let suspects = subuser::suspects(subuser, &keys);
        let departed = suspects.iter().filter(|entry| {
            !self.objects.keys.get(&entry.access_key).is_some_and(|live| subuser::is_wanted_by(live, entry))
        });
        let departed = departed.map(|entry| (entry.uid.clone(), entry.revision)).collect();
        let listed: Option<Vec<Stored<AccessKey>>> = subuser::needs_list(subuser).then(|| {
            let all = self.objects.keys.values();
            all.filter(|key| key.subuser_name() == Some(name)).map(|key| (**key).clone()).collect()
        });
        let seen = subuser::Observed {
            subuser,
            keys: &keys,
            departed: &departed,
            listed: listed.as_deref(),
            namespace_terminating: self.objects.terminating,
        };
        let writes = subuser::plan(&seen, self.now).writes;
        if !writes.is_empty() {
            self.under_way.push(Work::Subuser { name: name.to_owned(), base: Rc::clone(subuser), writes });
        }
    }

    /// Whose the Secret is; for the planted mistake, by its name.
    fn seen(&self, key: &Stored<AccessKey>, secret: Option<&Rc<PairSecret>>) -> SecretSeen {
        let uid = key.meta().uid.clone().unwrap_or_default();
        match secret {
            None => SecretSeen::Absent,
            Some(secret) if secret.is_controlled_by(&uid) || self.plant == Plant::AdoptByName => {
                SecretSeen::Ours((**secret).clone())
            }
            Some(_) => SecretSeen::Foreign,
        }
    }

    fn proceed(&mut self, n: usize) {
        if self.under_way.is_empty() {
            return;
        }
        let index = n % self.under_way.len();
        let mut work = self.under_way.remove(index);
        let went_on = match &mut work {
            Work::Key { name, base, writes } => {
                let write = writes.remove(0);
                let touches_secret = matches!(write, Write::CreateSecret(_) | Write::ReplaceSecret(_));
                let done = self.write_key(name, base, write);
                if !done && touches_secret {
                    // A refused Secret is looked at live, and decided on once more.
                    let secret = self.seen(base, self.objects.secrets.get(&base.secret_name()));
                    let subuser = base.subuser_name().and_then(|name| self.objects.subusers.get(name)).cloned();
                    self.plan_key(&name.clone(), &base.clone(), subuser.as_deref(), secret);
                }
                done
            }
            Work::Subuser { name, base, writes } => {
                let write = writes.remove(0);
                self.write_subuser(name, base, write)
            }
        };
        if went_on && work_left(&work) > 0 {
            self.under_way.insert(index.min(self.under_way.len()), work);
        }
    }

    fn write_key(
        &mut self,
        name: &str,
        base: &Stored<AccessKey>,
        write: Write<accesskey_operator::api::AccessKeyStatus>,
    ) -> bool {
        let pinned = self.plant != Plant::NoPreconditions;
        let live = self.objects.keys.get(name).filter(|live| !pinned || same_version(base, &***live)).cloned();
        let on_object = |world: &mut Self, change: &dyn Fn(&mut AccessKey)| match live.as_deref() {
            Some(Stored::Valid(key)) => {
                let mut key = key.clone();
                change(&mut key);
                world.put_key(key);
                true
            }
            _ => false,
        };
        let done = match write {
            Write::AddFinalizer => on_object(self, &|key| add_finalizer(&mut key.metadata)),
            Write::RemoveFinalizer => on_object(self, &|key| remove_finalizer(&mut key.metadata)),
            Write::Disable => on_object(self, &|key| {
                key.spec.enabled = false;
                bump_generation(&mut key.metadata);
            }),
            Write::Delete => {
                live.is_some() && {
                    self.delete_object(name);
                    true
                }
            }
            Write::Status(status) => on_object(self, &|key| key.status = Some((*status).clone())),
            Write::CreateSecret(mut secret) => {
                let name = secret.name_any();
                !self.objects.secrets.contains_key(&name) && {
                    self.counter += 1;
                    secret.metadata.uid = Some(format!("secret-{}", self.counter));
                    self.note_pair(base, &secret);
                    self.put_secret(secret);
                    true
                }
            }
            Write::ReplaceSecret(secret) => {
                let live = self.objects.secrets.get(&secret.name_any());
                live.is_some_and(|live| same_version(&secret, &**live) || !pinned) && {
                    self.note_pair(base, &secret);
                    self.put_secret(secret);
                    true
                }
            }
            Write::DeleteSecret(secret) => {
                let live = self.objects.secrets.get(&secret.name_any());
                let there = live.is_some();
                let meant = live.is_some_and(|live| same_version(&secret, &**live) || !pinned);
                if meant {
                    self.objects.secrets.remove(&secret.name_any());
                }
                meant || !there
            }
        };
        self.writes += usize::from(done);
        done
    }

    fn write_subuser(
        &mut self,
        name: &str,
        base: &Stored<Subuser>,
        write: Write<accesskey_operator::api::SubuserStatus>,
    ) -> bool {
        let pinned = self.plant != Plant::NoPreconditions;
        let Some(live) =
            self.objects.subusers.get(name).filter(|live| !pinned || same_version(base, &***live)).cloned()
        else {
            return false;
        };
        let Stored::Valid(mut subuser) = (*live).clone() else { return false };
        match write {
            Write::AddFinalizer => add_finalizer(&mut subuser.metadata),
            Write::RemoveFinalizer => remove_finalizer(&mut subuser.metadata),
            Write::Delete => subuser.metadata.deletion_timestamp = Some(Time(self.now)),
            Write::Status(status) => {
                if status.keys.as_ref().is_some_and(|keys| keys.len() > 2) {
                    return false;
                }
                subuser.status = Some(*status);
            }
            Write::Disable | Write::CreateSecret(_) | Write::ReplaceSecret(_) | Write::DeleteSecret(_) => return false,
        }
        self.put_subuser(subuser);
        self.writes += 1;
        true
    }

    fn check(&mut self) -> Result<(), Violation> {
        for (name, subuser) in &self.objects.subusers {
            let held = subuser.status().keys.unwrap_or_default();
            let distinct: BTreeSet<_> = held.iter().map(|entry| (&entry.uid, entry.revision)).collect();
            ensure(held.len() <= 2 && distinct.len() == held.len(), || format!("ledger of {name}: {held:?}"))?;
            let issued = self.recorded_keys_of(name);
            ensure(issued.len() <= 2, || format!("{name} has more than two credentials: {issued:?}"))?;
        }
        for key in self.objects.keys.values() {
            let status = key.status();
            let (Some(revision), Some(id), Some(print)) = (status.revision, status.access_key_id, status.fingerprint)
            else {
                continue;
            };
            let uid = key.meta().uid.clone().unwrap_or_default();
            ensure(self.made.contains(&(id.clone(), print.clone())), || {
                format!("{id} was recorded before any Secret held it")
            })?;
            let fact = (uid, revision, print);
            let first = self.recorded.entry(id.clone()).or_insert_with(|| fact.clone());
            ensure(*first == fact, || format!("id {id} was {first:?} and is now {fact:?}"))?;
        }
        for (name, stray) in &self.foreign {
            let live = self.objects.secrets.get(name);
            ensure(live == Some(stray), || format!("foreign Secret {name} was touched"))?;
        }
        Ok(())
    }

    /// What must be there once nothing is left to do.
    fn check_settled(&self) -> Result<(), Violation> {
        for (name, key) in &self.objects.keys {
            let Some(valid) = key.valid() else { continue };
            let reason = ready_reason(valid);
            ensure(!(self.objects.terminating && key.has_finalizer()), || {
                format!("{name} is stuck in a terminating namespace")
            })?;
            if valid.is_deleting() {
                ensure(valid.spec.enabled, || format!("{name} is disabled and does not go"))?;
                continue;
            }
            let secret = self.objects.secrets.get(&valid.secret_name());
            if reason == "Issued" || reason == "Disabled" {
                let status = key.status();
                let (id, print) = (status.access_key_id.unwrap_or_default(), status.fingerprint.unwrap_or_default());
                let held = secret.is_some_and(|secret| {
                    secret.is_controlled_by(&valid.uid().unwrap()) && secret.holds(valid, &id, &print)
                });
                ensure(held, || format!("{name} is Ready and its Secret does not hold its pair"))?;
            }
            ensure(Reason::ALL.iter().any(|known| known.as_str() == reason), || format!("{name} says {reason:?}"))?;
            ensure(!["Issuing", "NotIssued"].contains(&reason.as_str()), || format!("{name} is still {reason}"))?;
            if reason == "KeyLimitExceeded" {
                let held = self.entries(valid.spec.subuser_ref.name.as_str());
                ensure(held.iter().filter(|entry| entry.uid != valid.uid().unwrap()).count() == 2, || {
                    format!("{name} waits although there is room: {held:?}")
                })?;
            }
        }
        for secret in self.objects.secrets.values() {
            if let Some(owner) = accesskey_operator::core::secret::controller(&secret.metadata) {
                let there = self.objects.keys.values().any(|key| key.meta().uid.as_deref() == Some(&owner.uid));
                ensure(there || self.foreign.contains_key(&secret.name_any()), || format!("{secret:?} is orphaned"))?;
            }
        }
        for (name, subuser) in &self.objects.subusers {
            let waits_for = self.objects.keys.values().any(|key| key.subuser_name() == Some(name));
            ensure(subuser.meta().deletion_timestamp.is_none() || waits_for, || format!("{name} does not go"))?;
            for entry in self.entries(name) {
                let key = self.objects.keys.get(&entry.access_key);
                ensure(key.is_some_and(|key| key.meta().uid.as_deref() == Some(&entry.uid)), || {
                    format!("{name} keeps {entry:?}")
                })?;
            }
        }
        Ok(())
    }

    fn entries(&self, subuser: &str) -> Vec<KeyEntry> {
        self.objects.subusers.get(subuser).and_then(|subuser| subuser.status().keys).unwrap_or_default()
    }

    fn recorded_keys_of(&self, subuser: &str) -> Vec<(String, i64)> {
        let keys = self.objects.keys.values().filter(|key| key.subuser_name() == Some(subuser));
        keys.filter_map(|key| recorded_entry(key)).collect()
    }

    /// The garbage collector: what an object owned goes with it.
    fn collect_garbage(&mut self) {
        let uids: BTreeSet<_> = self.objects.keys.values().filter_map(|key| key.meta().uid.clone()).collect();
        let foreign = self.foreign.clone();
        self.objects.secrets.retain(|name, secret| {
            let owner = accesskey_operator::core::secret::controller(&secret.metadata);
            foreign.contains_key(name) || owner.is_none_or(|owner| uids.contains(&owner.uid))
        });
    }

    fn create_subuser(&mut self, n: u8, shape: SubuserShape) {
        let name = subuser_name(n);
        if self.objects.subusers.contains_key(&name) || self.objects.terminating {
            return;
        }
        let spec = SubuserSpec {
            display_name: None,
            enabled: true,
            roles: if shape.roles { vec!["uploader".into()] } else { vec![] },
            max_key_lifetime: shape.limited.then(|| "1h".parse().unwrap()),
            cluster_quota: shape.quota.map(i32::from),
        };
        let mut subuser = Subuser::new(&name, spec);
        self.adorn(&mut subuser.metadata);
        self.put_subuser(subuser);
    }

    fn create_key(&mut self, n: u8, shape: KeyShape) {
        let name = key_name(n);
        if self.objects.keys.contains_key(&name) || self.objects.terminating {
            return;
        }
        let mut key = AccessKey::new(&name, key_spec(shape, &name));
        self.adorn(&mut key.metadata);
        self.put_key(key);
    }

    fn edit_key(&mut self, n: u8, change: impl FnOnce(&mut AccessKey)) {
        if let Some(Stored::Valid(key)) = self.objects.keys.get(&key_name(n)).map(|key| (**key).clone()) {
            let mut key = key;
            change(&mut key);
            bump_generation(&mut key.metadata);
            self.put_key(key);
        }
    }

    fn edit_key_metadata(&mut self, n: u8, change: impl FnOnce(&mut ObjectMeta)) {
        if let Some(Stored::Valid(mut key)) = self.objects.keys.get(&key_name(n)).map(|key| (**key).clone()) {
            change(&mut key.metadata);
            self.put_key(key);
        }
    }

    fn edit_subuser(&mut self, n: u8, change: impl FnOnce(&mut Subuser)) {
        if let Some(Stored::Valid(mut subuser)) =
            self.objects.subusers.get(&subuser_name(n)).map(|subuser| (**subuser).clone())
        {
            change(&mut subuser);
            bump_generation(&mut subuser.metadata);
            self.put_subuser(subuser);
        }
    }

    /// A user's deletion, through the admission policy.
    fn delete_key(&mut self, name: &str) {
        let Some(key) = self.objects.keys.get(name) else { return };
        if !key.is_enabled() || key.disables_first() || self.objects.terminating {
            self.delete_object(name);
        }
    }

    fn delete_object(&mut self, name: &str) {
        if let Some(Stored::Valid(mut key)) = self.objects.keys.get(name).map(|key| (**key).clone()) {
            let now = self.now;
            key.metadata.deletion_timestamp.get_or_insert(Time(now));
            self.put_key(key);
        }
    }

    fn delete_subuser(&mut self, name: &str) {
        if let Some(Stored::Valid(mut subuser)) = self.objects.subusers.get(name).map(|subuser| (**subuser).clone()) {
            let now = self.now;
            subuser.metadata.deletion_timestamp.get_or_insert(Time(now));
            self.put_subuser(subuser);
        }
    }

    fn secret_name_of(&self, n: u8) -> Option<String> {
        self.objects.keys.get(&key_name(n)).map(|key| key.secret_name())
    }

    fn remove_secret(&mut self, n: u8, foreign: bool) {
        let Some(name) = self.secret_name_of(n).filter(|name| self.foreign.contains_key(name) == foreign) else {
            return;
        };
        self.foreign.remove(&name);
        self.objects.secrets.remove(&name);
    }

    /// Somebody writes another pair into the Secret.
    fn tamper(&mut self, n: u8) {
        let Some(Stored::Valid(key)) = self.objects.keys.get(&key_name(n)).map(|key| (**key).clone()) else { return };
        let Some(secret) = self.objects.secrets.get(&key.secret_name()).cloned() else { return };
        if !self.foreign.contains_key(&key.secret_name()) {
            let pair = new_pair(&key, secret.revision().unwrap_or(1), &self.entropy());
            self.counter += 1;
            self.put_secret(PairSecret::lay_out(&key, &pair, secret.revision().unwrap_or(1), Some(&secret)));
        }
    }

    /// Somebody has a Secret of the name that a key wants.
    fn stray(&mut self, n: u8) {
        let Some(Stored::Valid(key)) = self.objects.keys.get(&key_name(n)).map(|key| (**key).clone()) else { return };
        if !self.objects.secrets.contains_key(&key.secret_name()) {
            let pair = new_pair(&key, 99, &self.entropy());
            let mut secret = PairSecret::lay_out(&key, &pair, 99, None);
            secret.metadata.owner_references = None;
            self.counter += 1;
            secret.metadata.uid = Some(format!("stray-{}", self.counter));
            self.put_secret(secret);
            self.adopt_as_foreign(&key.secret_name());
        }
    }

    fn strip_owner(&mut self, n: u8) {
        let Some(name) = self.secret_name_of(n) else { return };
        if let Some(secret) = self.objects.secrets.get(&name).filter(|_| !self.foreign.contains_key(&name)) {
            let mut secret = (**secret).clone();
            secret.metadata.owner_references = None;
            self.put_secret(secret);
            self.adopt_as_foreign(&name);
        }
    }

    fn adopt_as_foreign(&mut self, name: &str) {
        if let Some(secret) = self.objects.secrets.get(name) {
            self.foreign.insert(name.to_owned(), Rc::clone(secret));
        }
    }

    fn strip_finalizer(&mut self, n: u8) {
        if let Some(key) = self.objects.keys.get(&key_name(n)) {
            self.released.insert(key.meta().uid.clone().unwrap_or_default());
            self.edit_key_metadata(n, remove_finalizer);
        }
    }

    /// The status is cleared while no plan is under way: what was decided before and is carried out after such a wipe is
    /// beyond any protocol over that very status.
    fn clear_status(&mut self, n: u8) {
        self.under_way.clear();
        if let Some(Stored::Valid(mut key)) = self.objects.keys.get(&key_name(n)).map(|key| (**key).clone()) {
            key.status = None;
            self.put_key(key);
        }
    }

    /// The ledger is cleared likewise; nor may a view that is older than the wipe still show the grants in it.
    fn clear_ledger(&mut self, n: u8) {
        self.under_way.clear();
        self.history.clear();
        self.edit_subuser(n, |subuser| subuser.status = None);
    }

    fn adorn(&mut self, meta: &mut ObjectMeta) {
        self.counter += 1;
        meta.uid = Some(format!("uid-{}", self.counter));
        meta.namespace = Some(NAMESPACE.into());
        meta.creation_timestamp = Some(Time(self.now));
        meta.generation = Some(1);
    }

    fn put_key(&mut self, mut key: AccessKey) {
        self.counter += 1;
        key.metadata.resource_version = Some(self.counter.to_string());
        let name = key.name_any();
        let gone = key.metadata.deletion_timestamp.is_some() && key.finalizers().is_empty();
        if gone {
            self.objects.keys.remove(&name);
            let uid = key.uid().unwrap_or_default();
            // Nothing of ours lets an enabled key go.
            let never_had_one = key.status.is_none();
            if key.spec.enabled && !self.released.contains(&uid) && !never_had_one {
                self.recorded.insert(format!("{name} went while enabled"), (uid.clone(), -1, String::new()));
            }
        } else {
            self.objects.keys.insert(name, Arc::new(Stored::Valid(key)));
        }
    }

    fn put_subuser(&mut self, mut subuser: Subuser) {
        self.counter += 1;
        subuser.metadata.resource_version = Some(self.counter.to_string());
        let name = subuser.name_any();
        if subuser.metadata.deletion_timestamp.is_some() && subuser.finalizers().is_empty() {
            self.objects.subusers.remove(&name);
        } else {
            self.objects.subusers.insert(name, Rc::new(Stored::Valid(subuser)));
        }
    }

    fn put_secret(&mut self, mut secret: PairSecret) {
        self.counter += 1;
        secret.metadata.resource_version = Some(self.counter.to_string());
        self.objects.secrets.insert(secret.name_any(), Rc::new(secret));
    }

    fn note_pair(&mut self, key: &Stored<AccessKey>, secret: &PairSecret) {
        if let Some(pair) = key.valid().and_then(|key| secret.pair(key)) {
            self.made.insert((pair.id.to_string(), fingerprint(pair.secret.expose().as_bytes())));
        }
    }

    fn entropy(&self) -> Entropy {
        let mut bytes = Entropy::default();
        bytes.iter_mut().zip(self.counter.to_be_bytes()).for_each(|(byte, digit)| *byte = digit);
        bytes
    }

    /// Whether an enabled key was let go.
    pub fn enabled_key_went(&self) -> Option<&String> {
        self.recorded.iter().find(|(_, (_, revision, _))| *revision == -1).map(|(what, _)| what)
    }
}

fn key_spec(shape: KeyShape, name: &str) -> AccessKeySpec {
    let name = if shape.shared_secret { "shared" } else { name };
    serde_json::from_value(serde_json::json!({
        "subuserRef": { "name": subuser_name(shape.subuser) },
        "role": shape.role.then_some("uploader"),
        "clusterQuota": shape.quota,
        "ttl": shape.ttl.map(|seconds| format!("{}s", u32::from(seconds) + 1)),
        "deletionPolicy": if shape.disable_first { "DisableFirst" } else { "RequireDisabled" },
        "secret": { "name": name, "formats": if shape.formats { vec!["AWS", "Token"] } else { vec![] } },
    }))
    .unwrap()
}

fn recorded_entry(key: &Stored<AccessKey>) -> Option<(String, i64)> {
    Some((key.meta().uid.clone()?, access_key::recorded_revision(key.valid()?)?))
}

/// The planted controller: it takes for held what the cache shows as issued, and grants itself what is free.
fn counted_from_cache(subuser: Stored<Subuser>, key: &Stored<AccessKey>, view: &Objects) -> Stored<Subuser> {
    let Stored::Valid(mut subuser) = subuser else { return subuser };
    let name = subuser.name_any();
    let issued =
        view.keys.values().filter(|key| key.subuser_name() == Some(&name)).filter_map(|key| recorded_entry(key));
    let mine = (key.meta().uid.clone().unwrap_or_default(), key.status().pending_revision.unwrap_or(1));
    let mut held: BTreeSet<_> = issued.collect();
    if held.len() < 2 {
        held.insert(mine);
    }
    let entry = |(uid, revision)| KeyEntry { access_key: String::new(), uid, revision, cluster_quota: 0 };
    subuser.status.get_or_insert_default().keys = Some(held.into_iter().map(entry).collect());
    Stored::Valid(subuser)
}

fn ready_reason(key: &AccessKey) -> String {
    let conditions = key.status.iter().flat_map(|status| &status.conditions);
    conditions.filter(|condition| condition.type_ == "Ready").map(|condition| condition.reason.clone()).collect()
}

fn work_left(work: &Work) -> usize {
    match work {
        Work::Key { writes, .. } => writes.len(),
        Work::Subuser { writes, .. } => writes.len(),
    }
}

fn same_version(one: &impl Resource, other: &impl Resource) -> bool {
    one.meta().uid == other.meta().uid && one.meta().resource_version == other.meta().resource_version
}

fn add_finalizer(meta: &mut ObjectMeta) {
    meta.finalizers.get_or_insert_default().push(FINALIZER.into());
}

fn remove_finalizer(meta: &mut ObjectMeta) {
    meta.finalizers = None;
}

fn bump_generation(meta: &mut ObjectMeta) {
    meta.generation = meta.generation.map(|generation| generation + 1);
}

fn key_name(n: u8) -> String {
    format!("key-{n}")
}

fn subuser_name(n: u8) -> String {
    format!("subuser-{n}")
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> Violation) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

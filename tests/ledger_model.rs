//! The protocol by which AccessKeys get, swap and give back the two key slots of their Subuser, as a model that is
//! explored in every order of events.
//!
//! Two objects meet. The Subuser's `status.keys` is the **ledger**: it grants a place to a pair, named by AccessKey and
//! revision. The **status of the AccessKey** records the pair that was made, and authenticators go by what is
//! recorded. Replicas act at once, each from caches that may be late, and each may crash between any two writes. Five
//! rules keep a Subuser at two credentials all the same:
//!
//! 1. A key asks by a revision that only ever grows: one that was given up never comes back.
//! 2. The ledger is written with the version that it was decided from; on a conflict it is decided anew.
//! 3. A place is withdrawn only after a live read has shown that its pair is not wanted. By rule 1 that can never turn
//!    wrong again, and that is what makes a late cache harmless.
//! 4. Once granted, a pair is written to its Secret and then recorded, with the version that was decided from. One that
//!    is found in the Secret without a record may be in somebody's hands: the next revision is asked for instead.
//! 5. A key goes only when its disabling was committed: first its Secret, then its finalizer.
//!
//! `src/core/{ledger,subuser,access_key}.rs` keep to this; rotation, cancelling one and the overlap (`previous`) are
//! modelled ahead of them. Each [`Mistake`] breaks a rule, and the last test shows that the model notices.
//!
//! Out of scope: a missing ledger and a wiped status, which are rebuilt from what else there is; quotas, expiry and the
//! bytes of a Secret; and whether replicas that outbid each other come to an end, which is why revisions are bounded
//! here. A late view of a Secret is no part of it either: each write of one carries the version that it replaces, and
//! giving a pair up for nothing costs no more than a revision.
#![allow(clippy::indexing_slicing, clippy::print_stderr, reason = "a test, which indexes its own arrays")]

use std::{collections::BTreeSet, time::Instant};

use stateright::{Checker, Expectation, HasDiscoveries, Model, Property};

/// Places in the ledger of a Subuser.
const SLOTS: u32 = 2;

/// Room for keys, the oldest first, and for revisions of each; a configuration may use less.
const KEYS: usize = 3;
const REVISIONS: usize = 3;

/// Counts the pairs that a key has asked for, from 1.
type Revision = u8;
const NONE: Revision = 0;

/// A set of pairs, each a bit, the oldest key's first: see [`entry`]. In the API it is a list-map on uid and revision.
type Entries = u16;

/// A configuration: how many there are of each, and which rule is broken. Below, `r` is one of the replicas and `k` one
/// of the keys.
#[derive(Clone, Copy)]
struct Protocol {
    replicas: usize,
    keys: usize,
    revisions: Revision,
    chances: Chances,
    mistake: Option<Mistake>,
}

/// How often something may yet happen that nobody has to do. Neither crashes nor cancellations need such a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Chances {
    rotations: u8,
    losses: u8,
    deletions: u8,
    /// A person enables a key again that is on its way out.
    enablings: u8,
}

/// Everything that the API server stores, and what each replica knows of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    ledger: Entries,
    keys: [Key; KEYS],
    secrets: [Option<Pair>; KEYS],
    replicas: Vec<Replica>,
    chances: Chances,
    /// By key and revision the draw that was recorded first: what authenticators have been told.
    told: [[u8; REVISIONS + 1]; KEYS],
}

/// An AccessKey: those fields that the protocol rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key {
    life: Life,
    /// `spec.enabled`
    enabled: bool,
    /// `status.lastRevision`: never falls.
    last: Revision,
    /// `status.pendingRevision`: asked for, not recorded yet.
    pending: Revision,
    /// `status.revision` and `fingerprint`: recorded.
    current: Option<Pair>,
    /// `status.previous.revision`: still accepted, during the overlap of a rotation.
    previous: Revision,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Life {
    NotYet,
    Alive,
    Deleting,
    Gone,
}

/// The revision stands for the id, the number of the draw for the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Pair {
    revision: Revision,
    draw: u8,
}

/// A running operator. It works on many AccessKeys at once, but never twice at once on the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Replica {
    ledger: Sight<Entries>,
    keys: [Sight<Key>; KEYS],
    /// Entries that a live read has shown to be wanted no longer.
    departed: Entries,
    /// Pairs that are in their Secret and are recorded next.
    made: [Option<Pair>; KEYS],
}

/// What a cache has of an object. A stale one may look like the live one, but no write with its version is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Sight<T> {
    Live,
    Stale(T),
}

/// A rule broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    /// A rotation after a cancelled one asks for the same revision again.
    RevisionReused,
    /// A lost Secret is filled again under the same id.
    ReissueUnderSameId,
    /// After a conflict the same entries are sent with the newer version.
    ResendOnNewer,
    /// What is free is counted by recorded pairs instead of entries.
    GrantFromCount,
    /// A place is withdrawn because the cache shows no need of it.
    WithdrawOnCache,
    /// A key that is being deleted counts as gone.
    WithdrawFromDeleting,
    /// The record does not carry the version that was decided from.
    RecordWithoutVersion,
    /// A pair without a record is replaced under the same id.
    RewriteUnrecorded,
    /// A pair without a record is left to whoever made it.
    WaitForRecord,
    /// An enabled key is let go.
    FinalizeWithoutDisable,
    /// The removal of the finalizer does not carry the version that was decided from.
    FinalizeWithoutVersion,
}

/// The Subuser controller: who holds a place.
impl Protocol {
    /// What a replica has to do about the ledger. Rule 2: a stale one is good for nothing but a conflict. Rule 3: what
    /// the cached keys do not stand behind is suspect, and a live read tells.
    fn subuser_duties(&self, r: usize, steps: &mut Steps) {
        let replica = &steps.world.replicas[r];
        if replica.ledger != Sight::Live {
            steps.add("hear of the ledger", r, 0, |world| world.replicas[r].hear_of_ledger(world.ledger));
            if !self.makes(Mistake::ResendOnNewer) {
                return;
            }
        }
        let suspects = replica.held(steps.world) & !union(replica.sees(steps.world), Key::wants) & !replica.departed;
        if suspects != 0 {
            let departed = suspects & !union(steps.world.keys, |key, k| self.wanted_live(key, k));
            steps.add("read live", r, 0, |world| world.replicas[r].departed |= departed);
        }
        let settlement = self.settlement(steps.world, r);
        if settlement != steps.world.ledger {
            steps.add("settle", r, 0, |world| world.store_ledger(r, settlement));
        }
    }

    /// The ledger as a replica would have it: without what has departed, and with what is free granted to recorded
    /// pairs first, since they are credentials without an entry, and then to new ones.
    fn settlement(&self, world: &World, r: usize) -> Entries {
        let replica = &world.replicas[r];
        let seen = replica.sees(world);
        let recorded = union(seen, Key::recorded);
        let stays = if self.makes(Mistake::WithdrawOnCache) { union(seen, Key::wants) } else { !replica.departed };
        let kept = replica.held(world) & stays;
        let taken = if self.makes(Mistake::GrantFromCount) { recorded } else { kept };
        let free = SLOTS.saturating_sub(taken.count_ones());
        let restored = oldest(recorded & !kept, free);
        let granted = oldest(union(seen, Key::asks) & !kept, free - restored.count_ones());
        kept | restored | granted
    }

    fn wanted_live(&self, key: Key, k: usize) -> Entries {
        let ignored = self.makes(Mistake::WithdrawFromDeleting) && key.life == Life::Deleting;
        if ignored { 0 } else { key.wants(k) }
    }
}

/// The AccessKey controller: makes pairs, records them, lets keys go.
impl Protocol {
    /// What a replica has to do about a key; rule 5 for one that is being deleted.
    fn key_duties(&self, r: usize, k: usize, steps: &mut Steps) {
        let (world, replica) = (steps.world, &steps.world.replicas[r]);
        let key = replica.sees(world)[k];
        if replica.keys[k] != Sight::Live {
            steps.add("hear of the key", r, k, |world| world.replicas[r].keys[k] = Sight::Live);
        }
        if replica.made[k].is_some() {
            return steps.add("record", r, k, |world| self.record(world, r, k));
        }
        match key.life {
            Life::NotYet | Life::Gone => {}
            Life::Alive => self.pursue(r, k, key, steps),
            Life::Deleting if key.enabled && !self.makes(Mistake::FinalizeWithoutDisable) => {
                steps.update("disable", r, k, Key { enabled: false, ..key });
            }
            Life::Deleting if world.secrets[k].is_some() => {
                steps.add("delete the Secret", r, k, |world| world.secrets[k] = None);
            }
            Life::Deleting if self.makes(Mistake::FinalizeWithoutVersion) => {
                let gone = Key { enabled: world.keys[k].enabled, ..Key::GONE };
                steps.add("remove the finalizer", r, k, |world| self.store_key(world, Some(r), k, gone));
            }
            Life::Deleting => steps.update("remove the finalizer", r, k, Key { enabled: key.enabled, ..Key::GONE }),
        }
    }

    /// Rules 1 and 4, for a key that is to stay.
    fn pursue(&self, r: usize, k: usize, key: Key, steps: &mut Steps) {
        let world = steps.world;
        let spent = world.is_spent(k, key);
        let granted = world.replicas[r].held(world) & entry(k, key.pending) != 0;
        if granted && (!spent || self.makes(Mistake::RewriteUnrecorded)) {
            steps.add("write the Secret", r, k, |world| self.write_secret(world, r, k, key.pending));
        }
        let more = key.last < self.revisions;
        let asks_next = Key { last: key.last + 1, pending: key.last + 1, ..key };
        if more && spent && !self.makes(Mistake::WaitForRecord) {
            steps.update("ask for the next", r, k, asks_next);
        }
        if more && world.is_lost(k, key) {
            let again = self.makes(Mistake::ReissueUnderSameId);
            let asks = if again { Key { pending: revision(key.current), ..key } } else { asks_next };
            steps.update("reissue", r, k, Key { current: None, previous: NONE, ..asks });
        }
        if key.previous != NONE {
            steps.update("end the overlap", r, k, Key { previous: NONE, ..key });
        }
    }

    /// Draws a secret that is found nowhere else. A pair made from a stale key is in the Secret, but is never recorded;
    /// the Secret of a key that is gone is garbage, and collected.
    fn write_secret(&self, world: &mut World, r: usize, k: usize, revision: Revision) {
        let known = |pair| {
            let made = world.replicas.iter().any(|replica| replica.made[k] == Some(pair));
            made || world.secrets[k] == Some(pair) || world.told[k][usize::from(revision)] == pair.draw
        };
        let pair = (1..u8::MAX).map(|draw| Pair { revision, draw }).find(|pair| !known(*pair));
        let recordable = world.replicas[r].keys[k] == Sight::Live || self.makes(Mistake::RecordWithoutVersion);
        world.replicas[r].made[k] = pair.filter(|_| recordable);
        world.secrets[k] = pair.filter(|_| world.keys[k].exists());
    }

    fn record(&self, world: &mut World, r: usize, k: usize) {
        let key = world.keys[k];
        if let Some(pair) = world.replicas[r].made[k].take().filter(|_| key.exists()) {
            let told = &mut world.told[k][usize::from(pair.revision)];
            *told = if *told == 0 { pair.draw } else { *told };
            let recorded = Key { current: Some(pair), previous: revision(key.current), pending: NONE, ..key };
            self.store_key(world, Some(r), k, recorded);
        }
    }
}

/// What may happen, but need not.
impl Protocol {
    fn key_chances(&self, r: usize, k: usize, steps: &mut Steps) {
        let (key, chances) = (steps.world.replicas[r].sees(steps.world)[k], steps.world.chances);
        let issued = key.life == Life::Alive && key.current.is_some();
        let last = if self.makes(Mistake::RevisionReused) { revision(key.current) } else { key.last };
        if steps.world.replicas[r].made[k].is_some() {
            steps.add("crash before the record", r, k, |world| world.replicas[r].made[k] = None);
        } else if issued && key.pending != NONE {
            steps.update("cancel the rotation", r, k, Key { pending: NONE, ..key });
        } else if issued && key.previous == NONE && last < self.revisions && chances.rotations > 0 {
            let chances = Chances { rotations: chances.rotations - 1, ..chances };
            let asking = Key { last: key.last.max(last + 1), pending: last + 1, ..key };
            steps.write("rotate", Some(r), k, asking, chances);
        }
    }

    fn people(k: usize, steps: &mut Steps) {
        let (key, chances) = (steps.world.keys[k], steps.world.chances);
        if key.life == Life::NotYet && (k == 0 || steps.world.keys[k - 1].life != Life::NotYet) {
            steps.write("create", None, k, Key::CREATED, chances);
        }
        if key.life == Life::Alive && chances.deletions > 0 {
            let chances = Chances { deletions: chances.deletions - 1, ..chances };
            steps.write("delete", None, k, Key { life: Life::Deleting, ..key }, chances);
        }
        if key.life == Life::Deleting && !key.enabled && chances.enablings > 0 {
            let chances = Chances { enablings: chances.enablings - 1, ..chances };
            steps.write("enable again", None, k, Key { enabled: true, ..key }, chances);
        }
        if key.exists() && steps.world.secrets[k].is_some() && chances.losses > 0 {
            steps.add("lose the Secret", 0, k, |world| {
                world.chances.losses -= 1;
                world.secrets[k] = None;
            });
        }
    }

    /// Gives a key a new version, which a replica that wrote it has from the answer. A record decided from the one
    /// before is bound to be refused, so it is dropped now.
    fn store_key(&self, world: &mut World, by: Option<usize>, k: usize, key: Key) {
        let before = std::mem::replace(&mut world.keys[k], key);
        for replica in &mut world.replicas {
            replica.keys[k].outdate(before);
            if !self.makes(Mistake::RecordWithoutVersion) {
                replica.made[k] = None;
            }
        }
        if let Some(r) = by {
            world.replicas[r].keys[k] = Sight::Live;
        }
        if key.life == Life::Gone {
            (world.secrets[k], world.told[k]) = (None, [0; REVISIONS + 1]);
        }
    }

    fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }
}

impl World {
    fn store_ledger(&mut self, by: usize, entries: Entries) {
        let before = std::mem::replace(&mut self.ledger, entries);
        self.replicas.iter_mut().for_each(|replica| replica.ledger.outdate(before));
        self.replicas[by].hear_of_ledger(entries);
    }

    /// Whether the pending pair, or a later one, is in the Secret already.
    fn is_spent(&self, k: usize, key: Key) -> bool {
        key.pending != NONE && revision(self.secrets[k]) >= key.pending
    }

    /// Whether the recorded pair is not in the Secret, and no pending one about to come there.
    fn is_lost(&self, k: usize, key: Key) -> bool {
        let kept = key.pending != NONE && self.secrets[k].is_some();
        key.current.is_some() && self.secrets[k] != key.current && !kept
    }

    /// Whether authenticators have been told of `pair`, if they have been told of its id at all.
    fn agrees(&self, k: usize, pair: Option<Pair>) -> bool {
        pair.is_none_or(|pair| [0, pair.draw].contains(&self.told[k][usize::from(pair.revision)]))
    }

    fn credentials(&self) -> Entries {
        union(self.keys, Key::recorded)
    }
}

impl Key {
    const GONE: Self =
        Self { life: Life::Gone, enabled: true, last: NONE, pending: NONE, current: None, previous: NONE };

    /// Without a status it asks for its first pair all the same. Its finalizer is there before anything else happens.
    const CREATED: Self = Self { life: Life::Alive, last: 1, pending: 1, ..Self::GONE };

    fn exists(self) -> bool {
        self.life == Life::Alive || self.life == Life::Deleting
    }

    /// Its credentials, which they are while it is disabled or being deleted, too.
    fn recorded(self, k: usize) -> Entries {
        entry(k, revision(self.current)) | entry(k, self.previous)
    }

    /// The pairs whose places must not be taken from it.
    fn wants(self, k: usize) -> Entries {
        self.recorded(k) | entry(k, self.pending)
    }

    /// The pair that it wants a place for, if it is to stay.
    fn asks(self, k: usize) -> Entries {
        if self.life == Life::Alive { entry(k, self.pending) } else { 0 }
    }
}

impl Replica {
    const STARTED: Self = Self { ledger: Sight::Live, keys: [Sight::Live; KEYS], departed: 0, made: [None; KEYS] };

    fn held(&self, world: &World) -> Entries {
        self.ledger.or(world.ledger)
    }

    fn sees(&self, world: &World) -> [Key; KEYS] {
        [0, 1, 2].map(|k| self.keys[k].or(world.keys[k]))
    }

    fn hear_of_ledger(&mut self, entries: Entries) {
        self.ledger = Sight::Live;
        self.departed &= entries;
    }
}

impl<T: Copy> Sight<T> {
    fn or(self, live: T) -> T {
        match self {
            Self::Live => live,
            Self::Stale(seen) => seen,
        }
    }

    fn outdate(&mut self, before: T) {
        *self = Self::Stale(self.or(before));
    }
}

fn revision(pair: Option<Pair>) -> Revision {
    pair.map_or(NONE, |pair| pair.revision)
}

fn entry(k: usize, revision: Revision) -> Entries {
    if revision == NONE { 0 } else { 1 << (k * REVISIONS + usize::from(revision) - 1) }
}

fn union(keys: [Key; KEYS], of: impl Fn(Key, usize) -> Entries) -> Entries {
    of(keys[0], 0) | of(keys[1], 1) | of(keys[2], 2)
}

fn oldest(entries: Entries, count: u32) -> Entries {
    let younger = (0..count).fold(entries, |rest, _| rest & rest.wrapping_sub(1));
    entries & !younger
}

/// Something that may happen, and the world after it. Where no replica or no single key is meant, it says 0.
#[derive(Clone, PartialEq)]
struct Step {
    what: &'static str,
    r: usize,
    k: usize,
    after: World,
}

/// What may happen next in a world.
struct Steps<'a> {
    protocol: &'a Protocol,
    world: &'a World,
    found: &'a mut Vec<Step>,
}

impl Steps<'_> {
    fn add(&mut self, what: &'static str, r: usize, k: usize, change: impl FnOnce(&mut World)) {
        let mut after = self.world.clone();
        change(&mut after);
        // Replicas are alike: told apart only by what they know, there are half as many worlds.
        after.replicas.sort_unstable();
        self.found.push(Step { what, r, k, after });
    }

    /// A write of a key by a replica, which sends the version that it sees: a stale one is refused. Or by a person.
    fn write(&mut self, what: &'static str, by: Option<usize>, k: usize, key: Key, chances: Chances) {
        if by.is_none_or(|r| self.world.replicas[r].keys[k] == Sight::Live) {
            let protocol = self.protocol;
            self.add(what, by.unwrap_or(0), k, |world| {
                world.chances = chances;
                protocol.store_key(world, by, k, key);
            });
        }
    }

    fn update(&mut self, what: &'static str, r: usize, k: usize, key: Key) {
        self.write(what, Some(r), k, key, self.world.chances);
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            ledger: 0,
            keys: [Key { life: Life::NotYet, ..Key::GONE }; KEYS],
            secrets: [None; KEYS],
            replicas: vec![Replica::STARTED; self.replicas],
            chances: self.chances,
            told: [[0; REVISIONS + 1]; KEYS],
        }]
    }

    fn actions(&self, world: &World, found: &mut Vec<Step>) {
        let mut steps = Steps { protocol: self, world, found };
        for k in 0..self.keys {
            Self::people(k, &mut steps);
            (0..self.replicas).for_each(|r| self.key_chances(r, k, &mut steps));
        }
        self.duties(&mut steps);
    }

    fn next_state(&self, _: &World, step: Step) -> Option<World> {
        Some(step.after)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let promises = PROMISES.iter().map(|(name, kept)| Property::always(name, *kept));
        promises.chain(SIGHTS.iter().map(|(name, seen)| Property::sometimes(name, *seen))).collect()
    }
}

type Claim = fn(&Protocol, &World) -> bool;

/// What is true of every world.
const PROMISES: &[(&str, Claim)] = &[
    (AT_MOST_TWO, |_, world| world.credentials().count_ones() <= SLOTS),
    (GRANTED, |_, world| world.credentials() & !world.ledger == 0),
    (ID_KEPT, |_, world| (0..KEYS).all(|k| world.agrees(k, world.keys[k].current))),
    (SECRET_KEPT, |protocol, world| {
        let none_lost = world.chances.losses == protocol.chances.losses;
        !none_lost || (0..KEYS).all(|k| world.keys[k].life != Life::Alive || world.agrees(k, world.secrets[k]))
    }),
    (DISABLED_FIRST, |_, world| world.keys.iter().all(|key| key.life != Life::Gone || !key.enabled)),
    (ALL_SERVED, |protocol, world| !protocol.is_at_rest(world) || protocol.all_served(world)),
];
const AT_MOST_TWO: &str = "a Subuser has at most two credentials";
const GRANTED: &str = "every credential has its entry in the ledger";
const ID_KEPT: &str = "the secret of an id never changes";
const SECRET_KEPT: &str = "while no Secret is lost, none holds another pair than was recorded of its id";
const DISABLED_FIRST: &str = "a key is gone only after its disabling was committed";
const ALL_SERVED: &str = "nothing is left half-way";

/// What is true of some world, if the configuration lets it come so far.
const SIGHTS: &[(&str, Claim)] = &[
    (AT_REST, Protocol::is_at_rest),
    (PLACE_FREED, |_, world| world.keys[0].life == Life::Gone && world.credentials().count_ones() == SLOTS),
    (PASSED_OVER, |_, world| world.told.iter().any(|told| told[1] == 0 && told[2] != 0)),
    (REPLACED, |_, world| world.told.iter().any(|told| told[1] != 0 && told[2] != 0)),
    (OVERLAP, |_, world| world.keys.iter().any(|key| key.previous != NONE)),
];
const AT_REST: &str = "nothing is left to do";
const PLACE_FREED: &str = "others have the places of a key that is gone";
const PASSED_OVER: &str = "a pair without a record is passed over";
const REPLACED: &str = "a recorded pair has a successor";
const OVERLAP: &str = "two pairs of a key overlap";

impl Protocol {
    fn duties(&self, steps: &mut Steps) {
        for r in 0..self.replicas {
            self.subuser_duties(r, steps);
            (0..self.keys).for_each(|k| self.key_duties(r, k, steps));
        }
    }

    fn is_at_rest(&self, world: &World) -> bool {
        // Far cheaper than the rest, and false of most worlds.
        if world.replicas.iter().any(|replica| replica.ledger != Sight::Live || replica.keys != [Sight::Live; KEYS]) {
            return false;
        }
        let mut found = vec![];
        self.duties(&mut Steps { protocol: self, world, found: &mut found });
        found.is_empty()
    }

    /// No entry is there for nothing; each key has its pair in its Secret, waits for a place, or is out of revisions.
    fn all_served(&self, world: &World) -> bool {
        let served = |k: usize| {
            let key = world.keys[k];
            let ready = key.pending == NONE && world.secrets[k] == key.current;
            let waits = key.pending != NONE && !world.is_spent(k, key) && world.ledger.count_ones() == SLOTS;
            let stuck = key.last == self.revisions && (world.is_spent(k, key) || world.is_lost(k, key));
            !key.exists() || key.life == Life::Alive && (ready || waits || stuck)
        };
        world.ledger & !union(world.keys, Key::wants) == 0 && (0..KEYS).all(served)
    }
}

/// Explores a configuration to its end, as no bound is set: every promise is kept in every world, and of the sights
/// just these are seen.
fn check(protocol: Protocol, seen: &[&str]) {
    let start = Instant::now();
    let checker = protocol.checker().spawn_bfs().join();
    let (worlds, time) = (checker.unique_state_count(), start.elapsed().as_secs_f64());
    eprintln!("{worlds:>9} worlds {time:>5.1} s  {}", std::thread::current().name().unwrap_or_default());
    assert!(checker.is_done());
    for Property { expectation, name, .. } in protocol.properties() {
        let steps = checker.discovery(name).map(stateright::Path::into_actions);
        let expected = expectation == Expectation::Sometimes && seen.contains(&name);
        assert_eq!(steps.is_some(), expected, "{name}: {}", story(&steps.unwrap_or_default()));
    }
}

fn story(steps: &[Step]) -> String {
    steps.iter().fold(String::new(), |told, Step { what, r, k, .. }| format!("{told}\n  {what} (replica {r}, key {k})"))
}

const NOTHING: Chances = Chances { rotations: 0, losses: 0, deletions: 0, enablings: 0 };
const ANYTHING: Chances = Chances { rotations: 2, losses: 1, deletions: 1, enablings: 1 };
const A_DELETION: Chances = Chances { deletions: 1, ..NOTHING };
const ONE_KEY: Protocol = Protocol { replicas: 2, keys: 1, revisions: 3, chances: ANYTHING, mistake: None };
const TWO_KEYS: Protocol = Protocol { keys: 2, chances: Chances { rotations: 2, ..NOTHING }, ..ONE_KEY };
const THREE_KEYS: Protocol = Protocol { keys: 3, revisions: 2, chances: NOTHING, ..ONE_KEY };

#[test]
fn two_replicas_and_everything_that_can_happen_to_one_key() {
    check(ONE_KEY, &[AT_REST, PASSED_OVER, REPLACED, OVERLAP]);
}

#[test]
fn two_replicas_rotate_two_keys_and_cancel_it() {
    check(TWO_KEYS, &[AT_REST, PASSED_OVER, REPLACED, OVERLAP]);
}

#[test]
fn two_replicas_rotate_with_the_place_of_a_key_that_is_gone() {
    let protocol = Protocol { revisions: 2, chances: Chances { rotations: 1, ..A_DELETION }, ..TWO_KEYS };
    check(protocol, &[AT_REST, PLACE_FREED, PASSED_OVER, REPLACED, OVERLAP]);
}

#[test]
fn two_replicas_outbid_each_other_for_three_keys() {
    check(THREE_KEYS, &[AT_REST, PASSED_OVER]);
}

#[test]
fn two_replicas_give_a_third_key_the_place_of_one_that_is_gone() {
    check(Protocol { revisions: 1, chances: A_DELETION, ..THREE_KEYS }, &[AT_REST, PLACE_FREED]);
}

#[test]
fn three_replicas_rotate_and_delete_one_key() {
    let protocol = Protocol { replicas: 3, revisions: 2, chances: Chances { rotations: 1, ..A_DELETION }, ..ONE_KEY };
    check(protocol, &[AT_REST, PASSED_OVER, REPLACED, OVERLAP]);
}

#[test]
fn one_replica_and_everything_that_can_happen_to_three_keys() {
    let protocol = Protocol { replicas: 1, chances: ANYTHING, ..THREE_KEYS };
    check(protocol, &[AT_REST, PLACE_FREED, PASSED_OVER, REPLACED, OVERLAP]);
}

#[test]
fn every_mistake_breaks_a_promise() {
    for (mistake, protocol, promise) in [
        (Mistake::RevisionReused, TWO_KEYS, AT_MOST_TWO),
        (Mistake::ReissueUnderSameId, ONE_KEY, ID_KEPT),
        (Mistake::ResendOnNewer, TWO_KEYS, AT_MOST_TWO),
        (Mistake::GrantFromCount, TWO_KEYS, AT_MOST_TWO),
        (Mistake::WithdrawOnCache, TWO_KEYS, AT_MOST_TWO),
        (Mistake::WithdrawFromDeleting, ONE_KEY, GRANTED),
        (Mistake::RecordWithoutVersion, TWO_KEYS, AT_MOST_TWO),
        (Mistake::RewriteUnrecorded, TWO_KEYS, SECRET_KEPT),
        (Mistake::WaitForRecord, TWO_KEYS, ALL_SERVED),
        (Mistake::FinalizeWithoutDisable, ONE_KEY, DISABLED_FIRST),
        (Mistake::FinalizeWithoutVersion, ONE_KEY, DISABLED_FIRST),
    ] {
        let found = HasDiscoveries::AnyOf(BTreeSet::from([promise]));
        let checker = Protocol { mistake: Some(mistake), ..protocol }.checker().finish_when(found).spawn_bfs().join();
        let steps = checker.discovery(promise).unwrap_or_else(|| panic!("{mistake:?} goes unnoticed")).into_actions();
        let worlds = checker.unique_state_count();
        eprintln!("{worlds:>9} worlds {:>3} steps  {mistake:?} breaks \"{promise}\"", steps.len());
    }
}

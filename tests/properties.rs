//! What must hold whatever users do and whenever replicas crash: in many simulated worlds, with views as old as they like.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test may")]

mod world;

use proptest::{
    prelude::*,
    sample::select,
    test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner},
};
use world::{Deed, KeyShape, Plant, SubuserShape, Violation, World};

const KEYS: u8 = 4;
const SUBUSERS: u8 = 2;

fn key_shape() -> impl Strategy<Value = KeyShape> {
    let subuser = prop_oneof![4 => Just(0), 1 => 0..SUBUSERS];
    let rare = || prop_oneof![5 => Just(false), 1 => Just(true)];
    let quota = prop_oneof![3 => Just(None), 1 => (0..4_u8).prop_map(Some)];
    let ttl = prop_oneof![3 => Just(None), 1 => (0..5000_u16).prop_map(Some)];
    (subuser, rare(), quota, ttl, rare(), rare(), rare()).prop_map(
        |(subuser, role, quota, ttl, shared_secret, disable_first, formats)| KeyShape {
            subuser,
            role,
            quota,
            ttl,
            shared_secret,
            disable_first,
            formats,
        },
    )
}

fn subuser_shape() -> impl Strategy<Value = SubuserShape> {
    let quota = prop_oneof![Just(None), (0..5_u8).prop_map(Some)];
    (any::<bool>(), any::<bool>(), quota).prop_map(|(roles, limited, quota)| SubuserShape { roles, limited, quota })
}

/// How old a replica's views of Subusers, keys and Secrets are.
fn ages() -> [impl Strategy<Value = u8>; 3] {
    [(); 3].map(|()| prop_oneof![2 => Just(0_u8), 1 => 0..8_u8])
}

/// What replicas do.
fn replica_deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        30 => (0..KEYS, ages()).prop_map(|(n, ages)| Deed::LookAtKey(n, ages)),
        20 => (prop_oneof![4 => Just(0), 1 => 0..SUBUSERS], ages()).prop_map(|(n, ages)| Deed::LookAtSubuser(n, ages)),
        50 => (0..6_u8).prop_map(Deed::Proceed),
        3 => Just(Deed::Crash),
    ]
}

/// What replicas and users do.
fn deed() -> impl Strategy<Value = Deed> {
    let key = || 0..KEYS;
    prop_oneof![
        103 => replica_deed(),
        8 => (key(), key_shape()).prop_map(|(n, shape)| Deed::CreateKey(n, shape)),
        4 => (0..SUBUSERS, subuser_shape()).prop_map(|(n, shape)| Deed::CreateSubuser(n, shape)),
        6 => (key(), prop_oneof![3 => Just(false), 1 => Just(true)]).prop_map(|(n, on)| Deed::EnableKey(n, on)),
        1 => (0..SUBUSERS, any::<bool>()).prop_map(|(n, on)| Deed::EnableSubuser(n, on)),
        2 => (key(), key_shape()).prop_map(|(n, shape)| Deed::ChangeKey(n, shape)),
        5 => key().prop_map(Deed::DeleteKey),
        1 => (0..SUBUSERS).prop_map(Deed::DeleteSubuser),
        2 => key().prop_map(Deed::DeleteSecret),
        1 => key().prop_map(Deed::TamperSecret),
        1 => key().prop_map(Deed::StrayForeignSecret),
        1 => key().prop_map(Deed::RemoveForeignSecret),
        1 => key().prop_map(Deed::StripOwner),
        1 => key().prop_map(Deed::StripFinalizer),
        1 => key().prop_map(Deed::Revoke),
        3 => select(vec![1_u16, 20, 300, 3000]).prop_map(Deed::Wait),
    ]
}

/// Deeds that begin with a Subuser and some keys, as almost every story does.
fn story(length: usize) -> impl Strategy<Value = Vec<Deed>> {
    let start = (subuser_shape(), prop::collection::vec(key_shape(), 3));
    let rare_end = prop_oneof![9 => Just(None), 1 => Just(Some(Deed::EndNamespace))];
    (start, prop::collection::vec(deed(), length), rare_end).prop_map(|((subuser, keys), deeds, end)| {
        let keys = keys.into_iter().enumerate().map(|(n, shape)| Deed::CreateKey(u8::try_from(n).unwrap(), shape));
        let start = std::iter::once(Deed::CreateSubuser(0, subuser)).chain(keys);
        start.chain(deeds).chain(end).collect()
    })
}

/// Plays a story; what must always hold is checked after each deed.
fn play(deeds: &[Deed], plant: Plant) -> Result<World, Violation> {
    let mut world = World::new(plant);
    for deed in deeds {
        world.act(deed)?;
    }
    match world.enabled_key_went() {
        Some(what) => Err(what.clone()),
        None => Ok(world),
    }
}

/// Tries the same cases in each run, and returns what failed with the shortest story that shows it.
fn hunt<S: Strategy>(
    cases: u32,
    shrink: u32,
    stories: &S,
    holds: impl Fn(S::Value) -> Result<(), Violation>,
) -> Option<String> {
    let config = Config { cases, failure_persistence: None, max_shrink_iters: shrink, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    match runner.run(stories, |story| holds(story).map_err(TestCaseError::fail)) {
        Ok(()) => None,
        Err(TestError::Fail(reason, story)) => Some(format!("{reason}\n{story:?}")),
        Err(TestError::Abort(reason)) => Some(reason.to_string()),
    }
}

fn always<S: Strategy>(cases: u32, stories: &S, holds: impl Fn(S::Value) -> Result<(), Violation>) {
    if let Some(found) = hunt(cases, 5000, stories, holds) {
        panic!("{found}");
    }
}

#[test]
fn at_most_two_credentials_and_no_id_twice_whatever_happens_and_then_it_converges() {
    always(3000, &story(80), |deeds| play(&deeds, Plant::Nothing)?.converge());
}

#[test]
fn after_a_crash_at_every_prefix_of_every_plan_it_converges_to_an_empty_plan() {
    let worlds = std::cell::Cell::new(0);
    always(1500, &story(60), |deeds| {
        let mut world = World::new(Plant::Nothing);
        deeds.chunks(10).try_for_each(|chapter| {
            chapter.iter().try_for_each(|deed| world.act(deed))?;
            world.crashes().into_iter().try_for_each(|mut crashed| {
                worlds.set(worlds.get() + 1);
                crashed.converge()
            })
        })
    });
    println!("{} worlds", worlds.get());
}

#[test]
fn a_cleared_status_brings_no_id_back_and_a_cleared_ledger_no_third_credential() {
    let cleared = prop_oneof![(0..3_u8).prop_map(Deed::ClearKeyStatus), Just(Deed::ClearLedger(0))];
    let deeds = (story(40), cleared, prop::collection::vec(deed(), 50));
    always(1500, &deeds, |(before, cleared, after)| {
        let mut world = play(&before, Plant::Nothing)?;
        world.act(&cleared)?;
        after.iter().try_for_each(|deed| world.act(deed))?;
        world.converge()
    });
}

/// A planted mistake must break this very property; what else it breaks on the way does not count.
fn caught(plant: Plant, expected: &str) {
    let found = hunt(20_000, 0, &story(80), |deeds| match play(&deeds, plant).and_then(|mut world| world.converge()) {
        Err(violation) if violation.contains(expected) => Err(violation),
        Ok(()) | Err(_) => Ok(()),
    });
    let found = found.unwrap_or_else(|| panic!("{plant:?} breaks nothing"));
    println!("{plant:?}: {}", found.lines().next().unwrap_or_default());
}

#[test]
fn counting_from_the_cache_is_caught() {
    caught(Plant::CountFromCache, "more than two credentials");
}

#[test]
fn writing_without_preconditions_is_caught() {
    caught(Plant::NoPreconditions, "and is now");
}

#[test]
fn recording_before_the_secret_is_caught() {
    caught(Plant::StatusBeforeSecret, "before any Secret held it");
}

#[test]
fn adopting_by_name_is_caught() {
    caught(Plant::AdoptByName, "foreign Secret");
}

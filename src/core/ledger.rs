//! Who holds the few places there are.
//!
//! A ledger is a short list in an object's status, one entry for each place taken. This module decides who gets a
//! place; it neither reads nor writes. A settlement is true of exactly the version of the object that `held` was
//! read from, so whoever stores it must send that resourceVersion, and on a conflict settle anew from the newer
//! object. Sending the same entries again on a newer version is the bug that lets one claimant take two places.

use std::collections::BTreeSet;

/// A place taken, as it is stored.
pub trait Place {
    /// Who holds it: never reused, so that what was once proven of it stays true.
    type Holder: Ord + Clone;

    /// Who holds it.
    fn holder(&self) -> Self::Holder;
}

/// Somebody who wants a place. Ordered so that every replica serves the same one first: who was recorded as holding
/// one, then by age, then by name, which among those that came in one second is at least what people expect.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// Not yet recorded as a holder.
    pub new: bool,
    /// Seconds since the epoch: `metadata.creationTimestamp`.
    pub created: i64,
    /// `metadata.name`.
    pub name: String,
}

/// Gives free places to claims, best rank first, and returns who holds one then.
///
/// `departed` names the holders that a live read has shown to want their place no longer; nothing else frees one,
/// because a cache that has not heard of a claimant yet looks just like one whose claimant has left. `fits` says
/// whether the places taken so far leave room for one more; a claim that does not fit waits and lets others pass.
pub fn settle<P: Place>(
    held: Vec<P>,
    departed: &BTreeSet<P::Holder>,
    mut claims: Vec<(Rank, P)>,
    fits: impl Fn(&[P], &P) -> bool,
) -> Vec<P> {
    let mut places: Vec<P> = held.into_iter().filter(|place| !departed.contains(&place.holder())).collect();
    claims.sort_by(|(one, _), (other, _)| one.cmp(other));
    for (_, claim) in claims {
        let holds_one = places.iter().any(|place| place.holder() == claim.holder());
        if !holds_one && fits(&places, &claim) {
            places.push(claim);
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Named(String);

    impl Place for Named {
        type Holder = String;
        fn holder(&self) -> String {
            self.0.clone()
        }
    }

    /// `"a b"` held, `"b"` departed, `"c@2 d@1 e*3"` claiming (name@age, * if it was recorded as a holder).
    fn check(held: &str, departed: &str, claims: &str, expected: &str) {
        let claim = |text: &str| {
            let (name, age) = text.split_once(['@', '*']).unwrap();
            let rank = Rank { new: text.contains('@'), created: age.parse().unwrap(), name: name.into() };
            (rank, Named(name.into()))
        };
        let settled = settle(
            held.split_whitespace().map(|name| Named(name.into())).collect(),
            &departed.split_whitespace().map(str::to_owned).collect(),
            claims.split_whitespace().map(claim).collect(),
            |places, claim| places.len() < 2 && claim.0 != "unfit",
        );
        let found: Vec<&str> = settled.iter().map(|place| place.0.as_str()).collect();
        assert_eq!(found.join(" "), expected, "held {held:?}, departed {departed:?}, claims {claims:?}");
    }

    #[test]
    fn oldest_first_and_never_a_third() {
        check("", "", "b@2 a@1 c@3", "a b");
        check("z", "", "b@2 a@1", "z a");
        check("y z", "", "a@1", "y z");
    }

    #[test]
    fn same_age_is_decided_by_name() {
        check("z", "", "b@1 a@1", "z a");
    }

    #[test]
    fn recorded_before_new() {
        check("", "", "a@1 b@2 c*9", "c a");
    }

    #[test]
    fn a_holder_keeps_one_place_however_often_it_asks() {
        check("a", "", "a@1 a@1 b@2", "a b");
    }

    #[test]
    fn only_a_proven_departure_frees_a_place() {
        check("a b", "", "c@1", "a b");
        check("a b", "b", "c@1", "a c");
    }

    #[test]
    fn over_capacity_is_kept_and_nobody_is_evicted() {
        check("a b c", "", "d@1", "a b c");
    }

    #[test]
    fn who_does_not_fit_lets_others_pass() {
        check("", "", "unfit@1 a@2", "a");
    }
}

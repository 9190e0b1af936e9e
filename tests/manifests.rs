//! `crds/` holds what the program prints.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, fs, path::Path};

use accesskey_operator::api::manifests;

#[test]
fn crds_are_current() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
    let manifests = manifests().unwrap();
    if std::env::var_os("UPDATE").is_some() {
        for (name, text) in &manifests {
            fs::write(folder.join(name), text).unwrap();
        }
    }
    for (name, text) in &manifests {
        let held = fs::read_to_string(folder.join(name)).unwrap_or_default();
        assert!(held == *text, "crds/{name} is not what the program says: UPDATE=1 cargo test --test manifests");
        assert!(text.len() < 256 * 1024, "crds/{name} has {} bytes: kubectl apply would refuse it", text.len());
    }
    let there = fs::read_dir(&folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let known: BTreeSet<String> = manifests.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(there.collect::<BTreeSet<_>>(), known, "crds/ holds nothing else");
}

//! The shape of the code: which module may know which, and what the core may not know at all.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Each module, and the modules of the crate that it may use.
const MAY_USE: &[(&str, &[&str])] = &[
    ("api", &["api"]),
    ("core", &["api", "core"]),
    ("kube", &["api", "core", "kube"]),
    ("cli", &["cli"]),
    ("run", &["api", "cli", "kube", "run"]),
    ("lib", &["api", "core", "kube", "cli", "run"]),
    ("main", &["run"]),
];

/// What a pure decision has no use for.
const IMPURE: &[&str] = &[
    "async ",
    ".await",
    "tokio",
    "Client",
    "Timestamp::now",
    "SystemTime",
    "Instant",
    "rand::",
    "std::env",
    "std::fs",
];

fn sources() -> BTreeMap<PathBuf, String> {
    fn walk(folder: &Path, found: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.insert(path, text);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found
}

/// The module at the top that a file belongs to.
fn module(path: &Path) -> String {
    let inside = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    inside.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

/// The modules of the crate that a text names: after `crate::`, and inside the braces of `use crate::{…}`.
fn used(text: &str) -> Vec<String> {
    let word =
        |text: &str| text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect::<String>();
    let mut found = Vec::new();
    for after in text.split("crate::").skip(1) {
        if let Some(inside) = after.strip_prefix('{') {
            let mut depth = 0;
            let mut item = String::new();
            for letter in inside.chars() {
                match letter {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => found.push(word(std::mem::take(&mut item).trim())),
                    _ if depth == 0 => item.push(letter),
                    _ => {}
                }
            }
            found.push(word(item.trim()));
        } else {
            found.push(word(after));
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

#[test]
fn dependencies_point_one_way() {
    for (path, text) in sources() {
        let module = module(&path);
        let allowed =
            MAY_USE.iter().find(|(name, _)| *name == module).unwrap_or_else(|| panic!("{module} is new here")).1;
        for name in used(&text) {
            assert!(allowed.contains(&name.as_str()), "{} uses crate::{name}", path.display());
        }
    }
}

#[test]
fn a_use_is_seen_however_it_is_written() {
    let text = "use crate::{api::{A, B}, core};\nlet x = crate::kube::y();\nuse crate::run::Z;";
    assert_eq!(used(text), ["api", "core", "kube", "run"]);
}

#[test]
fn decisions_are_pure() {
    for (path, text) in sources().into_iter().filter(|(path, _)| ["api", "core"].contains(&module(path).as_str())) {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            for word in IMPURE {
                assert!(!line.contains(word), "{}: {word:?} in {line:?}", path.display());
            }
        }
    }
}

#[test]
fn files_stay_short_and_say_what_they_are() {
    for (path, text) in sources() {
        let limit = if module(&path) == "main" { 30 } else { 400 };
        assert!(text.lines().count() <= limit, "{} has over {limit} lines", path.display());
        assert!(text.starts_with("//!"), "{} does not begin with what it is", path.display());
    }
}

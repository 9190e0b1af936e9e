//! The folder of one run: data, logs and kubeconfigs. It goes when the run ends, and if that fails, when the next one
//! starts.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::components::ETCD_DATA;
use crate::error::Error;
use crate::process::Sweeper;

/// In a kept folder; it goes when it is this old.
const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
const KEEP: &str = "keep";
/// Collects what components write to stdout, which is next to nothing. They all inherit this open file, and with it
/// the lock on it: the folder is in use as long as one of them, or their owner, lives.
const IN_USE: &str = "stdout.log";

pub(crate) struct RunFolder {
    path: PathBuf,
    in_use: File,
    sweeper: Sweeper,
    fate: Fate,
}

/// What happens to the folder when its owner drops it.
enum Fate {
    /// The start has not succeeded yet: logs stay for whoever wants to know why.
    KeepLogs,
    Remove,
    /// Logs and data stay.
    Keep,
    /// Components still run in it.
    Leave,
}

impl RunFolder {
    /// Makes a folder in `parent`, and removes those there whose run is over.
    pub(crate) fn create(parent: &Path) -> Result<Self, Error> {
        let doing = |what: &str, path: &Path| Error::io(format!("{what} {}", path.display()));
        fs::create_dir_all(parent).map_err(doing("create", parent))?;
        // Held until the new folder is locked: no other process may take it for an abandoned one.
        let lock_path = parent.join("lock");
        let lock = File::create(&lock_path).map_err(doing("create", &lock_path))?;
        lock.lock().map_err(doing("lock", &lock_path))?;
        remove_abandoned(parent);

        let name = random_hex::<4>().map_err(Error::io("read random bytes"))?;
        let path = parent.join(name);
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(doing("create", &path))?;
        let in_use = File::create(path.join(IN_USE)).map_err(doing("create a file in", &path))?;
        in_use.lock().map_err(doing("lock a file in", &path))?;
        let sweeper = Sweeper::start(&path).map_err(Error::io("start sh"))?;
        Ok(Self { path, in_use, sweeper, fate: Fate::KeepLogs })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &str) -> Result<PathBuf, Error> {
        let path = self.join(name);
        fs::write(&path, content).map_err(Error::io(format!("write {}", path.display())))?;
        Ok(path)
    }

    /// What a component must have as its stdout.
    pub(crate) fn stdout(&self) -> io::Result<File> {
        self.in_use.try_clone()
    }

    /// The start succeeded: from now on the folder goes with its owner, unless the environment asks for it.
    pub(crate) fn started(&mut self) {
        let keep = std::env::var_os("KEEP_CONTROLPLANE_LOGS").is_some_and(|value| !value.is_empty());
        if keep {
            self.keep();
            self.fate = Fate::Keep;
        } else {
            self.fate = Fate::Remove;
        }
    }

    /// Nothing to learn from this one.
    pub(crate) fn discard(&mut self) {
        self.fate = Fate::Remove;
    }

    /// Stays until the components that run in it have ended.
    pub(crate) fn leave(&mut self) {
        self.fate = Fate::Leave;
    }

    fn keep(&mut self) {
        self.sweeper.dismiss();
        // Without the mark it goes at the next start: a pity, no more.
        let _ = fs::write(self.join(KEEP), "");
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        match self.fate {
            Fate::Remove => {
                // What is left goes with the next start.
                let _ = fs::remove_dir_all(&self.path);
                self.sweeper.dismiss();
            }
            Fate::KeepLogs => {
                self.keep();
                let _ = fs::remove_dir_all(self.join(ETCD_DATA));
            }
            Fate::Keep => {}
            Fate::Leave => self.sweeper.dismiss(),
        }
    }
}

/// Hexadecimal digits for tokens and names.
pub(crate) fn random_hex<const BYTES: usize>() -> io::Result<String> {
    let mut bytes = [0; BYTES];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let digits: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(digits.concat())
}

/// The caller holds the parent's lock. What cannot be removed is left for the next time.
fn remove_abandoned(parent: &Path) {
    let folders = fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path());
    for folder in folders.filter(|path| path.is_dir()) {
        // A folder without this file is none of ours.
        let Ok(file) = File::open(folder.join(IN_USE)) else { continue };
        let in_use = file.try_lock().is_err();
        let kept = fs::metadata(folder.join(KEEP))
            .and_then(|mark| mark.modified())
            .is_ok_and(|at| at.elapsed().is_ok_and(|age| age < KEPT_FOR));
        if !in_use && !kept {
            let _ = fs::remove_dir_all(&folder);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    struct Parent(PathBuf);

    impl Parent {
        fn new() -> Self {
            Self(std::env::temp_dir().join(format!("controlplane-{}", random_hex::<8>().unwrap())))
        }

        fn create(&self) -> RunFolder {
            RunFolder::create(&self.0).unwrap()
        }
    }

    impl Drop for Parent {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn a_folder_goes_with_its_owner() {
        let parent = Parent::new();
        let mut run = parent.create();
        run.discard();
        let path = run.path().to_owned();
        assert!(path.is_dir());
        drop(run);
        assert!(!path.exists());
    }

    #[test]
    fn a_start_removes_what_killed_runs_left_and_no_more() {
        let parent = Parent::new();
        let (killed, stranger) = (parent.0.join("0123abcd"), parent.0.join("stranger"));
        fs::create_dir_all(&killed).unwrap();
        fs::write(killed.join(IN_USE), "").unwrap();
        fs::create_dir_all(&stranger).unwrap();
        let failed = parent.create();
        let failed_path = failed.path().to_owned();
        fs::create_dir(failed.join(ETCD_DATA)).unwrap();
        drop(failed);
        let mut alive = parent.create();
        let mut next = parent.create();

        assert!(!killed.exists());
        assert!(stranger.exists());
        assert!(alive.path().exists());
        assert!(failed_path.join(IN_USE).exists());
        assert!(!failed_path.join(ETCD_DATA).exists());
        alive.discard();
        next.discard();
    }

    #[test]
    fn a_kept_folder_goes_after_a_week() {
        let parent = Parent::new();
        let kept = parent.create();
        let path = kept.path().to_owned();
        drop(kept);
        let mark = File::options().write(true).open(path.join(KEEP)).unwrap();
        mark.set_modified(std::time::SystemTime::now() - KEPT_FOR - Duration::from_secs(1)).unwrap();
        parent.create().discard();
        assert!(!path.exists());
    }
}

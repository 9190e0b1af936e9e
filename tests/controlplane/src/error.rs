//! What can go wrong, each with the lines of output that explain it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Component;

/// Why there is no control plane.
#[non_exhaustive]
pub enum Error {
    /// There is no `go` on PATH, and something has to be built.
    GoMissing {
        /// The least version that builds it.
        version: String,
        /// The programs to build.
        programs: String,
    },
    /// `go build` failed.
    Build {
        /// The programs that were built.
        programs: String,
        /// The last lines that `go build` wrote.
        output: String,
    },
    /// A component ended by itself.
    Ended {
        /// Which one.
        component: Component,
        /// The whole log.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
        /// Another process listens on the port that it was given.
        port_taken: bool,
    },
    /// A component runs, but is not ready in time.
    NotReady {
        /// Which one.
        component: Component,
        /// How long it was given.
        waited: Duration,
        /// The whole log.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// The certificates could not be made.
    Certificates(rcgen::Error),
    /// A file or process of the machine.
    Io {
        /// What was being done, to which file or program.
        doing: String,
        /// The operating system's answer.
        source: io::Error,
    },
}

impl Error {
    /// Fits `map_err`; `doing` reads like `create /some/file`.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    pub(crate) fn ended(component: Component, log: PathBuf) -> Self {
        let port_taken =
            std::fs::read(&log).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains("address already in use"));
        Self::Ended { component, tail: tail(&log), log, port_taken }
    }

    pub(crate) fn not_ready(component: Component, waited: Duration, log: PathBuf) -> Self {
        Self::NotReady { component, waited, tail: tail(&log), log }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GoMissing { version, programs } => write!(
                f,
                "{programs} must be built once, and there is no `go` on PATH: install Go {version} or newer, \
                 or set KUBEBUILDER_ASSETS to a folder that holds the programs"
            ),
            Self::Build { programs, output } => write!(f, "go build of {programs} failed:\n{output}"),
            Self::Ended { component, log, tail, port_taken: _ } => {
                write!(f, "{component} ended; the end of {}:\n{tail}", log.display())
            }
            Self::NotReady { component, waited, log, tail } => {
                write!(f, "{component} not ready after {} s; the end of {}:\n{tail}", waited.as_secs(), log.display())
            }
            Self::Certificates(_) => write!(f, "make certificates"),
            Self::Io { doing, source: _ } => write!(f, "{doing}"),
        }
    }
}

/// The text with its causes: `unwrap` in a test prints this, and a log with escaped line ends is no help there.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Certificates(source) => Some(source),
            Self::GoMissing { .. } | Self::Build { .. } | Self::Ended { .. } | Self::NotReady { .. } => None,
        }
    }
}

/// The last lines of a log, or a sentence that says why there are none.
pub(crate) fn tail(log: &Path) -> String {
    const LINES: usize = 20;
    match std::fs::read(log) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let skipped = text.lines().count().saturating_sub(LINES);
            text.lines().skip(skipped).collect::<Vec<_>>().join("\n")
        }
        Err(error) => format!("(no log: {error})"),
    }
}

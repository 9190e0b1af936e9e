//! Processes that do not outlive their owner, however the owner ends.
//!
//! Every process leads a process group of its own, which holds one more member: a shell that waits on a pipe whose other
//! end only the owner has. When the owner drops the process, panics, is interrupted or is killed by SIGKILL, the
//! operating system closes the pipe and the shell kills its group. Since a group's id is not given out again while the
//! group has a member, this never hits a stranger. The group also keeps a terminal's Ctrl-C from reaching etcd before
//! those that depend on it.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

/// The shell becomes the program, so that its process id is the one that the owner knows, and can wait for. The
/// program gets no end of the pipe.
const WATCHED: &str = r#"
exec 3<&0 </dev/null
{ read -r word; [ "$word" = leave ] || kill -KILL 0; } <&3 3<&- &
exec 3<&-
exec "$@"
"#;

const SWEEPER: &str = r#"read -r word; [ "$word" = leave ] || { sleep 1; rm -rf -- "$1"; }"#;

/// A process that ends with its owner.
pub(crate) struct Process {
    child: Child,
    /// None once the process was stopped or left to itself.
    lifeline: Option<ChildStdin>,
}

impl Process {
    /// `command` is one made by [`watched`], with arguments, environment and output added.
    pub(crate) fn start(mut command: Command) -> io::Result<Self> {
        let mut child = command.stdin(Stdio::piped()).process_group(0).spawn()?;
        let lifeline = child.stdin.take();
        Ok(Self { child, lifeline })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// None while it runs.
    pub(crate) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// SIGKILL; returns when it is gone.
    pub(crate) fn stop(&mut self) {
        if self.lifeline.is_some() {
            // Both calls fail only if it is gone already. The pipe is closed last, for the sake of its children.
            let _ = self.child.kill();
            let _ = self.child.wait();
            self.lifeline = None;
        }
    }

    /// Lets it live on after its owner.
    pub(crate) fn leave(&mut self) {
        if let Some(mut lifeline) = self.lifeline.take() {
            // Fails only if nobody listens: then nobody would kill it either.
            let _ = lifeline.write_all(b"leave\n");
        }
    }

    /// `name` as in `kill -s STOP`.
    pub(crate) fn signal(&self, name: &str) -> io::Result<()> {
        let script = r#"kill -s "$1" "$2""#;
        let status = Command::new("sh").args(["-c", script, "sh", name, &self.id().to_string()]).status()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("kill -s {name}: {status}"))) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A command that runs `program` in the way that [`Process::start`] needs.
pub(crate) fn watched(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", WATCHED, "watched"]).arg(program);
    command
}

/// Removes a folder when the owner ends without having said [`Sweeper::dismiss`].
pub(crate) struct Sweeper(Process);

impl Sweeper {
    pub(crate) fn start(folder: &Path) -> io::Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", SWEEPER, "sweeper"]).arg(folder).stdout(Stdio::null()).stderr(Stdio::null());
        Process::start(command).map(Self)
    }

    /// The folder stays.
    pub(crate) fn dismiss(&mut self) {
        self.0.leave();
        let _ = self.0.child.wait();
    }
}

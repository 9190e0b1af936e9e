//! Finds the programs of the control plane, or builds them from the Go modules beside this crate, once.
//!
//! What is built lies in the target folder, under a name that changes with go.mod and go.sum. Only a finished build is
//! ever seen there; `cargo clean` removes it.

use std::env;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::error::{Error, tail};
use crate::process::{Process, watched};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    Etcd,
    ApiServer,
    ControllerManager,
    Kubectl,
}

/// A folder with a go.mod that pins the programs' versions.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Module {
    Kube,
    Etcd,
}

/// The quick one first, which also wants the newer Go.
const MODULES: [Module; 2] = [Module::Etcd, Module::Kube];
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// Returns the paths of the programs, in the given order. What `KUBEBUILDER_ASSETS` holds is taken from there.
pub(crate) fn find<const N: usize>(programs: [Program; N]) -> Result<[PathBuf; N], Error> {
    let mut paths = programs.map(asset);
    for module in MODULES {
        let wanted =
            || programs.iter().zip(&paths).filter(|(program, path)| path.is_none() && program.module() == module);
        let wanted: Vec<Program> = wanted().map(|(program, _)| *program).collect();
        if wanted.is_empty() {
            continue;
        }
        let cache = Cache::of(module)?;
        cache.provide(&wanted)?;
        for (path, program) in paths.iter_mut().zip(programs) {
            if wanted.contains(&program) {
                *path = Some(cache.program(program));
            }
        }
    }
    Ok(paths.map(Option::unwrap_or_default))
}

/// A kubectl for any cluster: the one that the user has, else a built one.
pub(crate) fn kubectl() -> Result<PathBuf, Error> {
    let name = Program::Kubectl.name();
    let on_path = env::var_os("PATH")
        .and_then(|path| env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file()));
    match on_path {
        Some(program) => Ok(absolute(program)),
        None => find([Program::Kubectl]).map(|[program]| program),
    }
}

/// The folder of cargo's output: this crate keeps everything that it makes in `controlplane` in there.
pub(crate) fn folder() -> PathBuf {
    let of_this_program = env::current_exe().ok().and_then(|program| {
        program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file()).map(Path::to_owned)
    });
    let target = of_this_program
        .or_else(|| env::var_os("CARGO_TARGET_DIR").map(PathBuf::from))
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"));
    absolute(target.join("controlplane"))
}

impl Program {
    const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Kubectl => "kubectl",
        }
    }

    const fn package(self) -> &'static str {
        match self {
            Self::Etcd => "go.etcd.io/etcd/server/v3",
            Self::ApiServer => "k8s.io/kubernetes/cmd/kube-apiserver",
            Self::ControllerManager => "k8s.io/kubernetes/cmd/kube-controller-manager",
            Self::Kubectl => "k8s.io/kubernetes/cmd/kubectl",
        }
    }

    const fn module(self) -> Module {
        match self {
            Self::Etcd => Module::Etcd,
            Self::ApiServer | Self::ControllerManager | Self::Kubectl => Module::Kube,
        }
    }
}

impl Module {
    const fn name(self) -> &'static str {
        match self {
            Self::Kube => "kube",
            Self::Etcd => "etcd",
        }
    }

    /// The dependency whose version names the build.
    const fn pinned(self) -> &'static str {
        match self {
            Self::Kube => "k8s.io/kubernetes",
            Self::Etcd => "go.etcd.io/etcd/server/v3",
        }
    }

    /// On two cores, download included.
    const fn usual_time(self) -> &'static str {
        match self {
            Self::Kube => "about 5 min",
            Self::Etcd => "about 1 min",
        }
    }
}

/// What was, or will be, built from one module.
struct Cache {
    module: Module,
    source: PathBuf,
    /// As in go.mod, with its `v`.
    version: String,
    /// The least Go that go.mod accepts.
    go: String,
    folder: PathBuf,
}

impl Cache {
    fn of(module: Module) -> Result<Self, Error> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(module.name());
        let read = |name: &str| {
            let path = source.join(name);
            fs::read_to_string(&path).map_err(Error::io(format!("read {}", path.display())))
        };
        let go_mod = read("go.mod")?;
        let word_after = |name: &str| {
            let mut lines = go_mod.lines().map(str::split_whitespace);
            let found = lines.find_map(|mut words| (words.next() == Some(name)).then(|| words.next()).flatten());
            found.unwrap_or("unknown").to_owned()
        };
        let version = word_after(module.pinned());
        let go = word_after("go");
        let input =
            [go_mod.as_str(), &read("go.sum")?, &linker_flags(module, &version), env::consts::OS, env::consts::ARCH];
        let folder = folder().join(format!("{}-{version}-{:016x}", module.name(), fnv(&input)));
        Ok(Self { module, source, version, go, folder })
    }

    fn program(&self, program: Program) -> PathBuf {
        self.folder.join("bin").join(program.name())
    }

    /// Returns when all of `programs` are there.
    fn provide(&self, programs: &[Program]) -> Result<(), Error> {
        let missing =
            || programs.iter().copied().filter(|program| !self.program(*program).is_file()).collect::<Vec<_>>();
        if missing().is_empty() {
            return Ok(());
        }
        let path = self.folder.join("build.log");
        let in_log = |what: &str| Error::io(format!("{what} {}", path.display()));
        let bin = self.folder.join("bin");
        fs::create_dir_all(&bin).map_err(Error::io(format!("create {}", bin.display())))?;
        // `go` inherits the open file, and with it the lock: a build whose owner was killed is not disturbed either.
        let log = OpenOptions::new().create(true).append(true).open(&path).map_err(in_log("open"))?;
        wait_for(&log).map_err(in_log("lock"))?;
        let missing = missing();
        if missing.is_empty() {
            return Ok(());
        }
        log.set_len(0).map_err(in_log("empty"))?;
        self.build(&missing, &log, &path)
    }

    fn build(&self, programs: &[Program], log: &File, log_path: &Path) -> Result<(), Error> {
        let names = list(programs);
        if !go_is_there()? {
            return Err(Error::GoMissing { version: self.go.clone(), programs: names });
        }
        let unfinished = self.folder.join("unfinished");
        let in_unfinished = |what: &str| Error::io(format!("{what} {}", unfinished.display()));
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).map_err(in_unfinished("remove"))?;
        }
        fs::create_dir_all(&unfinished).map_err(in_unfinished("create"))?;

        let mut go = watched("go");
        go.args(["build", "-trimpath", "-mod=readonly", "-buildvcs=false", "-ldflags"])
            .arg(linker_flags(self.module, &self.version))
            .arg("-o")
            .arg(match self.module {
                Module::Kube => unfinished.clone(),
                // A folder here would name the program after the last part of its package's path.
                Module::Etcd => unfinished.join(Program::Etcd.name()),
            })
            .args(programs.iter().map(|program| program.package()))
            .current_dir(&self.source)
            .env("GOTOOLCHAIN", "local")
            .env("CGO_ENABLED", "0")
            .env("GOWORK", "off")
            .env_remove("GOOS")
            .env_remove("GOARCH")
            .stdout(Stdio::null())
            .stderr(log.try_clone().map_err(in_unfinished("build in"))?);

        let started = Instant::now();
        let mut said = started;
        let usual = self.module.usual_time();
        say(&format!("building {names} {} with Go ({usual}, once)", self.version));
        let mut go = Process::start(go).map_err(Error::io("start go"))?;
        let status = loop {
            if let Some(status) = go.ended().map_err(Error::io("wait for go"))? {
                break status;
            }
            if said.elapsed() >= PROGRESS_EVERY {
                said = Instant::now();
                say(&format!("building {names}, {} s so far ({usual} in all, once)", started.elapsed().as_secs()));
            }
            sleep(Duration::from_millis(100));
        };
        if !status.success() {
            return Err(Error::Build { programs: names, output: tail(log_path) });
        }
        for program in programs {
            let built = self.program(*program);
            fs::rename(unfinished.join(program.name()), &built)
                .map_err(Error::io(format!("move {}", built.display())))?;
        }
        fs::remove_dir_all(&unfinished).map_err(in_unfinished("remove"))?;
        say(&format!("built {names} in {} s", started.elapsed().as_secs()));
        Ok(())
    }
}

fn asset(program: Program) -> Option<PathBuf> {
    let folder = env::var_os("KUBEBUILDER_ASSETS").filter(|folder| !folder.is_empty())?;
    Some(absolute(PathBuf::from(folder).join(program.name()))).filter(|path| path.is_file())
}

/// The programs have working directories of their own.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// Without a version, Helm refuses charts that state a `kubeVersion`.
fn linker_flags(module: Module, version: &str) -> String {
    let mut flags = "-s -w".to_owned();
    if module == Module::Kube {
        let mut parts = version.trim_start_matches('v').split('.');
        for (name, value) in [
            ("component-base/version.gitVersion", version),
            ("component-base/version.gitMajor", parts.next().unwrap_or_default()),
            ("component-base/version.gitMinor", parts.next().unwrap_or_default()),
            ("client-go/pkg/version.gitVersion", version),
        ] {
            // Writing to a String cannot fail.
            let _ = write!(flags, " -X k8s.io/{name}={value}");
        }
    }
    flags
}

/// FNV-1a. The standard library's hashers may change with the compiler, and every change costs a build.
fn fnv(texts: &[&str]) -> u64 {
    let bytes = texts.iter().flat_map(|text| text.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn go_is_there() -> Result<bool, Error> {
    match Command::new("go").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("run go version")(error)),
    }
}

fn list(programs: &[Program]) -> String {
    let names: Vec<_> = programs.iter().map(|program| program.name()).collect();
    match names.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => String::new(),
    }
}

fn wait_for(lock: &File) -> io::Result<()> {
    let started = Instant::now();
    let mut said = None;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) => {}
        }
        if said.is_none_or(|at: Instant| at.elapsed() >= PROGRESS_EVERY) {
            said = Some(Instant::now());
            say(&format!("waiting for another process to build, {} s so far", started.elapsed().as_secs()));
        }
        sleep(Duration::from_millis(200));
    }
}

/// Past the test harness, which would hold `eprintln!` back until the test has failed.
fn say(line: &str) {
    // Progress is not worth a failure.
    let _ = writeln!(io::stderr().lock(), "controlplane: {line}");
}

#[cfg(test)]
mod tests;

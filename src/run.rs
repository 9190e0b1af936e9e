//! Wiring: settings become a client, controllers, a lease and the admin endpoints; and the end of all of them.

use std::{future::Future, io::Write, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use axum::{Router, http::StatusCode, routing::get};
use clap::Parser;
use futures::{
    FutureExt,
    future::{join_all, select},
};
use k8s_controller::LeaderElection;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use rand::{RngExt, distr::Alphanumeric};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use crate::{
    api::{OPERATOR, manifests},
    cli::{Cli, Command, RunSettings},
    kube::{Controllers, Metrics, Scope},
};

/// How long work that is under way may take to finish after SIGTERM.
const DRAIN: Duration = Duration::from_secs(15);

/// How long giving the lease back may take after that. Together they stay below the 30 s that a Pod is given.
const RELEASE: Duration = Duration::from_secs(3);

/// The lease: renewed so seldom that an idle operator is hardly noticed, since its loss endangers nothing.
const LEASE: Duration = Duration::from_secs(45);
const RENEW_DEADLINE: Duration = Duration::from_secs(30);
const RENEW_EVERY: Duration = Duration::from_secs(15);

/// Why a program ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cluster to talk to.
    #[error("no usable kubeconfig: set KUBECONFIG, or run in a cluster")]
    Kubeconfig(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The client could not be built.
    #[error("cannot set up the client")]
    Client(#[source] Box<kube::Error>),
    /// The admin address is taken or not ours.
    #[error("cannot listen on --admin-address {0}")]
    Listen(std::net::SocketAddr, #[source] std::io::Error),
    /// The operating system does not let us hear of signals.
    #[error("cannot listen for signals")]
    Signal(#[source] std::io::Error),
    /// The output could not be written.
    #[error("cannot print")]
    Print(#[source] std::io::Error),
    /// A CRD could not be written as YAML.
    #[error("cannot write a CRD as YAML")]
    Yaml(#[source] serde_yaml::Error),
}

/// Runs the program that the command line names; a failure is one line on stderr and exit status 1.
#[must_use]
pub fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    let outcome = match command {
        Command::Crds => print_manifests(),
        Command::Run(settings) => {
            log_to_stderr();
            // One thread: the work is to wait for the API server, and waking another thread costs more than it gains.
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(Error::Print)
                .and_then(|runtime| runtime.block_on(run(settings)))
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "accesskey-operator: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Runs the controllers until SIGTERM or Ctrl-C.
///
/// # Errors
/// When there is no cluster to talk to, or the admin address cannot be had.
pub async fn run(settings: RunSettings) -> Result<(), Error> {
    run_until(settings, terminated()?).await
}

/// Runs the controllers until `stop` completes, then finishes what is under way and gives the lease back.
///
/// # Errors
/// When there is no cluster to talk to, or the admin address cannot be had.
pub async fn run_until(settings: RunSettings, stop: impl Future<Output = ()> + Send + 'static) -> Result<(), Error> {
    let RunSettings { namespaces, leader_election, lease_namespace, identity, admin_address, kubeconfig, context } =
        settings;
    let client = connect(kubeconfig, context).await?;
    let identity = identity.unwrap_or_else(drawn_identity);
    let metrics = Arc::new(Metrics::default());
    let scopes: Vec<Scope> = if namespaces.is_empty() {
        vec![Scope::Cluster]
    } else {
        namespaces.into_iter().map(Scope::Namespace).collect()
    };
    let readiness = Readiness::default();
    let listener = TcpListener::bind(admin_address).await.map_err(|error| Error::Listen(admin_address, error))?;
    let admin_address = listener.local_addr().unwrap_or(admin_address);
    tracing::info!(%identity, ?scopes, admin = %admin_address, version = env!("CARGO_PKG_VERSION"), "started");
    tokio::spawn(axum::serve(listener, admin(Arc::clone(&metrics), readiness.clone())).into_future());

    let stop = stop.boxed().shared();
    let lease_namespace = lease_namespace.unwrap_or_else(|| client.default_namespace().to_owned());
    let election = LeaderElection::new(client.clone(), &lease_namespace, OPERATOR, &identity)
        .with_lease_duration(LEASE)
        .with_renew_deadline(RENEW_DEADLINE)
        .with_retry_period(RENEW_EVERY);
    let work = || {
        let controllers: Vec<Controllers> = scopes
            .iter()
            .map(|scope| Controllers::new(client.clone(), scope.clone(), &identity, Arc::clone(&metrics)))
            .collect();
        let (stop, metrics, readiness) = (stop.clone(), Arc::clone(&metrics), readiness.clone());
        async move {
            metrics.leads(true);
            readiness.watch(controllers.iter().map(|each| Box::new(each.readiness()) as _).collect());
            let all = join_all(controllers.into_iter().map(|each| each.run(stop.clone())));
            let drained = stop.clone().then(|()| tokio::time::sleep(DRAIN)).boxed();
            select(all.boxed(), drained).await;
            metrics.leads(false);
        }
    };
    while stop.peek().is_none() {
        if leader_election {
            // A stop while it works is for the work to drain, and then for the lease to be given back.
            let waiting_only = stop.clone().then(|()| async {
                if readiness.is_watching() {
                    std::future::pending::<()>().await;
                }
            });
            let overdue = stop.clone().then(|()| tokio::time::sleep(DRAIN + RELEASE));
            tokio::select! {
                held = election.with_lease(async { work().await }) => {
                    if held.is_none() {
                        tracing::warn!("the lease was lost: waiting for it again");
                    }
                }
                () = waiting_only => {}
                () = overdue => tracing::warn!("the API server does not answer: the lease is left to expire"),
            }
            // A lost lease has cut the work off.
            metrics.leads(false);
        } else {
            work().await;
        }
        readiness.watch(vec![]);
    }
    tracing::info!("stopped");
    Ok(())
}

/// Whether the replica is of use: always while it waits for the lease, and once its caches are complete when it works.
#[derive(Clone, Default)]
struct Readiness(Arc<std::sync::RwLock<Vec<Missing>>>);

/// Names what a set of controllers still waits for.
type Missing = Box<dyn Fn() -> Vec<&'static str> + Send + Sync>;

impl Readiness {
    fn watch(&self, parts: Vec<Missing>) {
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = parts;
    }

    fn is_watching(&self) -> bool {
        !self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).is_empty()
    }

    fn missing(&self) -> Vec<&'static str> {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).iter().flat_map(|missing| missing()).collect()
    }
}

fn admin(metrics: Arc<Metrics>, readiness: Readiness) -> Router {
    let ready = move || async move {
        match readiness.missing() {
            missing if missing.is_empty() => (StatusCode::OK, "ok\n".to_owned()),
            missing => (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for {}\n", missing.join(", "))),
        }
    };
    let text = ("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8");
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(move || async move { ([text], metrics.text()) }))
}

/// A client without kube's own retries, which would repeat even a POST, for minutes: each reconcile tries again itself.
async fn connect(kubeconfig: Option<PathBuf>, context: Option<String>) -> Result<Client, Error> {
    let mut config = read_config(kubeconfig, context).await.map_err(Error::Kubeconfig)?;
    config.default_retry = false;
    Client::try_from(config).map_err(|error| Error::Client(Box::new(error)))
}

async fn read_config(
    file: Option<PathBuf>,
    context: Option<String>,
) -> Result<Config, Box<dyn std::error::Error + Send + Sync>> {
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    Ok(match file {
        Some(file) => Config::from_custom_kubeconfig(Kubeconfig::read_from(file)?, &options).await?,
        None if options.context.is_some() => Config::from_kubeconfig(&options).await?,
        None => Config::infer().await?,
    })
}

fn drawn_identity() -> String {
    let suffix: String = rand::rng().sample_iter(Alphanumeric).take(8).map(char::from).collect();
    format!("{OPERATOR}-{}", suffix.to_lowercase())
}

/// SIGTERM or Ctrl-C. They are listened for from now on, not from the first poll: one that comes early must not kill.
fn terminated() -> Result<impl Future<Output = ()> + Send + 'static, Error> {
    let mut told = signal(SignalKind::terminate()).map_err(Error::Signal)?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(Error::Signal)?;
    Ok(async move {
        tokio::select! {
            _ = told.recv() => {}
            _ = interrupted.recv() => {}
        }
    })
}

fn print_manifests() -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    for (_, text) in manifests().map_err(Error::Yaml)? {
        writeln!(out, "---\n{}", text.trim_end()).map_err(Error::Print)?;
    }
    Ok(())
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,kube=warn"));
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
}

/// An error with everything behind it, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

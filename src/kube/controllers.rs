//! The two controllers: observe, plan, execute, again until nothing is left to do.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use jiff::Timestamp;
use kube::{
    Client, ResourceExt,
    runtime::{
        applier,
        controller::{Action, Config, ReconcileRequest},
        reflector::{Lookup, ObjectRef, Store},
    },
};
use rand::{TryRng, rngs::SysRng};
use tokio::sync::mpsc::UnboundedReceiver;

pub use super::watch::Scope;
use super::{
    cache::name_of,
    call::{CallError, Failure, pause},
    events::Events,
    execute::{Execution, Executor, Managed, Refusal},
    metrics::Metrics,
    observe::Observer,
    task::apart,
    watch::{Due, View},
};
use crate::{
    api::{AccessKey, Stored, Subuser},
    core::{Next, Plan, access_key, credential::Entropy, secret::SecretSeen, subuser},
};

/// How many objects of each kind are worked on at once.
const CONCURRENCY: u16 = 16;

/// The longest pause before an object that cannot go on is looked at again.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// More steps than any object needs in one go; more would be a loop.
const STEPS: usize = 8;

/// The controllers of one scope.
pub struct Controllers {
    observer: Observer,
    executor: Executor,
    events: Events,
    metrics: Arc<Metrics>,
    view: Arc<View>,
    due: Due,
}

/// What the reconciles of one controller share.
struct Work {
    observer: Observer,
    executor: Executor,
    events: Events,
    metrics: Arc<Metrics>,
    attempts: Mutex<HashMap<String, u32>>,
}

/// Why a reconcile could not be finished.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("the operating system gave no random bytes")]
    Entropy(#[from] rand::rngs::SysError),
    #[error("no end after {STEPS} steps")]
    Loop,
}

impl Controllers {
    /// Controllers that are yet to run.
    #[must_use]
    pub fn new(client: Client, scope: Scope, instance: &str, metrics: Arc<Metrics>) -> Self {
        let (view, due) = View::new(scope);
        let view = Arc::new(view);
        let observer = Observer { client: client.clone(), view: Arc::clone(&view), metrics: Arc::clone(&metrics) };
        let executor = Executor { client: client.clone(), view: Arc::clone(&view), metrics: Arc::clone(&metrics) };
        let events = Events::start(client, instance, Arc::clone(&metrics));
        Self { observer, executor, events, metrics, view, due }
    }

    /// The kinds whose first list has not come yet; none means ready.
    pub fn readiness(&self) -> impl Fn() -> Vec<&'static str> + Send + Sync + 'static {
        let view = Arc::clone(&self.view);
        move || view.missing()
    }

    /// Works until `stop` completes, and then finishes what is under way.
    pub async fn run(self, stop: impl Future<Output = ()> + Clone + Send + Sync + 'static) {
        let Self { observer, executor, events, metrics, view, due } = self;
        let client = observer.client.clone();
        let work = Arc::new(Work { observer, executor, events, metrics, attempts: Mutex::default() });
        let stopped = stop.clone();
        let control = async {
            tokio::select! {
                () = view.completed() => {}
                () = stopped => return,
            }
            tracing::info!(scope = ?view.scope, "caches complete, working");
            let keys = control(due.keys, view.keys.store(), Arc::clone(&work), stop.clone(), reconcile_key);
            let subusers = control(due.subusers, view.subusers.store(), work, stop, reconcile_subuser);
            tokio::join!(apart(keys), apart(subusers));
        };
        tokio::select! {
            () = Arc::clone(&view).watch(client) => {}
            () = control => {}
        }
    }
}

/// Feeds what is due to `reconcile`, one object at a time but many objects at once.
async fn control<K, F>(
    due: UnboundedReceiver<ObjectRef<K>>,
    store: Store<K>,
    work: Arc<Work>,
    stop: impl Future<Output = ()> + Send + Sync + 'static,
    reconcile: fn(Arc<Work>, Arc<K>) -> F,
) where
    K: Managed + Lookup<DynamicType = ()> + Send + Sync,
    F: Future<Output = Result<Next, Error>> + Send + 'static,
{
    let due = stream::unfold(due, async |mut due| Some((due.recv().await?, due)))
        .map(|object| Ok::<_, Infallible>(ReconcileRequest::from(object)))
        .take_until(stop)
        .boxed();
    let controller = K::CONTROLLER;
    let run = move |object: Arc<K>, work: Arc<Work>| {
        Box::pin(async move {
            let started = Instant::now();
            let outcome = apart(reconcile(Arc::clone(&work), Arc::clone(&object))).await;
            let result = match &outcome {
                Ok(_) => "done",
                Err(Error::Call(CallError { failure: Failure::Conflict, .. })) => "conflict",
                Err(_) => "error",
            };
            work.metrics.reconciled(controller, result, started.elapsed());
            Ok::<_, Infallible>(work.when(&*object, controller, outcome))
        })
    };
    let never = |_: Arc<K>, _: &Infallible, _: Arc<Work>| Action::await_change();
    let config = Config::default().concurrency(CONCURRENCY);
    applier(run, never, work, store, due, config).for_each(|_| async {}).await;
}

async fn reconcile_key(work: Arc<Work>, key: Arc<Stored<AccessKey>>) -> Result<Next, Error> {
    let Work { observer, executor, events, .. } = &*work;
    for _ in 0..STEPS {
        let Some(key) = observer.view.keys.get(&key.to_object_ref(())) else { return Ok(Next::Wait) };
        let subuser = observer.subuser_of(&key);
        let mut seen = access_key::Observed {
            key: &key,
            subuser: subuser.as_deref().and_then(Stored::valid),
            secret: observer.secret_of(&key).await?,
            namespace_terminating: observer.is_terminating(&key).await?,
        };
        let mut plan = access_key::plan(&seen, Timestamp::now(), &entropy()?);
        if let Execution::SecretRefused(refusal) = executor.execute(&*key, std::mem::take(&mut plan.writes)).await? {
            seen.secret = match refusal {
                Refusal::Words(words) => SecretSeen::Refused(words),
                Refusal::Conflict => live_conflict(observer, &key).await?,
            };
            plan = access_key::plan(&seen, Timestamp::now(), &entropy()?);
            match executor.execute(&*key, std::mem::take(&mut plan.writes)).await? {
                Execution::Done => {}
                Execution::SecretRefused(_) => return Ok(Next::Retry),
            }
        }
        let Plan { notes, next, .. } = plan;
        for note in notes {
            events.tell(&*key, note);
        }
        if next != Next::Again {
            return Ok(next);
        }
    }
    Err(Error::Loop)
}

/// A Secret with this name exists, which the cache did not show, or it has changed. If it is ours the cache is late: then
/// nothing was decided from what is there.
async fn live_conflict(observer: &Observer, key: &Stored<AccessKey>) -> Result<SecretSeen, Error> {
    let (namespace, _) = name_of(key);
    let uid = ResourceExt::uid(key).unwrap_or_default();
    Ok(observer.live_secret(&namespace, &key.secret_name(), &uid).await?)
}

async fn reconcile_subuser(work: Arc<Work>, subuser: Arc<Stored<Subuser>>) -> Result<Next, Error> {
    let Work { observer, executor, events, .. } = &*work;
    for _ in 0..STEPS {
        let Some(subuser) = observer.view.subusers.get(&subuser.to_object_ref(())) else { return Ok(Next::Wait) };
        let around = observer.surroundings_of(&subuser).await?;
        let seen = subuser::Observed {
            subuser: &subuser,
            keys: &around.keys,
            departed: &around.departed,
            listed: around.listed.as_deref(),
            namespace_terminating: around.namespace_terminating,
        };
        let Plan { writes, notes, next } = subuser::plan(&seen, Timestamp::now());
        executor.execute(&*subuser, writes).await?;
        for note in notes {
            events.tell(&*subuser, note);
        }
        if next != Next::Again {
            return Ok(next);
        }
    }
    Err(Error::Loop)
}

fn entropy() -> Result<Entropy, Error> {
    let mut bytes = Entropy::default();
    SysRng.try_fill_bytes(bytes.as_mut_slice())?;
    Ok(bytes)
}

impl Work {
    /// When to look at an object again. Failures pause longer and longer, each object for itself.
    fn when<K: Managed>(&self, object: &K, controller: &str, outcome: Result<Next, Error>) -> Action {
        let (namespace, name) = name_of(object);
        let slot = format!("{controller}/{namespace}/{name}");
        let retry = match outcome {
            Ok(Next::Wait | Next::Again) => None,
            Ok(Next::At(moment)) => {
                self.attempts().remove(&slot);
                let pause = Duration::try_from(moment.duration_since(Timestamp::now())).unwrap_or_default();
                // A moment is in whole seconds, a look just before it would find nothing.
                return Action::requeue(pause.min(Duration::from_secs(24 * 3600)) + Duration::from_millis(5));
            }
            Ok(Next::Retry) => Some(Duration::ZERO),
            Err(error) => {
                let asked = match &error {
                    Error::Call(CallError { failure: Failure::Unavailable(_, asked), .. }) => *asked,
                    Error::Call(_) | Error::Entropy(_) | Error::Loop => None,
                };
                log(controller, &namespace, &name, &error);
                Some(asked.unwrap_or_default())
            }
        };
        let mut attempts = self.attempts();
        match retry {
            None => {
                attempts.remove(&slot);
                Action::await_change()
            }
            Some(at_least) => {
                let attempt = attempts.entry(slot).or_insert(0);
                *attempt += 1;
                Action::requeue(pause(*attempt, LONGEST_PAUSE).max(at_least))
            }
        }
    }

    fn attempts(&self) -> std::sync::MutexGuard<'_, HashMap<String, u32>> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A conflict is how replicas and users meet: worth a line only to who looks for it.
fn log(controller: &str, namespace: &str, name: &str, error: &Error) {
    let chain = error as &dyn std::error::Error;
    if let Error::Call(CallError { failure: Failure::Conflict | Failure::NotFound, .. }) = error {
        tracing::debug!(controller, namespace, name, error = chain, "decided from an old version, trying again");
    } else {
        tracing::warn!(controller, namespace, name, error = chain, "cannot go on, trying again");
    }
}

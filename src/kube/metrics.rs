//! What the operator tells of its own work, in Prometheus's text format.

use std::{sync::Mutex, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::call::Verb;

/// The counters, each under the name that users see at `/metrics`.
pub struct Metrics {
    registry: Mutex<Registry>,
    reconciles: Family<Reconcile, Counter>,
    durations: Family<Controller, Histogram>,
    requests: Family<Request, Counter>,
    events_dropped: Counter,
    leader: Gauge,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Controller {
    controller: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reconcile {
    controller: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Request {
    verb: &'static str,
    code: u16,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("accesskey_operator");
        let metrics = Self {
            reconciles: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new([0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0])),
            requests: Family::default(),
            events_dropped: Counter::default(),
            leader: Gauge::default(),
            registry: Mutex::default(),
        };
        registry.register("reconciles", "Reconciles by controller and result", metrics.reconciles.clone());
        registry.register_with_unit(
            "reconcile_duration",
            "How long a reconcile took",
            Unit::Seconds,
            metrics.durations.clone(),
        );
        registry.register(
            "api_requests",
            "Requests to the API server but watches, by verb and HTTP status; code 0 is no answer",
            metrics.requests.clone(),
        );
        registry.register("events_dropped", "Events not sent because too many waited", metrics.events_dropped.clone());
        registry.register("leader", "1 while this replica runs the controllers", metrics.leader.clone());
        Self { registry: Mutex::new(registry), ..metrics }
    }
}

impl Metrics {
    /// Everything, as text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match encode(&mut text, &registry) {
            Ok(()) => text,
            Err(error) => format!("# {error}\n"),
        }
    }

    /// Says whether this replica runs the controllers.
    pub fn leads(&self, leads: bool) {
        self.leader.set(leads.into());
    }

    pub(super) fn request(&self, verb: Verb, code: u16) {
        self.requests.get_or_create(&Request { verb: verb.as_str(), code }).inc();
    }

    pub(super) fn reconciled(&self, controller: &'static str, result: &'static str, took: Duration) {
        self.reconciles.get_or_create(&Reconcile { controller, result }).inc();
        self.durations.get_or_create(&Controller { controller }).observe(took.as_secs_f64());
    }

    pub(super) fn event_dropped(&self) {
        self.events_dropped.inc();
    }
}

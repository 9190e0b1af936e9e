//! Kubernetes Events, sent beside the work and never in its way.
//!
//! kube's recorder keeps every Event of the last minutes to fold repetitions, and walks through all of them for each
//! new one. Here an Event is told only for a transition, so there is nothing to fold.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, Resource, api::PostParams};
use tokio::sync::mpsc;

use super::{
    call::{Verb, call},
    metrics::Metrics,
};
use crate::{api::OPERATOR, core::Note};

/// How many Events may wait; more are dropped and counted.
const WAITING: usize = 1024;

/// How many are sent at once.
const AT_ONCE: usize = 4;

/// Takes Events to be sent.
#[derive(Clone)]
pub struct Events {
    queue: mpsc::Sender<Event>,
    instance: Arc<str>,
    metrics: Arc<Metrics>,
}

impl Events {
    /// Starts sending in a task, which ends after the last clone of the result was dropped.
    pub fn start(client: Client, instance: &str, metrics: Arc<Metrics>) -> Self {
        let (queue, waiting) = mpsc::channel(WAITING);
        let events = Self { queue, instance: instance.into(), metrics: Arc::clone(&metrics) };
        let waiting = futures::stream::unfold(waiting, async |mut waiting| Some((waiting.recv().await?, waiting)));
        tokio::spawn(waiting.for_each_concurrent(AT_ONCE, move |event| {
            let (client, metrics) = (client.clone(), Arc::clone(&metrics));
            async move { send(client, &metrics, event).await }
        }));
        events
    }

    /// Tells of a transition of an object.
    pub fn tell<K: Resource<DynamicType = ()>>(&self, object: &K, note: Note) {
        let regarding = ObjectReference {
            api_version: Some(K::api_version(&()).into_owned()),
            kind: Some(K::kind(&()).into_owned()),
            ..object.object_ref(&())
        };
        let now = Timestamp::now();
        let event = Event {
            metadata: ObjectMeta {
                namespace: regarding.namespace.clone(),
                name: Some(format!("{}.{:x}", regarding.name.as_deref().unwrap_or_default(), now.as_nanosecond())),
                ..ObjectMeta::default()
            },
            action: Some("Reconcile".into()),
            reason: Some(note.reason.as_str().into()),
            note: Some(shortened(note.message)),
            type_: Some(if note.warning { "Warning" } else { "Normal" }.into()),
            event_time: Some(MicroTime(now)),
            reporting_controller: Some(OPERATOR.into()),
            reporting_instance: Some(self.instance.to_string()),
            regarding: Some(regarding),
            ..Event::default()
        };
        if self.queue.try_send(event).is_err() {
            self.metrics.event_dropped();
        }
    }
}

/// The API server refuses a note of more than 1 kB.
fn shortened(mut note: String) -> String {
    let end = (0..=1024.min(note.len())).rev().find(|end| note.is_char_boundary(*end)).unwrap_or(0);
    note.truncate(end);
    note
}

/// A terminating namespace takes no Events, and a lost one is no reason to try again.
async fn send(client: Client, metrics: &Metrics, event: Event) {
    let namespace = event.metadata.namespace.clone().unwrap_or_default();
    let events = Api::<Event>::namespaced(client, &namespace);
    let name = || format!("Event in {namespace}");
    if let Err(error) = call(metrics, Verb::Create, name, events.create(&PostParams::default(), &event)).await {
        tracing::debug!(reason = event.reason, error = &error as &dyn std::error::Error, "Event not sent");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

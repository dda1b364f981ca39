//! What a daemon tells about its tasks, recorded from before the first one.

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use containerd_client::{
    Client,
    events::{TaskCreate, TaskDelete, TaskExit, TaskOom, TaskStart},
    services::v1::{PublishRequest, SubscribeRequest},
};
use prost::Message;
use prost_types::{Any, Timestamp};

use crate::{
    containerd::in_namespace,
    poll::eventually,
    runtime::{call, handle},
};

/// A task event of a container, with the fields that the shim chose.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The task was made.
    Create(TaskCreate),
    /// Its init process runs.
    Start(TaskStart),
    /// A process of it ended.
    Exit(TaskExit),
    /// It was removed.
    Delete(TaskDelete),
    /// The kernel killed for want of memory.
    Oom(TaskOom),
    /// Any other, by its topic.
    Other(String),
}

impl Event {
    /// The name of the event: `create`, `start`, `exit`, `delete`, `oom`, or of
    /// another the last part of its topic, such as `paused`.
    pub fn name(&self) -> &str {
        match self {
            Event::Create(_) => "create",
            Event::Start(_) => "start",
            Event::Exit(_) => "exit",
            Event::Delete(_) => "delete",
            Event::Oom(_) => "oom",
            Event::Other(topic) => topic.trim_start_matches("/tasks/"),
        }
    }

    fn decode(topic: &str, any: &Any) -> Option<(String, Self)> {
        fn read<M: Message + Default>(any: &Any) -> Option<M> {
            M::decode(any.value.as_slice()).ok()
        }
        Some(match topic {
            "/tasks/create" => {
                let event: TaskCreate = read(any)?;
                (event.container_id.clone(), Event::Create(event))
            }
            "/tasks/start" => {
                let event: TaskStart = read(any)?;
                (event.container_id.clone(), Event::Start(event))
            }
            "/tasks/exit" => {
                let event: TaskExit = read(any)?;
                (event.container_id.clone(), Event::Exit(event))
            }
            "/tasks/delete" => {
                let event: TaskDelete = read(any)?;
                (event.container_id.clone(), Event::Delete(event))
            }
            "/tasks/oom" => {
                let event: TaskOom = read(any)?;
                (event.container_id.clone(), Event::Oom(event))
            }
            other => {
                // Every task event has the container's id as its first field.
                let event: TaskOom = read(any)?;
                (event.container_id, Event::Other(other.to_owned()))
            }
        })
    }
}

/// One event as the daemon gave it out.
#[derive(Clone, Debug)]
struct Entry {
    namespace: String,
    topic: String,
    published: Option<Timestamp>,
    event: Any,
}

/// The record of a daemon's events, in the order in which it gave them out.
pub struct Recorder {
    namespace: String,
    entries: Arc<Mutex<Vec<Entry>>>,
}

impl Recorder {
    /// Subscribes and returns when the subscription is known to work.
    pub(crate) fn start(client: &Client, namespace: &str) -> Result<Self> {
        let recorder = Self {
            namespace: namespace.to_owned(),
            entries: Arc::default(),
        };
        recorder.resume(client)?;
        Ok(recorder)
    }

    /// Subscribes again, with a daemon that has been restarted, as [`Recorder::start`] does.
    pub(crate) fn resume(&self, client: &Client) -> Result<()> {
        const READY: &str = "/lighter-test/ready";
        let (mut events, record) = (client.events(), self.entries.clone());
        let before = self.count(READY);
        handle().spawn(async move {
            let Ok(stream) = events.subscribe(SubscribeRequest { filters: vec![] }).await else {
                return;
            };
            let mut stream = stream.into_inner();
            // The stream ends with the daemon.
            while let Ok(Some(envelope)) = stream.message().await {
                record.lock().expect("no writer panics").push(Entry {
                    namespace: envelope.namespace,
                    topic: envelope.topic,
                    published: envelope.timestamp,
                    event: envelope.event.unwrap_or_default(),
                });
            }
        });
        eventually("the subscription to events", || {
            let request = PublishRequest {
                topic: READY.to_owned(),
                event: Some(containerd_client::to_any(&TaskOom::default())),
            };
            let request = in_namespace(&self.namespace, request);
            call(client.events().publish(request)).ok()?;
            (self.count(READY) > before).then_some(())
        })
        .context("no event comes back from the daemon")
    }

    fn count(&self, topic: &str) -> usize {
        let entries = self.entries.lock().expect("no writer panics");
        entries.iter().filter(|entry| entry.topic == topic).count()
    }

    /// A container's task events until now, in order, of the tests' namespace.
    pub fn of(&self, container: &str) -> Vec<Event> {
        self.with_times(container)
            .into_iter()
            .map(|(event, _)| event)
            .collect()
    }

    /// As [`Recorder::of`], each event with the time at which it was published.
    pub fn with_times(&self, container: &str) -> Vec<(Event, Option<Timestamp>)> {
        let entries = self.entries.lock().expect("no writer panics");
        entries
            .iter()
            .filter(|entry| entry.namespace == self.namespace && entry.topic.starts_with("/tasks/"))
            .filter_map(|entry| {
                let (id, event) = Event::decode(&entry.topic, &entry.event)?;
                (id == container).then_some((event, entry.published))
            })
            .collect()
    }

    /// Waits for an event of a container by its name (see [`Event::name`]) and
    /// gives all of the container's events until then.
    ///
    /// # Errors
    /// It did not come in time; the message lists those that did.
    pub fn wait_for(&self, container: &str, name: &str) -> Result<Vec<Event>> {
        eventually("an event", || {
            let events = self.of(container);
            events.iter().any(|e| e.name() == name).then_some(events)
        })
        .with_context(|| {
            format!(
                "event {name} of {container}; came: {:?}",
                self.of(container)
            )
        })
    }
}

//! Events to containerd: in order, and none lost while the daemon can still hand them over.

use std::time::Duration;

use containerd_shim::event::Event;
use containerd_shim::protos::events as messages;
use containerd_shim::protos::protobuf::Message;
use containerd_shim::protos::shim::event::Envelope;
use containerd_shim::protos::shim::events::ForwardRequest;
use containerd_shim::protos::shim_async::{Client, EventsClient};
use containerd_shim::protos::ttrpc::{self, Code, context};
use containerd_shim::util::timestamp;
use tokio::sync::{mpsc, oneshot};

use crate::any::any;

pub use messages::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};

/// The package of containerd's events.
const EVENTS: &str = "containerd.events";

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(5);

/// The pauses between attempts to hand an event over. After the last one an event that containerd
/// refuses is dropped, with a line in the log; a containerd that is not there, as while it is
/// restarted or upgraded, is tried again after the last pause, over and over.
const PAUSES: [Duration; 6] = [
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

/// Publishes events one after the other, in the order in which they are given.
#[derive(Clone)]
pub struct Publisher {
    queue: mpsc::UnboundedSender<Item>,
    namespace: String,
}

enum Item {
    Event(Box<Envelope>),
    Flush(oneshot::Sender<()>),
}

impl Publisher {
    /// Publishes events of `namespace` to the containerd whose ttrpc socket is `address`, in the
    /// running tokio runtime.
    pub fn start(address: String, namespace: String) -> Self {
        let (queue, items) = mpsc::unbounded_channel();
        tokio::spawn(send_all(address, items));
        Self { queue, namespace }
    }

    /// Queues `event`.
    pub fn publish(&self, event: impl Event + Message) {
        let topic = event.topic();
        let envelope = timestamp().map(|at| {
            let mut envelope = Envelope::new();
            envelope.set_topic(topic.clone());
            envelope.set_namespace(self.namespace.clone());
            envelope.set_timestamp(at);
            envelope.set_event(any(EVENTS, &event));
            envelope
        });
        match envelope {
            // The queue is open for as long as there is a publisher.
            Ok(envelope) => drop(self.queue.send(Item::Event(Box::new(envelope)))),
            Err(error) => log::error!("the event {topic} cannot be encoded: {error}"),
        }
    }

    /// Waits until every event that is queued now has been handed over or dropped.
    pub async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        drop(self.queue.send(Item::Flush(done)));
        // An error means that nothing is sent any more, which is as flushed as it gets.
        let _ = flushed.await;
    }
}

async fn send_all(address: String, mut items: mpsc::UnboundedReceiver<Item>) {
    let mut client = None;
    while let Some(item) = items.recv().await {
        let event = match item {
            Item::Event(event) => *event,
            Item::Flush(done) => {
                // Who waited may have given up.
                let _ = done.send(());
                continue;
            }
        };
        let topic = event.topic.clone();
        let mut request = ForwardRequest::new();
        request.set_envelope(event);
        let mut pauses = PAUSES.iter();
        while let Err(failure) = send(&address, &mut client, &request).await {
            client = None;
            let pause = match (pauses.next(), &failure) {
                (Some(pause), _) => pause,
                (None, Failure::Away(_)) => &PAUSES[PAUSES.len() - 1],
                (None, Failure::Refused(reason)) => {
                    log::error!("containerd at {address} refuses the event {topic}: {reason}");
                    break;
                }
            };
            log::warn!("publishing {topic} failed, trying again in {pause:?}: {failure}");
            tokio::time::sleep(*pause).await;
        }
    }
}

/// Why an event was not handed over.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// containerd was not there, or did not answer.
    #[error("{0}")]
    Away(String),
    /// It answered with an error.
    #[error("{0}")]
    Refused(String),
}

async fn send(
    address: &str,
    client: &mut Option<EventsClient>,
    request: &ForwardRequest,
) -> Result<(), Failure> {
    let connected = match client {
        Some(connected) => connected,
        None => {
            let address = if address.contains("://") {
                address.to_owned()
            } else {
                format!("unix://{address}")
            };
            let connection = Client::connect(&address)
                .await
                .map_err(|error| Failure::Away(error.to_string()))?;
            client.insert(EventsClient::new(connection))
        }
    };
    let attempt = connected.forward(context::with_duration(ATTEMPT), request);
    match tokio::time::timeout(ATTEMPT, attempt).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(ttrpc::Error::RpcStatus(status))) if status.code() != Code::DEADLINE_EXCEEDED => {
            Err(Failure::Refused(status.message().to_owned()))
        }
        Ok(Err(error)) => Err(Failure::Away(error.to_string())),
        Err(_) => Err(Failure::Away(format!("no answer in {ATTEMPT:?}"))),
    }
}

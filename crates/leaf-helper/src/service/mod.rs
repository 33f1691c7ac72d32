//! The helper as a service: receives [`HostOp`]s over a socket (varlink), and carries them out.
//!
//! One loop owns the running operations. Each connection is a task that reads calls and waits for their ends; each
//! operation is a task of the loop, so that it continues when its caller goes away. Their order is the helper's.

mod bounded;
pub(crate) mod client;
pub mod config;
mod wire;

use std::io;
use std::time::Duration;

use leaf_core::host_op::{HostOp, HostOpError, HostOpErrorKind, HostReport};
use serde_json::{Map, Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use zlink::{Connection, Reply};

use crate::Helper;
use crate::job::Jobs;
use crate::service::bounded::Bounded;
use wire::{Fault, INTERFACE, Message, SERVICE};

/// The maximum number of connections; more wait.
const MAX_CONNECTIONS: usize = 64;
/// The time limit for the last answers when the service ends.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The settings of the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serving {
    /// The id of the user whose processes may call, in addition to root's.
    pub client: u32,
    /// The settings of jobs; `None` if there is no user for them.
    pub jobs: Option<Jobs>,
    /// The time without a connection after which the service ends; `None`: never.
    pub idle: Option<Duration>,
}

/// A requested operation.
struct Ask {
    op: HostOp,
    answer: oneshot::Sender<Result<HostReport, HostOpError>>,
}

/// The running operations, each a task, so that they continue when their callers go away.
struct Work {
    helper: Helper,
    running: JoinSet<()>,
}

impl Work {
    fn begin(&mut self, Ask { op, answer }: Ask) {
        let helper = self.helper.clone();
        let mut place = match helper.order.line_up(&op) {
            Ok(place) => place,
            Err(error) => return drop(answer.send(Err(error))),
        };
        self.running.spawn(async move {
            let outcome = helper.carry_out_in_turn(&mut place, &op).await;
            let worked = outcome.is_ok();
            // The caller may have gone away.
            let _ = answer.send(outcome);
            helper.tidy_after(&op, worked).await;
        });
    }

    /// Waits until an operation ends.
    async fn next_end(&mut self) {
        match self.running.join_next().await {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::error!(%error, "an operation ended unexpectedly"),
            None => std::future::pending().await,
        }
    }
}

/// Serves until `stop`, or until no caller was connected for a while. Running operations are completed.
///
/// # Errors
/// The system's error about the listening socket.
pub async fn serve(
    helper: Helper,
    listener: UnixListener,
    serving: Serving,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    helper.forget_question();
    let (asks, mut asked) = mpsc::channel(MAX_CONNECTIONS);
    let (end, ends) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut work = Work {
        helper: helper.with_jobs(serving.jobs),
        running: JoinSet::new(),
    };
    let resuming = work.helper.clone();
    work.running.spawn(async move { resuming.resume_change().await });
    tokio::pin!(stop);
    let mut quiet_since = Instant::now();
    loop {
        let busy = !connections.is_empty() || !work.running.is_empty();
        let idle_until = serving.idle.filter(|_| !busy).map(|idle| quiet_since + idle);
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => {
                let (stream, _) = accepted?;
                connections.spawn(attend(stream, serving.client, asks.clone(), ends.clone()));
            }
            Some(ask) = asked.recv() => work.begin(ask),
            () = work.next_end() => quiet_since = Instant::now(),
            Some(_) = connections.join_next() => quiet_since = Instant::now(),
            () = async { tokio::time::sleep_until(idle_until.unwrap_or(quiet_since)).await }, if idle_until.is_some() => {
                tracing::info!("no caller for a while, exiting; systemd starts the service again at the next call");
                break;
            }
            () = &mut stop => {
                tracing::info!(under_way = work.running.len(), "ends");
                break;
            }
        }
    }
    // No more calls are read; the requested operations are completed and answered.
    drop(listener);
    drop(asks);
    end.send_replace(true);
    let mut all_asked = false;
    while !(all_asked && work.running.is_empty()) {
        tokio::select! {
            ask = asked.recv(), if !all_asked => match ask {
                Some(ask) => work.begin(ask),
                None => all_asked = true,
            },
            () = work.next_end() => {}
        }
    }
    let said = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_WORDS, said).await.is_err() {
        tracing::warn!("a caller did not read its last answer");
    }
    Ok(())
}

/// Serves one caller until it disconnects or the service ends.
async fn attend(stream: UnixStream, client: u32, asks: mpsc::Sender<Ask>, mut ends: watch::Receiver<bool>) {
    // The kernel recorded it when the caller connected (unix(7), SO_PEERCRED).
    let caller = match stream.peer_cred() {
        Ok(peer) => peer.uid(),
        Err(error) => return tracing::warn!(%error, "can't determine the caller"),
    };
    let mut connection = match Bounded::new(stream) {
        Ok(socket) => Connection::new(socket),
        Err(error) => return tracing::warn!(error = ?error, "can't use the connection"),
    };
    if caller != client && caller != 0 {
        tracing::warn!(caller, "refused a caller that is neither leafd nor root");
        // Refused after its call is read: a caller that is still writing when the connection closes gets no answer.
        let _ = tokio::time::timeout(LAST_WORDS, connection.receive_call::<Message>()).await;
        let denied = Fault::service("PermissionDenied", None);
        let _ = connection.send_error(&denied, Vec::new()).await;
        return;
    }
    loop {
        let call = tokio::select! {
            biased;
            _ = ends.wait_for(|end| *end) => return,
            call = connection.receive_call::<Message>() => call,
        };
        // File descriptors that were passed along are not used, and closed.
        let call = match call {
            Ok((call, _)) => call,
            Err(zlink::Error::UnexpectedEof) => return,
            // Not the error's own text, which may quote the message.
            Err(error) => {
                let why = match error {
                    zlink::Error::Json(_) => "it is not a JSON call",
                    zlink::Error::BufferOverflow => "it is too long",
                    _ => "it is unreadable",
                };
                tracing::warn!(
                    caller,
                    why,
                    "invalid message from a caller, closing the connection"
                );
                let fault = Fault::service("InvalidParameter", Some(("parameter", why)));
                let _ = connection.send_error(&fault, Vec::new()).await;
                return;
            }
        };
        let oneway = call.oneway();
        let message = Message {
            method: call.method().method.clone(),
            parameters: call.method().parameters.clone(),
        };
        let answer = answer(message, call.more() || call.upgrade(), &asks).await;
        if oneway {
            continue;
        }
        let sent = match answer {
            Ok(parameters) => {
                connection
                    .send_reply(&Reply::new(Some(parameters)), Vec::new())
                    .await
            }
            Err(fault) => connection.send_error(&fault, Vec::new()).await,
        };
        if sent.is_err() {
            return;
        }
    }
}

async fn answer(
    message: Message,
    special: bool,
    asks: &mpsc::Sender<Ask>,
) -> Result<Map<String, Value>, Fault> {
    if special {
        return Err(Fault::service(
            "InvalidParameter",
            Some(("parameter", "more, upgrade")),
        ));
    }
    if let Some(method) = message.method.strip_prefix(SERVICE) {
        return about_the_service(method, &message);
    }
    let op = wire::operation(message)?;
    let summary = op.summary();
    let (answer, answered) = oneshot::channel();
    let lost = |_| {
        Fault::from(HostOpError {
            op: summary.clone(),
            kind: HostOpErrorKind::Failed,
            reason: "internal error of the helper; see its log".to_owned(),
        })
    };
    asks.send(Ask { op, answer })
        .await
        .map_err(|e| lost(e.to_string()))?;
    let report = answered.await.map_err(|e| lost(e.to_string()))??;
    Ok(wire::parameters_of(&report))
}

/// Answers the calls of the interface that every varlink service has.
fn about_the_service(method: &str, message: &Message) -> Result<Map<String, Value>, Fault> {
    let description = |interface: &str| match interface {
        INTERFACE => Some(wire::description()),
        SERVICE => Some(SERVICE_DESCRIPTION.to_owned()),
        _ => None,
    };
    let value = match method {
        ".GetInfo" => json!({
            "vendor": "cim-leaf",
            "product": "leaf-helper",
            "version": env!("CARGO_PKG_VERSION"),
            "url": "",
            "interfaces": [INTERFACE, SERVICE],
        }),
        ".GetInterfaceDescription" => {
            let name = message.parameters.get("interface").and_then(Value::as_str);
            let name =
                name.ok_or_else(|| Fault::service("InvalidParameter", Some(("parameter", "interface"))))?;
            let unknown = || Fault::service("InterfaceNotFound", Some(("interface", name)));
            json!({ "description": description(name).ok_or_else(unknown)? })
        }
        _ => {
            return Err(Fault::service(
                "MethodNotFound",
                Some(("method", &message.method)),
            ));
        }
    };
    match value {
        Value::Object(parameters) => Ok(parameters),
        _ => unreachable!("both answers are objects"),
    }
}

/// The interface description, from varlink.org.
const SERVICE_DESCRIPTION: &str = "\
# What every varlink service answers.
interface org.varlink.service

method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)

method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error InvalidParameter (parameter: string)
error PermissionDenied ()
";

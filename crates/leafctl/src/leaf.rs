//! One leaf that a command is for.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use jiff::Timestamp;
use leaf_bus::client::{CallError, CallOptions, Client, ClientError, Heard};
use leaf_bus::stream::StreamError;
use leaf_core::beat::{Beat, LEASE_SECONDS, Presence, presence};
use leaf_core::command::{CommandKind, Request, ShowContainer};
use leaf_core::container::{Container, ContainerPhase};
use leaf_core::fleet::CopyState;
use leaf_core::id::{CommandId, ContainerName, LeafName};
use leaf_core::json::to_json;
use leaf_core::printable::printable_line;
use leaf_core::problem::{Problem, ProblemCode};
use uuid::Uuid;

use crate::advice;
use crate::error::Error;
use crate::output::ago;
use crate::progress;
use crate::signing::{Body, Signing};

/// The least time limit of a command that waits for the host.
const SLOW: Duration = Duration::from_secs(120);
/// The time limit of a leaf that is away: it may be there all the same, if the clock of this host is wrong.
const AWAY: Duration = Duration::from_secs(1);

/// A leaf that commands are sent to.
pub(crate) struct Leaf {
    /// Its name.
    pub name: LeafName,
    /// The connection.
    pub client: Client,
    /// The time limits of a command, and of one that waits for the host.
    timeout: Duration,
    slow_timeout: Duration,
    /// The id of the first change, until that has taken it.
    command_id: RefCell<Option<CommandId>>,
    among: Among,
    /// The signatures of the command.
    signing: Rc<Signing>,
}

/// Whether the command is for other leaves as well.
enum Among {
    /// It is for this leaf only.
    Alone,
    /// It is for several leaves. This one's last beat was heard then; the command is repeated under this id.
    Several {
        heard: Option<Box<Heard>>,
        repeated_by: CommandId,
    },
}

impl Leaf {
    /// Returns the only leaf that a command is for. The first change has the given id.
    pub(crate) fn alone(
        name: LeafName,
        client: Client,
        timeout: Duration,
        command_id: Option<CommandId>,
        signing: Rc<Signing>,
    ) -> Self {
        Self {
            name,
            client,
            timeout,
            slow_timeout: timeout.max(SLOW),
            command_id: RefCell::new(command_id),
            among: Among::Alone,
            signing,
        }
    }

    /// Returns one of several leaves that a command is for, with its last beat. The id of its first change is made of the
    /// given one, which is that of all leaves together, and the leaf's name.
    pub(crate) fn one_of_several(
        name: LeafName,
        heard: Option<Heard>,
        client: Client,
        timeout: Duration,
        command_id: &CommandId,
        signing: Rc<Signing>,
    ) -> Self {
        let is_away = heard.as_ref().is_some_and(|heard| away_since(heard).is_some());
        let (timeout, slow_timeout) = if is_away {
            (timeout.min(AWAY), timeout.min(AWAY))
        } else {
            (timeout, timeout.max(SLOW))
        };
        Self {
            command_id: RefCell::new(Some(command_id.for_leaf(&name))),
            name,
            client,
            timeout,
            slow_timeout,
            among: Among::Several {
                heard: heard.map(Box::new),
                repeated_by: command_id.clone(),
            },
            signing,
        }
    }

    /// Returns whether the command is for no other leaf.
    pub(crate) fn is_alone(&self) -> bool {
        matches!(self.among, Among::Alone)
    }

    /// Returns whether it is one of several leaves, and its last beat is too old.
    pub(crate) fn is_away(&self) -> bool {
        match &self.among {
            Among::Several {
                heard: Some(heard), ..
            } => away_since(heard).is_some(),
            Among::Several { heard: None, .. } | Among::Alone => false,
        }
    }

    /// Returns the error of a command that was interrupted before this leaf replied.
    pub(crate) fn interrupted(&self) -> Error {
        let note = match &self.among {
            Among::Several { repeated_by, .. } if self.command_id.borrow().is_none() => Some(format!(
                "it may still be carried out; repeat the command for the same leaves with --command-id {repeated_by}, and each carries \
                 it out once"
            )),
            Among::Several { .. } | Among::Alone => None,
        };
        Error::Interrupted { note }
    }

    /// Waits for `work`, with a spinner and its text unless other leaves are waited for as well.
    pub(crate) async fn waiting<T>(&self, what: &'static str, work: impl Future<Output = T>) -> T {
        if self.is_alone() {
            progress::waiting(what, work).await
        } else {
            work.await
        }
    }

    /// Sends a command and returns its reply.
    pub(crate) async fn call<R: Request>(&self, request: &R) -> Result<R::Reply, Error> {
        Box::pin(self.call_within(request, self.timeout, Body::OfAll)).await
    }

    /// Sends a command that waits for the host, which may take longer than other replies.
    pub(crate) async fn call_slow<R: Request>(&self, request: &R) -> Result<R::Reply, Error> {
        Box::pin(self.call_within(request, self.slow_timeout, Body::OfAll)).await
    }

    /// Sends a command to a leaf that may be restarting, and waits for its reply for this time at most.
    pub(crate) async fn call_briefly<R: Request>(
        &self,
        request: &R,
        limit: Duration,
    ) -> Result<R::Reply, Error> {
        Box::pin(self.call_within(request, self.timeout.min(limit), Body::OfAll)).await
    }

    /// Like [`Leaf::call_slow`], for a command whose body is another for each leaf.
    pub(crate) async fn call_slow_with_own_body<R: Request>(&self, request: &R) -> Result<R::Reply, Error> {
        Box::pin(self.call_within(request, self.slow_timeout, Body::Own)).await
    }

    /// Returns how long to wait for a message before querying again.
    pub(crate) fn look_again_after(&self) -> Duration {
        Duration::from_secs(1)
    }

    /// Asks a container for its health.
    pub(crate) async fn health(&self, name: &ContainerName) -> Result<serde_json::Value, Error> {
        let answer = self
            .client
            .request_container_health(&self.name, name, self.timeout)
            .await;
        answer.map_err(|error| match error {
            ClientError::Stream(StreamError::Unanswered { .. }) => Error::NoLeaf(format!(
                "container {name} does not reply: is it running? (`leafctl container show {name}`)"
            )),
            other => other.into(),
        })
    }

    /// Queries a container until it has settled: it runs, is stopped, or has failed.
    pub(crate) async fn settled(&self, name: &ContainerName) -> Result<Container, Error> {
        loop {
            let container = self.call(&ShowContainer { name: name.clone() }).await?;
            match container.phase {
                ContainerPhase::Failed => {
                    let why = container.error.unwrap_or_default();
                    return Err(Error::Problem(Problem::new(
                        ProblemCode::Failed,
                        format!("container {name}: {why}"),
                    )));
                }
                phase if phase.is_moving() || phase == ContainerPhase::Building => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                _ => return Ok(container),
            }
        }
    }

    async fn call_within<R: Request>(
        &self,
        request: &R,
        timeout: Duration,
        body: Body,
    ) -> Result<R::Reply, Error> {
        let id = (R::DECLARATION.kind != CommandKind::Query).then(|| self.next_id());
        let options = CallOptions {
            id: id.clone(),
            timeout,
            ..CallOptions::default()
        };
        let mut answer = self.client.call(&self.name, request, options).await;
        if let Err(CallError::Problem(problem)) = &answer
            && problem.code == ProblemCode::SignatureRequired
        {
            answer = Box::pin(self.call_signed(request, body, id.as_ref(), timeout)).await?;
        }
        match (answer, id) {
            (Ok(reply), _) => Ok(reply),
            (Err(error @ (CallError::TimedOut { .. } | CallError::Disconnected)), Some(id)) => {
                let (id, is_shared) = match &self.among {
                    Among::Alone => (id, false),
                    Among::Several { repeated_by, .. } => (repeated_by.clone(), true),
                };
                Err(Error::Lost {
                    id,
                    is_shared,
                    how: error.into(),
                })
            }
            (Err(CallError::NoLeaf(_)), _) => Err(self.without_reply(None).await),
            (Err(CallError::TimedOut { seconds, .. }), None) => Err(self.without_reply(Some(seconds)).await),
            (Err(error), _) => Err(error.into()),
        }
    }

    /// Sends a command with a signature.
    ///
    /// # Errors
    /// Why none can be made.
    async fn call_signed<R: Request>(
        &self,
        request: &R,
        of: Body,
        id: Option<&CommandId>,
        timeout: Duration,
    ) -> Result<Result<R::Reply, CallError>, Error> {
        let body = to_json(request);
        let (id, signature) = self
            .signing
            .sign(&self.name, R::DECLARATION, &body, of, id)
            .await?;
        let options = CallOptions {
            id: Some(id),
            timeout,
            signature: Some(signature),
            ..CallOptions::default()
        };
        Ok(self.client.call(&self.name, request, options).await)
    }

    /// Returns the id of the first change, or else a new one.
    fn next_id(&self) -> CommandId {
        let given = self.command_id.borrow_mut().take();
        given.unwrap_or_else(|| Uuid::now_v7().into())
    }

    /// Returns what a hub has of the events of a leaf that is away, to add to an error; nothing if this is no hub, or the
    /// command is for other leaves as well.
    async fn copy_text(&self) -> String {
        if !self.is_alone() {
            return String::new();
        }
        let Ok(Some(copy)) = self.client.copy_status(&self.name).await else {
            return String::new();
        };
        let reason = copy
            .reason
            .as_ref()
            .map_or(String::new(), |why| format!(" ({})", printable_line(why)));
        let state = match copy.state {
            CopyState::Away => String::new(),
            state => format!(", and is {state} since {}{reason}", copy.since),
        };
        let next = match copy.state {
            CopyState::Gap | CopyState::Differs => advice::about_copy(&copy),
            // The error itself says where to look.
            _ => None,
        };
        format!(
            "; the hub's copy of its events ends with {} of {}{state}: `leafctl events --leaf {}`{}",
            copy.copied,
            copy.leaf_last,
            self.name,
            next.map_or(String::new(), |next| format!("; {next}"))
        )
    }

    /// Returns the error about a leaf that takes no commands, or did not reply to a query within some seconds: it explains why
    /// `leaf list` may list it all the same.
    async fn without_reply(&self, within: Option<f64>) -> Error {
        let heard = match &self.among {
            Among::Several { heard, .. } => heard.as_deref().cloned(),
            Among::Alone => {
                let leaves = self.client.leaves().await.unwrap_or_default();
                leaves
                    .heard
                    .into_iter()
                    .find(|heard| heard.beat.leaf == self.name)
            }
        };
        let Some(heard) = heard else {
            let leaf = self.name.clone();
            return Error::Call(match within {
                None => CallError::NoLeaf(leaf),
                Some(seconds) => CallError::TimedOut { leaf, seconds },
            });
        };
        let Beat {
            instance, hostname, ..
        } = &heard.beat;
        let (leaf, host, last) = (&self.name, printable_line(hostname), ago(heard.at));
        let log = format!("see its log on {host} (`journalctl -u leafd`)");
        Error::NoLeaf(match (away_since(&heard), within) {
            (Some(since), within) => {
                let silent = within.map_or(String::new(), |seconds| {
                    format!("did not reply within {seconds} s and ")
                });
                let copy = self.copy_text().await;
                format!(
                    "leaf {leaf} {silent}is away since {since}: instance {instance} on {host} sent its last beat {last}{copy}"
                )
            }
            (None, None) => format!(
                "leaf {leaf} takes no commands, though `leafctl leaf list` still has it: instance {instance} on {host} sent its \
                 last beat {last}; leafd is starting or stopping there, or has ended or lost its server or its link to a hub \
                 less than {LEASE_SECONDS} s ago: {log}"
            ),
            (None, Some(seconds)) => format!(
                "leaf {leaf} did not reply within {seconds} s: instance {instance} on {host} sent its last beat {last}; leafd hangs \
                 or is starting there, or has ended less than {LEASE_SECONDS} s ago: {log}"
            ),
        })
    }
}

/// Returns since when a leaf is away, by its last beat and the clock of this host.
pub(crate) fn away_since(heard: &Heard) -> Option<Timestamp> {
    match presence(heard.at, Timestamp::now()) {
        Presence::Online => None,
        // Without the fractions of a second.
        Presence::AwaySince(time) => Some(Timestamp::from_second(time.as_second()).unwrap_or(time)),
    }
}

//! Machines: running containers as known to systemd-machined.

use std::fmt;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use tokio::time::Instant;
use zbus::message::Type;
use zbus::{Connection, Message, MessageStream};

use super::properties::get_all;
use super::{Systemd, SystemdError, is_not_found, path_part};

const MACHINED: &str = "org.freedesktop.machine1";
const MACHINED_PATH: &str = "/org/freedesktop/machine1";
const MANAGER: &str = "org.freedesktop.machine1.Manager";
const MACHINE: &str = "org.freedesktop.machine1.Machine";
const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";

/// The first and the longest pause before a listening connection is made again.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// A machine of machined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The unit that it runs in.
    pub unit: String,
    /// The id of its leader.
    pub leader: u32,
}

impl Systemd {
    /// Returns the machine of this name, if it exists.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn machine(&self, name: &str) -> Result<Option<Machine>, SystemdError> {
        self.call(&format!("look up the machine {name}"), |connection| async move {
            machine(&connection, name).await
        })
        .await
    }

    /// Returns the leader of a machine if machined answers at once and knows it. The call is not repeated, since the
    /// caller has another source.
    pub async fn machine_leader(&self, name: &str) -> Option<u32> {
        let asked = async { machine(&self.connection().await?, name).await };
        let answer = tokio::time::timeout(self.shared.patience.answer, asked).await;
        let machine = answer.ok()?.ok()??;
        Some(machine.leader).filter(|pid| *pid > 0)
    }

    /// Unregisters a machine. It is not an error if it is not registered.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn unregister_machine(&self, name: &str) -> Result<(), SystemdError> {
        self.call(
            &format!("unregister the machine {name}"),
            |connection| async move {
                let reply = connection
                    .call_method(
                        Some(MACHINED),
                        MACHINED_PATH,
                        Some(MANAGER),
                        "UnregisterMachine",
                        &name,
                    )
                    .await;
                match reply {
                    Err(e) if is_not_found(&e) => Ok(()),
                    other => other.map(drop),
                }
            },
        )
        .await
    }

    /// Returns the events of machines, starting with the first call of [`MachineEvents::next`]. They use a connection
    /// of their own.
    #[must_use]
    pub fn machine_events(&self) -> MachineEvents {
        MachineEvents {
            systemd: self.clone(),
            stream: None,
            wait: FIRST_WAIT,
            next_try: Instant::now(),
            told: false,
        }
    }
}

async fn machine(connection: &Connection, name: &str) -> zbus::Result<Option<Machine>> {
    let path = format!("{MACHINED_PATH}/machine/{}", path_part(name));
    match get_all(connection, MACHINED, &path, MACHINE).await {
        Err(e) if is_not_found(&e) => Ok(None),
        properties => properties.map(|properties| {
            Some(Machine {
                unit: properties.text("Unit").to_owned(),
                leader: u32::try_from(properties.unsigned("Leader")).unwrap_or(0),
            })
        }),
    }
}

/// An event of machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEvent {
    /// The machine of this name was added or removed.
    Changed(String),
    /// Events are received from now on; earlier ones may have been missed.
    Listening,
}

/// Events of machines, over a connection that is made again whenever it ends.
pub struct MachineEvents {
    systemd: Systemd,
    stream: Option<MessageStream>,
    wait: Duration,
    next_try: Instant,
    /// Whether the loss of the connection was logged.
    told: bool,
}

impl fmt::Debug for MachineEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stream, wait, .. } = self;
        f.debug_struct("MachineEvents")
            .field("listens", &stream.is_some())
            .field("wait", wait)
            .finish_non_exhaustive()
    }
}

impl MachineEvents {
    /// Waits for the next event. Cancel-safe.
    pub async fn next(&mut self) -> MachineEvent {
        loop {
            let Some(stream) = &mut self.stream else {
                tokio::time::sleep_until(self.next_try).await;
                self.listen().await;
                if self.stream.is_some() {
                    return MachineEvent::Listening;
                }
                continue;
            };
            let next = stream.next().await;
            if let Some(event) = self.event(next) {
                return event;
            }
        }
    }

    /// Returns the next event that was already received, if any.
    pub fn next_at_hand(&mut self) -> Option<MachineEvent> {
        loop {
            let next = self.stream.as_mut()?.next().now_or_never()?;
            if let Some(event) = self.event(next) {
                return Some(event);
            }
        }
    }

    /// Returns the event that a message of the stream tells. Where the stream has ended, the connection is lost.
    fn event(&mut self, next: Option<zbus::Result<Message>>) -> Option<MachineEvent> {
        match next {
            Some(Ok(message)) => return event_of(&message),
            Some(Err(error)) => self.lost(&error),
            None => self.lost(&zbus::Error::InvalidReply),
        }
        None
    }

    async fn listen(&mut self) {
        match self.subscribe().await {
            Ok(stream) => {
                if self.told {
                    tracing::info!("receiving machined's events again");
                }
                self.stream = Some(stream);
                self.wait = FIRST_WAIT;
                self.told = false;
            }
            Err(error) => self.lost(&error),
        }
    }

    /// Connects, and subscribes to machined's signals.
    async fn subscribe(&self) -> zbus::Result<MessageStream> {
        let connection = self.systemd.connect().await?;
        // Created before subscribing, so that it contains everything that arrives in the meantime.
        let stream = MessageStream::from(&connection);
        let rule = format!("type='signal',sender='{MACHINED}',interface='{MANAGER}'");
        connection
            .call_method(Some(BUS), BUS_PATH, Some(BUS), "AddMatch", &rule)
            .await?;
        Ok(stream)
    }

    fn lost(&mut self, error: &zbus::Error) {
        if !self.told {
            tracing::warn!(%error, "can't receive machined's events; trying again");
            self.told = true;
        }
        self.stream = None;
        self.next_try = Instant::now() + self.wait;
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
    }
}

/// Returns the event of a signal, if it is about a machine.
fn event_of(message: &Message) -> Option<MachineEvent> {
    let header = message.header();
    let member = header.member().map(|member| member.as_str());
    if header.message_type() != Type::Signal || !matches!(member, Some("MachineNew" | "MachineRemoved")) {
        return None;
    }
    let body = message.body();
    let (machine, _) = body.deserialize::<(&str, zbus::ObjectPath<'_>)>().ok()?;
    Some(MachineEvent::Changed(machine.to_owned()))
}

//! Signals of systemd and systemd-machined that something about containers changed: each a hint, none a fact.
//!
//! A connection that ends is made anew, for ever; that it is there again is a hint as well.

use std::fmt;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use tokio::time::Instant;
use zbus::message::Type;
use zbus::{Message, MessageStream};

use crate::bus::{self, MACHINED, MANAGER, SYSTEMD, SYSTEMD_PATH};

/// How long until a connection is tried again: at first, and at most.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

const BUS: &str = "org.freedesktop.DBus";
/// What is before the names of containers, in names of units and in their paths.
const UNIT: &str = "container@";
const UNIT_PATH: &str = "/org/freedesktop/systemd1/unit/container_40";

/// A connection that listens, or the wait for one.
pub(crate) struct Signals {
    stream: Option<MessageStream>,
    wait: Duration,
    next_try: Instant,
    /// Whether it was said that there is none.
    told: bool,
}

impl fmt::Debug for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stream, wait, .. } = self;
        f.debug_struct("Signals")
            .field("listens", &stream.is_some())
            .field("wait", wait)
            .finish_non_exhaustive()
    }
}

impl Signals {
    /// Returns what will listen; nobody listens yet.
    pub(crate) fn new() -> Self {
        Self {
            stream: None,
            wait: FIRST_WAIT,
            next_try: Instant::now(),
            told: false,
        }
    }

    /// Returns when something may have changed: also when it begins to listen. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) {
        loop {
            let Some(stream) = &mut self.stream else {
                tokio::time::sleep_until(self.next_try).await;
                self.listen().await;
                if self.stream.is_some() {
                    return;
                }
                continue;
            };
            match stream.next().await {
                Some(Ok(message)) => match meaning(&message) {
                    Meaning::Nothing => {}
                    Meaning::Changed => return,
                    // The subscription went with it.
                    Meaning::NewManager => {
                        self.stream = None;
                        self.next_try = Instant::now();
                    }
                },
                Some(Err(error)) => self.lost(&error),
                None => self.lost(&zbus::Error::InvalidReply),
            }
        }
    }

    /// Takes what has come, without waiting.
    pub(crate) fn drain(&mut self) {
        while let Some(stream) = &mut self.stream {
            match stream.next().now_or_never() {
                Some(Some(Ok(message))) => {
                    if meaning(&message) == Meaning::NewManager {
                        self.stream = None;
                        self.next_try = Instant::now();
                    }
                }
                Some(Some(Err(error))) => self.lost(&error),
                Some(None) => self.lost(&zbus::Error::InvalidReply),
                None => return,
            }
        }
    }

    async fn listen(&mut self) {
        match subscribe().await {
            Ok(stream) => {
                if self.told {
                    tracing::info!("systemd tells of changes again");
                }
                self.stream = Some(stream);
                self.wait = FIRST_WAIT;
                self.told = false;
            }
            Err(error) => self.lost(&error),
        }
    }

    fn lost(&mut self, error: &zbus::Error) {
        if !self.told {
            tracing::warn!(
                error = error as &dyn std::error::Error,
                "systemd does not tell of changes; it is asked again until it does"
            );
            self.told = true;
        }
        self.stream = None;
        self.next_try = Instant::now() + self.wait;
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
    }
}

/// Connects, and asks for all signals that may be about containers.
async fn subscribe() -> zbus::Result<MessageStream> {
    let connection = bus::connect().await?;
    // Before anything is asked for: what comes meanwhile is in it.
    let stream = MessageStream::from(&connection);
    let rules = [
        format!("type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='JobRemoved'"),
        format!("type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='UnitNew'"),
        format!("type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='UnitRemoved'"),
        format!(
            "type='signal',sender='{SYSTEMD}',interface='{BUS}.Properties',member='PropertiesChanged',\
             path_namespace='{SYSTEMD_PATH}/unit'"
        ),
        format!("type='signal',sender='{MACHINED}',interface='{MACHINED}.Manager'"),
        format!("type='signal',sender='{BUS}',interface='{BUS}',member='NameOwnerChanged',arg0='{SYSTEMD}'"),
    ];
    for rule in &rules {
        connection
            .call_method(Some(BUS), "/org/freedesktop/DBus", Some(BUS), "AddMatch", rule)
            .await?;
    }
    connection
        .call_method(Some(SYSTEMD), SYSTEMD_PATH, Some(MANAGER), "Subscribe", &())
        .await?;
    Ok(stream)
}

#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    Nothing,
    Changed,
    NewManager,
}

fn meaning(message: &Message) -> Meaning {
    let header = message.header();
    if header.message_type() != Type::Signal {
        return Meaning::Nothing;
    }
    let member = header.member().map(|member| member.as_str()).unwrap_or_default();
    let body = message.body();
    let about = match member {
        "PropertiesChanged" => header.path().is_some_and(|path| path.starts_with(UNIT_PATH)),
        "UnitNew" | "UnitRemoved" => body
            .deserialize::<(&str, zbus::ObjectPath<'_>)>()
            .is_ok_and(|(unit, _)| unit.starts_with(UNIT)),
        "JobRemoved" => body
            .deserialize::<(u32, zbus::ObjectPath<'_>, &str, &str)>()
            .is_ok_and(|(_, _, unit, _)| unit.starts_with(UNIT)),
        "MachineNew" | "MachineRemoved" => true,
        // It went, or came back.
        "NameOwnerChanged" => return Meaning::NewManager,
        _ => false,
    };
    if about { Meaning::Changed } else { Meaning::Nothing }
}

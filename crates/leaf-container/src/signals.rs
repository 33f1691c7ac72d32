//! Signals of systemd-machined that something about containers changed: each a hint, none a fact.
//!
//! systemd itself is not asked for its signals. It would tell, by large messages, of each change of each unit of the host, and
//! what concerns containers is known without: the helper writes when a run begins and ends, machined tells of machines, and
//! what is on its way is looked at again.
//!
//! A connection that ends is made anew, for ever; that it is there again is a hint as well.

use std::fmt;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use leaf_core::id::ContainerName;
use tokio::time::Instant;
use zbus::message::Type;
use zbus::{Message, MessageStream};

use crate::bus::{self, MACHINED};
use crate::watch::Changed;

/// How long until a connection is tried again: at first, and at most.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

const BUS: &str = "org.freedesktop.DBus";

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

    /// Returns what may have changed, when something may have: all of it when it begins to listen. Dropping the future
    /// loses nothing.
    pub(crate) async fn next(&mut self) -> Changed {
        loop {
            let Some(stream) = &mut self.stream else {
                tokio::time::sleep_until(self.next_try).await;
                self.listen().await;
                if self.stream.is_some() {
                    return Changed::Any;
                }
                continue;
            };
            match stream.next().await {
                Some(Ok(message)) => {
                    if let Some(name) = machine_of(&message) {
                        return Changed::one(name);
                    }
                }
                Some(Err(error)) => self.lost(&error),
                None => self.lost(&zbus::Error::InvalidReply),
            }
        }
    }

    /// Takes what has come, without waiting, and adds what may have changed by it.
    pub(crate) fn drain(&mut self, changed: &mut Changed) {
        while let Some(stream) = &mut self.stream {
            match stream.next().now_or_never() {
                Some(Some(Ok(message))) => {
                    if let Some(name) = machine_of(&message) {
                        changed.add(Changed::one(name));
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
                    tracing::info!("machined tells of machines again");
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
                "machined does not tell of machines; it is asked again until it does"
            );
            self.told = true;
        }
        self.stream = None;
        self.next_try = Instant::now() + self.wait;
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
    }
}

/// Connects, and asks for machined's signals.
async fn subscribe() -> zbus::Result<MessageStream> {
    let connection = bus::connect().await?;
    // Before anything is asked for: what comes meanwhile is in it.
    let stream = MessageStream::from(&connection);
    let rule = format!("type='signal',sender='{MACHINED}',interface='{MACHINED}.Manager'");
    connection
        .call_method(Some(BUS), "/org/freedesktop/DBus", Some(BUS), "AddMatch", &rule)
        .await?;
    Ok(stream)
}

/// The machine that a signal says has come or gone; anybody's.
fn machine_of(message: &Message) -> Option<ContainerName> {
    let header = message.header();
    let member = header.member().map(|member| member.as_str());
    if header.message_type() != Type::Signal || !matches!(member, Some("MachineNew" | "MachineRemoved")) {
        return None;
    }
    let body = message.body();
    let (machine, _) = body.deserialize::<(&str, zbus::ObjectPath<'_>)>().ok()?;
    ContainerName::new(machine).ok()
}

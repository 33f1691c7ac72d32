//! The calls to systemd, over D-Bus: jobs, and what they came to.
//!
//! A call that meets no D-Bus (it is restarted, or not up yet) is made again, for a bounded time. Each can be made again:
//! a start of what is started and a stop of what is stopped are no changes.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use leaf_host::systemd::bus_path_part;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Mutex, broadcast};
use tokio::task::JoinSet;
use tokio::time::Instant;
use zbus::message::Type;
use zbus::proxy::CacheProperties;
use zbus::{Connection, MatchRule, Message, MessageStream, OwnedObjectPath, OwnedVariant, Variant};
use zbus_systemd::machine1;
use zbus_systemd::systemd1::{ManagerProxy, ServiceProxy, UnitProxy};

use crate::error::{Error, Result};

/// How long D-Bus may be away before that is an error.
const AWAY: Duration = Duration::from_secs(15);
/// How long one call may take.
const CALL: Duration = Duration::from_secs(60);
/// How many ends of jobs are kept for one who does not take them at once.
const JOBS: usize = 1024;

/// Systemd and systemd-machined, over the bus. Copies share one connection, which is made when it is first needed, and again
/// where it broke.
#[derive(Debug, Clone)]
pub(crate) struct Systemd {
    bus: Arc<Mutex<Option<Bus>>>,
    /// For those who wait for jobs. Who is too slow misses some, and looks.
    told: broadcast::Sender<Told>,
}

impl Default for Systemd {
    fn default() -> Self {
        Self {
            bus: Arc::default(),
            told: broadcast::Sender::new(JOBS),
        }
    }
}

/// A connection, and the task that takes what comes over it without being asked for.
#[derive(Debug)]
struct Bus {
    connection: Connection,
    _listens: JoinSet<()>,
}

/// What is asked of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// To be started.
    Start,
    /// To be stopped.
    Stop,
    /// To be reloaded.
    Reload,
}

/// What became of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum JobEnd {
    /// What was asked is so.
    Done,
    /// It is not, with systemd's word for why: `failed`, `canceled`, `timeout`, `dependency`, ….
    Undone(String),
    /// It takes longer than it may.
    StillRuns,
}

/// What systemd says of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnitLook {
    /// `loaded`, `not-found`, `masked`, `bad-setting`, ….
    pub(crate) load: String,
    /// `active`, `inactive`, `failed`, `activating`, `deactivating`, `reloading`.
    pub(crate) active: String,
    /// `running`, `auto-restart`, ….
    pub(crate) sub: String,
    /// The file that it was read from.
    pub(crate) file: String,
    /// Whether its file is another than when it was read.
    pub(crate) stale: bool,
    /// The job on it, 0 for none.
    pub(crate) job: u32,
}

impl UnitLook {
    /// Returns it by the properties of `org.freedesktop.systemd1.Unit`.
    fn of(properties: &BTreeMap<String, OwnedVariant>) -> Self {
        let value = |key| properties.get(key).map(|value| &**value);
        let text = |key| {
            value(key)
                .and_then(|value| <&str>::try_from(value).ok())
                .unwrap_or_default()
                .to_owned()
        };
        Self {
            load: text("LoadState"),
            active: text("ActiveState"),
            sub: text("SubState"),
            file: text("FragmentPath"),
            stale: matches!(value("NeedDaemonReload"), Some(Variant::Bool(true))),
            job: value("Job").map_or(0, number_of_job),
        }
    }

    /// Whether anything of it runs, or will by itself.
    pub(crate) fn is_up(&self) -> bool {
        !matches!(self.active.as_str(), "inactive" | "failed")
    }
}

/// How the main process of a service ended last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceEnd {
    /// `success`, `exit-code`, `signal`, `timeout`, `protocol`, `oom-kill`, ….
    pub(crate) result: String,
    /// How: 1 by exit, 2 by a signal (`CLD_*`, sigaction(2)).
    pub(crate) code: i32,
    /// Its exit code, or the signal.
    pub(crate) status: i32,
    /// Which run of it that was.
    pub(crate) invocation: String,
}

fn is_away(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::InputOutput(_) | zbus::Error::Address(_) | zbus::Error::Handshake(_) => true,
        zbus::Error::MethodError(name, ..) => matches!(
            name.as_str(),
            "org.freedesktop.DBus.Error.ServiceUnknown"
                | "org.freedesktop.DBus.Error.NameHasNoOwner"
                | "org.freedesktop.DBus.Error.NoReply"
                | "org.freedesktop.DBus.Error.Disconnected"
        ),
        _ => false,
    }
}

fn is_named(error: &zbus::Error, wanted: &str) -> bool {
    matches!(error, zbus::Error::MethodError(name, ..) if name.as_str() == wanted)
}

/// What systemd said, or why it could not be asked.
fn said(error: zbus::Error) -> String {
    match error {
        zbus::Error::MethodError(name, Some(detail), _) => format!("{detail} ({name})"),
        other => other.to_string(),
    }
}

impl Systemd {
    async fn connection(&self) -> zbus::Result<Connection> {
        let mut shared = self.bus.lock().await;
        if let Some(bus) = shared.as_ref().filter(|bus| !bus.connection.is_closed()) {
            return Ok(bus.connection.clone());
        }
        let connection = Connection::system().await?;
        // Once for all jobs: to ask for it and to take that back are five more questions for each. And taken by one task: a
        // stream that nobody takes from for a while holds up all others.
        let rule = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender(SYSTEMD)
            .interface(MANAGER)
            .member("JobRemoved")
            .build()?;
        let mut messages = MessageStream::for_match_rule(rule, &connection, None).await?;
        let told = self.told.clone();
        let mut listens = JoinSet::new();
        listens.spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                // Nobody need be waiting.
                let _ = Told::of(&message).map(|ended| told.send(ended));
            }
            let _ = told.send(Told::Lost);
        });
        *shared = Some(Bus {
            connection: connection.clone(),
            _listens: listens,
        });
        Ok(connection)
    }

    /// Lets go of the connection; the next call makes another.
    pub(crate) async fn disconnect(&self) {
        *self.bus.lock().await = None;
    }

    /// Calls, and again by another connection where D-Bus is away.
    async fn retried<T, F>(&self, what: &str, call: impl Fn(ManagerProxy<'static>) -> F) -> Result<T>
    where
        F: Future<Output = zbus::Result<T>>,
    {
        let deadline = Instant::now() + AWAY;
        loop {
            let attempt = async {
                let connection = self.connection().await?;
                let manager = ManagerProxy::builder(&connection)
                    .cache_properties(CacheProperties::No)
                    .build()
                    .await?;
                call(manager).await
            };
            match tokio::time::timeout(CALL, attempt).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(e)) if is_away(&e) && Instant::now() < deadline => {
                    tracing::debug!(error = %e, what, "D-Bus is away");
                    self.disconnect().await;
                    let _ = self.told.send(Told::Lost);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Ok(Err(e)) if is_away(&e) => {
                    return Err(Error::Failed(format!(
                        "{what}: D-Bus can't be reached, for {} s now: {}",
                        AWAY.as_secs(),
                        said(e)
                    )));
                }
                Ok(Err(e)) => return Err(Error::Failed(format!("{what}: systemd refused: {}", said(e)))),
                Err(_) => {
                    return Err(Error::Failed(format!(
                        "{what}: systemd did not answer within {} s",
                        CALL.as_secs()
                    )));
                }
            }
        }
    }
}

impl Systemd {
    /// Returns systemd's version: 257.
    pub(crate) async fn version(&self) -> Result<u32> {
        let text = self
            .retried(
                "ask systemd for its version",
                |m| async move { m.version().await },
            )
            .await?;
        let digits: String = text
            .chars()
            .skip_while(|c| !c.is_ascii_digit())
            .take_while(char::is_ascii_digit)
            .collect();
        digits
            .parse()
            .map_err(|_| Error::Failed(format!("systemd says that its version is {text:?}")))
    }

    /// Has systemd read all units again, and run its generators.
    pub(crate) async fn reload(&self) -> Result<()> {
        self.retried("have systemd read its units again", |m| async move {
            m.reload().await
        })
        .await
    }

    /// Forgets that a unit failed. It is no error if it did not, or is not there.
    pub(crate) async fn forget_failure(&self, unit: &str) -> Result<()> {
        self.retried(&format!("forget that {unit} failed"), |m| async move {
            match m.reset_failed_unit(unit.to_owned()).await {
                Err(e) if is_named(&e, NO_UNIT) => Ok(()),
                other => other,
            }
        })
        .await
    }

    /// Kills every process of a unit at once.
    pub(crate) async fn kill(&self, unit: &str) -> Result<()> {
        const SIGKILL: i32 = 9;
        self.retried(&format!("kill {unit}"), |m| async move {
            match m.kill_unit(unit.to_owned(), "all".to_owned(), SIGKILL).await {
                // Nothing of it is left to be killed.
                Err(e) if is_named(&e, NO_UNIT) || is_named(&e, "org.freedesktop.systemd1.NoSuchProcess") => {
                    Ok(())
                }
                other => other,
            }
        })
        .await
    }

    /// Returns what systemd knows of a unit, if it has it in mind; `read` has it read from its file where it has not.
    pub(crate) async fn look(&self, unit: &str, read: bool) -> Result<Option<UnitLook>> {
        self.retried(&format!("look at {unit}"), |m| async move {
            let path = if read {
                // A question there has it read, once: a call that returns the path had it read, forgotten and read again.
                OwnedObjectPath::try_from(format!("{UNITS}/{}", bus_path_part(unit)))?
            } else {
                match m.get_unit(unit.to_owned()).await {
                    Err(e) if is_named(&e, NO_UNIT) => return Ok(None),
                    path => path?,
                }
            };
            // All at once: each question takes longer than the answer.
            let unit = UnitProxy::builder(m.inner().connection())
                .path(path)
                .cache_properties(CacheProperties::No)
                .build()
                .await?;
            let properties = all_properties(&unit).await?;
            Ok(Some(UnitLook::of(&properties)))
        })
        .await
    }

    /// Returns how the main process of a service ended last.
    pub(crate) async fn service_end(&self, unit: &str) -> Result<ServiceEnd> {
        self.retried(&format!("look at {unit}"), |m| async move {
            let path = m.load_unit(unit.to_owned()).await?;
            let service = ServiceProxy::builder(m.inner().connection())
                .path(path.clone())
                .cache_properties(CacheProperties::No)
                .build()
                .await?;
            let unit = UnitProxy::builder(m.inner().connection())
                .path(path)
                .cache_properties(CacheProperties::No)
                .build()
                .await?;
            Ok(ServiceEnd {
                result: service.result().await?,
                code: service.exec_main_code().await?,
                status: service.exec_main_status().await?,
                invocation: unit
                    .invocation_id()
                    .await?
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect(),
            })
        })
        .await
    }

    /// Returns when a unit last became active, if it ever did since the host was started.
    pub(crate) async fn active_since(&self, unit: &str) -> Result<Option<jiff::Timestamp>> {
        let microseconds = self
            .retried(&format!("look at {unit}"), |m| async move {
                let path = m.load_unit(unit.to_owned()).await?;
                UnitProxy::builder(m.inner().connection())
                    .path(path)
                    .cache_properties(CacheProperties::No)
                    .build()
                    .await?
                    .active_enter_timestamp()
                    .await
            })
            .await?;
        Ok(i64::try_from(microseconds)
            .ok()
            .filter(|microseconds| *microseconds > 0)
            .and_then(|microseconds| jiff::Timestamp::from_microsecond(microseconds).ok()))
    }

    /// Asks something of a unit, and waits until it is so, or is not to be, or takes longer than it may.
    ///
    /// Of the end of a job systemd tells whoever asked for it, without `Subscribe`, by which it would tell of each change of each
    /// unit of the host.
    pub(crate) async fn job(&self, verb: Verb, unit: &str, limit: Duration) -> Result<JobEnd> {
        let deadline = Instant::now() + limit;
        let word = match verb {
            Verb::Start => "start",
            Verb::Stop => "stop",
            Verb::Reload => "reload",
        };
        let begun = self
            .retried(&format!("{word} {unit}"), |m| async move {
                // Before the call, or the end of a short job would be missed.
                let told = self.told.subscribe();
                let member = match verb {
                    Verb::Start => "StartUnit",
                    Verb::Stop => "StopUnit",
                    Verb::Reload => "ReloadUnit",
                };
                let manager = m.inner();
                let about = (unit, "replace");
                let reply = manager
                    .connection()
                    .call_method(Some(SYSTEMD), manager.path(), Some(MANAGER), member, &about)
                    .await;
                match reply {
                    Ok(reply) => {
                        let job: OwnedObjectPath = reply.body().deserialize()?;
                        Ok(Some((job, sender(&reply), told)))
                    }
                    Err(e) if verb == Verb::Stop && is_named(&e, NO_UNIT) => Ok(None),
                    Err(e) => Err(e),
                }
            })
            .await?;
        let Some((job, systemd, mut told)) = begun else {
            return Ok(JobEnd::Done);
        };
        let mut ended = async || loop {
            match told.recv().await {
                Ok(Told::Ended { by, job: ended, end }) if ended == job && by == systemd => return Some(end),
                Ok(Told::Ended { .. }) | Err(RecvError::Lagged(_)) => {}
                Ok(Told::Lost) | Err(RecvError::Closed) => return None,
            }
        };
        let mut looks = tokio::time::interval(Duration::from_secs(2));
        looks.reset();
        loop {
            tokio::select! {
                end = ended() => match end {
                    Some(end) => return Ok(end),
                    // The connection is gone, and with it the signal.
                    None => return self.settled(verb, unit, deadline).await,
                },
                // A signal may be lost with D-Bus; the unit itself is the truth.
                _ = looks.tick() => {
                    if self.look(unit, false).await?.is_none_or(|unit| unit.job == 0) {
                        // Its signal may be on the way.
                        return match tokio::time::timeout(Duration::from_millis(200), ended()).await {
                            Ok(Some(end)) => Ok(end),
                            _ => self.settled(verb, unit, deadline).await,
                        };
                    }
                }
                () = tokio::time::sleep_until(deadline) => return Ok(JobEnd::StillRuns),
            }
        }
    }

    /// Waits until no job is on a unit any more, and returns what became of it as far as the unit tells.
    async fn settled(&self, verb: Verb, unit: &str, deadline: Instant) -> Result<JobEnd> {
        loop {
            let look = self.look(unit, false).await?;
            if look.as_ref().is_none_or(|unit| unit.job == 0) {
                let up = look.as_ref().is_some_and(|unit| unit.active == "active");
                let down = look.as_ref().is_none_or(|unit| !unit.is_up());
                return Ok(match verb {
                    Verb::Start | Verb::Reload if up => JobEnd::Done,
                    Verb::Stop if down => JobEnd::Done,
                    _ => JobEnd::Undone("failed".to_owned()),
                });
            }
            if Instant::now() >= deadline {
                return Ok(JobEnd::StillRuns);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Returns the machine of this name, if there is one.
    pub(crate) async fn machine(&self, name: &str) -> Result<Option<Machine>> {
        self.retried(&format!("look at the machine {name}"), |m| async move {
            let connection = m.inner().connection();
            let manager = machine1::ManagerProxy::builder(connection)
                .cache_properties(CacheProperties::No)
                .build()
                .await?;
            let path = match manager.get_machine(name.to_owned()).await {
                Err(e) if is_named(&e, NO_MACHINE) => return Ok(None),
                other => other?,
            };
            let machine = machine1::MachineProxy::builder(connection)
                .path(path)
                .cache_properties(CacheProperties::No)
                .build()
                .await?;
            Ok(Some(Machine {
                unit: machine.unit().await?,
                leader: machine.leader().await?,
            }))
        })
        .await
    }

    /// Takes a machine off machined's list. It is no error if it is not on it.
    pub(crate) async fn unregister(&self, name: &str) -> Result<()> {
        self.retried(&format!("unregister the machine {name}"), |m| async move {
            let manager = machine1::ManagerProxy::builder(m.inner().connection())
                .cache_properties(CacheProperties::No)
                .build()
                .await?;
            match manager.unregister_machine(name.to_owned()).await {
                Err(e) if is_named(&e, NO_MACHINE) => Ok(()),
                other => other,
            }
        })
        .await
    }
}

/// What machined knows of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    /// The unit that it runs in.
    pub(crate) unit: String,
    /// Its first process.
    pub(crate) leader: u32,
}

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// Below which path units are on the bus.
const UNITS: &str = "/org/freedesktop/systemd1/unit";
const NO_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
const NO_MACHINE: &str = "org.freedesktop.machine1.NoSuchMachine";

/// What comes over the connection without being asked for.
#[derive(Debug, Clone)]
enum Told {
    /// A job has ended (org.freedesktop.systemd1(5), `JobRemoved`).
    Ended {
        /// Who says so: on the bus anybody may.
        by: Option<String>,
        job: OwnedObjectPath,
        end: JobEnd,
    },
    /// Nothing more comes.
    Lost,
}

impl Told {
    fn of(message: &Message) -> Option<Self> {
        let body = message.body();
        let (_, job, _, result) = body.deserialize::<(u32, OwnedObjectPath, &str, &str)>().ok()?;
        let end = match result {
            "done" => JobEnd::Done,
            other => JobEnd::Undone(other.to_owned()),
        };
        Some(Self::Ended {
            by: sender(message),
            job,
            end,
        })
    }
}

fn sender(message: &Message) -> Option<String> {
    message.header().sender().map(ToString::to_string)
}

/// Returns the number of a unit's job, 0 for none: it stands before the job's path.
fn number_of_job(job: &Variant<'_>) -> u32 {
    match job {
        Variant::Structure(job) => match job.fields().first() {
            Some(Variant::U32(number)) => *number,
            _ => 0,
        },
        _ => 0,
    }
}

/// Returns all properties of a unit that units of all kinds have.
async fn all_properties(unit: &UnitProxy<'_>) -> zbus::Result<BTreeMap<String, OwnedVariant>> {
    let proxy = unit.inner();
    let reply = proxy
        .connection()
        .call_method(
            Some(proxy.destination()),
            proxy.path(),
            Some("org.freedesktop.DBus.Properties"),
            "GetAll",
            &proxy.interface(),
        )
        .await?;
    reply.body().deserialize()
}

//! The client of systemd against a real D-Bus daemon, on which the tests play systemd. Without `dbus-daemon` every test
//! counts as ignored.

#![allow(clippy::print_stderr, reason = "a test program says why it skips")]

use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use futures::StreamExt as _;
use leaf_host::program;
use leaf_host::systemd::{Patience, Systemd, SystemdError, UnitJob, UnitJobOutcome, is_away, is_not_found};
use libtest_mimic::{Arguments, Trial};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use zbus::connection::Builder;
use zbus::message::Type;
use zbus::{Connection, Message, MessageStream, ObjectPath};

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const JOB: &str = "/org/freedesktop/systemd1/job/1";
const UNIT: &str = "web.service";
const UNIT_PATH: &str = "/org/freedesktop/systemd1/unit/web_2eservice";

const LONG: Duration = Duration::from_secs(60);

/// What the bus lets everybody do: everything.
const CONFIG: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path=SOCKET</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
    <allow user="*"/>
  </policy>
</busconfig>
"#;

macro_rules! trial {
    ($name:ident, $lack:expr) => {
        Trial::test(stringify!($name), || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                tokio::time::timeout(LONG, $name())
                    .await
                    .expect("it ends in time");
            });
            Ok(())
        })
        .with_ignored_flag($lack)
    };
}

fn main() -> ExitCode {
    let lack = program::find("dbus-daemon").is_none();
    if lack {
        eprintln!("the tests of D-Bus are skipped: dbus-daemon is not on PATH (Debian: dbus-daemon)");
    }
    let trials = vec![
        trial!(a_bus_without_systemd_and_a_stopped_bus_are_unreachable, lack),
        trial!(a_call_whose_answer_is_lost_is_repeated_when_systemd_is_back, lack),
        trial!(missing_objects_are_none_and_a_refusal_has_systemds_message, lack),
        trial!(the_outcome_of_a_job_is_the_one_that_systemd_signals, lack),
        trial!(
            the_outcome_of_a_job_is_queried_if_its_signal_was_lost_with_the_bus,
            lack
        ),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A D-Bus daemon of its own.
struct Bus {
    place: TempDir,
    daemon: Option<Child>,
}

impl Bus {
    async fn start() -> Self {
        let place = tempfile::tempdir().expect("a directory");
        let config = CONFIG.replace("SOCKET", &socket(&place).display().to_string());
        std::fs::write(place.path().join("bus.conf"), config).expect("a configuration");
        let mut bus = Self { place, daemon: None };
        bus.start_daemon().await;
        bus
    }

    fn address(&self) -> String {
        format!("unix:path={}", socket(&self.place).display())
    }

    async fn start_daemon(&mut self) {
        let _ = std::fs::remove_file(socket(&self.place));
        let mut daemon = Command::new("dbus-daemon")
            .arg("--nofork")
            .arg("--nopidfile")
            .arg("--print-address=1")
            .arg("--config-file")
            .arg(self.place.path().join("bus.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("dbus-daemon");
        let stdout = daemon.stdout.take().expect("it is piped");
        // It says where it listens once it does.
        let mut address = String::new();
        let read = BufReader::new(stdout).read_line(&mut address).await;
        assert!(read.expect("its address") > 0, "dbus-daemon ended");
        self.daemon = Some(daemon);
    }

    async fn stop_daemon(&mut self) {
        let mut daemon = self.daemon.take().expect("it runs");
        daemon.kill().await.expect("it ends");
    }

    /// Connects to the bus as systemd.
    async fn play_systemd(&self) -> Played {
        let connection = Builder::address(self.address().as_str())
            .build()
            .await
            .expect("a connection");
        let calls = MessageStream::from(&connection);
        connection.request_name(SYSTEMD).await.expect("the name");
        Played { connection, calls }
    }

    fn client(&self, away: Duration) -> Systemd {
        let answer = Duration::from_secs(30);
        Systemd::at(self.address(), Patience { answer, away })
    }
}

fn socket(place: &TempDir) -> PathBuf {
    place.path().join("bus")
}

/// systemd, as a test plays it.
struct Played {
    connection: Connection,
    calls: MessageStream,
}

impl Played {
    /// Returns the next call of this method.
    async fn called(&mut self, method: &str) -> Message {
        loop {
            let message = self.calls.next().await.expect("a message").expect("a message");
            let header = message.header();
            if header.message_type() == Type::MethodCall {
                let member = header.member().expect("a call names its method");
                assert_eq!(member.as_str(), method);
                return message.clone();
            }
        }
    }

    async fn refuse(&self, call: &Message, error: &str) {
        self.connection
            .reply_error(&call.header(), error, &"these are the details")
            .await
            .expect("an answer");
    }

    /// Begins a job.
    async fn begin_job(&mut self) {
        let call = self.called("StartUnit").await;
        let (unit, mode): (String, String) = call.body().deserialize().expect("arguments");
        assert_eq!((&*unit, &*mode), (UNIT, "replace"));
        let job = ObjectPath::try_from(JOB).expect("a path");
        self.connection
            .reply(&call.header(), &job)
            .await
            .expect("an answer");
    }

    async fn end_job(&self, job: &str, result: &str) {
        let job = ObjectPath::try_from(job).expect("a path");
        self.connection
            .emit_signal(
                None::<&str>,
                "/org/freedesktop/systemd1",
                MANAGER,
                "JobRemoved",
                &(1_u32, job, UNIT, result),
            )
            .await
            .expect("a signal");
    }

    /// Answers that a unit is loaded, and active.
    async fn say_that_it_is_active(&mut self) {
        let call = self.called("GetUnit").await;
        let path = ObjectPath::try_from(UNIT_PATH).expect("a path");
        self.connection
            .reply(&call.header(), &path)
            .await
            .expect("an answer");
        let call = self.called("GetAll").await;
        assert_eq!(call.header().path().map(|path| path.as_str()), Some(UNIT_PATH));
        let properties = std::collections::BTreeMap::from([
            ("LoadState", zbus::Variant::from("loaded")),
            ("ActiveState", zbus::Variant::from("active")),
        ]);
        self.connection
            .reply(&call.header(), &properties)
            .await
            .expect("an answer");
    }
}

async fn a_bus_without_systemd_and_a_stopped_bus_are_unreachable() {
    let mut bus = Bus::start().await;
    let client = bus.client(Duration::from_millis(50));
    let source = |error| match error {
        SystemdError::Away { source, .. } => source,
        other => panic!("{other:?}"),
    };
    // ServiceUnknown, from the daemon itself.
    let error = source(client.reload().await.expect_err("there is no systemd"));
    assert!(matches!(error, zbus::Error::FDO(_)), "{error:?}");
    assert!(is_away(&error), "{error:?}");
    bus.stop_daemon().await;
    let error = source(client.reload().await.expect_err("there is no bus"));
    assert!(is_away(&error), "{error:?}");
}

async fn a_call_whose_answer_is_lost_is_repeated_when_systemd_is_back() {
    let bus = Bus::start().await;
    let client = bus.client(LONG);
    let mut first = bus.play_systemd().await;
    let systemd = async {
        // It goes away with the call: the daemon answers NoReply in its place.
        first.called("Reload").await;
        drop(first);
        let mut second = bus.play_systemd().await;
        let call = second.called("Reload").await;
        second
            .connection
            .reply(&call.header(), &())
            .await
            .expect("an answer");
        second
    };
    let (outcome, _systemd) = tokio::join!(client.reload(), systemd);
    outcome.expect("the second call is answered");
}

async fn missing_objects_are_none_and_a_refusal_has_systemds_message() {
    let bus = Bus::start().await;
    let client = bus.client(LONG);
    let mut systemd = bus.play_systemd().await;
    for missing in [
        "org.freedesktop.systemd1.NoSuchUnit",
        "org.freedesktop.DBus.Error.UnknownObject",
    ] {
        let answer = async {
            let call = systemd.called("GetUnit").await;
            systemd.refuse(&call, missing).await;
        };
        let (unit, ()) = tokio::join!(client.loaded_unit(UNIT), answer);
        assert_eq!(unit.expect("no error"), None, "{missing}");
    }
    let answer = async {
        let call = systemd.called("GetUnit").await;
        systemd
            .refuse(&call, "org.freedesktop.DBus.Error.AccessDenied")
            .await;
    };
    let (refused, ()) = tokio::join!(client.loaded_unit(UNIT), answer);
    let error = refused.expect_err("it is refused");
    assert!(error.to_string().contains("these are the details"), "{error}");
    let SystemdError::Refused { source, .. } = error else {
        panic!("{error:?}");
    };
    assert!(!is_away(&source) && !is_not_found(&source), "{source:?}");
    // A stop of what is not there is done.
    let answer = async {
        let call = systemd.called("StopUnit").await;
        systemd.refuse(&call, "org.freedesktop.systemd1.NoSuchUnit").await;
    };
    let (outcome, ()) = tokio::join!(client.run_job(UnitJob::Stop, UNIT, LONG), answer);
    assert_eq!(outcome.expect("no error"), UnitJobOutcome::Done);
}

async fn the_outcome_of_a_job_is_the_one_that_systemd_signals() {
    let bus = Bus::start().await;
    let client = bus.client(LONG);
    let mut systemd = bus.play_systemd().await;
    // Another client of the bus claims that the job is done.
    let liar = Builder::address(bus.address().as_str())
        .build()
        .await
        .expect("a connection");
    for (result, expected) in [
        ("done", UnitJobOutcome::Done),
        ("dependency", UnitJobOutcome::Failed("dependency".to_owned())),
    ] {
        let play = async {
            systemd.begin_job().await;
            let lie = (
                1_u32,
                ObjectPath::try_from(JOB).expect("a path"),
                UNIT,
                "canceled",
            );
            liar.emit_signal(
                None::<&str>,
                "/org/freedesktop/systemd1",
                MANAGER,
                "JobRemoved",
                &lie,
            )
            .await
            .expect("a signal");
            systemd.end_job("/org/freedesktop/systemd1/job/2", "failed").await;
            systemd.end_job(JOB, result).await;
        };
        let (outcome, ()) = tokio::join!(client.run_job(UnitJob::Start, UNIT, LONG), play);
        assert_eq!(outcome.expect("no error"), expected);
    }
}

async fn the_outcome_of_a_job_is_queried_if_its_signal_was_lost_with_the_bus() {
    let mut bus = Bus::start().await;
    let client = bus.client(LONG);
    let mut systemd = bus.play_systemd().await;
    let play = async {
        systemd.begin_job().await;
        // Answers come in order: by the next one the client has that of the job.
        let answer = async {
            let call = systemd.called("Reload").await;
            systemd
                .connection
                .reply(&call.header(), &())
                .await
                .expect("an answer");
        };
        let (reloaded, ()) = tokio::join!(client.reload(), answer);
        reloaded.expect("an answer");
        bus.stop_daemon().await;
        bus.start_daemon().await;
        let mut systemd = bus.play_systemd().await;
        systemd.say_that_it_is_active().await;
        systemd
    };
    let (outcome, _systemd) = tokio::join!(client.run_job(UnitJob::Start, UNIT, LONG), play);
    assert_eq!(outcome.expect("no error"), UnitJobOutcome::Done);
}

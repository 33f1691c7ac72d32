//! Changes that can cut a leaf off, with the guard as a process of its own that is killed, on a disk that is full, and against
//! confirmations at its deadline.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use leaf_core::address_pool::AddressPool;
use leaf_core::change::{
    Armed, ConfirmedBy, Decided, Decision, HubChange, KIND_HUB, NAMESPACE, Outcome, SavedFile, VERSION,
    WayBack, WitnessNonce, witness_text,
};
use leaf_core::host_op::{HostOp, HostOpErrorKind as Kind, Secret};
use leaf_core::id::{Caller, ChangeId, LeafName};
use leaf_core::runtime::Runtime;
use leaf_helper::{Changes, Helper, Settings};
use leaf_host::contract::{ARMED, DECIDED, GOING_BACK, HUB_OVERRIDE, HostPaths};
use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;
use tokio::io::AsyncBufReadExt as _;

const BEFORE: &str = "the hub before";
const AFTER: &str = "the hub after";

fn leaf() -> LeafName {
    LeafName::new("edge-1").expect("a name")
}

fn id(number: u32) -> ChangeId {
    ChangeId(
        format!("01890000-0000-7000-8000-{number:012}")
            .parse()
            .expect("an id"),
    )
}

fn boot_ms() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    u64::try_from(time.tv_sec * 1000 + time.tv_nsec / 1_000_000).expect("after the boot")
}

fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot id");
    text.trim().to_owned()
}

/// A state directory with an armed change, all of which is written.
struct Place {
    _directory: TempDir,
    path: PathBuf,
    id: ChangeId,
    deadline: u64,
}

impl Place {
    fn new(left: Duration) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().to_owned();
        Self::at(directory, path, left, &[])
    }

    fn at(directory: TempDir, path: PathBuf, left: Duration, restart: &[&str]) -> Self {
        let id = id(1);
        let deadline = boot_ms() + u64::try_from(left.as_millis()).expect("a short time");
        let armed = Armed {
            version: VERSION,
            id,
            leaf: leaf(),
            kind: KIND_HUB.to_owned(),
            caller: None,
            nonce: Some(WitnessNonce::from([5; 32])),
            boot_id: boot_id(),
            deadline_boot_ms: deadline,
            armed_at: None,
            witnesses: Vec::new(),
            unwitnessed: true,
            way_back: WayBack {
                files: vec![SavedFile {
                    path: path.join(HUB_OVERRIDE).display().to_string(),
                    saved: Some("saved-0".to_owned()),
                }],
                restart: restart.iter().map(|unit| (*unit).to_owned()).collect(),
                activate: None,
                more: serde_json::Map::new(),
            },
            apply: Vec::new(),
            system: None,
            more: serde_json::Map::new(),
        };
        let place = Self {
            _directory: directory,
            path,
            id,
            deadline,
        };
        let back = Decided {
            armed: armed.clone(),
            outcome: Some(Outcome {
                decision: Decision::Back,
                by: None,
                why: None,
                at: None,
            }),
        };
        std::fs::create_dir(place.path.join(DECIDED)).expect("a directory");
        place.write("saved-0", BEFORE);
        place.write(HUB_OVERRIDE, AFTER);
        place.write("progress.json", &format!(r#"{{"id":"{id}","step":"applied"}}"#));
        place.write("back.json", &serde_json::to_string(&back).expect("JSON"));
        place.write(ARMED, &serde_json::to_string(&armed).expect("JSON"));
        place
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path.join(name), text).expect("a file");
    }

    fn alter(&self, alter: impl FnOnce(&mut Armed)) {
        let mut armed = self.armed();
        alter(&mut armed);
        self.write(ARMED, &serde_json::to_string(&armed).expect("JSON"));
    }

    fn armed(&self) -> Armed {
        let text = std::fs::read_to_string(self.path.join(ARMED)).expect("a file");
        serde_json::from_str(&text).expect("a record")
    }

    fn guard(&self) -> tokio::process::Child {
        tokio::process::Command::new(env!("CARGO_BIN_EXE_leaf-helper"))
            .args(["change", "guard", "--directory"])
            .arg(&self.path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("it starts")
    }

    /// Waits until the guard has ended by itself.
    async fn guarded(&self) -> bool {
        self.guard().wait().await.expect("its end").success()
    }

    fn helper(&self, runtime: Runtime, witnesses: &[String]) -> Helper {
        let program = env!("CARGO_BIN_EXE_leaf-helper");
        let mut settings = Settings::find(program, program, AddressPool::default()).expect("the programs");
        settings.runtime = runtime;
        let changes = Changes::new(&self.path, None, witnesses).expect("keys");
        Helper::new(leaf(), HostPaths::new(&leaf()), settings).with_changes(changes)
    }

    fn confirm(&self, by: ConfirmedBy) -> HostOp {
        HostOp::ConfirmChange { id: self.id, by }
    }

    fn hub(&self) -> String {
        std::fs::read_to_string(self.path.join(HUB_OVERRIDE)).expect("a file")
    }

    fn decided(&self) -> Option<Decided> {
        let file = self.path.join(DECIDED).join(format!("{}.json", self.id));
        let text = std::fs::read_to_string(file).ok()?;
        Some(serde_json::from_str(&text).expect("a record"))
    }

    fn decision(&self) -> Option<Decision> {
        self.decided().map(|decided| decided.decision())
    }

    fn has(&self, name: &str) -> bool {
        self.path.join(name).exists()
    }
}

fn ann() -> ConfirmedBy {
    ConfirmedBy::Caller(Caller::new("ann").expect("a caller"))
}

pub(crate) async fn a_guard_that_is_killed_again_and_again_goes_back_in_time() {
    for round in 0..8_u64 {
        let place = Place::new(Duration::from_millis(400));
        let mut kills = 0_u64;
        while place.has(ARMED) || place.has(GOING_BACK) {
            let mut guard = place.guard();
            // It lives for another time each, and finally long enough.
            let lives = Duration::from_millis(5 + (kills * 7 + round * 3) % 40 + kills / 20);
            if tokio::time::timeout(lives, guard.wait()).await.is_err() {
                guard.kill().await.expect("it is killed");
                kills += 1;
            }
            if boot_ms() < place.deadline {
                assert!(place.has(ARMED), "it went back too early");
            }
        }
        let late = boot_ms().saturating_sub(place.deadline);
        assert!(late < 10_000, "{late} ms late, with {kills} kills");
        assert!(kills > 5, "{kills} kills");
        assert!(place.guarded().await, "there is nothing left to do");
        assert_eq!(place.decision(), Some(Decision::Back));
        assert_eq!(place.hub(), BEFORE);
    }
}

pub(crate) async fn a_confirmation_at_the_deadline_and_the_guard_never_disagree() {
    let (mut confirmed, mut back) = (0, 0);
    for round in 0..60_u64 {
        let place = Place::new(Duration::from_millis(120));
        let helper = place.helper(Runtime::Systemd, &[]);
        let guards = [place.guard(), place.guard()];
        // Up to ten milliseconds before and after.
        let at = place.deadline - 10 + round % 20;
        while boot_ms() < at {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        let op = place.confirm(ann());
        let (one, other) = tokio::join!(helper.carry_out(&op), helper.carry_out(&op));
        for mut guard in guards {
            assert!(guard.wait().await.expect("its end").success());
        }
        assert_eq!(one.is_ok(), other.is_ok());
        match one {
            Ok(_) => {
                assert_eq!(place.decision(), Some(Decision::Confirmed), "round {round}");
                assert_eq!(place.hub(), AFTER);
                confirmed += 1;
            }
            Err(error) => {
                assert_eq!(error.kind, Kind::Refused, "{error}");
                assert_eq!(place.decision(), Some(Decision::Back), "round {round}");
                assert_eq!(place.hub(), BEFORE);
                back += 1;
            }
        }
        // Whatever comes later changes nothing.
        assert!(place.guarded().await);
        assert_eq!(
            place.hub() == AFTER,
            place.decision() == Some(Decision::Confirmed)
        );
    }
    assert!(confirmed > 0 && back > 0, "{confirmed} confirmed, {back} back");
}

pub(crate) async fn a_change_of_another_boot_goes_back_at_once() {
    let place = Place::new(Duration::from_secs(3600));
    place.alter(|armed| armed.boot_id = "another".to_owned());
    let error = place
        .helper(Runtime::Systemd, &[])
        .carry_out(&place.confirm(ann()))
        .await
        .expect_err("its time is over");
    assert_eq!(error.kind, Kind::Refused);
    assert!(place.guarded().await);
    assert_eq!(place.decision(), Some(Decision::Back));
    assert_eq!(place.hub(), BEFORE);
}

pub(crate) async fn a_guard_without_d_bus_puts_the_files_back_and_goes_on_trying() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_owned();
    let place = Place::at(directory, path, Duration::ZERO, &["leafd.service"]);
    let socket = place.path.join("no-bus");
    let mut guard = tokio::process::Command::new(env!("CARGO_BIN_EXE_leaf-helper"))
        .args(["change", "guard", "--directory"])
        .arg(&place.path)
        .env(
            "DBUS_SYSTEM_BUS_ADDRESS",
            format!("unix:path={}", socket.display()),
        )
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    let said = guard.stderr.take().expect("it was piped");
    let mut said = tokio::io::BufReader::new(said).lines();
    while let Some(line) = said.next_line().await.expect("text") {
        if line.contains("tried again") {
            break;
        }
    }
    assert_eq!(guard.try_wait().expect("its state"), None);
    assert_eq!(place.hub(), BEFORE);
    assert!(place.has(GOING_BACK) && !place.has(ARMED) && place.decided().is_none());
}

pub(crate) async fn a_change_needs_systemd_as_pid_1() {
    let place = Place::new(Duration::from_secs(60));
    let helper = place.helper(Runtime::Nspawn, &[]);
    let error = helper
        .carry_out(&arm(id(2)))
        .await
        .expect_err("it is not supported");
    assert_eq!(error.kind, Kind::Unsupported, "{error}");
    assert!(place.has(ARMED));
}

pub(crate) async fn ssh_keygen_is_a_witness_as_well() {
    let place = Place::new(Duration::from_secs(60));
    let key = place.path.join("key");
    let run = |command: &mut Command| {
        let output = command
            .output()
            .expect("ssh-keygen runs (Debian: openssh-client)");
        assert!(output.status.success(), "{output:?}");
    };
    run(Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&key));
    let public = std::fs::read_to_string(key.with_extension("pub")).expect("a key");
    place.alter(|armed| armed.witnesses = vec![public.clone()]);
    let nonce = place.armed().nonce.expect("a nonce");
    let text = place.path.join("text");
    std::fs::write(&text, witness_text(&leaf(), place.id, &nonce)).expect("a file");
    run(Command::new("ssh-keygen")
        .args(["-q", "-Y", "sign", "-n", NAMESPACE, "-f"])
        .arg(&key)
        .arg(&text));
    let armored = std::fs::read_to_string(text.with_extension("sig")).expect("a signature");
    let helper = place.helper(Runtime::Systemd, &[]);
    helper
        .carry_out(&place.confirm(ConfirmedBy::Signature(armored)))
        .await
        .expect("it is confirmed");
    assert_eq!(place.decision(), Some(Decision::Confirmed));
    assert_eq!(place.hub(), AFTER);
}

fn arm(id: ChangeId) -> HostOp {
    HostOp::ArmChange {
        id,
        caller: Caller::new("ann").expect("a caller"),
        seconds: 60,
        unwitnessed: true,
        hub: Box::new(HubChange {
            url: "tls://hub.example.org:7422".to_owned(),
            ca: Some("-----BEGIN CERTIFICATE-----\n".to_owned()),
            credentials: Some(Secret::new("credentials")),
            section: "0".repeat(64),
        }),
    }
}

/// A file system of 32 pages, which is unmounted when it is dropped.
struct SmallDisk {
    place: TempDir,
}

impl SmallDisk {
    const PAGES: usize = 32;

    fn new() -> Self {
        let place = tempfile::tempdir().expect("a directory");
        let size = format!("size={}k,mode=0750", Self::PAGES * 4);
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(place.path())
            .status()
            .expect("mount runs");
        assert!(mounted.success(), "root can mount a tmpfs: {mounted}");
        Self { place }
    }

    fn path(&self) -> &Path {
        self.place.path()
    }

    /// Fills it but for this number of pages.
    fn fill(&self, free: usize) {
        let file = self.path().join("filler");
        let _ = std::fs::remove_file(&file);
        let pages = rustix::fs::statvfs(self.path()).expect("its size").f_bavail;
        let pages = usize::try_from(pages).expect("a small number");
        std::fs::write(file, vec![1; 4096 * pages.saturating_sub(free)]).expect("it fits");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

pub(crate) async fn a_full_disk_refuses_a_change_before_anything_is_changed() {
    let disk = SmallDisk::new();
    let before =
        r#"{"version":1,"change":"01890000-0000-7000-8000-000000000009","url":"tls://before","section":"0"}"#;
    std::fs::write(disk.path().join(HUB_OVERRIDE), before).expect("a file");
    let program = env!("CARGO_BIN_EXE_leaf-helper");
    let mut settings = Settings::find(program, program, AddressPool::default()).expect("the programs");
    settings.runtime = Runtime::Systemd;
    let changes = Changes::new(disk.path(), None, &[]).expect("no keys");
    let helper = Helper::new(leaf(), HostPaths::new(&leaf()), settings).with_changes(changes);
    let mut refused = 0;
    for free in 0..SmallDisk::PAGES {
        disk.fill(free);
        // Where there is space it ends at systemd, which has no such unit or is not there.
        let error = helper
            .carry_out(&arm(id(1)))
            .await
            .expect_err("it can't be armed");
        let hub = std::fs::read_to_string(disk.path().join(HUB_OVERRIDE)).expect("a file");
        assert_eq!(hub, before, "{free} pages");
        let mut names: Vec<_> = std::fs::read_dir(disk.path())
            .expect("a directory")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort_unstable();
        assert_eq!(names, [DECIDED, "filler", HUB_OVERRIDE, "lock"], "{free} pages");
        assert_eq!(error.kind, Kind::Failed, "{error}");
        if !error.reason.contains("No space left on device") {
            break;
        }
        refused += 1;
    }
    assert!(refused > 4, "it needs more than {refused} pages");
}

pub(crate) async fn a_full_disk_hinders_no_way_back() {
    let disk = SmallDisk::new();
    let path = disk.path().join("changes");
    std::fs::create_dir(&path).expect("a directory");
    let other = tempfile::tempdir().expect("a directory");
    let place = Place::at(other, path, Duration::from_millis(300), &[]);
    // The lock is there since the change was armed.
    place.write("lock", "");
    disk.fill(0);
    assert!(place.guarded().await);
    assert_eq!(place.decision(), Some(Decision::Back));
    assert_eq!(place.hub(), BEFORE);
    assert!(!place.has(ARMED) && !place.has(GOING_BACK));
}

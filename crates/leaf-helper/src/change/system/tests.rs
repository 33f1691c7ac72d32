//! Switches of a host in a directory: systems whose `switch-to-configuration` is a script, a profile of links, and a boot loader that
//! is a link. Processes end at every step, and the power is cut at every step.

use std::cell::{Cell, RefCell};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::time::Duration;

use leaf_core::change::{
    Armed, ConfirmedBy, Decided, Decision, HubChange, KIND_SYSTEM, SystemChange, SystemMode,
};
use leaf_core::id::{Caller, ChangeId, LeafName, StorePath};
use leaf_host::contract::{ARMED, BLESSED, DECIDED, GOING_BACK};
use leaf_host::systemd::SystemdError;
use tempfile::TempDir;

use super::switcher::{Switcher, Turn};
use super::*;
use crate::change::guard::{Next, Taken, look};
use crate::change::{Moment, Order, UnitHealth, What};
use crate::files::crashes;

pub(super) const OLD: &str = "/nix/store/00000000000000000000000000000001-nixos-system-old";
pub(super) const NEW: &str = "/nix/store/00000000000000000000000000000002-nixos-system-new";
const OTHER: &str = "/nix/store/00000000000000000000000000000003-nixos-system-other";

fn leaf() -> LeafName {
    LeafName::new("edge-1").expect("a name")
}

pub(super) fn id(number: u128) -> ChangeId {
    ChangeId(
        format!("01890000-0000-7000-8000-{number:012x}")
            .parse()
            .expect("an id"),
    )
}

fn path(text: &str) -> StorePath {
    StorePath::new(text).expect("a store path")
}

/// A systemd whose units are as a test says.
#[derive(Default)]
pub(super) struct Host {
    failed: RefCell<Vec<String>>,
    leafd: RefCell<String>,
    restarts: Cell<u64>,
    asked: RefCell<Vec<String>>,
    /// The link to the system that runs: what a test says of leafd is so in the new one.
    current: PathBuf,
}

impl Host {
    fn note(&self, what: impl Into<String>) {
        self.asked.borrow_mut().push(what.into());
    }
}

impl Units for Host {
    async fn start_guard(&self) -> Result<()> {
        if crashes::happened() {
            return Err(Error::Failed("the process has ended".to_owned()));
        }
        self.note("start the guard");
        Ok(())
    }

    async fn begin_guard(&self) -> std::result::Result<(), SystemdError> {
        Ok(())
    }

    async fn restart_and_wait(&self, unit: &str, _: Duration) -> Result<()> {
        self.note(format!("restart {unit}"));
        Ok(())
    }

    async fn begin_switch(&self, _: &Path) -> std::result::Result<(), SystemdError> {
        self.note("begin the switch");
        Ok(())
    }

    async fn cancel_jobs(&self) -> std::result::Result<(), SystemdError> {
        self.note("cancel the jobs");
        Ok(())
    }

    async fn reboot(&self, now: bool) -> Result<()> {
        self.note(if now { "reboot now" } else { "reboot" });
        Ok(())
    }

    async fn failed_units(&self) -> std::result::Result<Vec<String>, SystemdError> {
        Ok(self.failed.borrow().clone())
    }

    async fn health(&self, _: &str) -> std::result::Result<UnitHealth, SystemdError> {
        let is_new = std::fs::read_link(&self.current).is_ok_and(|current| current == Path::new(NEW));
        Ok(UnitHealth {
            active: if is_new {
                self.leafd.borrow().clone()
            } else {
                "active".to_owned()
            },
            restarts: self.restarts.get(),
        })
    }

    async fn restart(&self, unit: &str, _: bool) -> std::result::Result<(), SystemdError> {
        self.note(format!("begin to restart {unit}"));
        Ok(())
    }
}

/// A host that runs the system `OLD`, with `NEW` in its store.
pub(super) struct Place {
    top: TempDir,
    changes: Changes,
    pub(super) units: Host,
    /// The id of the boot that it is in.
    boot: RefCell<String>,
}

impl Place {
    pub(super) fn new() -> Self {
        let top = tempfile::tempdir().expect("a directory");
        let root = Root::new(top.path());
        let directory = top.path().join("changes");
        let units = Host {
            current: top.path().join("run/current-system"),
            ..Host::default()
        };
        units.leafd.replace("active".to_owned());
        let now = Moment::now().expect("a moment");
        let place = Self {
            changes: Changes::new(&directory, None, &[])
                .expect("no key")
                .with_systems(Systems {
                    is_allowed: true,
                    healthy_units: Vec::new(),
                    reboot: true,
                    path: "/usr/bin:/bin".to_owned(),
                    keep: None,
                    root,
                }),
            top,
            units,
            boot: RefCell::new(now.boot_id),
        };
        for directory in ["run", "nix/var/nix/gcroots", "nix/var/nix/profiles"] {
            std::fs::create_dir_all(place.at(directory)).expect("a directory");
        }
        for name in ["next", "previous"] {
            let link = place.at("nix/var/nix/gcroots").join(format!("cim-leaf-{name}"));
            symlink(directory.join(name), link).expect("a link");
        }
        for system in [OLD, NEW, OTHER] {
            place.system(system);
        }
        place.link("run/current-system", OLD);
        place.link("run/booted-system", OLD);
        place.link("nix/var/nix/profiles/system-7-link", OLD);
        place.link("nix/var/nix/profiles/system", "system-7-link");
        place.link("boot-loader", OLD);
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.top.path().join(name.trim_start_matches('/'))
    }

    pub(super) fn directory(&self) -> PathBuf {
        self.at("changes")
    }

    fn link(&self, name: &str, target: &str) {
        let link = self.at(name);
        let _ = std::fs::remove_file(&link);
        symlink(target, link).expect("a link");
    }

    fn target(&self, name: &str) -> String {
        let target = std::fs::read_link(self.at(name)).expect("a link");
        target.into_os_string().into_string().expect("text")
    }

    fn write(&self, name: &str, text: &str) {
        let file = self.at(name);
        std::fs::create_dir_all(file.parent().expect("a parent")).expect("a directory");
        std::fs::write(file, text).expect("a file");
    }

    fn script(&self, name: &str, text: &str) {
        self.write(name, text);
        std::fs::set_permissions(self.at(name), std::fs::Permissions::from_mode(0o755)).expect("a mode");
    }

    /// Makes a system: what the contract of NixOS asks for, and Nix's programs of it.
    fn system(&self, system: &str) {
        let root = self.top.path().display();
        let of = |name: &str| format!("{system}/{name}");
        self.script(
            &of("bin/switch-to-configuration"),
            &format!(
                "#!/bin/sh\necho \"$1 {system}\" >>{root}/calls\n\
                 if [ -e {root}{system}/how-$1 ]; then . {root}{system}/how-$1; fi\n\
                 case $1 in\n\
                 test) ln -sfn {system} {root}/run/current-system ;;\n\
                 boot) ln -sfn {system} {root}/boot-loader ;;\n\
                 esac\n"
            ),
        );
        for (name, text) in [
            ("activate", ""),
            ("init", ""),
            ("nixos-version", "25.05"),
            ("system", "x86_64-linux"),
            ("init-interface-version", "systemd 2"),
            ("kernel-params", "loglevel=4"),
            (
                "etc/cim-leaf/system.json",
                r#"{"version":1,"leaf":"edge-1","switch":true,"journal_format":1,"healthy_units":["db.service"],"newer":true}"#,
            ),
            ("etc/systemd/system/nginx.service", ""),
            ("etc/systemd/system/old.service", ""),
            ("etc/systemd/system/may.service", ""),
            ("etc/systemd/system/new@.service", ""),
            ("etc/fstab", "/dev/vda / ext4 defaults 0 1\n/dev/vdb /srv xfs\n"),
        ] {
            self.write(&of(name), text);
        }
        self.script(
            &of("sw/bin/nix-store"),
            &format!("#!/bin/sh\n[ \"$1\" = --check-validity ] && [ ! -e {root}$2/invalid ]\n"),
        );
        self.script(
            &of("sw/bin/nix-env"),
            &format!(
                "#!/bin/sh\n[ ! -e {root}/full ] || {{ echo 'No space left on device' >&2; exit 1; }}\n\
                 echo \"nix-env $3 $4\" >>{root}/calls\n\
                 if [ $3 = --delete-generations ]; then\n\
                 [ ! -e {root}/locked ] || {{ echo locked >&2; exit 1; }}\n\
                 p=$2; shift 3; for n; do rm $p-$n-link || exit; done; exit 0; fi\n\
                 [ \"$(readlink $(dirname $2)/$(readlink $2))\" = $4 ] && exit 0\n\
                 n=$(ls $(dirname $2) | sed -n 's/^system-\\(.*\\)-link$/\\1/p' | sort -n | tail -1)\n\
                 n=$((n + 1)); ln -s $4 $2-$n-link\n\
                 ln -sfn $(basename $2)-$n-link $2.new && mv -T $2.new $2\n"
            ),
        );
    }

    /// Has a system's program do something before its work.
    pub(super) fn how(&self, system: &str, verb: &str, script: &str) {
        self.write(&format!("{system}/how-{verb}"), script);
    }

    pub(super) fn change(mode: SystemMode) -> SystemChange {
        SystemChange {
            toplevel: path(NEW),
            mode,
            allow_failed: Vec::new(),
            uncounted: mode == SystemMode::Boot,
            journal_format: 1,
        }
    }

    pub(super) async fn arm(&self, id: ChangeId, change: &SystemChange) -> Result<()> {
        let caller = Caller::new("ann").expect("a caller");
        let order = Order {
            id,
            caller: &caller,
            seconds: 120,
            unwitnessed: true,
            what: What::System(change),
        };
        self.changes.arm(&leaf(), &self.units, &order).await
    }

    pub(super) fn now(&self) -> Moment {
        Moment {
            boot_id: self.boot.borrow().clone(),
            ..Moment::now().expect("a moment")
        }
    }

    /// A moment after every deadline.
    fn later(&self) -> Moment {
        Moment {
            boot_ms: u64::MAX,
            ..self.now()
        }
    }

    /// What the machine does after a power cut or a reset: another boot, of what the boot loader names.
    fn reboot(&self) {
        self.boot.replace("another".to_owned());
        let booted = self.target("boot-loader");
        self.link("run/current-system", &booted);
        self.link("run/booted-system", &booted);
    }

    pub(super) fn switcher(&self) -> Switcher<'_, Host> {
        let root = self.changes.systems.root.clone();
        Switcher::new(&self.directory(), root, &self.units).with_pause(Duration::from_millis(1))
    }

    /// Runs the switch until it waits for somebody, or ends.
    pub(super) async fn run<'a>(&'a self, switcher: &mut Switcher<'a, Host>) -> Result<Turn> {
        loop {
            match switcher.turn(|| Ok(self.now())).await? {
                Turn::Again(pause) if pause.is_zero() || pause == Duration::from_secs(10) => {}
                Turn::Leave => *switcher = self.switcher(),
                waits => return Ok(waits),
            }
        }
    }

    pub(super) async fn confirm(&self, id: ChangeId) -> Result<()> {
        let by = ConfirmedBy::Caller(Caller::new("ann").expect("a caller"));
        self.changes.confirm_at(&leaf(), id, &by, || Ok(self.now())).await
    }

    pub(super) async fn guard_looks(&self) -> Result<Next> {
        look(
            &self.directory(),
            &self.units,
            || Ok(self.now()),
            &mut Taken::default(),
        )
        .await
    }

    fn has(&self, name: &str) -> bool {
        self.directory().join(name).exists()
    }

    pub(super) fn decided(&self, id: ChangeId) -> Option<Decided> {
        let file = self.directory().join(DECIDED).join(format!("{id}.json"));
        let text = std::fs::read_to_string(file).ok()?;
        Some(serde_json::from_str(&text).expect("a record"))
    }

    pub(super) fn why(&self, id: ChangeId) -> String {
        let outcome = self.decided(id).expect("it is decided").outcome;
        outcome.expect("an outcome").why.unwrap_or_default()
    }

    fn armed(&self) -> Armed {
        let text = std::fs::read_to_string(self.directory().join(ARMED)).expect("it is armed");
        serde_json::from_str(&text).expect("a record")
    }

    fn calls(&self) -> Vec<String> {
        let calls = std::fs::read_to_string(self.at("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    fn profile(&self) -> String {
        let generation = self.target("nix/var/nix/profiles/system");
        self.target(&format!("nix/var/nix/profiles/{generation}"))
    }

    /// Returns what runs, what the profile names, and what the next boot gives.
    pub(super) fn systems(&self) -> [String; 3] {
        [
            self.target("run/current-system"),
            self.profile(),
            self.target("boot-loader"),
        ]
    }

    /// Checks that nothing of a change is left but its record.
    pub(super) fn is_closed(&self) {
        let mut names: Vec<_> = std::fs::read_dir(self.directory())
            .expect("a directory")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
            .collect();
        names.retain(|name| ![DECIDED, "lock", "switch.log"].contains(&name.as_str()));
        assert!(names.is_empty(), "{names:?}");
    }
}

/// Lets a switch take turns until it ends.
pub(super) async fn ends(switcher: &mut Switcher<'_, Host>, now: impl Fn() -> Result<Moment>) {
    for _ in 0..50 {
        if switcher.turn(&now).await.expect("a turn") == Turn::End {
            return;
        }
    }
    panic!("it does not end");
}

fn refusal(outcome: Result<()>) -> String {
    match outcome.expect_err("it is refused") {
        Error::Refused(why) => why,
        other => panic!("{other:?}"),
    }
}

const WAITS: Turn = Turn::Again(Duration::from_millis(250));

#[tokio::test]
async fn a_confirmed_switch_is_activated_first_and_installed_afterwards() {
    let place = Place::new();
    let change = Place::change(SystemMode::Switch);
    place.arm(id(1), &change).await.expect("armed");
    assert_eq!(place.systems(), [OLD; 3]);
    // Both systems are kept from the garbage collector.
    assert_eq!(place.target("changes/next"), NEW);
    assert_eq!(place.target("changes/previous"), OLD);
    let next = place.guard_looks().await.expect("a look");
    assert!(
        matches!(
            next,
            Next::Look {
                apply: true,
                switch: true,
                ..
            }
        ),
        "{next:?}"
    );
    assert!(refusal(place.confirm(id(1)).await).contains("is not in use yet"));

    let mut switcher = place.switcher();
    assert_eq!(place.run(&mut switcher).await.expect("it waits"), WAITS);
    assert_eq!(place.systems(), [NEW, OLD, OLD]);
    assert_eq!(place.calls(), [format!("test {NEW}")]);
    place.confirm(id(1)).await.expect("confirmed");
    assert!(place.has(BLESSED) && !place.has(ARMED));
    // Whoever confirms it again is told the same, and the time does not bring it back.
    place.confirm(id(1)).await.expect("confirmed");
    let next = place.guard_looks().await.expect("a look");
    assert!(
        matches!(
            next,
            Next::Look {
                apply: false,
                switch: true,
                ..
            }
        ),
        "{next:?}"
    );
    assert_eq!(place.run(&mut switcher).await.expect("it ends"), Turn::End);
    assert_eq!(place.systems(), [NEW; 3]);
    assert_eq!(
        place.calls(),
        [
            format!("test {NEW}"),
            format!("nix-env --set {NEW}"),
            format!("boot {NEW}")
        ]
    );
    let decided = place.decided(id(1)).expect("it is decided");
    assert_eq!(decided.armed.kind, KIND_SYSTEM);
    let outcome = decided.outcome.expect("an outcome");
    assert_eq!(
        (outcome.decision, outcome.by.as_deref(), outcome.why),
        (Decision::Confirmed, Some("ann"), None)
    );
    place.is_closed();
    place.confirm(id(1)).await.expect("confirmed");
    assert_eq!(place.guard_looks().await.expect("a look"), Next::End);
}

#[tokio::test]
async fn a_switch_that_nobody_confirms_goes_back_at_its_deadline() {
    for guard_first in [true, false] {
        let place = Place::new();
        let change = Place::change(SystemMode::Switch);
        place.arm(id(1), &change).await.expect("armed");
        let mut switcher = place.switcher();
        place.run(&mut switcher).await.expect("it waits");
        let later = || Ok(place.later());
        if guard_first {
            let next = look(&place.directory(), &place.units, later, &mut Taken::default()).await;
            assert!(matches!(next, Ok(Next::Look { switch: true, .. })), "{next:?}");
            assert!(place.has(GOING_BACK));
        }
        ends(&mut switcher, later).await;
        assert_eq!(place.systems(), [OLD; 3]);
        assert_eq!(place.why(id(1)), "it was not confirmed in time");
        assert!(refusal(place.confirm(id(1)).await).contains("went back"));
        place.is_closed();
    }
}

/// Checks that a switch goes back for a reason with this text.
async fn goes_back(place: &Place, why: &str) {
    let change = Place::change(SystemMode::Switch);
    place.arm(id(1), &change).await.expect("armed");
    let ended = place.run(&mut place.switcher()).await.expect("it ends");
    assert_eq!(ended, Turn::End, "{:?}", place.calls());
    assert_eq!(place.systems(), [OLD; 3], "{why}");
    let decided = place.decided(id(1)).expect("it is decided");
    assert_eq!(decided.decision(), Decision::Back);
    assert!(
        place.why(id(1)).contains(why),
        "{:?} has no {why:?}",
        place.why(id(1))
    );
    place.is_closed();
}

#[tokio::test]
async fn a_switch_that_fails_or_leaves_the_host_unwell_goes_back_at_once_and_says_why() {
    for (script, why) in [
        ("echo 'no such file' >&2; exit 1", "ended with exit code 1"),
        ("kill -9 $$", "was ended by a signal"),
        ("exit 100", "exit code 100"),
        ("exit 0", "does not lead to"),
        (
            "ln -sfn $(dirname $(dirname $0)) /nowhere 2>/dev/null; echo 'warning: the following units failed: nginx.service'; exit 4",
            "unit nginx.service failed",
        ),
    ] {
        let place = Place::new();
        place.how(NEW, "test", script);
        goes_back(&place, why).await;
        assert_eq!(place.calls(), [format!("test {NEW}"), format!("test {OLD}")]);
    }
    let place = Place::new();
    std::fs::remove_file(place.at(&format!("{NEW}/sw/bin/nix-store"))).expect("a file");
    place.write(&format!("{NEW}/invalid"), "");
    goes_back(&place, "is not valid in this leaf's store").await;
    // Nothing was activated.
    assert!(place.calls().is_empty());
}

#[tokio::test]
async fn units_that_had_failed_before_or_may_fail_are_no_reason_to_go_back_and_others_are() {
    let place = Place::new();
    place.units.failed.replace(vec!["old.service".to_owned()]);
    let mut change = Place::change(SystemMode::Switch);
    change.allow_failed = vec!["may.service".to_owned()];
    place.how(
        NEW,
        "test",
        &format!(
            "ln -sfn {NEW} {}; echo 'warning: the following units failed: may.service, old.service'; exit 4",
            place.at("run/current-system").display()
        ),
    );
    place.arm(id(1), &change).await.expect("armed");
    place.units.failed.borrow_mut().push("may.service".to_owned());
    let mut switcher = place.switcher();
    assert_eq!(place.run(&mut switcher).await.expect("it waits"), WAITS);
    // One that fails later.
    place.units.failed.borrow_mut().push("new@1.service".to_owned());
    for _ in 0..4 {
        switcher.turn(|| Ok(place.now())).await.expect("a turn");
    }
    assert_eq!(place.run(&mut switcher).await.expect("it ends"), Turn::End);
    assert_eq!(
        place.why(id(1)),
        "units failed that had not failed before: new@1.service"
    );
}

#[tokio::test]
async fn a_leafd_that_ends_after_it_was_ready_takes_the_switch_back() {
    for unwell in [true, false] {
        let place = Place::new();
        let change = Place::change(SystemMode::Switch);
        place.arm(id(1), &change).await.expect("armed");
        let mut switcher = place.switcher();
        place.run(&mut switcher).await.expect("it waits");
        if unwell {
            place.units.leafd.replace("activating".to_owned());
        } else {
            place.units.restarts.set(1);
        }
        while place.has(ARMED) {
            switcher.turn(|| Ok(place.now())).await.expect("a turn");
        }
        assert_eq!(place.run(&mut switcher).await.expect("it ends"), Turn::End);
        assert_eq!(place.systems(), [OLD; 3]);
        let why = if unwell {
            "leafd.service is activating"
        } else {
            "was started again by systemd"
        };
        assert!(place.why(id(1)).contains(why), "{}", place.why(id(1)));
    }
}

#[tokio::test]
async fn a_leafd_that_does_not_become_ready_can_not_be_confirmed_and_goes_back_in_time() {
    let place = Place::new();
    place.units.leafd.replace("activating".to_owned());
    let change = Place::change(SystemMode::Switch);
    place.arm(id(1), &change).await.expect("armed");
    let armed = place.armed();
    let looks = Cell::new(0);
    // The time passes while it waits.
    let now = || {
        looks.set(looks.get() + 1);
        let boot_ms = if looks.get() > 5 {
            armed.deadline_boot_ms
        } else {
            armed.deadline_boot_ms - 1000
        };
        Ok(Moment {
            boot_ms,
            ..place.now()
        })
    };
    let mut switcher = place.switcher();
    while switcher.turn(now).await.expect("a turn") != Turn::End {
        assert!(place.confirm(id(1)).await.is_err());
    }
    assert_eq!(place.why(id(1)), "leafd.service is activating");
    assert_eq!(place.systems(), [OLD; 3]);
}

#[tokio::test]
async fn a_test_is_confirmed_without_being_installed_and_a_boot_is_installed_without_being_tried() {
    let place = Place::new();
    let change = Place::change(SystemMode::Test);
    place.arm(id(1), &change).await.expect("armed");
    let mut switcher = place.switcher();
    place.run(&mut switcher).await.expect("it waits");
    place.confirm(id(1)).await.expect("confirmed");
    assert_eq!(place.run(&mut switcher).await.expect("it ends"), Turn::End);
    assert_eq!(place.systems(), [NEW, OLD, OLD]);
    place.is_closed();

    let place = Place::new();
    let change = Place::change(SystemMode::Boot);
    place.arm(id(1), &change).await.expect("accepted");
    // Sent again, it is the same.
    place.arm(id(1), &change).await.expect("accepted");
    assert_eq!(
        place.run(&mut place.switcher()).await.expect("it ends"),
        Turn::End
    );
    assert_eq!(place.systems(), [OLD, NEW, NEW]);
    let decided = place.decided(id(1)).expect("it is decided");
    assert_eq!(decided.decision(), Decision::Confirmed);
    assert_eq!(
        place.calls(),
        [format!("nix-env --set {NEW}"), format!("boot {NEW}")]
    );
    place.is_closed();
}

#[tokio::test]
async fn an_earlier_system_becomes_the_newest_generation_since_boot_loaders_have_only_those() {
    let place = Place::new();
    place.link("nix/var/nix/profiles/system-3-link", NEW);
    let change = Place::change(SystemMode::Switch);
    place.arm(id(1), &change).await.expect("armed");
    let mut switcher = place.switcher();
    place.run(&mut switcher).await.expect("it waits");
    place.confirm(id(1)).await.expect("confirmed");
    place.run(&mut switcher).await.expect("it ends");
    assert_eq!(place.target("nix/var/nix/profiles/system"), "system-8-link");
    assert_eq!(place.systems(), [NEW; 3]);
}

#[tokio::test]
async fn generations_beyond_the_newest_go_before_the_boot_loader_lists_them_and_a_fault_of_that_installs_it_all_the_same()
 {
    for fails in [false, true] {
        let mut place = Place::new();
        place.changes.systems.keep = Some(KeptGenerations {
            newest: Some(2),
            days: None,
        });
        for number in [2, 4, 5] {
            place.link(&format!("nix/var/nix/profiles/system-{number}-link"), OTHER);
        }
        if fails {
            place.write("locked", "");
        }
        let change = Place::change(SystemMode::Switch);
        place.arm(id(1), &change).await.expect("armed");
        let mut switcher = place.switcher();
        place.run(&mut switcher).await.expect("it waits");
        place.confirm(id(1)).await.expect("confirmed");
        place.run(&mut switcher).await.expect("it ends");
        assert_eq!(place.systems(), [NEW; 3]);
        assert_eq!(place.why(id(1)), "");
        let calls = place.calls();
        assert_eq!(calls[2], "nix-env --delete-generations 2");
        assert_eq!(calls[3], format!("boot {NEW}"));
        let left = ["system-4-link", "system-5-link", "system-7-link", "system-8-link"].map(|name| {
            place
                .at("nix/var/nix/profiles")
                .join(name)
                .symlink_metadata()
                .is_ok()
        });
        // What was running when the switch began is held.
        assert_eq!(left, [fails, fails, true, true]);
    }
}

#[tokio::test]
async fn a_system_that_can_not_be_installed_is_said_to_be_so_and_one_that_another_set_is_kept() {
    let place = Place::new();
    let change = Place::change(SystemMode::Switch);
    place.arm(id(1), &change).await.expect("armed");
    let mut switcher = place.switcher();
    place.run(&mut switcher).await.expect("it waits");
    place.confirm(id(1)).await.expect("confirmed");
    place.write("full", "");
    assert_eq!(place.run(&mut switcher).await.expect("it ends"), Turn::End);
    assert_eq!(place.systems(), [NEW, OLD, OLD]);
    let decided = place.decided(id(1)).expect("it is decided");
    assert_eq!(decided.decision(), Decision::Confirmed);
    let why = place.why(id(1));
    assert!(
        why.contains("No space left") && why.contains("could not be installed"),
        "{why}"
    );

    let place = Place::new();
    place.arm(id(1), &change).await.expect("armed");
    let mut switcher = place.switcher();
    place.run(&mut switcher).await.expect("it waits");
    place.confirm(id(1)).await.expect("confirmed");
    // As `nixos-rebuild switch` by hand does.
    place.link("nix/var/nix/profiles/system-8-link", OTHER);
    place.link("nix/var/nix/profiles/system", "system-8-link");
    assert_eq!(place.run(&mut switcher).await.expect("it ends"), Turn::End);
    assert_eq!(place.profile(), OTHER);
    assert!(place.why(id(1)).contains("meanwhile"), "{}", place.why(id(1)));
}

#[tokio::test]
async fn a_system_of_before_that_can_not_be_activated_three_times_is_booted() {
    let place = Place::new();
    place.how(NEW, "test", "exit 1");
    place.how(OLD, "test", "echo broken >&2; exit 2");
    let change = Place::change(SystemMode::Switch);
    place.arm(id(1), &change).await.expect("armed");
    let again = Turn::Again(Duration::from_secs(60));
    // Each try may be by another process.
    loop {
        let turn = place.switcher().turn(|| Ok(place.now())).await.expect("a turn");
        if turn == again {
            break;
        }
    }
    let back = place.calls().iter().filter(|call| call.ends_with(OLD)).count();
    assert_eq!(back, 3);
    assert_eq!(
        place.units.asked.borrow().last().map(String::as_str),
        Some("reboot")
    );
    assert!(place.has(GOING_BACK));
    // systemd has not done it.
    let turn = place.switcher().turn(|| Ok(place.now())).await.expect("a turn");
    assert_eq!(turn, again);
    assert_eq!(
        place.units.asked.borrow().last().map(String::as_str),
        Some("reboot now")
    );
    place.reboot();
    assert_eq!(
        place.run(&mut place.switcher()).await.expect("it ends"),
        Turn::End
    );
    assert_eq!(place.systems(), [OLD; 3]);
    let why = place.why(id(1));
    assert!(
        why.contains("so the host was rebooted") && why.contains("broken"),
        "{why}"
    );

    // Where root does not want that, it is said, and does not stand in the way of the next one.
    let mut place = Place::new();
    place.changes.systems.reboot = false;
    place.how(NEW, "test", "exit 1");
    place.how(OLD, "test", "echo broken >&2; exit 2");
    place.arm(id(1), &change).await.expect("armed");
    assert_eq!(
        place.run(&mut place.switcher()).await.expect("it ends"),
        Turn::End
    );
    let why = place.why(id(1));
    assert!(
        why.contains("could not be activated completely") && why.contains("broken"),
        "{why}"
    );
    assert!(!place.units.asked.borrow().iter().any(|asked| asked == "reboot"));
    place.link("run/current-system", OLD);
    place.arm(id(2), &change).await.expect("armed");
}

#[tokio::test]
async fn a_switch_that_hangs_is_killed_at_the_deadline_and_taken_back() {
    let place = Place::new();
    place.how(NEW, "test", "exec sleep 600");
    let change = Place::change(SystemMode::Switch);
    place.arm(id(1), &change).await.expect("armed");
    let armed = place.armed();
    // A moment before the deadline.
    let soon = || {
        Ok(Moment {
            boot_ms: armed.deadline_boot_ms - 100,
            ..place.now()
        })
    };
    // What it started is killed with this process, and the next one goes on.
    assert_eq!(place.switcher().turn(soon).await.expect("a turn"), Turn::Leave);
    assert_eq!(
        place.run(&mut place.switcher()).await.expect("it ends"),
        Turn::End
    );
    assert_eq!(place.systems(), [OLD; 3]);
    assert!(
        place.why(id(1)).contains("did not end in time"),
        "{}",
        place.why(id(1))
    );
    let asked = place.units.asked.borrow();
    assert!(asked.iter().any(|asked| asked == "cancel the jobs"), "{asked:?}");
}

#[tokio::test]
async fn a_switch_by_somebody_else_is_neither_confirmed_nor_taken_back() {
    let change = Place::change(SystemMode::Switch);
    for when in ["before", "while", "blessed"] {
        let place = Place::new();
        place.arm(id(1), &change).await.expect("armed");
        let mut switcher = place.switcher();
        if when != "before" {
            place.run(&mut switcher).await.expect("it waits");
        }
        if when == "blessed" {
            place.confirm(id(1)).await.expect("confirmed");
        }
        let calls = place.calls().len();
        place.link("run/current-system", OTHER);
        ends(&mut switcher, || Ok(place.now())).await;
        assert_eq!(place.systems(), [OTHER, OLD, OLD], "{when}");
        assert_eq!(place.calls().len(), calls, "{when}");
        assert!(
            place.why(id(1)).contains("somebody else"),
            "{when}: {}",
            place.why(id(1))
        );
        place.is_closed();
    }
}

#[tokio::test]
async fn passwords_that_a_system_removed_are_there_again_after_the_way_back() {
    for rebooted in [false, true] {
        let place = Place::new();
        place.write("etc/shadow", "ann:$6$secret::\n");
        std::fs::set_permissions(place.at("etc/shadow"), std::fs::Permissions::from_mode(0o600))
            .expect("a mode");
        place.write("etc/passwd", "ann:x:1000:\n");
        let root = place.top.path().display().to_string();
        place.how(
            NEW,
            "test",
            &format!("echo 'ann:!::' >{root}/etc/shadow.new; mv {root}/etc/shadow.new {root}/etc/shadow"),
        );
        let change = Place::change(SystemMode::Switch);
        place.arm(id(1), &change).await.expect("armed");
        let mut switcher = place.switcher();
        place.run(&mut switcher).await.expect("it waits");
        let shadow = || std::fs::read_to_string(place.at("etc/shadow")).expect("a file");
        assert_eq!(shadow(), "ann:!::\n");
        if rebooted {
            place.reboot();
            let next = place.guard_looks().await.expect("a look");
            assert!(matches!(next, Next::Look { switch: true, .. }), "{next:?}");
        }
        ends(&mut switcher, || Ok(place.later())).await;
        assert_eq!(shadow(), "ann:$6$secret::\n");
        let mode = std::fs::metadata(place.at("etc/shadow"))
            .expect("a file")
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o600);
        place.is_closed();
    }
}

#[tokio::test]
async fn units_of_containers_jobs_and_sessions_are_none_of_the_switchs() {
    let place = Place::new();
    let change = Place::change(SystemMode::Switch);
    place.arm(id(1), &change).await.expect("armed");
    let foreign = [
        "container@web.service",
        "leaf-job-7.service",
        "run-u3.service",
        "user@1000.service",
    ];
    place.units.failed.borrow_mut().extend(foreign.map(str::to_owned));
    place.how(
        NEW,
        "test",
        &format!(
            "ln -sfn {NEW} {}; echo 'warning: the following units failed: run-u3.service'; exit 4",
            place.at("run/current-system").display()
        ),
    );
    let mut switcher = place.switcher();
    assert_eq!(place.run(&mut switcher).await.expect("it waits"), WAITS);
    assert!(
        place
            .armed()
            .system
            .expect("a system")
            .healthy_units
            .contains(&"db.service".to_owned())
    );
}

/// Alters what the new system says of its leaf.
fn mark(place: &Place, from: &str, to: &str) {
    let file = format!("{NEW}/etc/cim-leaf/system.json");
    let text = std::fs::read_to_string(place.at(&file)).expect("a file");
    assert!(text.contains(from), "{text}");
    place.write(&file, &text.replace(from, to));
}

#[tokio::test]
async fn what_is_no_system_for_this_leaf_is_refused_before_anything_is_written() {
    type Alter = fn(&Place, &mut SystemChange);
    let cases: [(&str, Alter); 21] = [
        ("is not in the store of this leaf", |_, change| {
            change.toplevel = path("/nix/store/00000000000000000000000000000009-none");
        }),
        ("it is not a directory", |place, change| {
            let file = "/nix/store/00000000000000000000000000000009-file";
            place.write(file, "");
            change.toplevel = path(file);
        }),
        (
            "is no NixOS system that can be switched to: it has no bin/switch-to-configuration",
            |place, change| {
                let package = "/nix/store/00000000000000000000000000000009-hello";
                place.write(&format!("{package}/bin/hello"), "");
                change.toplevel = path(package);
            },
        ),
        ("it has no init", |place, _| {
            std::fs::remove_file(place.at(&format!("{NEW}/init"))).expect("a file");
        }),
        (
            "is a system for aarch64-linux, and this leaf is x86_64-linux",
            |place, _| {
                place.write(&format!("{NEW}/system"), "aarch64-linux\n");
            },
        ),
        ("is a system for an unknown platform", |place, _| {
            std::fs::remove_file(place.at(&format!("{NEW}/system"))).expect("a file");
        }),
        ("has an init that is not compatible", |place, _| {
            place.write(&format!("{NEW}/init-interface-version"), "systemd 3");
        }),
        ("has no cim-leaf", |place, _| {
            std::fs::remove_file(place.at(&format!("{NEW}/etc/cim-leaf/system.json"))).expect("a file");
        }),
        (
            "is the system of leaf edge-2, and this one is edge-1",
            |place, _| mark(place, "edge-1", "edge-2"),
        ),
        ("does not allow switches", |place, _| {
            mark(place, "\"switch\":true", "\"switch\":false");
        }),
        ("has switches of version 0", |place, _| {
            mark(place, "\"version\":1", "\"version\":0");
        }),
        ("there would be no way back", |place, _| {
            std::fs::remove_file(place.at(&format!("{OLD}/bin/switch-to-configuration"))).expect("a file");
        }),
        ("mounts another file system at or above", |place, _| {
            let root = place.top.path().display();
            place.write(
                &format!("{NEW}/etc/fstab"),
                &format!("/dev/vda / ext4\n/dev/vdc {root} xfs\n"),
            );
        }),
        ("the next boot is of another one", |place, _| {
            place.link("nix/var/nix/profiles/system-8-link", OTHER);
            place.link("nix/var/nix/profiles/system", "system-8-link");
        }),
        ("has another systemd", |place, change| {
            place.write("kernels/1", "");
            place.link(
                &format!("{NEW}/systemd"),
                &place.at("kernels/1").display().to_string(),
            );
            change.mode = SystemMode::Test;
        }),
        ("that can't be read", |place, _| {
            place.write(&format!("{NEW}/etc/cim-leaf/system.json"), "{}");
        }),
        (
            "reads journals of the formats up to 1, and this leaf's journal has format 2",
            |_, change| {
                change.journal_format = 2;
            },
        ),
        ("has another kernel-params", |place, _| {
            place.write(&format!("{NEW}/kernel-params"), "quiet");
        }),
        ("has another kernel, initrd", |place, _| {
            place.write("kernels/1", "");
            place.link(
                &format!("{NEW}/kernel"),
                &place.at("kernels/1").display().to_string(),
            );
            place.link(
                &format!("{NEW}/initrd"),
                &place.at("kernels/1").display().to_string(),
            );
        }),
        ("is not the name of a unit", |_, change| {
            change.allow_failed = vec!["--all".to_owned()];
        }),
        ("uncounted", |_, change| change.mode = SystemMode::Boot),
    ];
    for (why, alter) in cases {
        let place = Place::new();
        let mut change = Place::change(SystemMode::Switch);
        alter(&place, &mut change);
        let said = refusal(place.arm(id(1), &change).await);
        assert!(said.contains(why), "{said:?} has no {why:?}");
        assert!(!place.directory().exists(), "{why}");
        assert!(place.calls().is_empty());
    }
    // An init that can't be switched to can be booted.
    let place = Place::new();
    place.write(&format!("{NEW}/init-interface-version"), "systemd 3");
    place
        .arm(id(1), &Place::change(SystemMode::Boot))
        .await
        .expect("accepted");
    // Another kernel is no hindrance for who knows what that means.
    let place = Place::new();
    place.write(&format!("{NEW}/kernel-params"), "quiet");
    let mut change = Place::change(SystemMode::Switch);
    change.uncounted = true;
    place.arm(id(1), &change).await.expect("armed");
}

#[tokio::test]
async fn a_leaf_that_may_not_be_switched_or_is_no_nixos_refuses() {
    let mut place = Place::new();
    let change = Place::change(SystemMode::Switch);
    std::fs::remove_file(place.at("run/current-system")).expect("a link");
    let error = place.arm(id(1), &change).await.expect_err("refused");
    assert!(matches!(error, Error::Unsupported(_)), "{error}");
    place.link("run/current-system", "/usr");
    let error = place.arm(id(1), &change).await.expect_err("refused");
    assert!(matches!(error, Error::Unsupported(_)), "{error}");
    place.link("run/current-system", OLD);
    std::fs::remove_file(place.at("nix/var/nix/gcroots/cim-leaf-next")).expect("a link");
    let error = place.arm(id(1), &change).await.expect_err("refused");
    assert!(error.to_string().contains("systemd-tmpfiles"), "{error}");
    place.changes.systems.is_allowed = false;
    let why = refusal(place.arm(id(1), &change).await);
    assert!(why.contains("services.cim-leaf.system.switch"), "{why}");
    assert!(!place.directory().exists());
}

#[tokio::test]
async fn two_switches_at_once_are_one_switch_and_a_refusal() {
    let place = Place::new();
    let change = Place::change(SystemMode::Switch);
    place.arm(id(1), &change).await.expect("armed");
    assert!(refusal(place.arm(id(2), &change).await).contains("is open"));
    let caller = Caller::new("ann").expect("a caller");
    let hub = HubChange {
        url: "tls://h".to_owned(),
        ca: None,
        credentials: None,
        section: "a".repeat(64),
    };
    let order = Order {
        id: id(3),
        caller: &caller,
        seconds: 120,
        unwitnessed: true,
        what: What::Hub(&hub),
    };
    assert!(refusal(place.changes.arm(&leaf(), &place.units, &order).await).contains("is open"));
    let mut switcher = place.switcher();
    place.run(&mut switcher).await.expect("it waits");
    place.confirm(id(1)).await.expect("confirmed");
    assert!(refusal(place.arm(id(2), &change).await).contains("is being installed"));
    place.run(&mut switcher).await.expect("it ends");
    place.arm(id(2), &change).await.expect("the next one is armed");
}

/// What holds when all has ended: a change that was confirmed is installed, and any other has left nothing.
fn is_whole(place: &Place, step: u32) {
    match place.decided(id(1)).map(|decided| decided.decision()) {
        Some(Decision::Confirmed) => {
            let [_, profile, boot_loader] = place.systems();
            assert_eq!([profile.as_str(), &boot_loader], [NEW; 2], "step {step}");
        }
        Some(Decision::Back) | None => assert_eq!(place.systems(), [OLD; 3], "step {step}"),
    }
    assert!(
        !place.has(ARMED) && !place.has(BLESSED) && !place.has(GOING_BACK),
        "step {step}"
    );
}

/// Arms, switches and confirms, until the process ends after this number of its changes of files; returns whether it did.
async fn until(place: &Place, step: u32) -> bool {
    crashes::after(Some(step));
    let all = async {
        let change = Place::change(SystemMode::Switch);
        place.arm(id(1), &change).await?;
        let mut switcher = place.switcher();
        place.run(&mut switcher).await?;
        place.confirm(id(1)).await?;
        place.run(&mut switcher).await
    };
    let _ = all.await;
    let happened = crashes::happened();
    crashes::after(None);
    happened
}

#[tokio::test]
async fn a_power_cut_at_any_step_boots_the_system_before_or_the_confirmed_one() {
    let mut confirmed = 0;
    for step in 0.. {
        let place = Place::new();
        let happened = until(&place, step).await;
        place.reboot();
        let booted = place.target("run/current-system");
        // As at a boot: the guard first, and the switch where it says so.
        if let Next::Look { switch, .. } = place.guard_looks().await.expect("the guard looks") {
            assert!(switch, "step {step}");
            assert_eq!(
                place.run(&mut place.switcher()).await.expect("it ends"),
                Turn::End
            );
        }
        assert_eq!(place.guard_looks().await.expect("the guard looks"), Next::End);
        is_whole(&place, step);
        // Nothing is activated amid a boot.
        assert_eq!(place.target("run/current-system"), booted, "step {step}");
        if let Some(decided) = place.decided(id(1)) {
            let is_confirmed = decided.decision() == Decision::Confirmed;
            confirmed += u32::from(is_confirmed);
            let why = place.why(id(1));
            assert_eq!(
                is_confirmed && booted == OLD,
                why.contains("next boot or switch"),
                "{why}"
            );
            assert_eq!(
                !is_confirmed,
                why.contains("was rebooted before it was confirmed"),
                "{why}"
            );
        }
        // The next one is armed.
        let change = Place::change(SystemMode::Switch);
        place.boot.replace(Moment::now().expect("a moment").boot_id);
        place.arm(id(2), &change).await.expect("armed");
        if !happened {
            assert!(
                step > 20 && confirmed > 3,
                "{step} steps, {confirmed} of them confirmed"
            );
            return;
        }
    }
}

#[tokio::test]
async fn a_kill_at_any_step_leaves_a_switch_that_goes_back_or_goes_on() {
    for step in 0.. {
        let place = Place::new();
        let happened = until(&place, step).await;
        // Whoever ended is started again. Nobody confirms it now, so it waits or is closed.
        if let Next::Look { switch: true, .. } = place.guard_looks().await.expect("the guard looks") {
            place.run(&mut place.switcher()).await.expect("it goes on");
        }
        let later = || Ok(place.later());
        let mut taken = Taken::default();
        let looked = look(&place.directory(), &place.units, later, &mut taken).await;
        if let Next::Look { switch, .. } = looked.expect("the guard looks") {
            assert!(switch, "step {step}");
            let mut switcher = place.switcher();
            ends(&mut switcher, later).await;
        }
        is_whole(&place, step);
        if !happened {
            return;
        }
    }
}

#[tokio::test]
async fn a_switch_that_was_killed_in_its_middle_goes_back_without_a_second_try() {
    let place = Place::new();
    let change = Place::change(SystemMode::Switch);
    place.arm(id(1), &change).await.expect("armed");
    place.write(
        "changes/progress.json",
        &format!(r#"{{"id":"{}","step":"switching"}}"#, id(1)),
    );
    place.link("run/current-system", NEW);
    assert_eq!(
        place.run(&mut place.switcher()).await.expect("it ends"),
        Turn::End
    );
    assert_eq!(place.calls(), [format!("test {OLD}")]);
    assert_eq!(place.why(id(1)), "the switch was killed in its middle");
    assert_eq!(place.systems(), [OLD; 3]);
}

#[tokio::test]
async fn a_damaged_record_is_gone_back_from_by_the_second_one() {
    let place = Place::new();
    let change = Place::change(SystemMode::Switch);
    place.arm(id(1), &change).await.expect("armed");
    let mut switcher = place.switcher();
    place.run(&mut switcher).await.expect("it waits");
    place.write("changes/armed.json", "{");
    assert_eq!(place.run(&mut switcher).await.expect("it ends"), Turn::End);
    assert_eq!(place.systems(), [OLD; 3]);
    assert!(place.why(id(1)).contains("damaged"));
}

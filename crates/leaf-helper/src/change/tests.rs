//! Changes on real files, with a systemd that only notes what it is asked for, and a process that ends at every step.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use data_encoding::BASE64;
use leaf_core::change::{
    Armed, Asking, ConfirmedBy, Decided, Decision, HubChange, HubOverride, NAMESPACE, WitnessNonce,
    witness_text,
};
use leaf_core::host_op::Secret;
use leaf_core::id::{Caller, ChangeId, LeafName};
use leaf_host::contract::{ARMED, ASKING, DECIDED, GOING_BACK, HUB_OVERRIDE, WITNESS_UNIT};
use leaf_trust::ssh_signature::{SshSignature, public_key_of};
use tempfile::TempDir;
use tokio::sync::watch;

use super::guard::{Next, Taken, look, note_applied, restart_for};
use super::*;
use crate::change::{Order, What};
use crate::error::Error;
use crate::files::crashes;

/// Keys of `ssh-keygen`: the witness's, and another one.
static WITNESS: LazyLock<String> = LazyLock::new(new_key);
static OTHER: LazyLock<String> = LazyLock::new(new_key);

fn new_key() -> String {
    let place = tempfile::tempdir().expect("a directory");
    let file = place.path().join("key");
    let made = std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"])
        .arg(&file)
        .status()
        .expect("ssh-keygen runs (Debian: openssh-client)");
    assert!(made.success(), "{made}");
    std::fs::read_to_string(file).expect("a key")
}

const BEFORE: &str = r#"{"version":1,"change":"01890000-0000-7000-8000-000000000000","url":"tls://before","credentials":"hub-before.creds","section":"0"}"#;

/// A systemd that notes what it is asked for.
#[derive(Default)]
struct Noted {
    asked: watch::Sender<Vec<String>>,
    directory: PathBuf,
    /// Why the guard does not start, if it does not.
    guard_fails: Option<&'static str>,
}

impl Noted {
    fn note(&self, what: String) {
        self.asked.send_modify(|asked| asked.push(what));
    }

    fn asked(&self) -> Vec<String> {
        self.asked.borrow().clone()
    }
}

impl Units for Noted {
    async fn start_guard(&self) -> Result<()> {
        self.note("start the guard".to_owned());
        match self.guard_fails {
            Some(why) => Err(Error::Failed(why.to_owned())),
            // A process that has ended asks nobody for anything.
            None if crashes::happened() => Err(Error::Failed("the process has ended".to_owned())),
            None => {
                // As the real one, which has taken over once it looked.
                let next = look(&self.directory, self, Moment::now, &mut Taken::default()).await?;
                assert!(matches!(next, Next::Look { apply: false, .. }), "{next:?}");
                Ok(())
            }
        }
    }

    async fn begin_guard(&self) -> std::result::Result<(), SystemdError> {
        if !crashes::happened() {
            self.note("begin the guard".to_owned());
        }
        Ok(())
    }

    async fn begin_switch(&self, _: &Path) -> std::result::Result<(), SystemdError> {
        self.note("begin the switch".to_owned());
        Ok(())
    }

    async fn cancel_jobs(&self) -> std::result::Result<(), SystemdError> {
        Ok(())
    }

    async fn reboot(&self, _: bool) -> Result<()> {
        self.note("reboot".to_owned());
        Ok(())
    }

    async fn failed_units(&self) -> std::result::Result<Vec<String>, SystemdError> {
        Ok(Vec::new())
    }

    async fn health(&self, _: &str) -> std::result::Result<UnitHealth, SystemdError> {
        Ok(UnitHealth::default())
    }

    async fn restart_and_wait(&self, unit: &str, _: Duration) -> Result<()> {
        self.note(format!("restart {unit} and wait"));
        Ok(())
    }

    async fn restart(&self, unit: &str, always: bool) -> std::result::Result<(), SystemdError> {
        if !crashes::happened() {
            let verb = if always { "restart" } else { "try to restart" };
            self.note(format!("{verb} {unit}"));
        }
        Ok(())
    }
}

/// A state directory, with a hub before the change.
struct Place {
    directory: TempDir,
    changes: Changes,
    units: Noted,
}

fn leaf() -> LeafName {
    LeafName::new("edge-1").expect("a name")
}

fn id(number: u128) -> ChangeId {
    ChangeId(
        format!("01890000-0000-7000-8000-{number:012x}")
            .parse()
            .expect("an id"),
    )
}

fn hub() -> HubChange {
    HubChange {
        url: "tls://after:7422".to_owned(),
        ca: Some("-----BEGIN CERTIFICATE-----\n".to_owned()),
        credentials: Some(Secret::new("new credentials")),
        section: "a".repeat(64),
    }
}

type Now = Box<dyn Fn() -> Result<Moment>>;

fn moment(boot_id: &str, boot_ms: u64) -> Now {
    let moment = Moment {
        boot_id: boot_id.to_owned(),
        boot_ms,
    };
    Box::new(move || Ok(moment.clone()))
}

fn signature(key: &str, leaf: &LeafName, id: ChangeId, nonce: &WitnessNonce) -> String {
    let text = witness_text(leaf, id, nonce);
    let signature = SshSignature::sign(key.as_bytes(), NAMESPACE, text.as_bytes()).expect("signed");
    BASE64.encode(&signature.to_bytes())
}

fn ann() -> ConfirmedBy {
    ConfirmedBy::Caller(Caller::new("ann").expect("a caller"))
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join(HUB_OVERRIDE), BEFORE).expect("a file");
        std::fs::write(directory.path().join("hub-before.creds"), "old credentials").expect("a file");
        Self::at(directory)
    }

    fn at(directory: TempDir) -> Self {
        let key = public_key_of(WITNESS.as_bytes()).expect("a key");
        let line = format!("ssh-ed25519 {}", BASE64.encode(&key.to_bytes()));
        let changes = Changes::new(directory.path(), None, &[line]).expect("a key");
        let units = Noted {
            directory: directory.path().to_owned(),
            ..Noted::default()
        };
        Self {
            directory,
            changes: changes.with_patience(Duration::from_millis(50)),
            units,
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    async fn arm(&self, id: ChangeId, unwitnessed: bool) -> Result<()> {
        let caller = Caller::new("ann").expect("a caller");
        let hub = hub();
        let order = Order {
            id,
            caller: &caller,
            seconds: 120,
            unwitnessed,
            what: What::Hub(&hub),
        };
        self.changes.arm(&leaf(), &self.units, &order).await
    }

    /// Arms a change with a witness that answers.
    async fn arm_witnessed(&self, id: ChangeId) -> Result<()> {
        let asking = self.path().join(ASKING);
        let mut asked = self.units.asked.subscribe();
        let before = self.units.asked().len();
        let witness = async {
            asked
                .wait_for(|asked| asked.len() > before)
                .await
                .expect("the sender is kept");
            let asking: Asking =
                serde_json::from_str(&std::fs::read_to_string(asking).expect("a file")).expect("JSON");
            let by = ConfirmedBy::Signature(signature(&WITNESS, &leaf(), id, &asking.nonce));
            self.changes.confirm(&leaf(), id, &by).await
        };
        let (armed, answered) = tokio::join!(self.arm(id, false), witness);
        answered?;
        armed
    }

    /// Has the guard restart what uses the change.
    async fn apply(&self, id: ChangeId) {
        restart_for(self.path(), &self.units, Duration::ZERO)
            .await
            .expect("restarted");
        note_applied(self.path(), id).await.expect("noted");
    }

    async fn look(&self, now: impl Fn() -> Result<Moment>) -> Result<Next> {
        look(self.path(), &self.units, now, &mut Taken::default()).await
    }

    fn armed(&self) -> Option<Armed> {
        let text = std::fs::read_to_string(self.path().join(ARMED)).ok()?;
        Some(serde_json::from_str(&text).expect("a record"))
    }

    fn decided(&self, id: ChangeId) -> Option<Decided> {
        let text = std::fs::read_to_string(self.path().join(DECIDED).join(format!("{id}.json"))).ok()?;
        Some(serde_json::from_str(&text).expect("a record"))
    }

    fn has(&self, name: &str) -> bool {
        self.path().join(name).exists()
    }

    /// The content of all files but the lock and the decided changes.
    fn files(&self) -> BTreeMap<String, String> {
        let entries = std::fs::read_dir(self.path()).expect("a directory");
        entries
            .map(|entry| entry.expect("an entry"))
            .filter(|entry| entry.file_type().expect("a type").is_file())
            .map(|entry| {
                let name = entry.file_name().into_string().expect("text");
                (name, std::fs::read_to_string(entry.path()).expect("text"))
            })
            .filter(|(name, _)| name != "lock")
            .collect()
    }

    fn is_as_before(&self) -> bool {
        let before = [
            (HUB_OVERRIDE.to_owned(), BEFORE.to_owned()),
            ("hub-before.creds".to_owned(), "old credentials".to_owned()),
        ];
        self.files() == BTreeMap::from(before)
    }

    fn hub(&self) -> HubOverride {
        let text = std::fs::read_to_string(self.path().join(HUB_OVERRIDE)).expect("a file");
        serde_json::from_str(&text).expect("a hub")
    }
}

fn refusal(outcome: Result<()>) -> String {
    match outcome.expect_err("it is refused") {
        Error::Refused(why) => why,
        other => panic!("{other:?}"),
    }
}

/// A moment of this boot after the deadline of the open change.
fn too_late(armed: &Armed) -> Now {
    moment(&armed.boot_id, armed.deadline_boot_ms)
}

#[tokio::test]
async fn a_change_is_armed_after_its_witness_answered_and_confirmed_by_its_signature() {
    let place = Place::new();
    place.arm_witnessed(id(1)).await.expect("armed");
    let asked = [
        "restart leaf-change-witness.service",
        "start the guard",
        "restart leaf-change-witness.service",
    ];
    assert_eq!(place.units.asked(), asked);
    assert!(!place.has(ASKING));
    let armed = place.armed().expect("it is armed");
    assert_eq!(
        (armed.id, armed.kind.as_str(), armed.unwitnessed),
        (id(1), "hub", false)
    );
    assert_eq!(armed.witnesses.len(), 1);
    let now = Moment::now().expect("a moment");
    assert_eq!(armed.boot_id, now.boot_id);
    let left = armed.deadline_boot_ms - now.boot_ms;
    assert!((100_000..=120_000).contains(&left), "{left}");
    let hub = place.hub();
    assert_eq!((hub.change, hub.url.as_str()), (id(1), "tls://after:7422"));
    for (name, content) in [
        (hub.credentials, "new credentials"),
        (hub.ca, "-----BEGIN CERTIFICATE-----\n"),
    ] {
        let file = place.path().join(name.expect("a name"));
        assert_eq!(std::fs::read_to_string(file).expect("a file"), content);
    }
    // The old ones stay.
    assert!(place.has("hub-before.creds"));
    let next = place.look(Moment::now).await.expect("a look");
    assert!(matches!(next, Next::Look { apply: true, .. }), "{next:?}");
    // It could not be reached from a leafd that does not start with it.
    let early = signature(&WITNESS, &leaf(), id(1), &armed.nonce.expect("a nonce"));
    let early = ConfirmedBy::Signature(early);
    let why = refusal(place.changes.confirm(&leaf(), id(1), &early).await);
    assert!(why.contains("is not in use yet"), "{why}");
    place.apply(id(1)).await;
    let next = place.look(Moment::now).await.expect("a look");
    assert!(matches!(next, Next::Look { apply: false, .. }), "{next:?}");
    let asked = place.units.asked();
    assert_eq!(
        asked.last().map(String::as_str),
        Some("restart leafd.service and wait")
    );

    // What is over another leaf, change or nonce, in another namespace, or by another key.
    let nonce = armed.nonce.expect("a nonce");
    let other_leaf = LeafName::new("edge-2").expect("a name");
    let text = witness_text(&leaf(), id(1), &nonce);
    let command =
        SshSignature::sign(WITNESS.as_bytes(), "command@cim-leaf", text.as_bytes()).expect("signed");
    for wrong in [
        signature(&WITNESS, &other_leaf, id(1), &nonce),
        signature(&WITNESS, &leaf(), id(2), &nonce),
        signature(&WITNESS, &leaf(), id(1), &WitnessNonce::from([0; 32])),
        signature(&OTHER, &leaf(), id(1), &nonce),
        BASE64.encode(&command.to_bytes()),
        "no signature".to_owned(),
        String::new(),
        "A".repeat(100_000),
    ] {
        let by = ConfirmedBy::Signature(wrong);
        let why = refusal(place.changes.confirm(&leaf(), id(1), &by).await);
        assert!(why.contains("signature"), "{why}");
    }
    let why = refusal(place.changes.confirm(&leaf(), id(2), &ann()).await);
    assert!(why.contains("is open, and not"), "{why}");
    assert!(place.has(ARMED));

    let right = signature(&WITNESS, &leaf(), id(1), &nonce);
    let armored = format!("-----BEGIN SSH SIGNATURE-----\n{right}\n-----END SSH SIGNATURE-----\n");
    for signature in [armored, right] {
        // The second time it is confirmed already.
        let by = ConfirmedBy::Signature(signature);
        place
            .changes
            .confirm(&leaf(), id(1), &by)
            .await
            .expect("confirmed");
    }
    let decided = place.decided(id(1)).expect("a record");
    assert_eq!(decided.decision(), Decision::Confirmed);
    let by = decided.outcome.expect("an outcome").by.expect("a key");
    assert!(by.starts_with("SHA256:"), "{by}");
    // It never goes back, whatever the clock says.
    for now in [too_late(&armed), too_late(&armed)] {
        assert_eq!(place.look(now).await.expect("a look"), Next::End);
    }
    assert_eq!(place.hub().change, id(1));
    let names: Vec<String> = place.files().into_keys().collect();
    let of_hub = ["creds", "pem"].map(|end| format!("hub-{}.{end}", id(1)));
    assert_eq!(names, [of_hub.as_slice(), &[HUB_OVERRIDE.to_owned()]].concat());
}

#[tokio::test]
async fn a_change_goes_back_at_its_deadline_or_in_another_boot() {
    for (another_boot, verb) in [(false, "restart"), (true, "try to restart")] {
        let place = Place::new();
        place.arm(id(1), true).await.expect("armed");
        let armed = place.armed().expect("it is armed");
        assert!(armed.witnesses.is_empty() && armed.unwitnessed);
        let next = place
            .look(moment(&armed.boot_id, armed.deadline_boot_ms - 1))
            .await;
        let next = next.expect("a look");
        assert!(matches!(next, Next::Look { left_ms: 1, .. }), "{next:?}");
        let now = if another_boot {
            moment("another", 0)
        } else {
            too_late(&armed)
        };
        assert_eq!(place.look(now).await.expect("a look"), Next::End);
        assert!(place.is_as_before(), "{:?}", place.files());
        assert_eq!(
            place.units.asked(),
            ["start the guard", &format!("{verb} leafd.service")]
        );
        let decided = place.decided(id(1)).expect("a record");
        assert_eq!(decided.decision(), Decision::Back);
        let why = decided.outcome.expect("an outcome").why.expect("a reason");
        assert_eq!(why.contains("rebooted"), another_boot, "{why}");
        let why = refusal(place.changes.confirm(&leaf(), id(1), &ann()).await);
        assert!(why.contains("went back"), "{why}");
        let why = refusal(place.arm(id(1), true).await);
        assert!(why.contains("was decided before"), "{why}");
    }
}

#[tokio::test]
async fn a_leaf_without_an_override_has_none_again() {
    let place = Place::at(tempfile::tempdir().expect("a directory"));
    place.arm(id(1), true).await.expect("armed");
    assert!(place.has(HUB_OVERRIDE));
    let armed = place.armed().expect("it is armed");
    place.look(too_late(&armed)).await.expect("a look");
    assert_eq!(place.files(), BTreeMap::new());
}

#[tokio::test]
async fn nothing_is_armed_without_an_answer_of_the_witness_or_the_word_of_a_person() {
    let place = Place::new();
    let why = refusal(place.arm(id(1), false).await);
    assert!(
        why.contains("did not answer") && why.contains("--no-witness"),
        "{why}"
    );
    assert!(place.is_as_before(), "{:?}", place.files());
    assert_eq!(place.units.asked(), [format!("restart {WITNESS_UNIT}")]);

    let without = Changes::new(place.path(), None, &[]).expect("no key");
    let place = Place {
        changes: without,
        ..place
    };
    let why = refusal(place.arm(id(1), false).await);
    assert!(
        why.contains("no witness is set") && why.contains("--no-witness"),
        "{why}"
    );
    assert!(place.is_as_before(), "{:?}", place.files());
}

#[tokio::test]
async fn a_second_change_is_refused_while_one_is_open() {
    let place = Place::new();
    place.arm(id(1), true).await.expect("armed");
    let files = place.files();
    let why = refusal(place.arm(id(2), true).await);
    assert!(why.contains(&format!("change {} is open", id(1))), "{why}");
    // The same one is armed once, so that its deadline stays.
    place.arm(id(1), true).await.expect("armed before");
    assert_eq!(place.files(), files);
    place.apply(id(1)).await;
    place
        .changes
        .confirm(&leaf(), id(1), &ann())
        .await
        .expect("confirmed");
    let decided = place.decided(id(1)).expect("a record");
    assert_eq!(decided.outcome.expect("an outcome").by.as_deref(), Some("ann"));
    // The next one goes back to the first.
    place.arm(id(2), true).await.expect("armed");
    let armed = place.armed().expect("it is armed");
    place.look(too_late(&armed)).await.expect("a look");
    assert_eq!(place.hub().change, id(1));
    assert!(place.has(&format!("hub-{}.creds", id(1))) && !place.has(&format!("hub-{}.creds", id(2))));
}

#[tokio::test]
async fn a_change_can_not_be_confirmed_after_its_time_or_before_it_is_written() {
    let place = Place::new();
    place.arm(id(1), true).await.expect("armed");
    let armed = place.armed().expect("it is armed");
    for now in [too_late(&armed), moment(&armed.boot_id, u64::MAX)] {
        let why = refusal(place.changes.confirm_at(&leaf(), id(1), &ann(), now).await);
        assert!(why.contains("is over"), "{why}");
    }
    let another_boot = moment("another", 0);
    let why = refusal(
        place
            .changes
            .confirm_at(&leaf(), id(1), &ann(), another_boot)
            .await,
    );
    assert!(why.contains("is over"), "{why}");
    std::fs::remove_file(place.path().join("progress.json")).expect("a file");
    let why = refusal(place.changes.confirm(&leaf(), id(1), &ann()).await);
    assert!(why.contains("is not in use yet"), "{why}");
    assert!(place.has(ARMED));
}

#[tokio::test]
async fn nothing_is_changed_if_the_guard_does_not_start() {
    let mut place = Place::new();
    place.units.guard_fails = Some("no such unit");
    let error = place.arm(id(1), true).await.expect_err("it fails");
    assert!(error.to_string().contains("no such unit"), "{error}");
    assert!(place.is_as_before(), "{:?}", place.files());
    // It can be tried again.
    place.units.guard_fails = None;
    place.arm(id(1), true).await.expect("armed");
}

#[tokio::test]
async fn values_that_are_not_of_a_hub_are_refused_before_anything_is_written() {
    let place = Place::new();
    let caller = Caller::new("ann").expect("a caller");
    for (seconds, url) in [(29, "tls://h"), (3601, "tls://h"), (60, "tls://h\n"), (60, "")] {
        let hub = HubChange {
            url: url.to_owned(),
            ..hub()
        };
        let order = Order {
            id: id(1),
            caller: &caller,
            seconds,
            unwitnessed: true,
            what: What::Hub(&hub),
        };
        refusal(place.changes.arm(&leaf(), &place.units, &order).await);
        assert!(place.is_as_before());
        assert!(!place.has(DECIDED));
    }
}

/// What has to hold after a process ended anywhere while it armed a change, and the guard has looked after the deadline: the
/// files are as before, or the change was armed completely, and then they are as before as well.
async fn goes_back_whatever_happened(place: &Place, step: u32) {
    if let Some(armed) = place.armed() {
        let confirmed = place
            .changes
            .confirm_at(&leaf(), id(1), &ann(), too_late(&armed))
            .await;
        refusal(confirmed);
        place.look(too_late(&armed)).await.expect("the guard looks");
        assert_eq!(
            place.decided(id(1)).expect("a record").decision(),
            Decision::Back,
            "step {step}"
        );
    } else {
        place.look(moment("another", 0)).await.expect("the guard looks");
        assert!(place.decided(id(1)).is_none(), "step {step}");
    }
    assert_eq!(place.hub().url, "tls://before", "step {step}");
    assert!(place.has("hub-before.creds"), "step {step}");
    // The next change cleans up, is armed, and can be confirmed.
    place.arm(id(2), true).await.expect("armed");
    place.apply(id(2)).await;
    place
        .changes
        .confirm(&leaf(), id(2), &ann())
        .await
        .expect("confirmed");
    let names: Vec<String> = place.files().into_keys().collect();
    let of_hub = ["creds", "pem"].map(|end| format!("hub-{}.{end}", id(2)));
    assert_eq!(
        names,
        [of_hub.as_slice(), &[HUB_OVERRIDE.to_owned()]].concat(),
        "step {step}"
    );
}

#[tokio::test]
async fn a_helper_that_ends_at_any_step_of_arming_leaves_a_change_that_goes_back() {
    for step in 0.. {
        let place = Place::new();
        crashes::after(Some(step));
        let armed = place.arm(id(1), true).await;
        crashes::after(None);
        goes_back_whatever_happened(&place, step).await;
        if armed.is_ok() {
            assert!(step > 10, "{step} steps");
            return;
        }
    }
}

#[tokio::test]
async fn an_interrupted_arming_is_repeated_from_its_beginning() {
    for step in 0.. {
        let place = Place::new();
        crashes::after(Some(step));
        let first = place.arm(id(1), true).await;
        crashes::after(None);
        place.arm(id(1), true).await.expect("armed");
        assert_eq!(place.hub().change, id(1));
        let armed = place.armed().expect("it is armed");
        place.look(too_late(&armed)).await.expect("the guard looks");
        assert!(place.is_as_before(), "step {step}: {:?}", place.files());
        if first.is_ok() {
            return;
        }
    }
}

#[tokio::test]
async fn a_guard_that_ends_at_any_step_of_the_way_back_goes_on_with_it() {
    for step in 0.. {
        let place = Place::new();
        place.arm(id(1), true).await.expect("armed");
        let armed = place.armed().expect("it is armed");
        crashes::after(Some(step));
        let first = place.look(too_late(&armed)).await;
        let happened = crashes::happened();
        crashes::after(None);
        // Once it is decided, neither a person nor a time in which it was armed brings it back.
        if place.has(GOING_BACK) {
            let early = moment(&armed.boot_id, armed.deadline_boot_ms - 60_000);
            refusal(place.changes.confirm_at(&leaf(), id(1), &ann(), &early).await);
            place.look(early).await.expect("the guard looks");
        } else {
            place.look(moment("another", 0)).await.expect("the guard looks");
        }
        assert_eq!(
            place.decided(id(1)).expect("a record").decision(),
            Decision::Back,
            "step {step}"
        );
        assert_eq!(place.hub().url, "tls://before", "step {step}");
        assert!(!place.has(ARMED) && !place.has(GOING_BACK));
        assert!(
            place
                .units
                .asked()
                .iter()
                .any(|asked| asked.contains("leafd.service"))
        );
        if first.is_ok() && !happened {
            assert!(step > 5, "{step} steps");
            return;
        }
    }
}

#[tokio::test]
async fn a_helper_that_ends_at_any_step_of_confirming_leaves_a_change_that_is_confirmed_or_open() {
    for step in 0.. {
        let place = Place::new();
        place.arm(id(1), true).await.expect("armed");
        place.apply(id(1)).await;
        let armed = place.armed().expect("it is armed");
        crashes::after(Some(step));
        let first = place.changes.confirm(&leaf(), id(1), &ann()).await;
        let happened = crashes::happened();
        crashes::after(None);
        place.look(too_late(&armed)).await.expect("the guard looks");
        let decided = place.decided(id(1)).expect("a record");
        match first {
            // Whoever was told that it is confirmed can rely on it.
            Ok(()) => {
                assert_eq!(decided.decision(), Decision::Confirmed, "step {step}");
                assert_eq!(place.hub().change, id(1));
            }
            Err(_) if decided.decision() == Decision::Confirmed => assert_eq!(place.hub().change, id(1)),
            Err(_) => assert_eq!(place.hub().url, "tls://before"),
        }
        if !happened {
            assert!(step > 3, "{step} steps");
            return;
        }
    }
}

#[tokio::test]
async fn a_record_of_a_newer_program_is_gone_back_from_and_one_that_is_no_record_is_set_aside() {
    let place = Place::new();
    place.arm(id(1), true).await.expect("armed");
    let mut newer = serde_json::to_value(place.armed().expect("it is armed")).expect("JSON");
    newer["version"] = 7.into();
    newer["kind"] = "firewall".into();
    newer["deadline_boot_ms"] = serde_json::json!({ "clock": "other" });
    newer["way_back"]["rules"] = serde_json::json!(["x"]);
    std::fs::write(place.path().join(ARMED), newer.to_string()).expect("a file");
    place.look(Moment::now).await.expect("a look");
    assert!(place.is_as_before());
    let record = place.decided(id(1)).expect("a record");
    assert_eq!(
        (record.armed.version, record.armed.kind.as_str()),
        (7, "firewall")
    );

    // Without a second record there is no way back.
    std::fs::write(place.path().join(ARMED), "{\"id\":").expect("a file");
    assert_eq!(place.look(Moment::now).await.expect("a look"), Next::End);
    assert!(place.has("unreadable.json") && !place.has(ARMED));
    place.arm(id(2), true).await.expect("armed");
}

#[tokio::test]
async fn a_file_in_another_directory_is_put_back_over_a_link_that_was_left_there() {
    let place = Place::new();
    place.arm(id(1), true).await.expect("armed");
    let elsewhere = tempfile::tempdir().expect("a directory");
    let outside = elsewhere.path().join("outside");
    std::fs::write(&outside, "kept").expect("a file");
    let target = elsewhere.path().join("settings");
    std::os::unix::fs::symlink(&outside, &target).expect("a link");
    std::fs::write(place.path().join("saved-9"), "old settings").expect("a file");
    let mut armed = serde_json::to_value(place.armed().expect("it is armed")).expect("JSON");
    let files = armed["way_back"]["files"].as_array_mut().expect("a list");
    files.push(serde_json::json!({ "path": target, "saved": "saved-9" }));
    files.push(serde_json::json!({ "path": elsewhere.path().join("none/here"), "saved": null }));
    std::fs::write(place.path().join(ARMED), armed.to_string()).expect("a file");
    place.look(moment("another", 0)).await.expect("a look");
    assert_eq!(std::fs::read_to_string(&outside).expect("a file"), "kept");
    assert!(!target.is_symlink());
    assert_eq!(std::fs::read_to_string(&target).expect("a file"), "old settings");
}

#[tokio::test]
async fn the_last_sixteen_decided_changes_are_kept() {
    let place = Place::new();
    for number in 1..=20 {
        place.arm(id(number), true).await.expect("armed");
        place.apply(id(number)).await;
        place
            .changes
            .confirm(&leaf(), id(number), &ann())
            .await
            .expect("confirmed");
    }
    let kept = std::fs::read_dir(place.path().join(DECIDED))
        .expect("a directory")
        .count();
    assert_eq!(kept, 16);
    assert!(place.decided(id(20)).is_some());
}

#[tokio::test]
async fn a_file_that_can_not_be_put_back_keeps_no_unit_from_its_restart_and_no_change_open() {
    let place = Place::new();
    place.arm(id(1), true).await.expect("armed");
    let mut armed = serde_json::to_value(place.armed().expect("it is armed")).expect("JSON");
    let files = armed["way_back"]["files"].as_array_mut().expect("a list");
    for (path, saved) in [
        ("/nowhere/at-all", "saved-0"),
        ("relative", "saved-0"),
        ("/tmp/x", "missing"),
    ] {
        files.insert(0, serde_json::json!({ "path": path, "saved": saved }));
    }
    std::fs::write(place.path().join(ARMED), armed.to_string()).expect("a file");
    let now = too_late(&place.armed().expect("it is armed"));
    assert_eq!(place.look(now).await.expect("a look"), Next::End);
    assert_eq!(
        place.units.asked().last().map(String::as_str),
        Some("restart leafd.service")
    );
    // The others are back.
    assert!(place.is_as_before(), "{:?}", place.files());
    let decided = place.decided(id(1)).expect("a record");
    assert_eq!(decided.decision(), Decision::Back);
    let why = decided.outcome.expect("an outcome").why.expect("a reason");
    for path in ["/nowhere/at-all", "relative", "/tmp/x"] {
        assert!(why.contains(path), "{why}");
    }
    place.arm(id(2), true).await.expect("the next one is armed");
}

#[tokio::test]
async fn units_are_restarted_once_while_a_file_waits_for_being_put_back() {
    let place = Place::new();
    place.arm(id(1), true).await.expect("armed");
    let armed = place.armed().expect("it is armed");
    let mut taken = Taken::default();
    // Nothing can be closed, as on a disk that became read-only.
    let decided = place.path().join(DECIDED).join(format!("{}.json", id(1)));
    std::fs::create_dir_all(decided.join("in the way")).expect("a directory");
    for _ in 0..3 {
        let looked = look(place.path(), &place.units, too_late(&armed), &mut taken).await;
        looked.expect_err("it can't be closed");
        assert_eq!(place.hub().url, "tls://before");
    }
    let restarts = place
        .units
        .asked()
        .iter()
        .filter(|asked| asked.contains("leafd"))
        .count();
    assert_eq!(restarts, 1);
    std::fs::remove_dir_all(decided).expect("removed");
    let next = look(place.path(), &place.units, too_late(&armed), &mut taken).await;
    assert_eq!(next.expect("it is closed"), Next::End);
    assert!(place.is_as_before());
}

#[tokio::test]
async fn a_helper_begins_the_guard_of_a_change_that_an_earlier_one_armed_without_it() {
    for step in 0.. {
        let place = Place::new();
        crashes::after(Some(step));
        let armed = place.arm(id(1), true).await;
        crashes::after(None);
        if !place.has(ARMED) {
            continue;
        }
        // As a helper does when it starts, and before it refuses another change.
        place.changes.resume(&place.units).await.expect("resumed");
        assert_eq!(
            place.units.asked().last().map(String::as_str),
            Some("begin the guard")
        );
        let before = place.units.asked().len();
        refusal(place.arm(id(2), true).await);
        assert_eq!(place.units.asked()[before..], ["begin the guard"]);
        if armed.is_ok() {
            break;
        }
    }
    let place = Place::new();
    place.changes.resume(&place.units).await.expect("resumed");
    assert_eq!(place.units.asked(), [""; 0]);
}

#[tokio::test]
async fn a_damaged_record_is_replaced_by_the_one_that_was_prepared() {
    for damaged in ["", "{\"id\":", "[]", "\u{0}\u{0}"] {
        let place = Place::new();
        place.arm(id(1), true).await.expect("armed");
        std::fs::write(place.path().join(ARMED), damaged).expect("a file");
        assert_eq!(place.look(Moment::now).await.expect("a look"), Next::End);
        assert!(place.is_as_before(), "{:?}", place.files());
        let decided = place.decided(id(1)).expect("a record");
        let why = decided.outcome.expect("an outcome").why.expect("a reason");
        assert!(why.contains("damaged"), "{why}");
        assert_eq!(
            place.units.asked().last().map(String::as_str),
            Some("restart leafd.service")
        );
    }
}

#[test]
fn who_reads_the_directory_reads_what_was_decided_whoever_looked_first() {
    let place = tempfile::tempdir().expect("a directory");
    // Only root gives it to another group.
    let group = if rustix::process::geteuid().is_root() {
        54_321
    } else {
        rustix::process::getegid().as_raw()
    };
    std::os::unix::fs::chown(place.path(), None, Some(group)).expect("given");
    let store = store::Store::open(place.path()).expect("opened");
    assert!(store.is_some());
    let decided = place.path().join(DECIDED).metadata().expect("it is there");
    let seen = (
        std::os::unix::fs::MetadataExt::gid(&decided),
        std::os::unix::fs::MetadataExt::mode(&decided) & 0o777,
    );
    assert_eq!(seen, (group, 0o750));
}

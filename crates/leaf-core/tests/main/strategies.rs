//! Arbitrary facts, histories, commands and looks at the hardware. Names and ids are few, so that they meet.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use leaf_core::address_pool::AddressPool;
use leaf_core::command::*;
use leaf_core::container::*;
use leaf_core::decide::{Context, InUse};
use leaf_core::event::*;
use leaf_core::hardware::*;
use leaf_core::host_op::Secret;
use leaf_core::id::*;
use leaf_core::job::*;
use leaf_core::labels::Labels;
use leaf_core::placement::demand::{Demand, Features, Priority};
use leaf_core::placement::room::JobRules;
use leaf_core::placement::work::Work;
use leaf_core::provenance::envelope::{Envelope, EnvelopeSignature, PAYLOAD_TYPE};
use leaf_core::runtime::Runtime;
use leaf_core::secret::{OnUnitChange, SecretUser};
use leaf_core::spec::*;
use leaf_core::state::{State, apply};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::Value;
use uuid::Uuid;

pub(crate) fn leaf() -> LeafName {
    LeafName::new("edge-1").expect("a leaf")
}

/// A moment on the leaf's clock.
pub(crate) fn time(second: u64) -> Timestamp {
    Timestamp::from_second(1_763_654_400 + i64::try_from(second).expect("a small number")).expect("a time")
}

/// The events that these facts make, with sequence numbers from `first`.
pub(crate) fn events(first: u64, facts: Vec<Fact>) -> Vec<Event> {
    (first..)
        .zip(facts)
        .map(|(sequence, fact)| Event {
            sequence,
            time: time(sequence),
            causation: CommandId::new(format!("c{sequence}")).ok(),
            correlation: (sequence % 2 == 0).then(|| format!("mark {sequence}: 100 % \"ä\"")),
            fact,
        })
        .collect()
}

/// Applies an event, and writes the entries that it changes to a store, as leafd does.
pub(crate) fn apply_to_store(store: &mut BTreeMap<String, Value>, state: &mut State, event: &Event) {
    for key in apply(state, event) {
        match state.entry(&key) {
            Some(value) => store.insert(key, value),
            None => store.remove(&key),
        };
    }
}

pub(crate) fn context(fresh: u128) -> Context {
    Context {
        caller: Caller::new("admin").expect("a caller"),
        leaf: leaf(),
        works: true,
        now: time(0),
        fresh_id: Uuid::from_u128(fresh),
        labels: [("site".to_owned(), "hall-2".to_owned())].into(),
        runtime: Runtime::Systemd,
        pool: AddressPool::default(),
        in_use: InUse::default(),
        jobs: Arc::new(JobRules {
            max_running: 2,
            max_queued: 8,
            timeout_seconds: 3600,
            ..JobRules::default()
        }),
        pressure: None,
        refusing: None,
        in_places: 0,
        nix_policy: NixPolicy::default(),
    }
}

pub(crate) fn name() -> impl Strategy<Value = ContainerName> {
    select(&["a", "b", "Web", "_57eb"][..]).prop_map(|n| ContainerName::new(n).expect("a name"))
}

/// Labels, good or bad.
fn labels() -> impl Strategy<Value = Labels> {
    let keys = select(&["site", "rack", "a.b/c-d", "Bad"][..]).prop_map(str::to_owned);
    let values = select(&["a", "hall 2", "", "\u{1b}[2J"][..]).prop_map(str::to_owned);
    btree_map(keys, values, 0..3)
}

fn device_id() -> impl Strategy<Value = DeviceId> {
    select(&["usb-1", "usb-2", "pci_3", "disk-4"][..]).prop_map(|n| DeviceId::new(n).expect("an id"))
}

pub(crate) fn job_id() -> impl Strategy<Value = JobId> {
    (1u128..7).prop_map(|n| JobId(Uuid::from_u128(n)))
}

/// What a job takes: good or bad.
fn leaf_name(name: &str) -> LeafName {
    LeafName::new(name).expect("a name")
}

/// A work of the leaf under test, as the first or the second, or of others.
pub(crate) fn work() -> impl Strategy<Value = Work> {
    (
        1u128..4,
        select(&[["edge-1", "edge-2"], ["edge-2", "edge-1"], ["edge-2", "edge-3"]][..]),
    )
        .prop_map(|(id, [first, second])| Work {
            id: WorkId(Uuid::from_u128(id)),
            first: leaf_name(first),
            second: leaf_name(second),
        })
}

pub(crate) fn demand() -> impl Strategy<Value = Demand> {
    let features = btree_map(select(&["kvm", "gpu"][..]).prop_map(str::to_owned), 1u16..4, 0..3);
    let priority = select(&[Priority::Low, Priority::Normal, Priority::High][..]);
    (features, priority).prop_map(|(features, priority): (Features, Priority)| Demand { features, priority })
}

fn instance() -> impl Strategy<Value = InstanceId> {
    (1u128..3).prop_map(|n| InstanceId(Uuid::from_u128(n << 64)))
}

fn caller() -> impl Strategy<Value = Caller> {
    select(&["admin", "bob"][..]).prop_map(|n| Caller::new(n).expect("a caller"))
}

pub(crate) fn store_path() -> impl Strategy<Value = StorePath> {
    select(&["minimal", "web-1.0"][..]).prop_map(|n| {
        StorePath::new(format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{n}")).expect("a path")
    })
}

fn source() -> impl Strategy<Value = ContainerSource> {
    prop_oneof![
        store_path().prop_map(|path| ContainerSource::Toplevel { path }),
        "[-a-z#:]{0,6}".prop_map(|reference| ContainerSource::Flake { reference }),
        "[-a-zA-Z./]{0,6}".prop_map(|name| ContainerSource::Template { name }),
    ]
}

pub(crate) fn secret_name() -> impl Strategy<Value = SecretName> {
    select(&["db", "Api_2"][..]).prop_map(|n| SecretName::new(n).expect("a name"))
}

fn secret_user() -> impl Strategy<Value = SecretUser> {
    let unit = UnitName::new("a@b.service").expect("a unit");
    prop_oneof![
        3 => name().prop_map(|name| SecretUser::Container { name }),
        1 => Just(SecretUser::Unit { name: unit, on_change: OnUnitChange::Reload }),
    ]
}

/// An age file whose users stand in the clear, as the model of the host has it.
pub(crate) fn age_file() -> impl Strategy<Value = Secret> {
    (any::<u8>(), vec(secret_user(), 0..2)).prop_map(|(nonce, users)| {
        let users: Vec<String> = users.iter().map(|user| format!("for: {user}")).collect();
        Secret::new(format!(
            "-----BEGIN AGE ENCRYPTED FILE-----\n{nonce}\n{}\n",
            users.join("\n")
        ))
    })
}

fn secret_sources() -> impl Strategy<Value = BTreeMap<String, SecretSource>> {
    let on_change = select(&[OnChange::Restart, OnChange::Restart, OnChange::Nothing][..]);
    let source = prop_oneof![
        1 => Just(SecretSource::File("/run/secrets/a".to_owned())),
        3 => (secret_name(), on_change)
            .prop_map(|(secret, on_change)| SecretSource::Secret(NamedSecret { secret, on_change })),
    ];
    btree_map("[a-c]", source, 0..3)
}

/// Options that a spec may have.
pub(crate) fn options() -> impl Strategy<Value = ContainerOptions> {
    let variable = btree_map("[A-Z]{1,2}", "[ -~]{0,3}", 0..2);
    let memory = option::of((1u64 << 20..1 << 30).prop_map(ByteSize));
    let when = select(&[RestartWhen::Never, RestartWhen::OnFailure, RestartWhen::Always][..]);
    let opening = (1u16..4).prop_map(|host_port| Opening::Ingress {
        protocol: Protocol::Tcp,
        host_port,
        port: None,
    });
    prop_oneof![
        2 => Just(ContainerOptions::default()),
        1 => (variable, memory, when, vec(opening, 0..2), secret_sources()).prop_map(|(environment, memory_bytes, when, allow, secrets)| {
            ContainerOptions {
                environment,
                secrets,
                limits: Limits { memory_bytes, ..Limits::default() },
                restart: RestartPolicy { when, ..RestartPolicy::default() },
                allow,
                ..ContainerOptions::default()
            }
        }),
    ]
}

/// A spec that may be wanted.
pub(crate) fn spec() -> impl Strategy<Value = ContainerSpec> {
    let run = select(&[SpecRun::Running, SpecRun::Stopped][..]);
    (source(), run, any::<bool>(), options()).prop_map(|(source, run, paused, options)| ContainerSpec {
        source,
        run,
        paused,
        options,
    })
}

fn desired() -> impl Strategy<Value = Desired> {
    (
        1u64..4,
        select(&[DesiredRun::Running, DesiredRun::Stopped, DesiredRun::Absent][..]),
        source(),
        option::of(store_path()),
        option::of(job_id()),
        1u8..4,
        options(),
        option::of(store_path()),
        any::<bool>(),
        btree_map(secret_name(), "[0-9a-f]{4}", 0..2),
    )
        .prop_map(
            |(generation, run, source, toplevel, build_job, link, options, fallback, paused, secrets)| {
                Desired {
                    generation,
                    run,
                    paused,
                    source,
                    toplevel,
                    build_job,
                    network: AddressPool::default().link(link),
                    options,
                    secrets,
                    fallback,
                    adopted: false,
                }
            },
        )
}

pub(crate) fn device() -> impl Strategy<Value = Device> {
    (
        device_id(),
        select(&[DeviceStatus::Present, DeviceStatus::Failed, DeviceStatus::Absent][..]),
        select(&[DeviceKind::Camera, DeviceKind::Disk][..]),
        option::of(select(&["One", "Two"][..])),
        vec(select(&["uvcvideo", "sd"][..]).prop_map(str::to_owned), 0..2),
        vec(select(&["video0", "sda"][..]), 0..2),
        btree_map("[a-z]{1,2}", "[ -~]{0,3}", 0..2),
    )
        .prop_map(|(id, status, kind, model, drivers, ports, attributes)| Device {
            id,
            identity: Identity::Serial,
            kind,
            status,
            vendor: None,
            model: model.map(str::to_owned),
            serial: None,
            bus: Some("usb".to_owned()),
            drivers,
            sysfs_path: None,
            ports: ports
                .into_iter()
                .map(|name| Port {
                    name: name.to_owned(),
                    direction: Direction::Input,
                    medium: Medium::Video,
                    node: None,
                })
                .collect(),
            attributes,
        })
}

pub(crate) fn inventory() -> impl Strategy<Value = Inventory> {
    vec(device(), 0..5).prop_map(|devices| Inventory {
        devices: devices.into_iter().map(|d| (d.id.clone(), d)).collect(),
    })
}

fn installable() -> impl Strategy<Value = Installable> {
    prop_oneof![
        "[-a-z#:\\u{0}]{0,6}".prop_map(|reference| Installable::Flake { reference }),
        store_path().prop_map(|path| Installable::StorePath { path }),
        (store_path(), "[*,a-z]{0,3}").prop_map(|(path, outputs)| Installable::Derivation { path, outputs }),
        ("[-/a-z]{0,6}", option::of("[-a-z]{0,3}"))
            .prop_map(|(path, attribute)| Installable::File { path, attribute }),
        "[-a-z.]{0,6}".prop_map(|name| Installable::Template { name }),
    ]
}

pub(crate) fn build_result() -> impl Strategy<Value = BuildResult> {
    (store_path(), any::<u64>(), any::<u64>(), 0u32..3).prop_map(|(path, time, size, built)| BuildResult {
        outputs: BTreeMap::from([("out".to_owned(), path.clone())]),
        store_path: path.clone(),
        derivation: None,
        build_time_ms: time,
        closure_size_bytes: size,
        references: vec![path.clone()],
        references_left_out: 0,
        others_left_out: 0,
        sources: Vec::new(),
        built,
        origin: (built > 0).then_some(Origin::Built),
        nar_size_bytes: None,
        nar_sha256: BTreeMap::default(),
        others: (0..built)
            .map(|_| BuiltDerivation {
                derivation: Some(path.clone()),
                outputs: BTreeMap::from([("dev".to_owned(), path.clone())]),
                origin: Some(Origin::Substituted),
                nar_size_bytes: Some(size),
                nar_sha256: BTreeMap::default(),
                closure_size_bytes: None,
            })
            .collect(),
    })
}

fn exit() -> impl Strategy<Value = Exit> {
    prop_oneof![
        any::<i32>().prop_map(|code| Exit::Code { code }),
        (1i32..64).prop_map(|signal| Exit::Signal { signal }),
        Just(Exit::Lost),
    ]
}

/// A fact about a change that can cut the leaf off.
fn change_fact() -> impl Strategy<Value = Fact> {
    (0..3u128, 0..4).prop_map(|(id, kind)| {
        let change = ChangeId(Uuid::from_u128(id));
        match kind {
            0 => LeafChangeArmed {
                change,
                kind: "hub".to_owned(),
                caller: None,
                url: None,
                toplevel: None,
                unwitnessed: false,
            }
            .into(),
            1 => LeafChangeConfirmed { change, by: None }.into(),
            2 => LeafChangeWentBack { change, why: None }.into(),
            _ => LeafHubInPlaceEnded {
                change,
                url: "tls://b".to_owned(),
            }
            .into(),
        }
    })
}

fn snapshot() -> impl Strategy<Value = LeafSnapshotted> {
    let entry = prop_oneof![
        device().prop_map(|d| (format!("device.{}", d.id), serde_json::to_value(d).expect("JSON"))),
        "(leaf|device|container|job|other|)\\.?[a-z_]{0,4}".prop_map(|key| (key, serde_json::json!({}))),
    ];
    (1u32..4, vec(entry, 0..3)).prop_map(|(part, entries)| LeafSnapshotted {
        leaf: leaf(),
        epoch: 1,
        part,
        parts: 3,
        entries: entries.into_iter().collect(),
    })
}

/// A fact of a later version, about something that this one may know.
pub(crate) fn unknown_fact() -> impl Strategy<Value = Fact> {
    let about = prop_oneof![
        Just(("leaf", "edge-1".to_owned())),
        Just(("weather", "here".to_owned())),
        device_id().prop_map(|id| ("device", id.to_string())),
        name().prop_map(|name| ("container", name.token())),
        job_id().prop_map(|id| ("job", id.to_string())),
        secret_name().prop_map(|name| ("secret", name.token())),
    ];
    (about, "[a-z]{1,5}", any::<u8>()).prop_map(|((aggregate, id), fact, value)| {
        Fact::Unknown(UnknownFact {
            kind: format!("cim.leaf.{aggregate}.later_{fact}.v9"),
            subject: format!("leaf.v1.evt.edge-1.{aggregate}.{id}.later_{fact}"),
            body: serde_json::json!({ "of_a_later_day": value }),
        })
    })
}

fn last_update() -> impl Strategy<Value = LastUpdate> {
    let units = || vec("[a-z]{1,4}\\.service", 0..3);
    (0u64..100, option::of("[ -~ä€]{0,8}"), units(), units()).prop_map(|(at, restarted, done, failed)| {
        LastUpdate {
            restarted,
            restarted_units: done,
            failed_units: failed,
            ..LastUpdate::at(time(at))
        }
    })
}

/// Any fact, whether it fits or not.
pub(crate) fn fact() -> impl Strategy<Value = Fact> {
    let text = "[ -~ä€]{0,8}";
    let host = HostFacts {
        hostname: "edge-1".to_owned(),
        system: "x86_64-linux".to_owned(),
        kernel: "6.12".to_owned(),
        boot_id: "b".to_owned(),
    };
    let of_the_leaf = prop_oneof![
        (instance(), text).prop_map(move |(instance, version)| Fact::from(LeafStarted {
            provenance_key: None,
            leaf: leaf(),
            instance,
            version,
            host: host.clone()
        })),
        (instance(), text).prop_map(|(instance, reason)| Fact::from(LeafStopped { instance, reason })),
        (caller(), labels()).prop_map(|(caller, labels)| Fact::from(LeafLabelled { caller, labels })),
        (any::<bool>(), any::<u64>()).prop_map(|(is_full, free_bytes)| match is_full {
            true => Fact::from(LeafStoreFilled {
                free_bytes,
                kept_bytes: 800
            }),
            false => Fact::from(LeafStoreHasRoom {
                free_bytes,
                kept_bytes: 800
            }),
        }),
        change_fact(),
        snapshot().prop_map(Fact::from),
        unknown_fact(),
    ];
    let of_a_device = prop_oneof![
        device().prop_map(|device| Fact::from(DeviceAppeared { device })),
        device().prop_map(|device| Fact::from(DeviceChanged {
            device,
            changed: vec!["model".to_owned()]
        })),
        device_id().prop_map(|id| Fact::from(DeviceVanished { id })),
    ];
    let cause = select(
        &[
            StopCause::Requested,
            StopCause::Exited,
            StopCause::HostRestarted,
            StopCause::OutOfMemory,
        ][..],
    );
    let step = select(&[ContainerStep::Build, ContainerStep::Start, ContainerStep::Look][..]);
    let of_a_container = prop_oneof![
        3 => (name(), desired(), caller())
            .prop_map(|(name, desired, caller)| Fact::from(ContainerDesired { name, desired, caller })),
        1 => (name(), store_path())
            .prop_map(|(name, toplevel)| Fact::from(ContainerBuilt { name, toplevel })),
        1 => name().prop_map(|name| Fact::from(ContainerCreated { name })),
        1 => (name(), any::<u64>()).prop_map(|(name, ready_after_ms)| Fact::from(ContainerStarted {
            name,
            ready_after_ms
        })),
        1 => (name(), cause, option::of(exit()))
            .prop_map(|(name, cause, exit)| Fact::from(ContainerStopped { name, cause, exit })),
        1 => (name(), 1u64..4, any::<bool>(), option::of(any::<u64>()), option::of(last_update())).prop_map(
            |(name, generation, running, ready_after_ms, last_update)| {
                Fact::from(ContainerUpdated { name, generation, running, ready_after_ms, last_update })
            }
        ),
        1 => (name(), store_path(), text)
            .prop_map(|(name, toplevel, reason)| Fact::from(ContainerReverted { name, toplevel, reason })),
        1 => (name(), any::<u64>())
            .prop_map(|(name, oom_kills)| Fact::from(ContainerOutOfMemory { name, oom_kills })),
        1 => name().prop_map(|name| Fact::from(ContainerDestroyed { name })),
        1 => (name(), step, text)
            .prop_map(|(name, step, reason)| Fact::from(ContainerFailed { name, step, reason })),
    ];
    let failure = select(&[JobFailureCause::Failed, JobFailureCause::TimedOut][..]);
    let of_a_job = prop_oneof![
        3 => (job_id(), caller(), vec(installable(), 1..3), option::of(name()), demand(), option::of(work())).prop_map(|(id, owner, installables, container, demand, work)| {
            let keep_going = installables.len() == 2;
            Fact::from(JobQueued {
                id,
                owner,
                demand,
                work,
                task: Task::Build(BuildTask { keep_going, container, ..BuildTask::new(installables, 60) }),
            })
        }),
        1 => (job_id(), caller(), installable(), option::of("[ -~]{0,4}")).prop_map(|(id, owner, installable, apply)| {
            Fact::from(JobQueued {
                id,
                owner,
                task: Task::Eval(EvalTask { installable, apply, impure: false, timeout_seconds: 60 }),
                demand: Demand::default(),
                work: None,
            })
        }),
        1 => (job_id(), caller(), installable()).prop_map(|(id, owner, installable)| {
            Fact::from(JobQueued { id, owner, task: Task::PrintEnv(PrintEnvTask { installable, impure: false, timeout_seconds: 60 }), demand: Demand::default(), work: None })
        }),
        1 => (job_id(), caller(), installable()).prop_map(|(id, owner, installable)| {
            Fact::from(JobQueued { id, owner, task: Task::Check(CheckTask { installable, impure: false, timeout_seconds: 60 }), demand: Demand::default(), work: None })
        }),
        1 => (job_id(), caller(), store_path(), any::<bool>()).prop_map(|(id, owner, path, contents)| {
            let stated = vec![verify::Stated { path, nar_sha256: "0".repeat(64) }];
            Fact::from(JobQueued { id, owner, task: Task::Verify(VerifyTask { stated, contents, timeout_seconds: 60 }), demand: Demand::default(), work: None })
        }),
        1 => (job_id(), caller(), store_path(), store_path()).prop_map(|(id, owner, from, to)| {
            Fact::from(JobQueued { id, owner, task: Task::Diff(DiffTask { from, to, timeout_seconds: 60 }), demand: Demand::default(), work: None })
        }),
        1 => (job_id(), caller(), installable(), vec("[ -~]{1,4}", 1..3)).prop_map(|(id, owner, installable, command)| {
            Fact::from(JobQueued {
                id,
                owner,
                task: Task::Run(RunTask {
                    packages: vec![installable],
                    command,
                    environment: BTreeMap::default(),
                    pure: false,
                    timeout_seconds: 60,
                    session: None,
                }),
                demand: Demand::default(),
                work: None,
            })
        }),
        1 => (job_id(), caller(), installable(), option::of("[ -~]{0,9}")).prop_map(|(id, owner, installable, shell_hook)| {
            Fact::from(JobQueued {
                id,
                owner,
                task: Task::Develop(DevelopTask {
                    installable: Some(installable),
                    packages: Vec::new(),
                    command: Vec::new(),
                    shell_hook,
                    environment: BTreeMap::default(),
                    pure: false,
                    impure: false,
                    timeout_seconds: 60,
                    session: None,
                }),
                demand: Demand::default(),
                work: None,
            })
        }),
        1 => (job_id(), caller(), installable(), work()).prop_map(|(id, owner, installable, work)| Fact::from(JobStoodBy {
            id,
            owner,
            task: Task::Build(BuildTask::new(vec![installable], 60)),
            demand: Demand::default(),
            work,
        })),
        1 => (job_id(), option::of("[ -~]{0,9}")).prop_map(|(id, why)| Fact::from(JobTakenOver { id, why })),
        1 => job_id().prop_map(|id| Fact::from(JobSuperseded { id, by: leaf_name("edge-2") })),
        1 => job_id().prop_map(|id| Fact::from(JobStarted { id })),
        1 => (job_id(), "[A-Za-z0-9+/]{0,8}").prop_map(|(id, payload)| Fact::from(JobAttested {
            id,
            envelope: Envelope {
                payload_type: PAYLOAD_TYPE.to_owned(),
                payload: payload.clone(),
                signatures: vec![EnvelopeSignature { keyid: "SHA256:x".to_owned(), sig: payload }],
            },
        })),
        1 => (job_id(), caller(), "[ -~]{0,9}").prop_map(|(id, by, key)| Fact::from(JobTaken { id, by, key })),
        1 => (job_id(), build_result()).prop_map(|(id, result)| Fact::from(JobSucceeded { id, result: JobResult::Build(result) })),
        1 => (job_id(), "[ -~]{0,9}", any::<bool>()).prop_map(|(id, value, cached)| Fact::from(JobSucceeded {
            id,
            result: JobResult::Eval(EvalResult { value: value.into(), cached, ..EvalResult::default() }),
        })),
        1 => (job_id(), "[ -~]{0,9}").prop_map(|(id, value)| {
            let functions = BTreeMap::from([("greet".to_owned(), value)]);
            let environment = print_env::Environment { bash_functions: functions, ..Default::default() };
            let result = PrintEnvResult { environment, ..PrintEnvResult::default() };
            Fact::from(JobSucceeded { id, result: JobResult::PrintEnv(result) })
        }),
        1 => (job_id(), "[a-z]{1,9}", any::<i64>()).prop_map(|(id, name, size_bytes)| {
            let package = diff::PackageDiff { name, from: vec!["1".to_owned()], to: Vec::new(), size_bytes };
            let result = DiffResult { packages: vec![package], ..DiffResult::default() };
            Fact::from(JobSucceeded { id, result: JobResult::Diff(result) })
        }),
        1 => (job_id(), any::<i32>(), vec(any::<u8>(), 0..9), any::<u32>()).prop_map(|(id, code, output, before)| Fact::from(JobSucceeded {
            id,
            result: JobResult::Run(RunResult {
                exit: ProgramExit::Code(code),
                run_time_ms: 1,
                stdout: run::Tail::of(&output, before.into()),
                stderr: run::Tail::default(),
                packages: Vec::new(),
            }),
        })),
        1 => (job_id(), failure, text, build_result()).prop_map(|(id, cause, error, built)| {
            Fact::from(JobFailed {
                id,
                cause,
                error: error.clone(),
                explanation: built.origin.map(|_| Explanation {
                    kind: FailureKind::BuilderFailed,
                    log_tail: vec![error],
                    needed_by: built.references,
                    ..Explanation::default()
                }),
                partial: built.others,
            })
        }),
        1 => (job_id(), caller(), option::of("[ -~]{0,9}")).prop_map(|(id, by, reason)| Fact::from(JobCancelled { id, by, reason })),
        1 => (job_id(), text).prop_map(|(id, reason)| Fact::from(JobInterrupted { id, reason })),
    ];
    let of_a_secret = prop_oneof![
        3 => (secret_name(), caller(), 1u64..4, "[0-9a-f]{4}", vec(secret_user(), 0..2)).prop_map(
            |(name, caller, generation, digest, users)| {
                Fact::from(SecretSet { name, caller, generation, file_bytes: 200, digest, users })
            }
        ),
        1 => (secret_name(), caller()).prop_map(|(name, caller)| Fact::from(SecretRemoved { name, caller })),
    ];
    prop_oneof![1 => of_the_leaf, 2 => of_a_device, 3 => of_a_container, 2 => of_a_job, 1 => of_a_secret]
}

/// A patch of a spec, good or bad.
pub(crate) fn patch() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(serde_json::json!({})),
        Just(serde_json::json!({"limits": {"memory_bytes": "64 MiB"}})),
        Just(serde_json::json!({"limits": null, "environment": {"A": "b"}})),
        Just(serde_json::json!({"run": "running"})),
        Just(serde_json::json!({"limits": {"tasks": 0}})),
        Just(serde_json::json!({"colour": 1})),
        Just(serde_json::json!(7)),
    ]
}

/// Any command, whether it can be accepted or not.
pub(crate) fn command() -> impl Strategy<Value = Command> {
    let generation = || option::weighted(0.2, 1u64..4);
    let queries = prop_oneof![
        Just(ShowLeaf {}.into()),
        Just(ListHardware {}.into()),
        Just(RescanHardware {}.into()),
        Just(ListContainers {}.into()),
        Just(ListJobs {}.into()),
        Just(ListSecrets {}.into()),
        Just(ShowRecipient {}.into()),
        device_id().prop_map(|id| ShowHardware { id }.into()),
        name().prop_map(|name| ShowContainer { name }.into()),
        (name(), option::of(any::<u32>())).prop_map(|(name, lines)| ReadContainerLog {
            name,
            lines,
            since: None,
            cursor: None
        }
        .into()),
        name().prop_map(|name| ReadContainerStats { name }.into()),
        name().prop_map(|name| ShowContainerHistory { name }.into()),
        (name(), spec()).prop_map(|(name, spec)| DiffContainer { name, spec }.into()),
        job_id().prop_map(|id| ShowJob { id }.into()),
        (job_id(), any::<u64>()).prop_map(|(id, offset)| ReadJobLog { id, offset }.into()),
    ];
    let changes = prop_oneof![
        (name(), source(), any::<bool>()).prop_map(|(name, source, start)| CreateContainer {
            name,
            source,
            start,
            options: ContainerOptions::default(),
        }
        .into()),
        (name(), spec(), generation()).prop_map(|(name, spec, if_generation)| ApplyContainer {
            name,
            spec,
            if_generation
        }
        .into()),
        (name(), option::of(source()), generation()).prop_map(|(name, source, if_generation)| {
            UpdateContainer {
                name,
                source,
                if_generation,
            }
            .into()
        }),
        (name(), patch(), generation()).prop_map(|(name, patch, if_generation)| SetContainer {
            name,
            patch,
            if_generation
        }
        .into()),
        (name(), generation(), generation()).prop_map(|(name, generation, if_generation)| {
            RollbackContainer {
                name,
                generation,
                if_generation,
            }
            .into()
        }),
        name().prop_map(|name| AdoptContainer { name }.into()),
        (name(), generation())
            .prop_map(|(name, if_generation)| StartContainer { name, if_generation }.into()),
        (name(), generation()).prop_map(|(name, if_generation)| StopContainer { name, if_generation }.into()),
        (name(), generation())
            .prop_map(|(name, if_generation)| PauseContainer { name, if_generation }.into()),
        (name(), generation())
            .prop_map(|(name, if_generation)| ResumeContainer { name, if_generation }.into()),
        (name(), generation())
            .prop_map(|(name, if_generation)| DestroyContainer { name, if_generation }.into()),
        (
            vec(installable(), 0..3),
            option::of(any::<u32>()),
            demand(),
            any::<bool>(),
            option::of(work())
        )
            .prop_map(
                |(installables, timeout_seconds, Demand { features, priority }, only_if_room, work)| {
                    Build {
                        work,
                        timeout_seconds,
                        features,
                        priority,
                        only_if_room,
                        ..Build::of(installables)
                    }
                    .into()
                }
            ),
        job_id().prop_map(|id| CancelJob { id }.into()),
        (secret_name(), age_file()).prop_map(|(name, age)| SetSecret { name, age }.into()),
        (secret_name(), "[ -~ä]{0,9}").prop_map(|(name, age)| {
            SetSecret {
                name,
                age: Secret::new(age),
            }
            .into()
        }),
        secret_name().prop_map(|name| RemoveSecret { name }.into()),
        (labels(), labels()).prop_map(|(set, remove)| LabelLeaf {
            set,
            remove: remove.into_keys().collect()
        }
        .into()),
    ];
    prop_oneof![1 => queries, 2 => changes]
}

//! The start and the end of the daemon: everything is made here, in order, and put together.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use leaf_bus::connect::{Bus, ConnectSettings, Credentials, Tls};
use leaf_bus::embedded::{EmbeddedServer, EmbeddedSettings};
use leaf_bus::identity::Identity;
use leaf_bus::serve::{Server, ServiceInfo};
use leaf_bus::stream::StreamSettings;
use leaf_container::Containers;
use leaf_core::beat::{BEAT_SECONDS, Beat};
use leaf_core::event::{Fact, HostFacts, LeafStarted};
use leaf_core::host_op::{HostOp, HostPaths};
use leaf_core::id::{Caller, InstanceId, LeafName};
use leaf_core::subject;
use leaf_helper::Helper;
use leaf_journal::{CommandRecord, Journal, Options};
use leaf_nix::Nix;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use crate::guard::Guard;
use crate::input::Input;
use crate::lease::Predecessors;
use crate::ledger::{Cause, Ledger};
use crate::main_loop::{MainLoop, Target, Waiter};
use crate::publisher::{Carrier, Published};
use crate::settings::Settings;
use crate::tasks::Tasks;
use crate::workers::{ContainerHost, Equipment, Workers, chain};
use crate::{hardware, history, lease, mirror, notify, programs};

/// How much of the journal is kept in memory, in bytes.
const JOURNAL_CACHE_BYTES: usize = 2 << 20;

/// How long the last events may take into the stream when the daemon ends; what is left is sent after the next start.
const LAST_PUBLISH: Duration = Duration::from_secs(5);

/// The version of this program.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// What kept it from starting, or ended it.
pub fn run(settings: Settings) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_new(&settings.log)
                .context("the setting `log` is not a filter such as `info`")?,
        )
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .enable_all()
        .build()
        .context("the runtime can't be made")?;
    let result = runtime.block_on(start(settings));
    // A look at the hardware may still be under way; nobody waits for it.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn start(settings: Settings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be received")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be received")?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    tokio::pin!(stop);
    let leaf = settings.leaf_name()?;
    let instance = InstanceId(Uuid::now_v7());
    let host = host_facts()?;
    let now = Timestamp::now();
    make_private(&settings.state_dir)?;
    let options = Options {
        leaf: leaf.clone(),
        epoch_if_new: u64::try_from(now.as_millisecond()).unwrap_or(1),
        cache_bytes: JOURNAL_CACHE_BYTES,
        holder: format!("leaf {leaf}, instance {instance}"),
    };
    let folder = settings.state_dir.clone();
    let (journal, opened) = tokio::task::spawn_blocking(move || Journal::open(&folder, &options))
        .await
        .context("opening the journal ended early")?
        .context("the journal can't be used")?;
    tracing::info!(%leaf, %instance, version = VERSION, held = ?journal.held(), "starting");

    let began = tokio::select! {
        began = begin(&settings, &leaf) => began?,
        reason = &mut stop => {
            tracing::info!(reason, "stopped before it was ready");
            return Ok(());
        }
    };
    let Began {
        bus,
        mut server_process,
        containers,
        nats_of,
    } = began;
    let stream = StreamSettings {
        max_bytes: settings.events.max_bytes,
        ..StreamSettings::default()
    };
    let dead = Predecessors {
        last_run: opened
            .entries
            .get("leaf")
            .and_then(|leaf| leaf.get("instance")?.as_str()?.parse().ok()),
        any: server_process.is_some(),
    };
    let unfinished = opened.unfinished.clone();
    let beat = Beat {
        leaf: leaf.clone(),
        instance,
        hostname: host.hostname.clone(),
        version: VERSION.to_owned(),
        started_at: now,
        sequence: journal.last_sequence(),
        time: now,
        interval_seconds: BEAT_SECONDS,
    };
    let started = async {
        let held = lease::take(&bus, &beat, dead).await?;
        let state = history::recover(&bus, &leaf, &journal, opened, &stream).await?;
        let server = Server::start(
            &bus,
            ServiceInfo {
                leaf: leaf.clone(),
                instance,
                version: VERSION.to_owned(),
                description: format!(
                    "the leaf {leaf}: hardware, containers and Nix of {}",
                    host.hostname
                ),
            },
        )
        .await?;
        anyhow::Ok((held, state, server))
    };
    let (held, state, server) = tokio::select! {
        started = started => started?,
        reason = &mut stop => {
            tracing::info!(reason, "stopped before it was ready");
            if let Some(process) = server_process {
                process.stop().await;
            }
            return Ok(());
        }
    };

    let (inputs, input_queue) = mpsc::channel(1024);
    let (looks, rescans) = mpsc::channel(16);
    let (changes, mirrored) = mpsc::channel(64);
    let (published_at, published) = watch::channel(Published::default());
    let (silent, silences) = mpsc::channel(1);
    let (begun_anew, beginnings) = mpsc::channel(1);
    let (release_lease, released) = oneshot::channel();
    let (drain, drained) = oneshot::channel();

    let nix = nix_jobs(&settings, &leaf).await;
    let workers = Workers::new(Equipment {
        leaf: leaf.clone(),
        inputs: inputs.clone(),
        bus: bus.clone(),
        containers: containers.clone(),
        nix,
        looks,
        mirror: changes,
        published: published.clone(),
    });
    let entries = state.entries();
    let mut main_loop = MainLoop {
        ledger: Ledger::new(
            leaf.clone(),
            journal.epoch(),
            state,
            journal.clone(),
            settings.events.snapshot_every,
        ),
        instance,
        workers,
        guard: Guard::new(settings.events.clone()),
        waiting: waiting(unfinished),
        reconciling: Default::default(),
        running: BTreeMap::new(),
        cancelling: BTreeMap::new(),
        rescans: BTreeMap::new(),
        next_rescan: 0,
        stopping: None,
        settings: settings.clone(),
    };
    let fact = LeafStarted {
        leaf: leaf.clone(),
        instance,
        version: VERSION.to_owned(),
        host,
    };
    main_loop.record(
        &Cause::default(),
        vec![Fact::LeafStarted(fact)],
        Vec::new(),
        Vec::new(),
    );

    let mut tasks = Tasks::default();
    let carrier = Carrier {
        bus: bus.clone(),
        leaf: leaf.clone(),
        journal: journal.clone(),
        settings: stream,
        published: published_at,
        silent,
        begun_anew,
    };
    tasks.keep("publisher", carrier.run());
    tasks.keep(
        "mirror",
        mirror::run(bus.clone(), leaf.clone(), entries, mirrored),
    );
    tasks.keep(
        "lease",
        lease::keep(bus.clone(), journal.clone(), beat, dead, held, released),
    );
    tasks.keep("commands", take_commands(server, inputs.clone(), drained));
    tasks.keep(
        "levels",
        watch_levels(published.clone(), beginnings, inputs.clone()),
    );
    let report = report(&settings).await;
    tasks.keep(
        "hardware",
        hardware::run(report, settings.rescan_debounce(), rescans, inputs.clone()),
    );
    if let Ok(host) = &containers {
        tasks.keep("containers", watch_containers(host.view.clone(), inputs.clone()));
    }
    tasks.keep("connection", log_connection(bus.clone()));

    let status = format!("leaf {leaf}; {nats_of}");
    tracing::info!(status, "ready");
    notify::ready(&status);

    let ended = {
        let end = main_loop.run(input_queue, &mut tasks);
        tokio::pin!(end);
        let mut drain = Some(drain);
        let mut silences = Some(silences);
        loop {
            tokio::select! {
                ended = &mut end => break ended,
                reason = &mut stop, if drain.is_some() => {
                    // No more commands are asked for; those that are here are told that the leaf stops.
                    if let Some(drain) = drain.take() {
                        let _ = drain.send(());
                    }
                    let _ = inputs.send(Input::Stop(reason)).await;
                }
                Some(reason) = heard(&mut silences) => {
                    if let Some(process) = &server_process {
                        process.restart(reason);
                    }
                }
                () = unattended(&mut server_process) => break Err(anyhow::anyhow!("nobody looks after nats-server any more")),
            }
        }
    };
    let ended = match ended {
        Ok(main_loop) => {
            let last = journal.last_sequence();
            let mut published = published;
            let wait = published.wait_for(|published| published.sequence >= last);
            if bus.status().borrow().is_connected() && tokio::time::timeout(LAST_PUBLISH, wait).await.is_err()
            {
                tracing::warn!("the last events will be published after the next start");
            }
            main_loop.workers.stop().await;
            Ok(())
        }
        Err(error) => {
            tracing::error!(error = chain(error.as_ref()), "the daemon ends");
            Err(error)
        }
    };
    let _ = release_lease.send(());
    let _ = bus.flush(Duration::from_secs(1)).await;
    tasks.stop().await;
    bus.close(Duration::from_secs(2)).await;
    if let Some(process) = server_process {
        process.stop().await;
    }
    journal.close().await;
    ended
}

/// What stands before the connection is used.
struct Began {
    bus: Bus,
    server_process: Option<EmbeddedServer>,
    containers: Result<Arc<ContainerHost>, String>,
    nats_of: String,
}

/// Makes the network, starts the embedded server if there is to be one, and connects.
async fn begin(settings: &Settings, leaf: &LeafName) -> anyhow::Result<Began> {
    let nats = &settings.nats;
    let Some(embedded) = &nats.embedded else {
        let connect = ConnectSettings {
            credentials: nats
                .credentials
                .clone()
                .map_or(Credentials::None, Credentials::File),
            inbox_prefix: subject::inbox_prefix(&daemon_caller()),
            tls: Tls {
                ca: nats.ca.clone(),
                cert: nats.cert.clone(),
                key: nats.key.clone(),
                required: false,
            },
            name: format!("leafd {leaf}"),
            jetstream_domain: nats.jetstream_domain.clone(),
            ..ConnectSettings::new(nats.url.as_deref().unwrap_or_default())
        };
        let bus = Bus::connect(&connect)
            .await
            .context("NATS can't be used with these settings")?;
        let why = "containers need NATS credentials of their own, which this leafd makes only for its embedded server";
        let nats_of = format!("connects to {}", nats.url.as_deref().unwrap_or_default());
        return Ok(Began {
            bus,
            server_process: None,
            containers: Err(why.to_owned()),
            nats_of,
        });
    };
    let identity = Arc::new(Identity::open_or_create(
        &settings.state_dir.join("identity"),
        leaf,
    )?);
    let pool = settings.containers.address_pool;
    let port = embedded.port.unwrap_or(4222);
    let helper = container_helper(settings, leaf);
    let address = match (embedded.address, &helper) {
        (Some(address), _) => address,
        (None, Ok(_)) => pool.leaf_address(),
        (None, Err(_)) => Ipv4Addr::LOCALHOST,
    };
    let helper = match helper {
        // The address must be there before the server listens on it. The rules follow below, with the port.
        Ok(helper) if address == pool.leaf_address() => {
            prepare(&helper, address, port).await.map(|()| helper)
        }
        other => other,
    };
    let server = EmbeddedSettings {
        nats_server: embedded.program.clone(),
        max_file_store: Some(embedded.max_storage_bytes).filter(|bytes| *bytes > 0),
        ..EmbeddedSettings::new(
            settings.state_dir.join("nats"),
            SocketAddr::new(IpAddr::V4(address), port),
        )
    };
    let process = EmbeddedServer::start(server, &identity)
        .await
        .context("the embedded NATS server can't be started")?;
    let helper = match helper {
        Ok(helper) if process.address().port() != port => prepare(&helper, address, process.address().port())
            .await
            .map(|()| helper),
        other => other,
    };
    let url = process.client_url();
    identity.write_context(&settings.state_dir.join("context.json"), &url)?;
    let connect = ConnectSettings {
        credentials: Credentials::Text(identity.leaf_credentials()),
        inbox_prefix: subject::inbox_prefix(&daemon_caller()),
        name: format!("leafd {leaf}"),
        ..ConnectSettings::new(&url)
    };
    let bus = Bus::connect(&connect)
        .await
        .context("the embedded NATS server can't be used")?;
    let containers = helper.map(|helper| {
        Arc::new(ContainerHost {
            helper,
            view: Containers::new(leaf.clone(), HostPaths::new(leaf)),
            identity,
            nats_url: url.clone(),
            ready_timeout_seconds: settings.containers.ready_timeout_seconds,
            stop_timeout_seconds: settings.containers.stop_timeout_seconds,
        })
    });
    match &containers {
        Err(why) if settings.containers.enable == Some(true) => {
            anyhow::bail!("containers are enabled, and can't be run: {why}")
        }
        Err(why) => tracing::info!(why, "this leaf runs no containers"),
        Ok(_) => {}
    }
    Ok(Began {
        bus,
        server_process: Some(process),
        containers,
        nats_of: format!("NATS at {url}"),
    })
}

/// Returns the helper, which works in this process where it is root, or why there are no containers.
fn container_helper(settings: &Settings, leaf: &LeafName) -> Result<Helper, String> {
    let wanted = &settings.containers;
    if wanted.enable == Some(false) {
        return Err("containers are not enabled (containers.enable)".to_owned());
    }
    if !rustix::process::geteuid().is_root() {
        return Err("containers need root, and leafd runs without".to_owned());
    }
    let program = |setting: Option<&Path>, name: &str| {
        programs::find(setting, name)
            .ok_or_else(|| format!("the program {name} is neither beside leafd nor on PATH"))
    };
    let supervisor = program(wanted.helper.as_deref(), "leaf-helper")?;
    let leaf_init = program(wanted.leaf_init.as_deref(), "leaf-init")?;
    let pool = wanted
        .address_pool
        .to_string()
        .parse()
        .map_err(|error: leaf_helper::InvalidPool| error.to_string())?;
    let settings =
        leaf_helper::Settings::find(supervisor, leaf_init, pool).map_err(|error| error.to_string())?;
    Ok(Helper::new(leaf.clone(), HostPaths::new(leaf), settings))
}

async fn prepare(helper: &Helper, leaf_address: Ipv4Addr, nats_port: u16) -> Result<(), String> {
    helper
        .carry_out(&HostOp::PrepareNetwork {
            leaf_address,
            nats_port,
        })
        .await
        .map_err(|error| error.to_string())
}

async fn nix_jobs(settings: &Settings, leaf: &LeafName) -> Result<Nix, String> {
    let roots = PathBuf::from("/nix/var/nix/gcroots/cim-leaf").join(leaf.as_str());
    let runner = std::env::current_exe().map_err(|error| format!("leafd can't find itself: {error}"))?;
    let base = leaf_nix::Settings::new(&settings.state_dir, roots, runner, vec!["nix-job".into()]);
    let nix = Nix::new(leaf_nix::Settings {
        nix: settings.nix.program.clone(),
        templates_dir: programs::templates(settings.containers.templates.as_deref())
            .unwrap_or(base.templates_dir.clone()),
        leaf_init: programs::find(settings.containers.leaf_init.as_deref(), "leaf-init")
            .unwrap_or(base.leaf_init.clone()),
        nix_options: settings.nix.options.clone(),
        ..base
    });
    let asked = nix.clone();
    match tokio::task::spawn_blocking(move || asked.check()).await {
        Ok(Ok(version)) => {
            tracing::info!(version = version.text, "nix");
            Ok(nix)
        }
        Ok(Err(error)) => {
            tracing::warn!(error = chain(&error), "this leaf runs no Nix jobs");
            Err(chain(&error))
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Returns the report that the settings name, or one made just now.
async fn report(settings: &Settings) -> Option<PathBuf> {
    let hardware = &settings.hardware;
    let Some(program) = &hardware.facter_program else {
        return hardware.facter_report.clone();
    };
    let file = settings.state_dir.join("facter.json");
    match leaf_hardware::facter::run(program, Duration::from_secs(300)).await {
        Ok(bytes) => match std::fs::write(&file, bytes) {
            Ok(()) => Some(file),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the report can't be kept"
                );
                hardware.facter_report.clone()
            }
        },
        Err(error) => {
            tracing::warn!(error = chain(&error), "nixos-facter made no report");
            hardware.facter_report.clone()
        }
    }
}

async fn take_commands(
    mut server: Server,
    inputs: mpsc::Sender<Input>,
    mut drained: oneshot::Receiver<()>,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            incoming = server.next() => match incoming {
                Some(incoming) => {
                    if inputs.send(Input::Command(Box::new(incoming))).await.is_err() {
                        break;
                    }
                }
                None => break,
            },
            _ = &mut drained, if !drained.is_terminated() => server.drain().await,
        }
    }
    std::future::pending().await
}

/// Passes on what the publisher says.
async fn watch_levels(
    mut published: watch::Receiver<Published>,
    mut beginnings: mpsc::Receiver<()>,
    inputs: mpsc::Sender<Input>,
) -> anyhow::Result<()> {
    loop {
        let input = tokio::select! {
            changed = published.changed() => match changed {
                Ok(()) => Input::Published(published.borrow_and_update().sequence),
                Err(_) => return std::future::pending().await,
            },
            Some(()) = beginnings.recv() => Input::StreamBegunAnew,
        };
        if inputs.send(input).await.is_err() {
            return std::future::pending().await;
        }
    }
}

async fn watch_containers(view: Containers, inputs: mpsc::Sender<Input>) -> anyhow::Result<()> {
    let mut hints = view.watch()?;
    loop {
        let look = view.clone();
        let seen = tokio::task::spawn_blocking(move || look.observe())
            .await
            .context("the look at the containers ended early")?;
        match seen {
            Ok(seen) => {
                if inputs.send(Input::ContainersSeen(seen)).await.is_err() {
                    return std::future::pending().await;
                }
            }
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the containers can't be looked at"
            ),
        }
        hints.changed().await?;
    }
}

async fn log_connection(bus: Bus) -> anyhow::Result<()> {
    let mut status = bus.status();
    loop {
        let now = status.borrow_and_update().clone();
        if now.is_connected() {
            tracing::info!("{now}");
        } else {
            tracing::warn!("{now}");
        }
        if status.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

async fn heard(silences: &mut Option<mpsc::Receiver<String>>) -> Option<String> {
    match silences {
        Some(receiver) => {
            let heard = receiver.recv().await;
            if heard.is_none() {
                *silences = None;
            }
            heard
        }
        None => std::future::pending().await,
    }
}

async fn unattended(process: &mut Option<EmbeddedServer>) {
    match process {
        Some(process) => process.unattended().await,
        None => std::future::pending().await,
    }
}

/// The commands that the last run did not finish, by what they wait for.
fn waiting(unfinished: Vec<CommandRecord>) -> BTreeMap<Target, Vec<Waiter>> {
    let mut waiting: BTreeMap<Target, Vec<Waiter>> = BTreeMap::new();
    for record in unfinished {
        if let Some(target) = record.target.as_deref().and_then(Target::from_key) {
            // Its generation is not known any more; whatever the target settles at is its answer.
            waiting.entry(target).or_default().push(Waiter {
                record,
                responders: Vec::new(),
                generation: u64::MAX,
            });
        }
    }
    waiting
}

fn daemon_caller() -> Caller {
    leaf_bus::identity::daemon_caller()
}

fn make_private(dir: &Path) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("the state folder {} can't be made", dir.display()))
}

fn host_facts() -> anyhow::Result<HostFacts> {
    let name = rustix::system::uname();
    let boot = "/proc/sys/kernel/random/boot_id";
    Ok(HostFacts {
        hostname: name.nodename().to_string_lossy().into_owned(),
        system: format!("{}-linux", std::env::consts::ARCH),
        kernel: name.release().to_string_lossy().into_owned(),
        boot_id: std::fs::read_to_string(boot)
            .with_context(|| format!("can't read {boot}"))?
            .trim()
            .to_owned(),
    })
}

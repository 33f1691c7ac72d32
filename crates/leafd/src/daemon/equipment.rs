//! Prepares what the daemon works with, as set and as the host allows: NATS, containers, Nix, a hardware report.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use leaf_bus::connect::{Bus, ConnectSettings, Credentials};
use leaf_bus::embedded::{EmbeddedServer, EmbeddedSettings, Hub};
use leaf_bus::identity::{ContainerSigner, Identity, daemon_caller};
use leaf_bus::relay::{self, Relay, RelayError};
use leaf_container::Containers;
use leaf_core::error::chain;
use leaf_core::host_op::HostOp;
use leaf_core::id::{InstanceId, LeafName};
use leaf_core::provenance::statement::Builder;
use leaf_core::runtime::Runtime;
use leaf_core::subject;
use leaf_helper::{Client, Helper};
use leaf_host::contract::{HIDDEN_FROM_JOBS, HostPaths, JOBS_DIRECTORY};
use leaf_job::{Jobs, Launch};
use leaf_nix::Nix;

use super::VERSION;
use crate::container_users::{ContainerUsers, GivenUsers};
use crate::given_nats::GivenNats;
use crate::helper::HostHelper;
use crate::hub;
use crate::job::JobHost;
use crate::local_access::AccessFiles;
use crate::programs;
use crate::provenance::Attester;
use crate::settings::{HELPER_SOCKET, NO_SIGNING_KEY, Settings, off_pool};
use crate::steps::ContainerHost;

/// The end of the path of the directory in which leafd writes a context for root and its group: `RuntimeDirectory=` of its unit.
const ACCESS_DIRECTORY: &str = "cim-leaf/access";

/// The port of the embedded server, or of the relay to a given one, if none is set.
const DEFAULT_PORT: u16 = 4222;

/// Why a leaf whose settings don't enable containers runs none.
const NOT_ENABLED: &str = "containers are not enabled (containers.enable)";

/// The connection to NATS and the host of containers.
pub(super) struct HostAndNats {
    /// The connection, which may still be being established.
    pub(super) bus: Bus,
    /// The settings of the streams' connection, for making another one.
    pub(super) connect: ConnectSettings,
    /// The embedded server, if the leaf has one.
    pub(super) server_process: Option<EmbeddedServer>,
    /// The connection to the hub agent, if the leaf has a hub.
    pub(super) hub: Option<hub::Hub>,
    /// The host of containers, or the reason why this leaf runs none.
    pub(super) containers: Result<Arc<ContainerHost>, String>,
    /// Passes the containers' connections on to a server that they don't reach.
    pub(super) relay: Option<Relay>,
    /// How the callers' connection to a given server is made, to make it anew when its credentials were renewed.
    pub(super) renewed: Option<ConnectSettings>,
    /// The files with the credentials of the leaf's own people, if it has an embedded server.
    pub(super) local_access: Option<AccessFiles>,
    /// A description of the NATS server.
    pub(super) nats_of: String,
}

/// Prepares the network, starts the embedded server if enabled, and connects.
///
/// # Errors
/// The first part of the settings that can't be fulfilled.
pub(super) async fn set_up(
    settings: &Settings,
    leaf: &LeafName,
    instance: InstanceId,
) -> anyhow::Result<HostAndNats> {
    let nats = &settings.nats;
    let Some(embedded) = &nats.embedded else {
        let GivenNats { callers, streams } =
            GivenNats::of(settings, leaf).context("the settings name no NATS server")?;
        let bus = match &streams {
            Some(streams) => Bus::connect_apart(&callers, streams).await,
            None => Bus::connect(&callers).await,
        };
        let bus = bus.context("can't connect to NATS with these settings")?;
        let (containers, relay) = match beside_given_nats(settings, leaf, &callers).await {
            Ok((host, relay)) => (Ok(host), relay),
            Err(why) => {
                no_containers(settings, &why)?;
                (Err(why), None)
            }
        };
        let connect = streams.unwrap_or_else(|| callers.clone());
        let nats_of = format!("connects to {}", connect.servers_text());
        return Ok(HostAndNats {
            bus,
            connect,
            server_process: None,
            hub: None,
            containers,
            relay,
            renewed: Some(callers),
            local_access: None,
            nats_of,
        });
    };
    let identity = Identity::open_or_create(&settings.state_dir.join("identity"), leaf)?;
    let admin_valid = embedded.admin_valid();
    let identity = identity
        .of_instance(instance)
        .with_admin_valid(admin_valid)
        .with_container_valid(nats.container_valid());
    let identity = Arc::new(identity);
    let pool = settings.containers.address_pool;
    let port = embedded.port.unwrap_or(DEFAULT_PORT);
    let helper = container_helper(settings, leaf);
    let address = match (embedded.address, &helper) {
        (Some(address), _) => address,
        (None, Ok(_)) => pool.leaf_address(),
        (None, Err(_)) => Ipv4Addr::LOCALHOST,
    };
    let helper = match helper {
        // The address must exist before the server listens on it. A port that the server chooses is not known yet; the
        // rules get it below.
        Ok(helper) if address == pool.leaf_address() => {
            let port = if port == 0 { DEFAULT_PORT } else { port };
            prepare(&helper, address, port).await.map(|()| helper)
        }
        Ok(_) => Err(format!(
            "nats.embedded.address {}",
            off_pool(address, pool.leaf_address())
        )),
        Err(why) => Err(why),
    };
    if let Err(why) = &helper {
        no_containers(settings, why)?;
    }
    // Without containers nothing needs the leaf address, so it may be missing.
    let address = match (embedded.address, &helper) {
        (None, Err(_)) => Ipv4Addr::LOCALHOST,
        _ => address,
    };
    let server = EmbeddedSettings {
        nats_server: embedded.program.clone(),
        max_file_store: Some(embedded.max_storage_bytes).filter(|bytes| *bytes > 0),
        hub: embedded.hub.as_ref().map(|hub| Hub {
            urls: hub.urls(),
            credentials: hub.credentials.clone(),
            ca: hub.ca.clone(),
        }),
        ..EmbeddedSettings::new(
            settings.state_dir.join("nats"),
            SocketAddr::new(IpAddr::V4(address), port),
        )
    };
    let process = EmbeddedServer::start(server, &identity)
        .await
        .context("can't start the embedded NATS server")?;
    let helper = match helper {
        Ok(helper) if process.address().port() != port => {
            let prepared = prepare(&helper, address, process.address().port()).await;
            if let Err(why) = &prepared {
                no_containers(settings, why)?;
            }
            prepared.map(|()| helper)
        }
        other => other,
    };
    let url = process.client_url();
    identity.write_context(&settings.state_dir.join("context.json"), &url)?;
    // Where systemd runs leafd, it makes this directory for leafd's user and group, and removes it when leafd has stopped. A
    // shell in another service has that one's directory in its environment.
    let directory = std::env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from);
    let directory = directory.filter(|directory| directory.ends_with(ACCESS_DIRECTORY));
    let local_access = AccessFiles::write(identity.clone(), directory, &url, admin_valid)?;
    let as_user = |credentials| ConnectSettings {
        credentials: Credentials::Text(credentials),
        inbox_prefix: subject::inbox_prefix(&daemon_caller()),
        name: format!("leafd {leaf}"),
        ..ConnectSettings::new(&url)
    };
    let (callers, streams) = (
        as_user(identity.service_credentials()),
        as_user(identity.leaf_credentials()),
    );
    let bus = Bus::connect_apart(&callers, &streams)
        .await
        .context("can't connect to the embedded NATS server")?;
    let hub = match &embedded.hub {
        Some(hub) => {
            let claimant = ConnectSettings {
                name: format!("leafd {leaf} to its hub"),
                ..as_user(identity.claimant_credentials())
            };
            Some(hub::Hub::open(&claimant, leaf, hub, &settings.state_dir).await?)
        }
        None => None,
    };
    let nats_port = process.address().port();
    let containers = helper.map(|helper| {
        Arc::new(ContainerHost {
            helper,
            network: HostOp::PrepareNetwork {
                leaf_address: address,
                nats_port,
            },
            view: Containers::new(leaf.clone(), HostPaths::new(leaf), leaf_host::runtime::detect()),
            users: ContainerUsers::Own {
                identity,
                server: process.reloader(),
            },
            nats_url: url.clone(),
            ready_timeout_seconds: settings.containers.ready_timeout_seconds,
            stop_timeout_seconds: settings.containers.stop_timeout_seconds,
        })
    });
    Ok(HostAndNats {
        bus,
        connect: streams,
        server_process: Some(process),
        hub,
        containers,
        relay: None,
        renewed: None,
        local_access: Some(local_access),
        nats_of: format!("NATS at {url}"),
    })
}

/// Returns the host of containers of a leaf that connects to a given server, and the relay through which they reach it, if
/// they need one. The error is the reason why this leaf runs no containers.
async fn beside_given_nats(
    settings: &Settings,
    leaf: &LeafName,
    connect: &ConnectSettings,
) -> Result<(Arc<ContainerHost>, Option<Relay>), String> {
    if settings.containers.enable == Some(false) {
        return Err(NOT_ENABLED.to_owned());
    }
    let nats = &settings.nats;
    let (Some(key), Some(credentials)) = (&nats.container_signing_key, &nats.credentials) else {
        return Err(NO_SIGNING_KEY.to_owned());
    };
    let signer = ContainerSigner::open(key, credentials)
        .map_err(|error| chain(&error))?
        .with_valid(nats.container_valid());
    let helper = container_helper(settings, leaf)?;
    let address = settings.containers.address_pool.leaf_address();
    let own_port = relay::port_at(connect, address);
    let nats_port = own_port.or(nats.containers_port).unwrap_or(DEFAULT_PORT);
    prepare(&helper, address, nats_port).await?;
    let relay = match own_port {
        Some(_) => None,
        None => Some(open_relay(SocketAddr::new(address.into(), nats_port), connect).await?),
    };
    let host = ContainerHost {
        helper,
        network: HostOp::PrepareNetwork {
            leaf_address: address,
            nats_port,
        },
        view: Containers::new(leaf.clone(), HostPaths::new(leaf), leaf_host::runtime::detect()),
        users: ContainerUsers::Given(Box::new(GivenUsers::new(leaf.clone(), signer, connect.clone()))),
        nats_url: format!("nats://{address}:{nats_port}"),
        ready_timeout_seconds: settings.containers.ready_timeout_seconds,
        stop_timeout_seconds: settings.containers.stop_timeout_seconds,
    };
    Ok((Arc::new(host), relay))
}

async fn open_relay(address: SocketAddr, connect: &ConnectSettings) -> Result<Relay, String> {
    Relay::bind(address, connect).await.map_err(|error| {
        let why = chain(&error);
        match error {
            RelayError::Listen { .. } => format!("{why}; set another port as nats.containers_port"),
            RelayError::Server(_) => why,
        }
    })
}

/// Logs why this leaf runs no containers; an error if the settings require them.
fn no_containers(settings: &Settings, why: &str) -> anyhow::Result<()> {
    if settings.containers.enable == Some(true) {
        anyhow::bail!("containers are enabled but can't be run: {why}");
    }
    tracing::info!(why, "this leaf runs no containers");
    Ok(())
}

/// Returns the helper for containers' host operations, or the reason why this leaf runs no containers.
fn container_helper(settings: &Settings, leaf: &LeafName) -> Result<HostHelper, String> {
    let containers = &settings.containers;
    if containers.enable == Some(false) {
        return Err(NOT_ENABLED.to_owned());
    }
    match helper_service(settings) {
        Some(client) if containers.enable == Some(true) => Ok(HostHelper::Service(client)),
        _ => host_helper(settings, leaf, "containers"),
    }
}

/// Returns the helper for secrets, or the reason why this leaf keeps none.
pub(super) fn secrets_helper(settings: &Settings, leaf: &LeafName) -> Result<HostHelper, String> {
    host_helper(settings, leaf, "secrets")
}

/// Returns the helper for changes that can cut the leaf off, or the reason why this leaf makes none.
pub(super) fn changes_helper(settings: &Settings, leaf: &LeafName) -> Result<HostHelper, String> {
    host_helper(settings, leaf, "changes that can cut the leaf off")
}

/// Returns the helper, or the reason why there is none for what needs it.
fn host_helper(settings: &Settings, leaf: &LeafName, what: &str) -> Result<HostHelper, String> {
    let containers = &settings.containers;
    if let Some(client) = helper_service(settings) {
        if !client.socket().exists() {
            return Err(format!(
                "leafd is not root, so {what} need the service leaf-helper, but {} does not exist: start \
                leaf-helper.socket, or set containers.helper_socket",
                client.socket().display()
            ));
        }
        return Ok(HostHelper::Service(client));
    }
    let program = |setting: Option<&Path>, name: &str| {
        programs::find(setting, name)
            .ok_or_else(|| format!("the program {name} is neither beside leafd nor on PATH"))
    };
    let supervisor = program(containers.helper.as_deref(), "leaf-helper")?;
    let leaf_init = program(containers.leaf_init.as_deref(), "leaf-init")?;
    let mut settings = leaf_helper::Settings::find(supervisor, leaf_init, containers.address_pool)
        .map_err(|error| error.to_string())?;
    if let Some(key) = &containers.host_key {
        settings.host_key.clone_from(key);
    }
    let helper = Helper::new(leaf.clone(), HostPaths::new(leaf), settings);
    Ok(HostHelper::InProcess(Box::new(helper)))
}

/// Returns the client of the helper's service; `None` where this process is root and needs no service.
fn helper_service(settings: &Settings) -> Option<Client> {
    match &settings.containers.helper_socket {
        Some(socket) => Some(Client::new(socket)),
        None if rustix::process::geteuid().is_root() => None,
        None => Some(Client::new(HELPER_SOCKET)),
    }
}

async fn prepare(helper: &HostHelper, leaf_address: Ipv4Addr, nats_port: u16) -> Result<(), String> {
    helper
        .carry_out(&HostOp::PrepareNetwork {
            leaf_address,
            nats_port,
        })
        .await
        .map(drop)
        .map_err(|error| error.to_string())
}

/// Returns the host of jobs.
///
/// # Errors
/// The reason why this leaf runs no jobs.
pub(super) async fn job_host(settings: &Settings, leaf: &LeafName) -> Result<JobHost, String> {
    let runner =
        std::env::current_exe().map_err(|error| format!("leafd can't find its own program: {error}"))?;
    let gc_roots = PathBuf::from("/nix/var/nix/gcroots/cim-leaf").join(leaf.as_str());
    let mut jobs = leaf_job::Settings::new(&settings.state_dir, gc_roots, runner, vec!["nix-job".into()]);
    jobs.environment = leaf_nix::ENVIRONMENT.iter().copied().map(str::to_owned).collect();
    if let Some(client) = jobs_by_helper(settings) {
        jobs.jobs_dir = PathBuf::from(JOBS_DIRECTORY);
        jobs.launch = in_units(client);
    }
    let mut nix = leaf_nix::Settings::new(&settings.state_dir);
    nix.nix.clone_from(&settings.nix.program);
    nix.eval_memory_mib = settings.nix.eval_memory_mib;
    nix.policy = settings.nix.policy.clone();
    if matches!(jobs.launch, Launch::Unit { .. }) {
        nix.hidden = HIDDEN_FROM_JOBS.map(PathBuf::from).to_vec();
    }
    if let Some(templates) = programs::templates(settings.containers.templates.as_deref()) {
        nix.templates_dir = templates;
    }
    if let Some(leaf_init) = programs::find(settings.containers.leaf_init.as_deref(), "leaf-init") {
        nix.leaf_init = leaf_init;
    }
    nix.options = leaf_nix::host_options()
        .into_iter()
        .chain(settings.nix.options.clone())
        .collect();
    let nix = Nix::new(nix);
    match nix.check().await {
        Ok(version) => {
            tracing::info!(version = version.text, "nix");
            let (system, more_systems) = nix.systems().await.unwrap_or_else(|error| {
                let own = format!("{}-linux", std::env::consts::ARCH);
                tracing::warn!(
                    error = chain(&error),
                    system = own,
                    "this is taken for Nix's only system"
                );
                (own, BTreeSet::new())
            });
            let builder = Builder {
                leaf: leaf.clone(),
                leafd: VERSION.to_owned(),
                nix: version.text,
            };
            let attester = Attester::open(&settings.state_dir, builder)
                .inspect_err(|error| tracing::error!(error = chain(error), "builds are not attested"))
                .ok();
            Ok(JobHost {
                jobs: Jobs::new(jobs),
                nix,
                system,
                more_systems,
                attester,
            })
        }
        Err(error) => {
            tracing::warn!(error = chain(&error), "this leaf runs no Nix jobs");
            Err(chain(&error))
        }
    }
}

/// Returns the client of the helper if jobs run through it, as the user `leaf-job` and not as leafd's.
fn jobs_by_helper(settings: &Settings) -> Option<Client> {
    let client = helper_service(settings)?;
    let usual = || leaf_host::runtime::detect() == Runtime::Systemd && client.socket().exists();
    settings.nix.by_helper.unwrap_or_else(usual).then_some(client)
}

fn in_units(client: Client) -> Launch {
    Launch::Unit {
        host_operations: Arc::new(move |op| {
            let client = client.clone();
            Box::pin(async move { client.insist(&op).await.map(drop) })
        }),
        slice: "/sys/fs/cgroup/system.slice".into(),
    }
}

/// Returns the configured report, or a new one.
pub(super) async fn report(settings: Settings) -> Option<PathBuf> {
    let hardware = &settings.hardware;
    let Some(program) = &hardware.facter_program else {
        return hardware.facter_report.clone();
    };
    let file = settings.state_dir.join("facter.json");
    match leaf_hardware::facter::run(program, Duration::from_secs(300)).await {
        Ok(bytes) => match std::fs::write(&file, bytes) {
            Ok(()) => Some(file),
            Err(error) => {
                tracing::warn!(error = chain(&error), "can't store the hardware report");
                hardware.facter_report.clone()
            }
        },
        Err(error) => {
            tracing::warn!(error = chain(&error), "nixos-facter made no report");
            hardware.facter_report.clone()
        }
    }
}

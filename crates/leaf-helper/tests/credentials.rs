//! The credentials of a container, which are replaced while it runs: `docs/containers.md`, "NATS credentials".

use std::cell::Cell;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use leaf_bus::client::Client;
use leaf_bus::connect::{ConnectSettings, Credentials};
use leaf_bus::embedded::{EmbeddedServer, EmbeddedSettings};
use leaf_bus::identity::Identity;
use leaf_core::container::ObservedRun;
use leaf_core::host_op::{ContainerBinding, HostOp, HostOpErrorKind as Kind, Secret};
use leaf_core::id::{ContainerName, LeafName, StorePath};
use leaf_helper::Helper;

use crate::host::{Host, NATS_PORT, WAITS, output, store_path, system, until};
use crate::running::minimal;

/// Where a container finds them.
const INNER: &str = "run/leaf/credentials";

pub(crate) fn renew(name: &ContainerName, text: &str) -> HostOp {
    HostOp::RenewCredentials {
        name: name.clone(),
        credentials: BTreeMap::from([("nats.creds".to_owned(), Secret::new(text))]),
    }
}

/// The leader of a container that runs.
fn leader(host: &Host, name: &ContainerName) -> u32 {
    match host.run(name) {
        Some(ObservedRun::Running { leader_pid, .. }) => leader_pid,
        run => panic!("{run:?}"),
    }
}

/// A path in a container's own view.
fn inside(host: &Host, name: &ContainerName, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root/{path}", leader(host, name)))
}

/// What a container reads in its file.
pub(crate) fn seen(host: &Host, name: &ContainerName) -> String {
    std::fs::read_to_string(inside(host, name, &format!("{INNER}/nats.creds"))).expect("the file")
}

/// What the next start gets.
fn kept(host: &Host, name: &ContainerName) -> String {
    let file = host
        .paths
        .state
        .join(name.as_str())
        .join("credentials/nats.creds");
    std::fs::read_to_string(file).expect("the file")
}

async fn running(toplevel: &StorePath) -> (Host, ContainerName) {
    let (host, name) = Host::with_container(toplevel).await;
    host.ok(Host::start(&name)).await;
    (host, name)
}

/// Runs busybox in a container as a user of it.
fn as_user(host: &Host, name: &ContainerName, user: u32, arguments: &[&str]) -> std::process::Output {
    let (pid, user) = (leader(host, name).to_string(), user.to_string());
    Command::new("nsenter")
        .args([
            "--target", &pid, "--mount", "--user", "--setuid", &user, "--setgid", &user,
        ])
        .arg("/busybox")
        .args(arguments)
        .output()
        .expect("nsenter runs (Debian: util-linux)")
}

pub(crate) async fn a_running_container_sees_renewed_credentials_as_its_root_alone() {
    let mut host = Host::new().await;
    let (name, other) = (host.name(), host.name());
    let says = format!(
        "( last=; while :; do now=$($b cat $CREDENTIALS_DIRECTORY/nats.creds); \
         [ \"$now\" = \"$last\" ] || echo \"has $now\"; last=$now; $b sleep 0.05; done ) &\n{WAITS}"
    );
    for name in [&name, &other] {
        host.ok(host.create(name, &system(&says))).await;
        let busybox = output("sh", &["-c", "command -v busybox"]);
        let to = host.paths.roots.join(name.as_str()).join("busybox");
        std::fs::copy(busybox.trim(), to).expect("a copy");
        host.ok(Host::start(name)).await;
    }
    until("it has the first", || {
        host.log(&name, 9).text.contains("has secret text")
    })
    .await;
    let report = host
        .helper
        .carry_out(&renew(&name, "the next"))
        .await
        .expect("renewed");
    assert!(!report.at_next_start);
    until("it has the next", || {
        host.log(&name, 9).text.contains("has the next")
    })
    .await;
    assert_eq!(
        (&*seen(&host, &name), &*kept(&host, &name)),
        ("the next", "the next")
    );
    assert_eq!(seen(&host, &other), "secret text");
    let binding =
        std::fs::read_to_string(inside(&host, &name, &format!("{INNER}/leaf.json"))).expect("a file");
    assert!(binding.contains(name.as_str()), "{binding}");

    let file = format!("/{INNER}/nats.creds");
    let of_root = as_user(&host, &name, 0, &["cat", &file]);
    assert_eq!(String::from_utf8_lossy(&of_root.stdout), "the next");
    let of_another = as_user(&host, &name, 1000, &["cat", &file]);
    assert!(
        !of_another.status.success() && of_another.stdout.is_empty(),
        "{of_another:?}"
    );
    for change in [
        &["rm", "-f", &file][..],
        &["cp", "/busybox", &file],
        &["umount", INNER],
    ] {
        assert!(!as_user(&host, &name, 0, change).status.success(), "{change:?}");
    }
    // On the host it is root's, below a directory of root.
    let above = host.paths.run.join(name.as_str()).join("credentials");
    let of = |path: &Path| {
        let stat = std::fs::metadata(path).expect("it is there");
        (stat.uid(), stat.mode() & 0o7777)
    };
    assert_eq!(of(&above), (0, 0o700));
    assert_eq!(of(&above.join("shown")), (0, 0o700));
    assert_eq!(of(&above.join("shown/nats.creds")), (0, 0o400));

    // The next start has them from the beginning, and nothing is left in between.
    host.ok(Host::stop(&name)).await;
    assert!(!above.exists());
    host.ok(renew(&name, "the last")).await;
    host.ok(Host::start(&name)).await;
    assert_eq!(seen(&host, &name), "the last");
    host.end().await;
}

pub(crate) async fn a_paused_container_has_renewed_credentials_when_it_is_resumed() {
    let (host, name) = running(&system(WAITS)).await;
    let freeze = |frozen| HostOp::FreezeContainer {
        name: name.clone(),
        frozen,
    };
    host.ok(freeze(true)).await;
    host.ok(renew(&name, "the next")).await;
    assert_eq!(seen(&host, &name), "the next");
    host.ok(freeze(false)).await;
    assert_eq!(seen(&host, &name), "the next");
    host.end().await;
}

pub(crate) async fn credentials_of_another_name_or_of_no_container_are_not_renewed() {
    let (mut host, name) = running(&system(WAITS)).await;
    for credential in ["leaf.json", "other.creds", "../spec.json"] {
        let op = HostOp::RenewCredentials {
            name: name.clone(),
            credentials: BTreeMap::from([(credential.to_owned(), Secret::new("x"))]),
        };
        host.fails(op, Kind::Refused).await;
    }
    let none = host.name();
    let error = host.fails(renew(&none, "x"), Kind::Refused).await;
    assert!(error.reason.contains("create it first"), "{error}");
    assert_eq!(
        host.files(&none),
        Vec::<PathBuf>::new(),
        "nothing was made for it"
    );
    assert_eq!(seen(&host, &name), "secret text");
    host.end().await;
}

pub(crate) async fn a_container_that_an_earlier_helper_started_sees_them_at_its_next_start() {
    let (host, name) = running(&system(WAITS)).await;
    // As it is where the helper before bound no directory.
    std::fs::remove_dir_all(host.paths.run.join(name.as_str()).join("credentials")).expect("it was there");
    let report = host
        .helper
        .carry_out(&renew(&name, "the next"))
        .await
        .expect("renewed");
    assert!(report.at_next_start);
    host.ok(Host::stop(&name)).await;
    host.ok(Host::start(&name)).await;
    assert_eq!(seen(&host, &name), "the next");
    host.end().await;
}

pub(crate) async fn a_container_that_starts_amid_renewals_has_the_last_ones() {
    let (host, name) = Host::with_container(&system(WAITS)).await;
    // Another process, as where systemd starts the container: it doesn't wait for the other's operations.
    let other = Helper::new(host.leaf.clone(), host.paths.clone(), host.settings.clone());
    let mut number = 0;
    for _ in 0..3 {
        let is_started = Cell::new(false);
        let start = async {
            host.ok(Host::start(&name)).await;
            is_started.set(true);
        };
        let renewals = async {
            while !is_started.get() {
                number += 1;
                let renewed = other.carry_out(&renew(&name, &format!("number {number}"))).await;
                renewed.expect("renewed");
            }
        };
        tokio::join!(start, renewals);
        assert_eq!(seen(&host, &name), format!("number {number}"));
        host.ok(Host::stop(&name)).await;
    }
    assert!(number > 10, "only {number} renewals");
    host.end().await;
}

/// A small file system in memory, as long as this exists.
struct Small(PathBuf);

impl Small {
    fn at(directory: &Path) -> Self {
        std::fs::create_dir_all(directory).expect("a directory");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=256k,mode=0750", "tmpfs"])
            .arg(directory)
            .status();
        assert!(mounted.expect("mount runs").success());
        Self(directory.to_owned())
    }

    /// Fills it, to the last page.
    fn fill(&self) {
        use std::io::Write as _;
        let mut file = std::fs::File::create(self.0.join("filling")).expect("a file");
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    fn empty(&self) {
        std::fs::remove_file(self.0.join("filling")).expect("it was there");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

pub(crate) async fn a_full_file_system_keeps_the_former_credentials_whole() {
    let mut host = Host::new().await;
    let run = Small::at(&host.paths.run);
    let name = host.name();
    host.ok(host.create(&name, &system(WAITS))).await;
    host.ok(Host::start(&name)).await;
    let long = "x".repeat(30_000);
    run.fill();
    let error = host.fails(renew(&name, &long), Kind::Failed).await;
    assert!(error.reason.contains("No space left"), "{error}");
    assert_eq!(
        (&*seen(&host, &name), &*kept(&host, &name)),
        ("secret text", "secret text")
    );
    let left = inside(&host, &name, INNER);
    let left: Vec<_> = std::fs::read_dir(left)
        .expect("the directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(left.len(), 2, "{left:?}");
    run.empty();
    host.ok(renew(&name, &long)).await;
    assert_eq!((seen(&host, &name), kept(&host, &name)), (long.clone(), long));
    host.end_all().await;
    drop(run);
    host.end().await;
}

pub(crate) async fn a_full_disk_does_not_keep_them_from_a_container_that_runs() {
    let mut host = Host::new().await;
    let state = Small::at(&host.paths.state);
    let name = host.name();
    host.ok(host.create(&name, &system(WAITS))).await;
    host.ok(Host::start(&name)).await;
    state.fill();
    let long = "x".repeat(30_000);
    host.fails(renew(&name, &long), Kind::Failed).await;
    assert_eq!(
        (&*seen(&host, &name), &*kept(&host, &name)),
        (&*long, "secret text")
    );
    state.empty();
    host.ok(renew(&name, &long)).await;
    assert_eq!(kept(&host, &name), long);
    host.end_all().await;
    drop(state);
    host.end().await;
}

/// A minimal system of before: its init reads its credentials once.
fn earlier_minimal() -> StorePath {
    store_path(
        "$b mkdir -p $out/etc; echo ID=leaf-minimal > $out/etc/os-release; \
         echo \"#!$b sh\" > $out/init; echo \"echo the init of before; exec $b sleep 1000\" >> $out/init; $b chmod +x $out/init",
    )
}

/// A server of a leaf, whose containers' credentials are valid for some seconds.
struct Site {
    host: Host,
    server: EmbeddedServer,
    identity: Identity,
    admin: Client,
    name: ContainerName,
}

const VALID: Duration = Duration::from_secs(4);

impl Site {
    async fn with(toplevel: &StorePath) -> Self {
        let mut host = Host::new().await;
        let name = host.name();
        let identity = Identity::open_or_create(&host.directory.path().join("identity"), &host.leaf);
        let identity = identity.expect("an identity").with_container_valid(VALID);
        let address = (host.address(1), NATS_PORT).into();
        let settings = EmbeddedSettings::new(host.directory.path().join("nats"), address);
        let server = EmbeddedServer::start(settings, &identity)
            .await
            .expect("a server");
        let HostOp::CreateContainer { network, options, .. } = host.create(&name, toplevel) else {
            unreachable!("it is what was made")
        };
        host.ok(HostOp::CreateContainer {
            name: name.clone(),
            toplevel: toplevel.clone(),
            network,
            options,
            adopt: false,
            secrets: BTreeMap::new(),
            binding: ContainerBinding::new(&host.leaf, &name, &server.client_url()),
            credentials: BTreeMap::from([("nats.creds".to_owned(), identity.container_credentials(&name))]),
        })
        .await;
        host.ok(Host::start(&name)).await;
        let mut admin = ConnectSettings::new(&server.client_url());
        admin.credentials = Credentials::Text(identity.admin_credentials());
        admin.inbox_prefix = "_INBOX.admin".to_owned();
        let admin = Client::connect(&admin, Duration::from_secs(10))
            .await
            .expect("a connection");
        Self {
            host,
            server,
            identity,
            admin,
            name,
        }
    }

    async fn renew(&self) {
        let credentials = self.identity.container_credentials(&self.name);
        self.host.ok(renew(&self.name, credentials.expose())).await;
    }

    async fn is_healthy(&self) -> bool {
        let (leaf, name): (&LeafName, _) = (&self.host.leaf, &self.name);
        let asked = self
            .admin
            .request_container_health(leaf, name, Duration::from_millis(200));
        asked.await.is_ok()
    }

    /// Waits until it answers, or does not; where it is to answer, its credentials are renewed meanwhile.
    async fn until_healthy(&self, is_healthy: bool) {
        let (began, mut renewed) = (Instant::now(), Instant::now());
        while self.is_healthy().await != is_healthy {
            assert!(
                began.elapsed() < Duration::from_secs(90),
                "{}",
                self.host.log(&self.name, 40).text
            );
            if is_healthy && renewed.elapsed() > VALID * 2 / 3 {
                renewed = Instant::now();
                self.renew().await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn end(self) {
        self.host.ok(Host::stop(&self.name)).await;
        self.admin.close(Duration::from_secs(5)).await;
        self.server.stop().await;
        self.host.end().await;
    }
}

pub(crate) async fn a_container_is_cut_at_the_end_of_its_credentials_and_goes_on_with_renewed_ones() {
    // As an earlier version built it, so that this shows as well that the leaf's own init takes its place.
    let site = Site::with(&earlier_minimal()).await;
    site.until_healthy(true).await;
    assert!(!site.host.log(&site.name, 99).text.contains("the init of before"));
    let began = Instant::now();
    let (mut renewed, mut last) = (Instant::now(), Instant::now());
    let mut longest = Duration::ZERO;
    while began.elapsed() < VALID * 4 {
        if renewed.elapsed() > VALID * 2 / 3 {
            renewed = Instant::now();
            site.renew().await;
        }
        if site.is_healthy().await {
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    eprintln!(
        "the longest time without an answer was {} ms",
        longest.as_millis()
    );
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    let log = site.host.log(&site.name, 99).text;
    assert!(
        log.matches("Authentication Expired").count() >= 3,
        "it was not cut: {log}"
    );

    // Nobody renews them, as where leafd is away for longer than their life; then it is back.
    tokio::time::sleep(VALID * 2).await;
    assert!(!site.is_healthy().await);
    site.renew().await;
    site.until_healthy(true).await;
    // A frozen one misses a whole life, and comes back by itself.
    let freeze = |frozen| HostOp::FreezeContainer {
        name: site.name.clone(),
        frozen,
    };
    site.host.ok(freeze(true)).await;
    for _ in 0..3 {
        tokio::time::sleep(VALID * 2 / 3).await;
        site.renew().await;
    }
    site.host.ok(freeze(false)).await;
    site.until_healthy(true).await;
    site.end().await;
}

pub(crate) async fn the_minimal_system_starts_with_credentials_that_have_ended_once_they_are_renewed() {
    let site = Site::with(&minimal()).await;
    site.until_healthy(true).await;
    site.host.ok(Host::stop(&site.name)).await;
    tokio::time::sleep(VALID + Duration::from_secs(1)).await;
    // As systemd starts it at a boot.
    let is_started = Cell::new(false);
    let start = async {
        site.host.ok(Host::start_within(&site.name, 60)).await;
        is_started.set(true);
    };
    let renewal = async {
        let log = site.host.directory.path().join("nats/nats-server.log");
        until("it is refused", || {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            log.to_lowercase().contains("authentication error")
        })
        .await;
        assert!(!is_started.get());
        // Another process: it doesn't wait for the start.
        let host = &site.host;
        let other = Helper::new(host.leaf.clone(), host.paths.clone(), host.settings.clone());
        let credentials = site.identity.container_credentials(&site.name);
        let renewed = other.carry_out(&renew(&site.name, credentials.expose())).await;
        renewed.expect("renewed");
    };
    tokio::join!(start, renewal);
    site.until_healthy(true).await;
    site.end().await;
}

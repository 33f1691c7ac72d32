//! The split on a machine with systemd: leafd without root, the helper behind its socket, Nix jobs as a third user.

use anyhow::Context as _;
use testhost::Host;

use crate::{Outcome, Trials, ensure, until};

pub(crate) const TRIALS: Trials = &[
    (
        "leafd_runs_without_root_and_capabilities_and_with_low_exposure",
        unprivileged,
    ),
    (
        "the_helper_describes_its_operations_and_accepts_calls_of_leafd_only",
        calls,
    ),
    ("leafd_cannot_make_the_helper_do_anything_else", abuse),
    ("a_nix_job_runs_as_another_user_and_leaves_only_its_result", job),
    (
        "code_in_a_nix_job_reaches_neither_the_helper_nor_files_of_leafd_nor_other_jobs",
        foreign_code,
    ),
    ("a_cancelled_job_leaves_no_process_and_no_unit", cancelled),
    (
        "a_build_whose_nix_daemon_ends_fails_with_the_reason_and_the_next_one_works",
        daemon_ends,
    ),
];

/// The most that `systemd-analyze security` may say of leafd.
const MOST_EXPOSED: f64 = 1.5;
const SOCKET: &str = "/run/cim-leaf/helper.sock";
const HELPER: &str = "cim.leaf.Helper";
const CONTEXT: &str = "export LEAFCTL_CONTEXT=/var/lib/cim-leaf/context.json HOME=/root";

/// A machine on which leafd runs.
fn leaf() -> anyhow::Result<Host> {
    let host = Host::leaf()?;
    host.ok("systemctl start leafd.service")?;
    Ok(host)
}

/// A derivation on the machine, by what its builder does.
fn derivation(host: &Host, name: &str, script: &str) -> anyhow::Result<String> {
    let file = format!("/srv/{name}.nix");
    let text = format!(
        "derivation {{ name = \"{name}\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
         args = [ \"-c\" ''{script}'' ]; }}\n"
    );
    host.put(text.as_bytes(), &file, "0644")?;
    Ok(file)
}

fn unprivileged() -> Outcome {
    let host = leaf()?;
    let pid = host.ok("systemctl show leafd --property=MainPID --value")?;
    let status = host.ok(&format!("cat /proc/{}/status", pid.trim()))?;
    for line in [
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        ensure(status.contains(line), format!("{line} is not in {status}"))?;
    }
    let user = host.ok(&format!("stat --format=%U /proc/{}", pid.trim()))?;
    ensure(user.trim() == "leafd", format!("it runs as {user}"))?;
    for (unit, most) in [
        ("leafd.service", MOST_EXPOSED),
        ("leaf-helper.service", 3.0),
        ("leaf-change.service", 1.5),
        ("leaf-change-witness.service", MOST_EXPOSED),
    ] {
        let said = host.ok(&format!("systemd-analyze security --no-pager {unit} | tail -1"))?;
        let exposed = said
            .split_whitespace()
            .find_map(|word| word.parse::<f64>().ok())
            .context("systemd-analyze gives no figure")?;
        eprintln!("systemd-analyze security {unit}: {exposed}");
        ensure(exposed <= most, format!("{unit}: {said}"))?;
    }
    // What it listens on came by the helper.
    let addresses = host.ok("ip -o -4 address show dev lo")?;
    ensure(addresses.contains("10.233.0.1/32"), addresses)
}

fn calls() -> Outcome {
    let host = leaf()?;
    let shown = host.ok(&format!("varlinkctl introspect {SOCKET} {HELPER}"))?;
    for method in [
        "PrepareNetwork",
        "ReleaseNetwork",
        "CreateContainer",
        "StartContainer",
        "UpdateContainer",
        "StopContainer",
        "DestroyContainer",
        "StartJob",
        "StopJob",
        "RemoveJob",
    ] {
        ensure(
            shown.contains(&format!("method {method}")),
            format!("{method}: {shown}"),
        )?;
    }
    let call = format!(
        "varlinkctl call {SOCKET} {HELPER}.StopContainer '{{\"name\":\"none\",\"grace_seconds\":1}}'"
    );
    let by = |user: &str| host.run(&format!("runuser -u {user} -- {call}"));
    let done = by("leafd")?;
    ensure(done.status == 0, format!("leafd: {done:?}"))?;
    for user in ["leaf-job", "nobody"] {
        let refused = by(user)?;
        ensure(
            refused.status != 0 && refused.stderr.contains("Permission denied"),
            format!("{user}: {refused:?}"),
        )?;
    }
    // Also where somebody opened the socket to all.
    host.ok(&format!("chmod 666 {SOCKET}"))?;
    let refused = by("leaf-job")?;
    ensure(refused.status != 0, format!("leaf-job: {refused:?}"))
}

fn abuse() -> Outcome {
    let host = leaf()?;
    host.ok("systemctl start systemd-machined; mkdir -p /srv/secret; echo secret >/srv/secret/key")?;
    let state = "systemctl is-active dbus.service; ls /etc/nixos-containers /var/lib/nixos-containers; \
                 ls /run/systemd/system; nft list ruleset | md5sum; md5sum /etc/shadow";
    let before = host.ok(state)?;
    let id = "01890000-0000-7000-8000-000000000001";
    let network = r#"{"host_address":"10.233.9.1","container_address":"10.233.9.2"}"#;
    let create = |name: &str, toplevel: &str, options: &str| {
        format!(
            "{{\"name\":\"{name}\",\"toplevel\":\"{toplevel}\",\"network\":{network},\"options\":{options},\"adopt\":false,\
             \"binding\":{{\"leaf\":\"leaf\",\"container\":\"{name}\",\"nats_url\":\"nats://10.233.0.1:4222\",\
             \"inbox_prefix\":\"x\",\"subject_prefix\":\"x\"}},\"credentials\":{{}}}}"
        )
    };
    let cases = [
        (
            "StopContainer",
            r#"{"name":"../dbus","grace_seconds":0}"#.to_owned(),
        ),
        (
            "StopContainer",
            r#"{"name":"dbus.service","grace_seconds":0}"#.to_owned(),
        ),
        (
            "StartContainer",
            r#"{"name":"a@b","ready_timeout_seconds":1}"#.to_owned(),
        ),
        (
            "UpdateContainer",
            r#"{"name":"-M","ready_timeout_seconds":1,"grace_seconds":1}"#.to_owned(),
        ),
        ("DestroyContainer", r#"{"name":".."}"#.to_owned()),
        ("StartJob", r#"{"id":"../cim-leaf"}"#.to_owned()),
        ("StartJob", format!("{{\"id\":\"{id}\"}}")),
        ("StopJob", r#"{"id":"dbus","grace_seconds":0}"#.to_owned()),
        ("RemoveJob", r#"{"id":"."}"#.to_owned()),
        (
            "PrepareNetwork",
            r#"{"leaf_address":"1.1.1.1","nats_port":1}"#.to_owned(),
        ),
        ("ReleaseNetwork", r#"{"leaf_address":"1.1.1.1"}"#.to_owned()),
        ("CreateContainer", create("web", "/etc", "{}")),
        ("CreateContainer", create("web", "/nix/store/../../etc", "{}")),
        (
            "CreateContainer",
            create("web\\nx", "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-x", "{}"),
        ),
        (
            "CreateContainer",
            create(
                "web",
                "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-x",
                r#"{"environment":{"A":"x\ny"}}"#,
            ),
        ),
        (
            "CreateContainer",
            create(
                "web",
                "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-x",
                r#"{"flags":["--bind=/"]}"#,
            ),
        ),
        (
            "CreateContainer",
            create(
                "web",
                "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-x",
                r#"{"secrets":{"key":"/srv/secret/key"}}"#,
            ),
        ),
        (
            "CreateContainer",
            create(
                "web",
                "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-x",
                r#"{"binds":[{"source":"/srv/secret"}]}"#,
            ),
        ),
    ];
    for (method, parameters) in cases {
        let said = host.run(&format!(
            "runuser -u leafd -- varlinkctl call {SOCKET} {HELPER}.{method} '{parameters}' 2>&1"
        ))?;
        ensure(
            said.status != 0 && said.stdout.contains(&format!("{HELPER}.Refused")),
            format!("{method} {parameters}: {said:?}"),
        )?;
    }
    // A job's directory that is a link, or is somebody else's.
    host.ok(&format!(
        "runuser -u leafd -- ln -s /etc /var/lib/cim-leaf-jobs/{id}"
    ))?;
    for method in ["StartJob", "RemoveJob"] {
        let said = host.run(&format!(
            "runuser -u leafd -- varlinkctl call {SOCKET} {HELPER}.{method} '{{\"id\":\"{id}\"}}' 2>&1"
        ))?;
        ensure(said.status != 0, format!("{method} on a link: {said:?}"))?;
    }
    host.ok(&format!(
        "rm /var/lib/cim-leaf-jobs/{id}; mkdir /var/lib/cim-leaf-jobs/{id}; echo '{{}}' >/var/lib/cim-leaf-jobs/{id}/order.json"
    ))?;
    for method in ["StartJob", "RemoveJob"] {
        let said = host.run(&format!(
            "runuser -u leafd -- varlinkctl call {SOCKET} {HELPER}.{method} '{{\"id\":\"{id}\"}}' 2>&1"
        ))?;
        ensure(said.status != 0, format!("{method} on root's: {said:?}"))?;
    }
    let after = host.ok(state)?;
    ensure(before == after, format!("before: {before}\nafter: {after}"))
}

fn job() -> Outcome {
    let host = leaf()?;
    let file = derivation(&host, "greeting", "echo the builder speaks; echo hello > $out")?;
    let built = host.ok(&format!(
        "{CONTEXT}; leafctl --json nix build --file {file} | tail -1"
    ))?;
    let jobs = host.ok("ls /var/lib/cim-leaf-jobs")?;
    let id = jobs.trim();
    let owners = host.ok(&format!("stat --format='%U %n' /var/lib/cim-leaf-jobs/{id}/*"))?;
    ensure(
        owners.contains(&format!("leaf-job /var/lib/cim-leaf-jobs/{id}/outcome.json"))
            && owners.contains(&format!("leafd /var/lib/cim-leaf-jobs/{id}/order.json")),
        owners,
    )?;
    let log = host.ok(&format!("{CONTEXT}; leafctl nix log {id}"))?;
    ensure(log.contains("the builder speaks"), log)?;
    // The result is held, and the collector says by whom.
    let root = format!("/var/lib/cim-leaf-jobs/{id}/root/result");
    let held = host.ok(&format!(
        "nix-store --gc --print-roots | grep {root}; cat $(readlink {root})"
    ))?;
    ensure(held.ends_with("hello\n"), format!("{held}; {built}"))?;
    until(
        &host,
        "systemctl list-units --all --no-legend 'leaf-job-*'",
        |units| units.trim().is_empty(),
    )
}

/// Starts a job that does not end, and returns its unit and its first process.
fn endless(host: &Host) -> anyhow::Result<(String, String)> {
    let file = derivation(host, "endless", "echo begun; while :; do :; done")?;
    host.ok(&format!("{CONTEXT}; leafctl nix build --detach --file {file}"))?;
    until(host, "pgrep --full '[e]cho begun; while' | wc -l", |found| {
        found.trim() != "0"
    })?;
    let unit = host.ok("systemctl list-units --plain --no-legend 'leaf-job-*' | cut -d' ' -f1")?;
    let unit = unit.trim().to_owned();
    let pid = host.ok(&format!("systemctl show --property=MainPID --value {unit}"))?;
    Ok((unit, pid.trim().to_owned()))
}

fn foreign_code() -> Outcome {
    let host = leaf()?;
    let (_, pid) = endless(&host)?;
    let user = host.ok(&format!("stat --format=%U /proc/{pid}"))?;
    ensure(user.trim() == "leaf-job", format!("it runs as {user}"))?;
    host.ok("install -d -o leafd -g leaf-job -m 1770 /var/lib/cim-leaf-jobs/another; echo secret >/var/lib/cim-leaf-jobs/another/file")?;
    // What a job sees: its mounts, as its user.
    let within = |command: &str| {
        host.run(&format!(
            "nsenter --target {pid} --mount setpriv --reuid=leaf-job --regid=leaf-job --init-groups --no-new-privs \
             --bounding-set=-all {command}"
        ))
    };
    for forbidden in [
        "socat -u OPEN:/dev/null UNIX-CONNECT:/run/cim-leaf/helper.sock",
        "ls /run/cim-leaf",
        "ls /var/lib/cim-leaf",
        "cat /var/lib/cim-leaf/context.json",
        "cat /etc/cim-leaf/leafd.toml",
        "ls /var/lib/cim-leaf-containers",
        "ls /var/lib/cim-leaf-jobs/another",
        "touch /var/lib/cim-leaf-jobs/new",
        "touch /etc/new",
    ] {
        let tried = within(forbidden)?;
        ensure(tried.status != 0, format!("{forbidden}: {tried:?}"))?;
    }
    // Outside of its mounts as well, were it to find a way out.
    for forbidden in [
        "socat -u OPEN:/dev/null UNIX-CONNECT:/run/cim-leaf/helper.sock",
        "cat /var/lib/cim-leaf/context.json",
    ] {
        let tried = host.run(&format!("runuser -u leaf-job -- {forbidden}"))?;
        ensure(tried.status != 0, format!("{forbidden} outside: {tried:?}"))?;
    }
    // A link in its directory leads leafd nowhere.
    let id = host.ok("ls /var/lib/cim-leaf-jobs | grep -v another")?;
    let id = id.trim();
    let directory = format!("/var/lib/cim-leaf-jobs/{id}");
    let planted = within(&format!(
        "sh -c 'cd {directory} && rm -f log.* && ln -s /var/lib/cim-leaf/context.json log.00000000000000000000'"
    ))?;
    ensure(planted.status == 0, format!("{planted:?}"))?;
    let log = host.run(&format!("{CONTEXT}; leafctl nix log {id}"))?;
    ensure(
        !log.stdout.contains("creds") && !log.stdout.contains("url"),
        format!("leafd reads for a job what that must not see: {log:?}"),
    )?;
    // Nor can it exchange what leafd ordered.
    let changed = within(&format!(
        "sh -c 'echo x >{directory}/order.json || rm -f {directory}/order.json'"
    ))?;
    ensure(changed.status != 0, format!("{changed:?}"))
}

fn daemon_ends() -> Outcome {
    let host = leaf()?;
    let (unit, _) = endless(&host)?;
    let id = unit.trim_start_matches("leaf-job-").trim_end_matches(".service");
    let none_left = || {
        until(
            &host,
            "pgrep --full '[e]cho begun; while'; systemctl list-units --no-legend 'leaf-job-*'",
            |left| left.trim().is_empty(),
        )
    };
    // With all that it had started: the build has failed, and says why.
    host.ok("systemctl kill --signal=KILL nix-daemon.service")?;
    until(&host, &format!("{CONTEXT}; leafctl --json nix jobs"), |jobs| {
        jobs.contains("\"failed\"")
    })?;
    let why = host.ok(&format!("{CONTEXT}; leafctl --json nix why {id}"))?;
    ensure(why.contains("daemon"), why)?;
    none_left()?;
    // The next build starts it again, and a restart amid a build leaves nothing that can't be ended.
    let file = derivation(&host, "after", "echo after > $out")?;
    host.ok(&format!("{CONTEXT}; leafctl nix build --file {file}"))?;
    let (unit, _) = endless(&host)?;
    let id = unit.trim_start_matches("leaf-job-").trim_end_matches(".service");
    host.ok("systemctl restart nix-daemon.service")?;
    host.run(&format!("{CONTEXT}; leafctl nix cancel {id}"))?;
    until(&host, &format!("{CONTEXT}; leafctl --json nix jobs"), |jobs| {
        !jobs.contains("\"running\"")
    })?;
    none_left()?;
    host.ok(&format!("{CONTEXT}; leafctl nix check --file {file}"))
        .map(drop)
}

fn cancelled() -> Outcome {
    let host = leaf()?;
    let (unit, _) = endless(&host)?;
    let id = unit.trim_start_matches("leaf-job-").trim_end_matches(".service");
    // It is found again by a leafd that starts meanwhile.
    host.ok("systemctl restart leafd.service")?;
    let running = host.ok(&format!("{CONTEXT}; leafctl --json nix jobs"))?;
    ensure(running.contains("\"running\""), running)?;
    host.ok(&format!("{CONTEXT}; leafctl nix cancel {id}"))?;
    until(&host, &format!("{CONTEXT}; leafctl --json nix jobs"), |jobs| {
        jobs.contains("\"cancelled\"")
    })?;
    let left = host.run(&format!(
        "systemctl list-units --all --no-legend '{unit}'; pgrep --full '[e]cho begun; while'; \
         pgrep --uid leaf-job"
    ))?;
    ensure(left.stdout.trim().is_empty(), format!("{left:?}"))
}

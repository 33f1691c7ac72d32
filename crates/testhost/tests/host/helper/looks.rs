//! The look at containers that systemd runs (`leaf-container`), on a machine with systemd, by a user who is not root.
//!
//! The units here are written by hand, in the shape that the helper's have: the look must tell right whatever wrote
//! them. What looks is this test's own program, which the machine sees in a shared directory: see [`probe`].

use std::process::ExitCode;
use std::time::Duration;

use leaf_container::Containers;
use leaf_core::decide::LogQuery;
use leaf_core::id::{ContainerName, LeafName};
use leaf_core::runtime::Runtime;
use leaf_host::contract::HostPaths;
use serde_json::{Value, json};
use testhost::{Host, Output};

use crate::{Outcome, Trials, ensure};

pub(crate) const TRIALS: Trials = &[
    ("each_stage_of_a_unit_is_observed_by_an_unprivileged_user", stages),
    (
        "a_container_that_was_not_started_by_the_helper_is_observed_without_a_start_digest",
        anothers,
    ),
    (
        "resource_usage_is_returned_while_a_container_runs_and_refused_otherwise",
        usage,
    ),
    ("the_journal_is_read_by_lines_by_time_and_by_cursor", journal),
    (
        "hints_come_for_units_for_memory_and_after_the_bus_was_restarted",
        hints,
    ),
    ("many_containers_are_observed_with_one_query", many),
];

/// The first argument that makes this program look instead of test.
pub(crate) const PROBE: &str = "look";
const LEAF: &str = "edge";
const NAME: &str = "web";
const MANY: usize = 50;

/// Makes a container below a unit. Its init waits for SIGRTMIN+3, or does what stands in `/do`.
const MAKE: &str = r#"
set -e
make() { # NAME RESTART
  root=/var/lib/nixos-containers/$1
  mkdir -p $root/bin $root/usr $root/etc $root/run $root/tmp /etc/nixos-containers /run/cim-leaf/containers/edge/$1
  echo ID=test >$root/etc/os-release
  cp $(command -v busybox) $root/bin/busybox
  cat >$root/init <<'EOF'
#!/bin/busybox sh
trap 'exit 0' 37
echo "hello from $(/bin/busybox hostname)"
while :; do
  [ -e /do ] && { . /do; }
  /bin/busybox sleep 0.1
done
EOF
  chmod +x $root/init
  printf '# cim-leaf: made by leaf edge\n# cim-leaf: spec 0123\nSYSTEM_PATH=/nix/store/00000000000000000000000000000000-system\n' >/etc/nixos-containers/$1.conf
  cat >/run/systemd/system/container@$1.service <<EOF
[Service]
Type=notify
Slice=machine.slice
Delegate=yes
KillMode=mixed
TimeoutStartSec=100
TimeoutStopSec=20
Restart=$2
RestartSec=100
ExecStart=/run/run $1
ExecStopPost=/run/ended $1
EOF
}
cat >/run/run <<'EOF'
#!/bin/bash
directory=/run/cim-leaf/containers/edge/$1
printf '{"supervisor_pid":%d,"started_at":"%s","start_digest":"4567","leader_pid":null,"ready_at":null,"exit":null,"error":null}' $$ $(date --utc +%FT%T.%NZ) >$directory/.new
mv $directory/.new $directory/status.json
until [ ! -e /run/hold ]; do sleep 0.05; done
exec systemd-nspawn --quiet --keep-unit --settings=no -M $1 -D /var/lib/nixos-containers/$1 --private-network --network-veth \
  --kill-signal=SIGRTMIN+3 --link-journal=no /init
EOF
cat >/run/ended <<'EOF'
#!/bin/bash
[ -e /run/unseen ] && exit
directory=/run/cim-leaf/containers/edge/$1
exit='{"by":"signal","signal":9}'
[ "$EXIT_CODE" = exited ] && exit="{\"by\":\"code\",\"code\":$EXIT_STATUS}"
jq --argjson exit "$exit" '.exit = $exit' <$directory/status.json >$directory/.new
mv $directory/.new $directory/status.json
EOF
chmod +x /run/run /run/ended
"#;

fn host(names: &[&str], restart: &str) -> anyhow::Result<Host> {
    let mut host = Host::options().memory_mib(1536).restore()?;
    let program = std::env::current_exe()?;
    let directory = program.parent().expect("a program is in a directory");
    host.share(directory, "/mnt/probe")?;
    let name = program
        .file_name()
        .expect("a program has a name")
        .to_string_lossy();
    let script = format!(
        "#!/bin/bash\ngroup=$(getent group systemd-journal | cut -d: -f3)\n\
         exec setpriv --reuid=65534 --regid=65534 --groups=$group /mnt/probe/{name} {PROBE} \"$@\"\n"
    );
    host.put(script.as_bytes(), "/run/look", "0755")?;
    let makes: Vec<_> = names
        .iter()
        .map(|name| format!("make {name} {restart}"))
        .collect();
    host.ok(&format!("{MAKE}\n{}", makes.join("\n")))?;
    Ok(host)
}

fn look(host: &Host) -> anyhow::Result<Value> {
    Ok(serde_json::from_str::<Value>(&host.ok("/run/look observe")?)?[NAME].take())
}

/// Looks until it is so.
fn looks(host: &Host, what: &str, so: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    let mut seen = Value::Null;
    for _ in 0..200 {
        seen = look(host)?;
        if so(&seen) {
            return Ok(seen);
        }
    }
    Err(anyhow::Error::msg(format!("it is never {what}: {seen}")))
}

fn is_running(seen: &Value) -> bool {
    seen["run"]["Running"].is_object()
}

fn stages() -> Outcome {
    let host = host(&[NAME], "on-failure")?;
    let seen = look(&host)?;
    ensure(seen["run"] == "Stopped", format!("{seen}"))?;
    ensure(seen["digest"] == "0123", format!("{seen}"))?;

    host.ok("touch /run/hold; systemctl start --no-block container@web")?;
    looks(&host, "starting", |seen| seen["run"] == "Starting")?;
    host.ok("rm /run/hold; systemctl start container@web")?;
    let seen = look(&host)?;
    let leader: u64 = host.ok("machinectl show -p Leader --value web")?.trim().parse()?;
    let running = &seen["run"]["Running"];
    ensure(running["leader_pid"] == leader, format!("{leader}: {seen}"))?;
    ensure(running["start_digest"] == "4567", format!("{seen}"))?;
    ensure(
        running["ready_after_ms"]
            .as_u64()
            .is_some_and(|ms| ms > 0 && ms < 60_000),
        format!("{seen}"),
    )?;
    let started =
        host.ok("systemctl show -p ExecMainStartTimestamp --value --timestamp=unix container@web")?;
    let started_at: jiff::Timestamp = running["started_at"].as_str().unwrap_or_default().parse()?;
    ensure(
        started.trim() == format!("@{}", started_at.as_second()),
        format!("{started}: {seen}"),
    )?;
    // The first process is found without systemd-machined as well.
    host.ok("systemctl mask --runtime --now systemd-machined dbus-org.freedesktop.machine1 2>/dev/null; systemctl stop systemd-machined")?;
    let seen = look(&host)?;
    ensure(
        seen["run"]["Running"]["leader_pid"] == leader,
        format!("{leader}: {seen}"),
    )?;
    host.ok("systemctl unmask --runtime systemd-machined dbus-org.freedesktop.machine1 2>/dev/null; systemctl start systemd-machined")?;

    host.ok("echo 'exit 7' >/var/lib/nixos-containers/web/do")?;
    let seen = looks(&host, "restarting", |seen| !is_running(seen))?;
    ensure(
        seen["run"] == json!({"Restarting": {"by": "code", "code": 7}}),
        format!("{seen}"),
    )?;
    host.ok("rm /var/lib/nixos-containers/web/do; systemctl restart container@web")?;
    ensure(is_running(&look(&host)?), "it was started again")?;
    host.ok("systemctl stop container@web")?;
    let seen = look(&host)?;
    ensure(
        seen["run"] == json!({"Exited": {"by": "code", "code": 0}}),
        format!("{seen}"),
    )?;

    // Nobody writes how it ended, and systemd saw it; then nobody saw it.
    host.ok("touch /run/unseen; systemctl start container@web")?;
    host.ok("systemctl kill --kill-whom=main --signal=KILL container@web")?;
    let seen = looks(&host, "restarting", |seen| !is_running(seen))?;
    ensure(
        seen["run"] == json!({"Restarting": {"by": "signal", "signal": 9}}),
        format!("{seen}"),
    )?;
    // systemd forgets it.
    host.ok("systemctl stop container@web; systemctl reset-failed container@web 2>/dev/null || true")?;
    let seen = look(&host)?;
    ensure(
        seen["run"] == json!({"Exited": {"by": "lost"}}),
        format!("{seen}"),
    )
}

fn anothers() -> Outcome {
    let host = host(&[NAME], "no")?;
    host.ok(
        "sed -i s/edge/other/ /etc/nixos-containers/web.conf; echo LOCAL_ADDRESS=10.1.2.3/24 >>/etc/nixos-containers/web.conf
         sed -i 's/^until/rm $directory\\/status.json; until/' /run/run
         systemctl start container@web",
    )?;
    ensure(look(&host)?.is_null(), "it is none of this leaf's")?;
    let foreign: Value = serde_json::from_str(&host.ok("/run/look foreign")?)?;
    let expected = json!([{
        "name": "web", "declarative": false, "running": true, "address": "10.1.2.3", "host_users": true,
        "toplevel": "/nix/store/00000000000000000000000000000000-system",
    }]);
    ensure(foreign == expected, format!("{foreign}"))?;
    // It is adopted as it runs.
    host.ok("sed -i s/other/edge/ /etc/nixos-containers/web.conf")?;
    let seen = look(&host)?;
    ensure(is_running(&seen), format!("{seen}"))?;
    ensure(
        seen["run"]["Running"]["start_digest"].is_null(),
        format!("{seen}"),
    )?;
    ensure(
        host.ok("/run/look foreign")?.trim() == "[]",
        "it is nobody else's any more",
    )?;
    // Nobody knows whose a file is that can't be read: the run directory that the helper made tells.
    host.ok("systemctl stop container@web; chmod 000 /etc/nixos-containers/web.conf")?;
    ensure(look(&host)?.is_null(), "it can't be observed")?;
    let unobserved: Value = serde_json::from_str(&host.ok("/run/look unobserved")?)?;
    ensure(
        unobserved["web"]
            .as_str()
            .is_some_and(|error| error.contains("web.conf") && error.contains("Permission denied")),
        format!("{unobserved}"),
    )?;
    host.ok("rm -r /run/cim-leaf/containers/edge/web")?;
    ensure(
        host.ok("/run/look unobserved")?.trim() == "{}",
        "it is none of this leaf's",
    )
}

fn usage() -> Outcome {
    let host = host(&[NAME], "no")?;
    let stopped = host.run("/run/look stats web")?;
    ensure(
        stopped.status == 1 && stopped.stderr.contains("NotNow: container web is not running"),
        format!("{stopped:?}"),
    )?;
    host.ok("systemctl start container@web; ip link set ve-web up
         nsenter --target $(machinectl show -p Leader --value web) --net ip link set host0 up
         until [ $(cat /sys/class/net/ve-web/statistics/rx_bytes) -gt 0 ]; do sleep 0.05; done")?;
    let group = "/sys/fs/cgroup/machine.slice/container@web.service/payload";
    host.ok(&format!(
        "cd {group}/.. && echo '+memory +pids +cpu +io' >cgroup.subtree_control && echo 64M >{group}/memory.max"
    ))?;
    let stats: Value = serde_json::from_str(&host.ok("/run/look stats web")?)?;
    for field in [
        "cpu_microseconds",
        "memory_bytes",
        "memory_peak_bytes",
        "tasks",
        "network_sent_bytes",
    ] {
        ensure(
            stats[field].as_u64().is_some_and(|value| value > 0),
            format!("{field}: {stats}"),
        )?;
    }
    for field in [
        "cpu_throttled_microseconds",
        "oom_kills",
        "io_read_bytes",
        "network_received_bytes",
    ] {
        ensure(stats[field].is_u64(), format!("{field}: {stats}"))?;
    }
    ensure(stats["memory_limit_bytes"] == 64 << 20, format!("{stats}"))?;
    // Pressure is told where the kernel counts it.
    let counts = host.run("test -e /proc/pressure/cpu")?.status == 0;
    ensure(
        stats["cpu_pressure_basis_points"].is_u64() == counts,
        format!("{counts}: {stats}"),
    )
}

fn journal() -> Outcome {
    let host = host(&[NAME, "web2"], "no")?;
    // What a container says goes through systemd-nspawn, and is in the journal a while after it was said.
    let said = |line: &str, by: &str| {
        format!(
            "for i in $(seq 200); do journalctl --sync; \
             journalctl --unit=container@{by} --output=cat | grep -qx '{line}' && break; sleep 0.1; done"
        )
    };
    host.ok(&format!(
        "systemctl start container@web container@web2; {}; {}",
        said("hello from web", NAME),
        said("hello from web2", "web2")
    ))?;
    let ask = |arguments: &str| -> anyhow::Result<Value> {
        Ok(serde_json::from_str(
            &host.ok(&format!("/run/look logs {arguments}"))?,
        )?)
    };
    let log = ask("web 200")?;
    let text = log["text"].as_str().unwrap_or_default();
    ensure(
        text.contains("hello from web\n") && !text.contains("web2"),
        format!("{log}"),
    )?;
    ensure(log["truncated"] == false, format!("{log}"))?;
    let cursor = log["cursor"].as_str().unwrap_or_default().to_owned();
    let log = ask(&format!("web 200 '{cursor}'"))?;
    ensure(log["text"] == "" && log["cursor"] == cursor, format!("{log}"))?;

    let since = host.ok("sleep 0.01; date --utc +%FT%T.%6NZ")?;
    host.ok(&format!(
        "echo 'echo one; echo two; echo three; rm() {{ /bin/busybox rm $1; }}; rm /do' >/var/lib/nixos-containers/web/do.new
         mv /var/lib/nixos-containers/web/do.new /var/lib/nixos-containers/web/do
         {}",
        said("three", NAME)
    ))?;
    let log = ask(&format!("web 2 '{cursor}'"))?;
    ensure(log["text"] == "one\ntwo\n", format!("{log}"))?;
    let next = log["cursor"].as_str().unwrap_or_default();
    let log = ask(&format!("web 2 '{next}'"))?;
    ensure(log["text"] == "three\n", format!("{log}"))?;
    let log = ask("web 2")?;
    ensure(
        log["text"] == "two\nthree\n" && log["truncated"] == true,
        format!("{log}"),
    )?;
    let log = ask(&format!("web 200 '' {since}"))?;
    ensure(
        log["text"] == "one\ntwo\nthree\n" && log["truncated"] == false,
        format!("{log}"),
    )?;
    for garbage in ["--help", "s=1", "'; touch /run/oops'"] {
        let refused = host.run(&format!("/run/look logs web 5 {garbage}"))?;
        ensure(
            refused.status == 1 && refused.stderr.contains("Invalid: "),
            format!("{refused:?}"),
        )?;
    }
    // Who may not read the journal is told so.
    let closed = host
        .run("sed 's/--groups=[^ ]*/--clear-groups/' /run/look >/run/closed; bash /run/closed logs web 5")?;
    ensure(
        closed.status == 1 && closed.stderr.contains("journal"),
        format!("{closed:?}"),
    )
}

fn hints() -> Outcome {
    let host = host(&[NAME], "no")?;
    let group = "/sys/fs/cgroup/machine.slice/container@web.service";
    let watching = host.start("exec /run/look watch >/run/seen 2>/run/complaints")?;
    let until = |what: &str, so: &str| -> Outcome {
        let waited = host.run(&format!(
            "for i in $(seq 400); do {so} && exit; sleep 0.1; done; cat /run/seen /run/complaints; exit 1"
        ))?;
        let last = || waited.stdout.clone();
        ensure(waited.status == 0, format!("{what} is not seen: {}", last()))
    };
    let last_is = |text: &str| format!("tail -n1 /run/seen | grep -qF '{text}'");
    until("that it is there", &last_is("\"Stopped\""))?;
    host.ok("systemctl start --no-block container@web")?;
    until("that it runs", &last_is("\"Running\""))?;
    // The helper has the limits before a run begins; here they come later, and so does what is watched of them.
    host.ok(&format!(
        "echo '+memory +pids' >{group}/cgroup.subtree_control; echo 0 >{group}/payload/memory.swap.max
         echo 8M >{group}/payload/memory.max; touch /run/cim-leaf/containers/edge/web/status.json; sleep 1"
    ))?;
    host.ok(
        "echo '/bin/busybox tail /dev/zero; /bin/busybox rm /do' >/var/lib/nixos-containers/web/do.new
             mv /var/lib/nixos-containers/web/do.new /var/lib/nixos-containers/web/do",
    )?;
    until("that memory was wanting", &last_is("\"oom_kills\":1"))?;

    // machined, which had to find the new bus first, may tell nobody of it: what the unit writes does.
    host.ok("systemctl restart dbus; systemctl --no-block stop container@web")?;
    until("its end after the bus was restarted", &last_is("\"Exited\""))?;
    host.ok("systemctl daemon-reexec; systemctl --no-block start container@web")?;
    until(
        "its start after systemd was started anew",
        &last_is("\"Running\""),
    )?;
    // Nothing happens: nobody looks.
    let count = || host.ok("sleep 2; wc -l </run/seen");
    let (before, after) = (count()?, count()?);
    ensure(before == after, format!("{before} looks became {after}"))?;
    ensure(watching.ended()?.is_none(), "it watches to the end")?;
    watching.kill()?;
    Ok(())
}

fn many() -> Outcome {
    let names: Vec<_> = (0..MANY).map(|number| format!("c{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let host = host(&names, "no")?;
    // They run without systemd-nspawn: a look at units need not know.
    let start = format!(
        "sed -i 's/^exec systemd-nspawn.*/exec unshare --pid --fork sleep infinity/; /^  --kill/d' /run/run
         sed -i s/Type=notify/Type=exec/ /run/systemd/system/container@*.service
         systemctl start $(for i in $(seq 0 {}); do echo container@c$i; done)",
        MANY - 1
    );
    let started = host.run_within(&start, Duration::from_secs(300))?;
    ensure(started.status == 0, format!("{started:?}"))?;
    let Output { stdout, .. } = host.run_within("/run/look cost", Duration::from_secs(300))?;
    let cost: Value = serde_json::from_str(&stdout)?;
    ensure(cost["running"] == MANY, format!("{cost}"))?;
    // The look after the first asks for nothing but the list.
    let again_and_more = cost["again_ms"].as_u64().map(|ms| 2 * ms);
    ensure(again_and_more < cost["first_ms"].as_u64(), format!("{cost}"))
}

// ---- on the machine ------------------------------------------------------------------------------------------

/// Looks as the arguments say, and prints what it saw as JSON.
#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program, for these tests"
)]
pub(crate) fn probe() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _entered = runtime.enter();
    let leaf = LeafName::new(LEAF).expect("a leaf");
    let containers = Containers::new(leaf.clone(), HostPaths::new(&leaf), Runtime::Systemd);
    let name = |name: &str| ContainerName::new(name).expect("a name");
    let answer = match arguments[..] {
        ["observe"] => containers.observe().map(|seen| json!(seen.containers)),
        ["unobserved"] => containers.observe().map(|seen| {
            let errors = seen.unobserved.iter();
            errors
                .map(|(name, error)| (name.to_string(), json!(leaf_core::error::chain(error))))
                .collect()
        }),
        ["foreign"] => containers.foreign().map(|seen| json!(seen.containers)),
        ["stats", of] => containers.stats(&name(of)).map(|seen| json!(seen)),
        ["logs", of, lines, ref more @ ..] => {
            let query = LogQuery {
                name: name(of),
                lines: lines.parse().expect("a number"),
                cursor: more
                    .first()
                    .filter(|text| !text.is_empty())
                    .map(|text| (*text).to_owned()),
                since: more.get(1).map(|since| since.parse().expect("a time")),
            };
            containers.logs(&query, 1 << 16).map(|log| json!(log))
        }
        ["watch"] => watch(&runtime, &containers),
        ["cost"] => cost(&containers),
        _ => panic!("what is {arguments:?}?"),
    };
    match answer {
        Ok(seen) => {
            println!("{seen}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{:?}: {}", error.kind(), leaf_core::error::chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Looks whenever there is a hint, and while something is on its way; for ever.
#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program, for these tests"
)]
fn watch(
    runtime: &tokio::runtime::Runtime,
    containers: &Containers,
) -> Result<Value, leaf_container::ObserveError> {
    let mut hints = containers.watch()?;
    loop {
        let mut patience = Duration::MAX;
        match containers.observe() {
            Ok(seen) => {
                println!("{}", json!(seen.containers));
                if !seen.moving.is_empty() {
                    patience = Duration::from_millis(300);
                }
            }
            Err(error) => eprintln!("{}", leaf_core::error::chain(&error)),
        }
        let hint = async { tokio::time::timeout(patience, hints.changed()).await };
        if let Ok(hint) = runtime.block_on(hint) {
            hint?;
        }
    }
}

/// What a first and a second look at all cost.
fn cost(containers: &Containers) -> Result<Value, leaf_container::ObserveError> {
    let start = std::time::Instant::now();
    let seen = containers.observe()?;
    let first = start.elapsed();
    let start = std::time::Instant::now();
    containers.observe()?;
    let again = start.elapsed();
    let running = seen
        .containers
        .values()
        .filter(|one| matches!(one.run, leaf_core::container::ObservedRun::Running { .. }))
        .count();
    Ok(json!({
        "running": running,
        "first_ms": first.as_millis() as u64,
        "again_ms": again.as_millis() as u64,
    }))
}

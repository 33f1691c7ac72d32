//! Commands: what comes back, and what becomes of one that does not end.

use std::time::{Duration, Instant};

use testhost::{Host, Output};

use crate::{Outcome, Trials, ensure};

pub(crate) const TRIALS: Trials = &[
    (
        "a_command_returns_its_output_its_errors_and_its_exit_code",
        what_comes_back,
    ),
    (
        "a_command_that_takes_too_long_is_killed_with_its_children_and_its_output_is_reported",
        too_long,
    ),
    ("commands_run_concurrently", beside_each_other),
    ("nix_builds_offline_and_sandboxed_on_the_host", nix_builds),
];

fn what_comes_back() -> Outcome {
    let host = Host::restore()?;
    let output = host.run("echo out; echo err >&2; exit 7")?;
    let expected = Output {
        status: 7,
        stdout: "out\n".to_owned(),
        stderr: "err\n".to_owned(),
    };
    ensure(output == expected, format!("{output:?}"))?;
    let killed = host.run("kill -KILL $$")?;
    ensure(killed.status == 128 + 9, format!("{killed:?}"))?;
    let long = host.ok("seq 200000")?;
    ensure(long.lines().count() == 200_000, "a long output is whole")?;
    let error = host.ok("echo reason >&2; false").expect_err("it ends with 1");
    ensure(error.to_string().contains("reason"), error.to_string())?;
    let state = host.run("systemctl is-system-running")?;
    ensure(state.stdout == "running\n", format!("{state:?}"))
}

fn too_long() -> Outcome {
    let host = Host::restore()?;
    let since = Instant::now();
    let error = host
        .run_within(
            "echo so far; (trap '' TERM; sleep 1234) & sleep 1234",
            Duration::from_secs(2),
        )
        .expect_err("it does not end by itself");
    let text = format!("{error:#}");
    ensure(
        text.contains("so far") && text.contains("did not end within 2"),
        &text,
    )?;
    ensure(
        since.elapsed() < Duration::from_secs(90),
        "it was waited for longer than it may take",
    )?;
    let left = host.run("pgrep --full 'slee[p] 1234'")?;
    ensure(left.status == 1, format!("left behind: {left:?}"))
}

fn beside_each_other() -> Outcome {
    let host = Host::restore()?;
    let waits = host.start("until [ -e /run/go ]; do sleep 0.05; done; echo went")?;
    ensure(waits.ended()?.is_none(), "it waits")?;
    host.ok("touch /run/go")?;
    let output = waits.wait()?;
    ensure(output.stdout == "went\n", format!("{output:?}"))?;
    let endless = host.start("sleep infinity")?;
    let killed = endless.kill()?;
    ensure(killed.status != 0, format!("{killed:?}"))
}

fn nix_builds() -> Outcome {
    let host = Host::restore()?;
    // What the builder sees of the machine: no network but its own, and not the machine's files.
    let expression = r#"derivation {
        name = "seen"; system = "x86_64-linux"; builder = "/bin/sh";
        args = [ "-c" "(cat /proc/net/dev; ls -d /etc/nix /root; id -u) > $out 2>&1; true" ];
        PATH = "/bin";
    }"#;
    host.put(expression.as_bytes(), "/root/seen.nix", "0644")?;
    let by_daemon = "NIX_REMOTE=daemon nix build --no-link --print-out-paths --file /root/seen.nix";
    let path = host.ok(&format!(
        "runuser -u nobody -- env {by_daemon} 2>/dev/null || {by_daemon}"
    ))?;
    ensure(path.starts_with("/nix/store/"), &path)?;
    let seen = host.ok(&format!("cat {path}"))?;
    ensure(
        !seen.contains("eth0"),
        format!("the builder sees the network: {seen}"),
    )?;
    let checked = host.run("nix build --no-link --expr 'builtins.fetchurl http://10.0.2.2:9/'")?;
    ensure(checked.status != 0, "nothing can be fetched")
}

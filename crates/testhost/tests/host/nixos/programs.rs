//! `leafctl nix run` on a NixOS host: the program is a unit of systemd, under a user that systemd makes for it.

use anyhow::ensure;
use testhost::nixos::Systems;

use super::{SLOW, leaf_on_nixos};
use crate::{Outcome, Trials};

pub(crate) const TRIALS: Trials = &[(
    "a_nixos_host_runs_a_program_under_a_user_of_its_own_and_keeps_nothing_of_it",
    runs,
)];

fn runs() -> Outcome {
    let systems = Systems::here()?;
    let leaf = leaf_on_nixos(&systems)?;
    let host = &leaf.host;
    host.ok("ssh-keygen -q -t ed25519 -N '' -C '' -f /root/key && \
             echo \"admin $(cat /root/key.pub)\" >/var/lib/test-signers && chmod 644 /var/lib/test-signers")?;
    let run = |options: &str, script: &str| {
        host.run_within(
            &format!(
                "package=$(dirname $(dirname $(readlink -f $(command -v leafctl)))); \
                 LEAFCTL_SIGN_WITH=/root/key leafctl --timeout 60s nix run {options} $package -- /run/current-system/sw/bin/sh -c '{script}'"
            ),
            SLOW,
        )
    };
    let script = "id -un; id -u; echo $HOME; echo x >$HOME/x && cat $HOME/x; cat /var/lib/cim-leaf/journal.redb; exit 3";
    for options in ["--record", ""] {
        let ran = run(options, script)?;
        let said = format!("{ran:?}\n{}", log(&leaf)?);
        ensure!(ran.status == 3, "{said}");
        let lines: Vec<&str> = ran.stdout.lines().collect();
        ensure!(lines.len() == 4 && lines[3] == "x", "{said}");
        let user: u32 = lines[1].parse()?;
        ensure!((61184..=65519).contains(&user), "a dynamic user: {said}");
        ensure!(ran.stderr.contains("ermission denied"), "{said}");
    }
    host.ok("! ls -d /run/cim-leaf-jobs/*/home 2>/dev/null; ! systemctl list-units --no-legend 'leaf-program*' | grep running")?;
    Ok(())
}

fn log(leaf: &crate::leaf::Leaf) -> anyhow::Result<String> {
    let output = leaf
        .host
        .run("journalctl --no-pager -o cat -n 60 -u leaf-helper -u leafd -u 'leaf-*'")?;
    Ok(output.stdout)
}

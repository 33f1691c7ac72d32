//! Builds by `leafctl`, compared with Nix alone.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, anyhow};

use super::leaf::Measured;
use super::numbers::{Row, Target, median, ms};
use super::programs::Programs;
use super::timing::{in_turn, timed};
use crate::build_shell::BUILD_SHELL;

/// The number of tiny derivations.
const TINY: usize = 100;

const BUILD: &str = r#"shell: derivation {
  name = "cim-leaf-bench";
  system = builtins.currentSystem;
  inherit (shell) builder;
  args = shell.args ++ [ "echo built > $out" ];
  allowSubstitutes = false;
}
"#;

/// Derivations of which each is new, and one that needs all of them. No binary cache is asked for them, here as above: it would be
/// the network that is measured.
const MANY: &str = r#"shell:
let
  tiny = name: needs: derivation {
    inherit name needs;
    system = builtins.currentSystem;
    inherit (shell) builder;
    args = shell.args ++ [ "echo built > $out" ];
    allowSubstitutes = false;
  };
in
tiny "cim-leaf-bench-UNIQUE" (builtins.genList (nth: tiny "cim-leaf-bench-UNIQUE-${toString nth}" [ ]) COUNT)
"#;

/// Builds of something built before, and of a hundred tiny derivations.
pub(super) fn measure(programs: &Programs, rounds: usize) -> Result<Vec<Row>> {
    let leaf = Measured::start(programs)?;
    leaf.wait_published()?;
    let rows = vec![
        nothing_new(programs, &leaf, rounds)?,
        tiny(programs, &leaf, rounds)?,
    ];
    leaf.stop()?;
    Ok(rows)
}

fn nothing_new(programs: &Programs, leaf: &Measured, rounds: usize) -> Result<Row> {
    let file = write_build(leaf.directory())?;
    let link = leaf.directory().join("result");
    let mut leafctl = leaf.leafctl();
    leafctl.args(["nix", "build", "--file"]).arg(&file);
    let mut nix_build = nix(programs, "build");
    nix_build.arg("--file").arg(&file).arg("--out-link").arg(&link);
    let mut path_info = nix(programs, "path-info");
    path_info.arg("-S").arg(&link);
    // The first run of each builds it and fills caches.
    for _ in 0..2 {
        timed(&mut leafctl)?;
        timed(&mut nix_build)?;
        timed(&mut path_info)?;
    }
    let times = in_turn(
        rounds * 3,
        &mut [&mut || timed(&mut leafctl), &mut || {
            Ok(timed(&mut nix_build)? + timed(&mut path_info)?)
        }],
    )?;
    let [leaf, nix] = [0, 1].map(|which| median(&times[which]));
    Ok(Row::report(
        "`leafctl nix build` of something built before, compared with `nix build` and `nix path-info -S`",
        ms(leaf),
    )
    .against(ms(nix), leaf / nix)
    .target(Target::AtMost(1.2)))
}

fn tiny(programs: &Programs, leaf: &Measured, rounds: usize) -> Result<Row> {
    let link = leaf.directory().join("result-of-many");
    let mut count = 0;
    let mut fresh = || -> Result<String> {
        count += 1;
        let unique = format!("{}-{count}", std::process::id());
        let many = MANY
            .replace("UNIQUE", &unique)
            .replace("COUNT", &TINY.to_string());
        write(
            leaf.directory(),
            &format!("many-{count}.nix"),
            &format!("({many}) {BUILD_SHELL}"),
        )
    };
    let mut by_leafctl = Vec::new();
    let mut by_nix = Vec::new();
    // The first round fills caches.
    for round in 0..=rounds {
        let mut leafctl = leaf.leafctl();
        leafctl.args(["nix", "build", "--file"]).arg(fresh()?);
        let own = timed(&mut leafctl)?;
        let mut bare = nix(programs, "build");
        bare.arg("--file").arg(fresh()?).arg("--out-link").arg(&link);
        let other = timed(&mut bare)?;
        if round > 0 {
            by_leafctl.push(own);
            by_nix.push(other);
        }
    }
    let (leaf, nix) = (median(&by_leafctl), median(&by_nix));
    Ok(Row::report(
        format!("`leafctl nix build` of {TINY} tiny derivations, compared with `nix build`"),
        ms(leaf),
    )
    .against(ms(nix), leaf / nix)
    .target(Target::AtMost(1.05)))
}

fn nix(programs: &Programs, verb: &str) -> Command {
    let mut nix = Command::new(&programs.nix);
    nix.args([verb, "--extra-experimental-features", "nix-command flakes"]);
    // Where the group of build users is missing, root itself builds, as leafd has it.
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    if !groups.lines().any(|group| group.starts_with("nixbld:")) {
        nix.args(["--option", "build-users-group", ""]);
    }
    nix
}

/// Writes what is built, and returns its path.
pub(super) fn write_build(directory: &Path) -> Result<String> {
    write(directory, "built.nix", &format!("({BUILD}) {BUILD_SHELL}"))
}

fn write(directory: &Path, name: &str, text: &str) -> Result<String> {
    let file = directory.join(name);
    std::fs::write(&file, text).with_context(|| format!("can't write {}", file.display()))?;
    file.into_os_string()
        .into_string()
        .map_err(|_| anyhow!("the temporary directory's name is not UTF-8"))
}

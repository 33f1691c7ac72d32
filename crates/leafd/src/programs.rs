//! Finds the programs and files that are installed with `leafd`.

use std::path::{Path, PathBuf};

use leaf_host::program;

/// Returns the program named by a setting, or the one beside `leafd`, or the one on `PATH`.
#[must_use]
pub fn find(setting: Option<&Path>, name: &str) -> Option<PathBuf> {
    if let Some(path) = setting {
        return if path.components().count() > 1 {
            Some(path.to_owned())
        } else {
            program::find(path)
        };
    }
    let beside = beside_leafd()
        .map(|dir| dir.join(name))
        .filter(|program| program.is_file());
    beside.or_else(|| program::find(name))
}

/// Returns the directory of the container templates: the setting, or `share/cim-leaf/containers` of the installation, or
/// `containers` of the checkout in whose `target` the program was built.
#[must_use]
pub fn templates(setting: Option<&Path>) -> Option<PathBuf> {
    match setting {
        Some(path) => Some(path.to_owned()),
        None => templates_of(&beside_leafd()?),
    }
}

/// Returns the templates that belong to a program in a directory.
fn templates_of(programs: &Path) -> Option<PathBuf> {
    let installed = programs.parent()?.join("share/cim-leaf/containers");
    // `target/debug`, or `target/TRIPLE/debug`.
    let mut targets = programs.ancestors().skip(1).take(2);
    let target = targets.find(|directory| directory.ends_with("target"));
    let checkout = target
        .and_then(Path::parent)
        .filter(|root| root.join("Cargo.toml").is_file());
    let built = checkout.map(|root| root.join("containers"));
    [Some(installed), built]
        .into_iter()
        .flatten()
        .find(|dir| dir.is_dir())
}

fn beside_leafd() -> Option<PathBuf> {
    Some(std::env::current_exe().ok()?.parent()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_found_beside_an_installed_program_and_in_the_checkout() {
        let root = tempfile::tempdir().expect("a directory");
        let make = |path: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(&path).expect("a directory");
            path
        };
        let (bin, debug, cross) = (
            make("usr/bin"),
            make("src/target/debug"),
            make("src/target/arm/debug"),
        );
        let containers = make("src/containers");
        assert_eq!([&bin, &debug].map(|dir| templates_of(dir)), [None, None]);
        std::fs::write(root.path().join("src/Cargo.toml"), "").expect("written");
        assert_eq!(
            [&debug, &cross].map(|dir| templates_of(dir)),
            [Some(containers.clone()), Some(containers)]
        );
        assert_eq!(templates_of(&bin), None);
        let installed = make("usr/share/cim-leaf/containers");
        assert_eq!(templates_of(&bin), Some(installed));
    }
}

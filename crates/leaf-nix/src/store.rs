//! Adds store paths that callers sent, as `docs/protocol/transfers.md` says: what the store lacks, adding, and holding.
//!
//! Nix adds them from a directory that has the form of a binary cache. So it compares hashes and content addresses, and asks for the
//! signature of a trusted key where a name does not follow from the contents. Nothing here switches that off.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::Duration;

use leaf_core::error::chain;
use leaf_core::id::StorePath;
use leaf_core::transfer::SentPath;
use leaf_host::process::{self, Bounds};
use tokio::process::Command;

use crate::NixError;
use crate::nix::Nix;

/// The bounds of looking and of holding.
const SHORT: Bounds = Bounds {
    time: Duration::from_secs(120),
    stdout_bytes: 1 << 20,
    stderr_bytes: 8 << 10,
};
/// The bounds of adding: gigabytes on a slow disk.
const LONG: Bounds = Bounds {
    time: Duration::from_secs(2 * 3600),
    ..SHORT
};

/// Returns the name of the file with the NAR of the path with this number, in the directory of a binary cache.
#[must_use]
pub fn nar_name(number: usize) -> String {
    format!("{number}.nar")
}

/// Writes the descriptions of a binary cache in a directory in which the NARs are.
///
/// # Errors
/// A file can't be written.
pub fn write_cache(directory: &Path, paths: &[SentPath]) -> io::Result<()> {
    fs::write(directory.join("nix-cache-info"), "StoreDir: /nix/store\n")?;
    for (number, sent) in paths.iter().enumerate() {
        let hash = base_name(&sent.path).split('-').next().unwrap_or_default();
        fs::write(directory.join(format!("{hash}.narinfo")), narinfo(number, sent))?;
    }
    Ok(())
}

/// Returns the description of a path. All texts in it are checked: none has a line feed.
fn narinfo(number: usize, sent: &SentPath) -> String {
    let references: Vec<&str> = sent.references.iter().map(base_name).collect();
    let mut text = format!(
        "StorePath: {}\nURL: {}\nCompression: none\nNarHash: sha256:{}\nNarSize: {}\nReferences: {}\n",
        sent.path,
        nar_name(number),
        sent.nar_sha256().unwrap_or_default(),
        sent.nar_size,
        references.join(" ")
    );
    if let Some(address) = &sent.content_address {
        writeln!(text, "CA: {address}").expect("writing to a String can't fail");
    }
    for signature in &sent.signatures {
        writeln!(text, "Sig: {signature}").expect("writing to a String can't fail");
    }
    text
}

fn base_name(path: &StorePath) -> &str {
    path.as_str().trim_start_matches("/nix/store/")
}

fn is_derivation(path: &StorePath) -> bool {
    path.as_str().ends_with(".drv")
}

impl Nix {
    /// Returns those of these paths that are not in the store.
    ///
    /// # Errors
    /// [`NixError::Store`].
    pub async fn lacking<'a>(
        &self,
        paths: impl IntoIterator<Item = &'a StorePath>,
    ) -> Result<BTreeSet<StorePath>, NixError> {
        let mut command = self.store_command("nix-store");
        command.args(["--check-validity", "--print-invalid"]);
        command.args(paths.into_iter().map(StorePath::as_str));
        let stdout = run("can't look into the store", command, SHORT).await?;
        let lines = stdout.lines().filter(|line| !line.trim().is_empty());
        let paths = lines.map(|line| StorePath::new(line.trim()));
        paths.collect::<Result<_, _>>().map_err(|error| NixError::Store {
            what: "can't look into the store",
            why: error.to_string(),
        })
    }

    /// Adds paths from a binary cache in a directory, without what they refer to.
    ///
    /// # Errors
    /// [`NixError::Store`]: Nix finds another hash or no signature that it trusts, lacks what a path refers to, or the disk is full.
    pub async fn add_from(&self, directory: &Path, paths: &[SentPath]) -> Result<(), NixError> {
        let (derivations, others): (Vec<&StorePath>, _) = paths
            .iter()
            .map(|sent| &sent.path)
            .partition(|path| is_derivation(path));
        for (paths, flags) in [(others, &[][..]), (derivations, &["--derivation"])] {
            if paths.is_empty() {
                continue;
            }
            let mut command = self.store_command("nix");
            command.args(["copy", "--extra-experimental-features", "nix-command"]);
            // Without the flag, a derivation would mean its outputs, and be built.
            command.args(flags).args(["--no-recursive", "--from"]);
            command.arg(format!("file://{}", directory.display()));
            command.arg("--").args(paths.iter().map(|path| path.as_str()));
            run("can't add the paths to the store", command, LONG).await?;
        }
        Ok(())
    }

    /// Holds paths of the store by links in a directory, which become roots of the garbage collector. Derivations are left out: Nix has
    /// no way to hold one that neither builds it nor evaluates something.
    ///
    /// # Errors
    /// [`NixError::Store`]: a path is not in the store, or a link can't be made.
    pub async fn hold(&self, directory: &Path, paths: &[StorePath]) -> Result<(), NixError> {
        let failed = |error: io::Error| NixError::Store {
            what: "can't hold the paths in the store",
            why: format!("{}: {error}", directory.display()),
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed)?;
        let others: Vec<&StorePath> = paths.iter().filter(|path| !is_derivation(path)).collect();
        if !others.is_empty() {
            let mut command = self.store_command("nix-store");
            command
                .arg("--realise")
                .args(others.iter().map(|path| path.as_str()));
            command.arg("--add-root").arg(directory.join("path"));
            run("can't hold the paths in the store", command, SHORT).await?;
        }
        Ok(())
    }

    fn store_command(&self, program: &str) -> Command {
        let mut command = Command::new(match program {
            "nix" => self.0.nix.clone(),
            other => self.0.nix.with_file_name(other),
        });
        for (name, value) in &self.0.options {
            command.args(["--option", name, value]);
        }
        command
    }
}

/// Runs a program, and returns its output.
async fn run(what: &'static str, command: Command, bounds: Bounds) -> Result<String, NixError> {
    let failed = |why: String| NixError::Store { what, why };
    let output = process::run(command, b"", bounds)
        .await
        .map_err(|error| failed(chain(&error)))?;
    if !output.status.success() {
        let errors: Vec<&str> = output
            .stderr
            .lines()
            .map(str::trim)
            .skip_while(|line| !line.starts_with("error"))
            .take(4)
            .collect();
        return Err(failed(if errors.is_empty() {
            output.failure()
        } else {
            errors.join(" ")
        }));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_has_what_nix_compares() {
        let path = |name: &str| {
            StorePath::new(format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{name}")).expect("a path")
        };
        let mut sent = SentPath {
            path: path("a"),
            nar_hash: "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned(),
            nar_size: 120,
            references: vec![path("b"), path("c")],
            content_address: None,
            signatures: Vec::new(),
        };
        let zeros = "0".repeat(64);
        let bare = format!(
            "StorePath: /nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a\nURL: 3.nar\nCompression: none\nNarHash: sha256:{zeros}\n\
             NarSize: 120\nReferences: 00bgd045z0d4icpbc2yyz4gx48ak44la-b 00bgd045z0d4icpbc2yyz4gx48ak44la-c\n"
        );
        assert_eq!(narinfo(3, &sent), bare);
        sent.content_address = Some("text:sha256:x".to_owned());
        sent.signatures = vec!["k:1".to_owned(), "l:2".to_owned()];
        assert_eq!(
            narinfo(3, &sent),
            format!("{bare}CA: text:sha256:x\nSig: k:1\nSig: l:2\n")
        );
    }
}

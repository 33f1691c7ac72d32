//! Finds the `nats-server` program and checks its version.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaf_host::process::{self, Bounds};
use leaf_host::program;
use tokio::process::Command;

use super::EmbeddedError;

/// The environment variable with the program's path.
pub const NATS_SERVER_VARIABLE: &str = "CIM_LEAF_NATS_SERVER";

/// The oldest supported release, as (major, minor).
const OLDEST: (u32, u32) = (2, 12);

/// A `nats-server` program of a supported version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsServer {
    /// The program's path.
    pub path: PathBuf,
    /// The program's version: `2.15.1`.
    pub version: String,
}

impl NatsServer {
    /// Returns the given program, otherwise the one in `CIM_LEAF_NATS_SERVER`, otherwise the first on `PATH` of version
    /// 2.12 or newer (Debian's own may be older).
    ///
    /// # Errors
    /// [`EmbeddedError`], with the program that was found and what to do.
    pub async fn find(named: Option<&Path>) -> Result<Self, EmbeddedError> {
        let variable = std::env::var_os(NATS_SERVER_VARIABLE);
        let path = std::env::var_os("PATH").unwrap_or_default();
        Self::find_in(named, variable.as_deref(), &path).await
    }

    async fn find_in(
        named: Option<&Path>,
        variable: Option<&OsStr>,
        search_path: &OsStr,
    ) -> Result<Self, EmbeddedError> {
        let variable = variable.filter(|v| !v.is_empty()).map(Path::new);
        if let Some(path) = named.or(variable) {
            return Self::ask(path).await;
        }
        let mut first_error = None;
        for path in program::find_all_in(search_path, "nats-server") {
            match Self::ask(&path).await {
                Ok(found) => return Ok(found),
                Err(e) => first_error = first_error.or(Some(e)),
            }
        }
        Err(first_error.unwrap_or(EmbeddedError::NoServer))
    }

    /// Runs the program to read its version.
    async fn ask(path: &Path) -> Result<Self, EmbeddedError> {
        let mut command = Command::new(path);
        command.arg("--version");
        let output = process::run(command, b"", Bounds::of_time(Duration::from_secs(20)))
            .await
            .map_err(|source| EmbeddedError::Version {
                path: path.to_owned(),
                source,
            })?;
        if !output.status.success() {
            return Err(EmbeddedError::Fails {
                path: path.to_owned(),
                why: output.failure().chars().take(200).collect(),
            });
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let Some((version, number)) = parse_version(&text) else {
            return Err(EmbeddedError::NotNatsServer {
                path: path.to_owned(),
                output: text.trim().chars().take(200).collect(),
            });
        };
        if number < OLDEST {
            return Err(EmbeddedError::TooOld {
                path: path.to_owned(),
                version,
            });
        }
        Ok(Self {
            path: path.to_owned(),
            version,
        })
    }
}

/// Parses `nats-server: v2.15.1`.
fn parse_version(output: &str) -> Option<(String, (u32, u32))> {
    let version = output.trim().strip_prefix("nats-server:")?.trim();
    let version = version.strip_prefix('v').unwrap_or(version);
    let mut parts = version.split('.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?.parse().ok()?;
    Some((version.to_owned(), (major, minor)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell writes the file, so that no fork in another thread holds it open for writing when it is executed.
    fn script(dir: &Path, says: &str) -> PathBuf {
        let path = dir.join("nats-server");
        std::fs::create_dir_all(dir).expect("a directory");
        let status = std::process::Command::new("/bin/sh")
            .args([
                "-c",
                "printf '#!/bin/sh\\necho \"%s\"\\n' \"$1\" > \"$0\" && chmod 755 \"$0\"",
            ])
            .arg(&path)
            .arg(says)
            .status();
        assert!(status.expect("a shell").success());
        path
    }

    #[test]
    fn a_version_is_read_with_or_without_v() {
        assert_eq!(
            parse_version("nats-server: v2.15.1\n"),
            Some(("2.15.1".into(), (2, 15)))
        );
        assert_eq!(
            parse_version("nats-server: 2.12.0-RC.1"),
            Some(("2.12.0-RC.1".into(), (2, 12)))
        );
        assert_eq!(parse_version("busybox"), None);
    }

    #[tokio::test]
    async fn without_a_server_the_error_says_what_to_do() {
        let empty = tempfile::tempdir().expect("a directory");
        let error = NatsServer::find_in(None, None, empty.path().as_os_str())
            .await
            .expect_err("nothing is there")
            .to_string();
        assert!(
            error.contains(NATS_SERVER_VARIABLE) && error.contains("2.12"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn an_old_server_on_path_is_passed_over_and_named_if_there_is_no_other() {
        let dir = tempfile::tempdir().expect("a directory");
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        script(&old, "nats-server: v2.9.10");
        let path = script(&new, "nats-server: v2.12.3");
        let both = std::env::join_paths([&old, &new]).expect("a search path");
        let found = NatsServer::find_in(None, None, &both).await.expect("the newer");
        assert_eq!((found.path, found.version.as_str()), (path, "2.12.3"));
        let error = NatsServer::find_in(None, None, old.as_os_str())
            .await
            .expect_err("too old")
            .to_string();
        assert!(error.contains("2.9.10") && error.contains("2.12"), "{error}");
    }

    #[tokio::test]
    async fn a_program_named_on_purpose_is_the_only_one_tried() {
        let dir = tempfile::tempdir().expect("a directory");
        let good = script(&dir.path().join("good"), "nats-server: v2.15.1");
        let other = script(&dir.path().join("other"), "hello");
        let found = NatsServer::find_in(Some(&other), Some(good.as_os_str()), OsStr::new("")).await;
        assert!(
            matches!(&found, Err(EmbeddedError::NotNatsServer { output, .. }) if output == "hello"),
            "{found:?}"
        );
        let gone = dir.path().join("gone");
        let found = NatsServer::find_in(None, Some(gone.as_os_str()), OsStr::new("")).await;
        assert!(matches!(&found, Err(EmbeddedError::Version { .. })), "{found:?}");
    }
}

//! Signs with the user's own `gpg`, whose agent asks for passphrases, PINs and touches.

use std::process::Stdio;

use leaf_core::printable::printable_line;
use leaf_core::signed::NAMESPACE;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// What the value of `--sign-with` begins with where it names a key of `gpg`.
const PREFIX: &str = "gpg:";

/// A key of `gpg`, by its fingerprint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GpgKey {
    fingerprint: String,
    /// Whether it is to be this key exactly, and not a subkey that gpg chooses (`!`).
    is_exact: bool,
}

/// Why `gpg` did not sign.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GpgError {
    /// It names no key.
    #[error(
        "{PREFIX} must be followed by a key's fingerprint of 40 hexadecimal digits, as `gpg --list-keys` shows it, and is followed by {0:?}"
    )]
    Fingerprint(String),
    /// It can't be run.
    #[error("can't run gpg")]
    Run(#[source] std::io::Error),
    /// It failed.
    #[error("gpg made no signature: {0}")]
    Failed(String),
}

impl GpgKey {
    /// Returns the key that a value of `--sign-with` names; `None` if that names none of `gpg`.
    ///
    /// # Errors
    /// [`GpgError::Fingerprint`].
    pub(crate) fn of(sign_with: &str) -> Result<Option<Self>, GpgError> {
        let Some(given) = sign_with.strip_prefix(PREFIX) else {
            return Ok(None);
        };
        let digits: String = given.split_ascii_whitespace().collect();
        let exact = digits.strip_suffix('!');
        let fingerprint = exact.unwrap_or(&digits).to_ascii_uppercase();
        if fingerprint.len() != 40 || !fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(GpgError::Fingerprint(given.to_owned()));
        }
        Ok(Some(Self {
            fingerprint,
            is_exact: exact.is_some(),
        }))
    }

    /// Returns the fingerprint as a leaf shows it: `pgp:…`.
    pub(crate) fn shown(&self) -> String {
        format!("pgp:{}", self.fingerprint)
    }

    /// Has `gpg` sign a text, and returns the detached signature. It may take as long as a person needs.
    ///
    /// # Errors
    /// [`GpgError::Run`] or [`GpgError::Failed`].
    pub(crate) async fn sign(&self, text: &[u8]) -> Result<Vec<u8>, GpgError> {
        let key = format!("{}{}", self.fingerprint, if self.is_exact { "!" } else { "" });
        let notation = format!("{NAMESPACE}=1");
        let mut gpg = Command::new("gpg")
            .args([
                "--batch",
                "--quiet",
                "--no-armor",
                "--no-textmode",
                "--digest-algo",
                "SHA512",
            ])
            .args(["--sig-notation", &notation, "--local-user", &key, "--detach-sign"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(GpgError::Run)?;
        if let Some(mut input) = gpg.stdin.take() {
            // It may end before it has read all, and then says why.
            let _ = input.write_all(text).await;
        }
        let output = gpg.wait_with_output().await.map_err(GpgError::Run)?;
        if !output.status.success() || output.stdout.is_empty() {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().rev().find(|line| !line.trim().is_empty());
            return Err(GpgError::Failed(last.map_or_else(
                || output.status.to_string(),
                |line| printable_line(line).to_string(),
            )));
        }
        Ok(output.stdout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_gpg_is_named_by_its_whole_fingerprint() {
        let digits = "0123456789abcdef0123456789ABCDEF01234567";
        for (given, is_exact) in [
            (digits.to_owned(), false),
            (format!("{digits}!"), true),
            (format!("{} {}", &digits[..20], &digits[20..]), false),
        ] {
            let key = GpgKey::of(&format!("gpg:{given}"))
                .expect("a fingerprint")
                .expect("of gpg");
            assert_eq!(
                (key.shown(), key.is_exact),
                (format!("pgp:{}", digits.to_uppercase()), is_exact)
            );
        }
        assert_eq!(GpgKey::of("/home/ann/.ssh/id_ed25519").expect("a file"), None);
        for given in [
            "",
            "ann",
            "0123456789ABCDEF",
            &format!("{digits}0"),
            &format!("-{}", &digits[1..]),
        ] {
            assert!(GpgKey::of(&format!("gpg:{given}")).is_err(), "{given}");
        }
    }
}

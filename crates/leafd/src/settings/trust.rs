//! The settings `[trust]`: who may sign commands, and which commands must be signed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use leaf_core::id::Caller;
use leaf_core::signed::CommandRules;
use leaf_host::settings_file::SettingsError;
use serde::{Deserialize, Serialize};

/// Who may sign commands, and which commands must be signed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrustSettings {
    /// The file of the keys that may sign, and for whom, in the form of `ssh-keygen -Y verify`. Without it no signature is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_signers: Option<PathBuf>,
    /// The file of the keys that may not sign any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_signers: Option<PathBuf>,
    /// The file of the OpenPGP keys that may sign, and for whom. It has an effect where leafd was built with the cargo feature `openpgp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_openpgp: Option<PathBuf>,
    /// Whether the leaf's clock can be trusted.
    pub clock: ClockTrust,
    /// The commands that must be signed: powers (`runs-code`), commands (`container.destroy`), or all commands of a noun (`container.*`).
    /// By default those of the powers that always must be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require_signature: Option<Vec<String>>,
    /// Callers, each with the powers that it is named for: `runs-code`, `cuts-off`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub callers: BTreeMap<Caller, Vec<String>>,
}

/// Whether a leaf's clock can be trusted. Where it can't be, a signature needs a nonce of the leaf.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClockTrust {
    /// While systemd-timedated says that it is synchronized.
    #[default]
    Auto,
    /// It can.
    Trusted,
    /// It can't.
    Untrusted,
}

impl TrustSettings {
    /// Returns which commands must be signed, and which take a caller who is named for them.
    ///
    /// # Errors
    /// [`SettingsError::Value`].
    pub fn rules(&self) -> Result<CommandRules, SettingsError> {
        let rules = CommandRules::new(self.require_signature.as_deref(), &self.callers)
            .map_err(|error| SettingsError::value("trust", error.to_string()))?;
        Ok(if self.lets_keys_sign() {
            rules
        } else {
            rules.without_signers()
        })
    }

    /// Returns whether a file of keys is named that this leafd reads.
    fn lets_keys_sign(&self) -> bool {
        self.allowed_signers.is_some() || cfg!(feature = "openpgp") && self.allowed_openpgp.is_some()
    }

    pub(super) fn check(&self) -> Result<(), SettingsError> {
        let files = [
            ("trust.allowed_signers", self.allowed_signers.as_deref()),
            ("trust.allowed_openpgp", self.allowed_openpgp.as_deref()),
            ("trust.revoked_signers", self.revoked_signers.as_deref()),
        ];
        for (place, path) in files {
            if path.is_some_and(|path: &Path| !path.is_absolute()) {
                return Err(SettingsError::value(place, "is not an absolute path"));
            }
        }
        if self.revoked_signers.is_some() && self.allowed_signers.is_none() && self.allowed_openpgp.is_none()
        {
            let why = "needs trust.allowed_signers: without it no key may sign";
            return Err(SettingsError::value("trust.revoked_signers", why));
        }
        self.rules().map(drop)
    }
}

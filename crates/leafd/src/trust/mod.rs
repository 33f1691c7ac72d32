//! Whether a command comes from the person that it says it does: signatures, the files that say who may sign, and nonces.
//!
//! [`Trust::judge`] runs in the task that takes commands, so that the main loop pays for no signature. `docs/security.md` is the contract.

mod signature;
mod signers;

use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64;
use jiff::Timestamp;
use leaf_bus::serve::{Incoming, SignedHeaders};
use leaf_core::command::Challenge;
use leaf_core::error::chain;
use leaf_core::id::{Caller, LeafName};
use leaf_core::runtime::Runtime;
use leaf_core::signed::{
    CommandRules, Freshness, NonceKey, Provenance, RefusedSignature, SIGNATURE_HEADER, SSH_KIND, Sent,
    SignedText, TEXT_HEADER,
};
use leaf_host::systemd::{Patience, Systemd};
use leaf_journal::Journal;
use leaf_trust::allowed_signers::When;
use tokio::sync::watch;

use crate::settings::{ClockTrust, TrustSettings};
use signature::Signature;
use signers::SignerFiles;

pub use signers::problems_of_files;

/// How often systemd-timedated is asked about the clock.
const ASK_EVERY: Duration = Duration::from_secs(300);

/// How long its answer may take.
const PATIENCE: Patience = Patience {
    answer: Duration::from_secs(10),
    away: Duration::from_secs(5),
};

/// Judges the signatures of commands.
#[derive(Clone)]
pub struct Trust(Arc<Inner>);

struct Inner {
    leaf: LeafName,
    journal: Journal,
    /// The files of signers that the settings name.
    files: Option<SignerFiles>,
    /// The callers that the settings name.
    rules: CommandRules,
    /// What the settings say about the leaf's clock.
    setting: ClockTrust,
    /// Whether the clock can be trusted.
    is_trusted: watch::Sender<bool>,
    nonces: NonceKey,
}

impl Trust {
    /// Returns the judge of a leaf's commands.
    ///
    /// # Errors
    /// If the settings can't be used, or the system has no random bytes.
    pub fn new(leaf: LeafName, settings: &TrustSettings, journal: Journal) -> anyhow::Result<Self> {
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(|error| anyhow::anyhow!("can't get random bytes: {error}"))?;
        let (is_trusted, _) = watch::channel(false);
        let trust = Self(Arc::new(Inner {
            leaf,
            journal,
            files: SignerFiles::of(settings),
            rules: settings.rules()?,
            setting: settings.clock,
            is_trusted,
            nonces: NonceKey::new(random),
        }));
        if settings.clock == ClockTrust::Trusted {
            trust.found_clock(true);
        }
        Ok(trust)
    }

    /// Returns the clock, if it is trusted.
    #[must_use]
    pub fn trusted_time(&self) -> Option<Timestamp> {
        self.0.is_trusted.borrow().then(Timestamp::now)
    }

    /// Notes whether the clock can be trusted. The journal then knows since when it knows its commands.
    fn found_clock(&self, is_trusted: bool) {
        let is_changed = self.0.is_trusted.send_replace(is_trusted) != is_trusted;
        if is_changed {
            tracing::info!(is_trusted, "the clock, by which signatures are judged");
        }
        if is_changed && is_trusted {
            // It is in force at once; that it is durable need not be waited for.
            drop(self.0.journal.mark(Timestamp::now()));
        }
    }

    /// Asks regularly whether the clock is synchronized, if the settings leave that open and signatures are used.
    ///
    /// # Errors
    /// Never.
    pub async fn watch_clock(self) -> anyhow::Result<()> {
        let is_asked = self.0.setting == ClockTrust::Auto && self.0.files.is_some();
        if !is_asked || leaf_host::runtime::detect() != Runtime::Systemd {
            return std::future::pending().await;
        }
        let systemd = Systemd::new(PATIENCE);
        loop {
            let is_trusted = systemd.is_clock_synchronized().await.unwrap_or_else(|error| {
                tracing::warn!(
                    error = chain(&error),
                    "the clock counts as untrusted, so signatures need a nonce"
                );
                false
            });
            // A connection that is kept would make systemd send what nobody reads.
            systemd.disconnect().await;
            self.found_clock(is_trusted);
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Judges a command as it arrived.
    #[must_use]
    pub fn judge(&self, incoming: &Incoming) -> Provenance {
        let Some(headers) = &incoming.signed else {
            return Provenance::Unsigned;
        };
        match self.verify(incoming, headers) {
            Ok(signer) => Provenance::Signed { signer },
            Err(refused) => Provenance::Refused(refused),
        }
    }

    /// Returns what a signature of a caller must have now.
    #[must_use]
    pub fn challenge(&self, caller: &Caller) -> Challenge {
        let freshness = self.freshness();
        let nonce = freshness.asks_for_nonce().then(|| {
            let nonce = self.0.nonces.give(caller, since_boot());
            nonce.to_string()
        });
        let (keys, refusing) = match signers::read(self.0.files.as_ref()) {
            Ok(signers) => (signers.keys_of(caller, when(&freshness)), None),
            Err(why) => (Vec::new(), Some(why)),
        };
        Challenge {
            time: freshness.now,
            nonce,
            keys,
            refusing,
        }
    }

    fn freshness(&self) -> Freshness {
        Freshness {
            now: Timestamp::now(),
            is_trusted: *self.0.is_trusted.borrow(),
            marks: self.0.journal.marks(),
        }
    }

    /// Returns the fingerprint of the key by which a command is signed, if all is as the contract says. What costs little is
    /// checked first: a wrong signature reads no file and computes nothing.
    fn verify(&self, incoming: &Incoming, headers: &SignedHeaders) -> Result<String, RefusedSignature> {
        let refused = |signer: Option<&str>, reason| RefusedSignature {
            signer: signer.map(str::to_owned),
            reason,
            is_named: self.names(&incoming.caller),
        };
        let (text, signature) = read(headers).map_err(|reason| refused(None, reason))?;
        let key = signature.fingerprint();
        match self.check(incoming, &text, &signature) {
            Ok(()) => Ok(key),
            Err(reason) => Err(refused(Some(&key), reason)),
        }
    }

    /// Returns whether the settings or the files of signers name a caller literally.
    fn names(&self, caller: &Caller) -> bool {
        let files = self.0.files.as_ref();
        self.0.rules.name(caller) || files.is_some_and(|files| files.name(caller))
    }

    /// Checks a signature that could be read.
    fn check(&self, incoming: &Incoming, text: &str, signature: &Signature) -> Result<(), String> {
        let signed = SignedText::parse(text).map_err(|error| chain(&error))?;
        let sent = Sent {
            leaf: &self.0.leaf,
            caller: &incoming.caller,
            noun: &incoming.noun,
            verb: &incoming.verb,
            id: incoming.command_id.as_ref(),
            body: &incoming.body,
        };
        let nonce = signed.check(sent).map_err(|error| chain(&error))?;
        if let Some(nonce) = nonce {
            let checked = self.0.nonces.check(nonce, &incoming.caller, since_boot());
            checked.map_err(|error| chain(&error))?;
        }
        let freshness = self.freshness();
        freshness
            .check(&signed, nonce.is_some())
            .map_err(|error| chain(&error))?;
        let signers = signers::read(self.0.files.as_ref())?;
        signers.verify(signature, &incoming.caller, when(&freshness), text)
    }
}

/// Returns the time by which the validity of keys is judged.
fn when(freshness: &Freshness) -> When {
    if freshness.goes_by_clock() {
        When::At(freshness.now)
    } else {
        When::NotBefore(freshness.at_least())
    }
}

/// Returns the time since the host booted, which goes on while it is suspended.
fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or_default())
}

/// Reads the headers.
fn read(headers: &SignedHeaders) -> Result<(String, Signature), String> {
    let (Some(text), Some(signature)) = (&headers.text, &headers.signature) else {
        let lacks = if headers.text.is_some() {
            SIGNATURE_HEADER
        } else {
            TEXT_HEADER
        };
        return Err(format!(
            "the header {lacks} is missing: a signed command has both {TEXT_HEADER} and {SIGNATURE_HEADER}"
        ));
    };
    let unreadable = |header: &str| format!("the header {header} is not in base64");
    let text = BASE64
        .decode(text.as_bytes())
        .map_err(|_| unreadable(TEXT_HEADER))?;
    let text = String::from_utf8(text).map_err(|_| format!("the header {TEXT_HEADER} has no UTF-8"))?;
    let (kind, signature) = signature.split_once(':').ok_or_else(|| {
        format!("the header {SIGNATURE_HEADER} must begin with the kind of signature: `{SSH_KIND}:`")
    })?;
    let signature = BASE64
        .decode(signature.as_bytes())
        .map_err(|_| unreadable(SIGNATURE_HEADER))?;
    Ok((text, Signature::read(kind, &signature)?))
}

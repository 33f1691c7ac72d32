//! Confirms an armed change, by a witness's signature or by a person.

use data_encoding::BASE64;
use leaf_core::change::{
    Armed, ConfirmedBy, Decision, NAMESPACE, Outcome, SystemMode, WitnessNonce, witness_text,
};
use leaf_core::error::chain;
use leaf_core::id::{ChangeId, LeafName};
use leaf_core::signed::MAX_SIGNATURE_BYTES;
use leaf_host::contract::ASKING;
use leaf_trust::ssh_signature::{SignerKey, SshSignature};

use super::store::{Step, Store, decided, wall_clock};
use super::{Changes, Moment};
use crate::error::{Error, Result};

impl Changes {
    /// Confirms the armed change, or notes that the witness answered before one is armed. Idempotent.
    pub(crate) async fn confirm(&self, leaf: &LeafName, id: ChangeId, by: &ConfirmedBy) -> Result<()> {
        self.confirm_at(leaf, id, by, Moment::now).await
    }

    pub(super) async fn confirm_at(
        &self,
        leaf: &LeafName,
        id: ChangeId,
        by: &ConfirmedBy,
        now: impl Fn() -> Result<Moment>,
    ) -> Result<()> {
        let Some(store) = Store::open(&self.directory)? else {
            return Err(not_open(id));
        };
        if let Some(asking) = store.asking()?.filter(|asking| asking.id == id) {
            return self.answer(&store, leaf, asking.nonce, id, by);
        }
        let _lock = store.lock().await?;
        let Some(armed) = store.armed()? else {
            return undecided(&store, id);
        };
        if armed.id != id {
            return Err(Error::Refused(format!(
                "change {} is open, and not {id}",
                armed.id
            )));
        }
        let now = now()?;
        if now.boot_id != armed.boot_id || now.boot_ms >= armed.deadline_boot_ms {
            return Err(Error::Refused(format!(
                "the time for change {id} is over: it goes back"
            )));
        }
        if store.step(id)? != Some(Step::Applied) {
            return Err(Error::Refused(format!(
                "change {id} is not in use yet: it can be confirmed once leafd was restarted, or the new system is activated and healthy"
            )));
        }
        let by = match by {
            ConfirmedBy::Caller(caller) => caller.to_string(),
            ConfirmedBy::Signature(signature) => verify(&armed, leaf, signature)?,
        };
        let is_installed = armed
            .system
            .as_ref()
            .is_some_and(|system| system.mode == SystemMode::Switch);
        if is_installed {
            store.bless()?;
        } else {
            store.decide_confirmed(id)?;
        }
        tracing::info!(change = %id, by, "confirmed");
        let outcome = Outcome {
            decision: Decision::Confirmed,
            by: Some(by),
            why: None,
            at: wall_clock(),
        };
        if is_installed {
            if let Err(error) = store.record_blessed(&decided(armed, outcome)) {
                tracing::warn!(change = %id, error = chain(&error), "it is not noted who confirmed a change");
            }
            return Ok(());
        }
        // It is decided: what follows is for people, and for the next change.
        let rest = store
            .record(&decided(armed, outcome))
            .and_then(|()| store.tidy())
            .and_then(|()| store.prune(id));
        if let Err(error) = rest {
            tracing::warn!(change = %id, error = chain(&error), "the record of a confirmed change is incomplete");
        }
        Ok(())
    }

    /// Takes the witness's answer to the question before a change is armed.
    fn answer(
        &self,
        store: &Store,
        leaf: &LeafName,
        nonce: WitnessNonce,
        id: ChangeId,
        by: &ConfirmedBy,
    ) -> Result<()> {
        let ConfirmedBy::Signature(signature) = by else {
            return Err(Error::Refused(format!(
                "change {id} is not armed yet: its witness is being asked"
            )));
        };
        verify_by(&self.witnesses, leaf, id, &nonce, signature)?;
        store.directory.remove_file(ASKING)?;
        self.answered.send_replace(Some(id));
        Ok(())
    }
}

fn not_open(id: ChangeId) -> Error {
    Error::Refused(format!("change {id} is not open"))
}

/// Returns the outcome of a confirmation that found no armed change.
fn undecided(store: &Store, id: ChangeId) -> Result<()> {
    match store.decided(id)? {
        Some(decided) if decided.decision() == Decision::Confirmed => Ok(()),
        Some(_) => Err(Error::Refused(format!(
            "change {id} went back before it was confirmed"
        ))),
        None if store.blessed()?.is_some_and(|blessed| blessed.armed.id == id) => Ok(()),
        None if store.going_back()?.is_some_and(|armed| armed.id == id) => {
            Err(Error::Refused(format!("change {id} is going back")))
        }
        None => Err(not_open(id)),
    }
}

/// Checks a witness's signature over the armed change, and returns its key's fingerprint.
fn verify(armed: &Armed, leaf: &LeafName, signature: &str) -> Result<String> {
    let Some(nonce) = &armed.nonce else {
        return Err(Error::Refused(
            "the armed change can be confirmed by a person only".into(),
        ));
    };
    verify_by(&armed.witnesses, leaf, armed.id, nonce, signature)
}

fn verify_by(
    witnesses: &[String],
    leaf: &LeafName,
    id: ChangeId,
    nonce: &WitnessNonce,
    signature: &str,
) -> Result<String> {
    let refused = |why: String| Error::Refused(format!("the witness's signature is not accepted: {why}"));
    let signature = SshSignature::from_bytes(&bytes_of(signature)?).map_err(|e| refused(chain(&e)))?;
    let is_known = witnesses
        .iter()
        .filter_map(|line| line.parse::<SignerKey>().ok())
        .any(|key| key == *signature.key());
    let by = signature.key().fingerprint();
    if !is_known {
        return Err(refused(format!("{by} is none of this change's witnesses")));
    }
    signature
        .verify(NAMESPACE, witness_text(leaf, id, nonce).as_bytes())
        .map_err(|e| refused(chain(&e)))?;
    Ok(by)
}

/// Returns the bytes of a signature in base64, with or without the lines of an armored one.
fn bytes_of(text: &str) -> Result<Vec<u8>> {
    let refused = || Error::Refused("the witness's signature is not one in base64, or too long".into());
    if text.len() > MAX_SIGNATURE_BYTES * 2 {
        return Err(refused());
    }
    let base64: String = text
        .lines()
        .filter(|line| !line.starts_with("-----"))
        .flat_map(str::chars)
        .filter(|c| !c.is_ascii_whitespace())
        .collect();
    BASE64.decode(base64.as_bytes()).map_err(|_| refused())
}

//! Secrets in the state: the entries `secret.<token>`.

use super::{Entry, Kind, State, same_key};
use crate::aggregate::Aggregate;
use crate::event::Event;
use crate::event::secret::SecretFact;
use crate::id::{SecretName, decode_token};
use crate::secret::SecretRecord;

pub(super) const KIND: Kind = Kind {
    name: "secret",
    keys: |state| {
        state
            .secrets
            .keys()
            .map(|name| Aggregate::Secret(name).key())
            .collect()
    },
    find: |state, token| {
        let name = SecretName::new(decode_token(token)?).ok()?;
        state.secrets.get(&name).map(Entry::Secret)
    },
    put: |state, key, value| {
        let secret: SecretRecord = serde_json::from_value(value)?;
        same_key(key, &Aggregate::Secret(&secret.name).key())?;
        state.secrets.insert(secret.name.clone(), secret);
        Ok(())
    },
    remove: |state, token| {
        let name = decode_token(token).and_then(|name| SecretName::new(name).ok());
        name.and_then(|name| state.secrets.remove(&name));
    },
    renewed: false,
};

pub(super) fn apply(state: &mut State, fact: &SecretFact, event: &Event) -> Vec<String> {
    match fact {
        SecretFact::Set(f) => {
            let record = SecretRecord {
                name: f.name.clone(),
                generation: f.generation,
                file_bytes: f.file_bytes,
                digest: f.digest.clone(),
                users: f.users.clone(),
                set_by: f.caller.clone(),
                set_at: event.time,
            };
            state.secrets.insert(f.name.clone(), record);
            vec![Aggregate::Secret(&f.name).key()]
        }
        SecretFact::Removed(f) => match state.secrets.remove(&f.name) {
            Some(_) => vec![Aggregate::Secret(&f.name).key()],
            None => Vec::new(),
        },
    }
}

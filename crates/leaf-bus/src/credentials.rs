//! Credentials files: a user's JWT and the seed that signs the server's challenge (NATS ADR-14).

use std::path::Path;

use jiff::Timestamp;
use leaf_core::id::Caller;

use crate::settings::{Cause, Credentials, CredentialsLife};

/// The user's answer to the server's challenge.
pub(crate) struct Signed {
    pub(crate) jwt: String,
    pub(crate) signature: Vec<u8>,
}

/// Returns the JWT and the signed challenge. Reads the file each time.
pub(crate) fn sign(credentials: &Credentials, nonce: &[u8]) -> Result<Signed, (String, Cause)> {
    let what = describe(credentials);
    let text = match credentials {
        Credentials::File(path) => {
            std::fs::read_to_string(path).map_err(|e| (what.clone(), Cause::from(e)))?
        }
        Credentials::Text(secret) => secret.expose().to_owned(),
        _ => return Err((what, "they are not a credentials file".into())),
    };
    let jwt =
        block(&text, "NATS USER JWT").ok_or_else(|| (what.clone(), "it contains no user JWT".into()))?;
    let seed =
        block(&text, "USER NKEY SEED").ok_or_else(|| (what.clone(), "it contains no user seed".into()))?;
    let pair = nkeys::KeyPair::from_seed(seed).map_err(|e| (what.clone(), Cause::from(e)))?;
    let signature = pair.sign(nonce).map_err(|e| (what, Cause::from(e)))?;
    Ok(Signed {
        jwt: jwt.to_owned(),
        signature,
    })
}

/// Returns the caller of the credentials: the name in the user's JWT, if it is valid as a caller. The signature is not
/// checked.
pub(crate) fn caller(credentials: &Credentials) -> Option<Caller> {
    let text = match credentials {
        Credentials::File(path) => std::fs::read_to_string(path).ok()?,
        Credentials::Text(secret) => secret.expose().to_owned(),
        _ => return None,
    };
    let claims = claims(&text)?;
    Caller::new(claims.get("name")?.as_str()?).ok()
}

impl Credentials {
    /// Returns the life of the credentials as they are now; `None` of those that have no JWT, or can't be read.
    #[must_use]
    pub fn life(&self) -> Option<CredentialsLife> {
        let text = match self {
            Self::File(path) => std::fs::read_to_string(path).ok()?,
            Self::Text(secret) => secret.expose().to_owned(),
            _ => return None,
        };
        let claims = claims(&text)?;
        let time = |name: &str| {
            let second = claims.get(name)?.as_i64().filter(|second| *second != 0)?;
            Timestamp::from_second(second).ok()
        };
        Some(CredentialsLife {
            id: claims.get("jti")?.as_str()?.to_owned(),
            issued_at: time("iat")?,
            expires_at: time("exp"),
        })
    }
}

/// Returns the public key of the account of the user in a credentials file, or what the file lacks. The signature is not
/// checked.
pub(crate) fn account(file: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    let claims = claims(&text).ok_or("it contains no user JWT")?;
    // A signing key of the account that issued it names the account; the account itself is the issuer.
    let account = claims["nats"]["issuer_account"].as_str();
    let account = account
        .filter(|account| !account.is_empty())
        .or(claims["iss"].as_str());
    let is_account = |key: &&str| {
        nkeys::KeyPair::from_public_key(key)
            .is_ok_and(|pair| pair.key_pair_type() == nkeys::KeyPairType::Account)
    };
    let account = account.filter(is_account);
    account
        .map(str::to_owned)
        .ok_or_else(|| "its JWT names no account".to_owned())
}

/// Returns the claims of the JWT in the text of a credentials file.
fn claims(text: &str) -> Option<serde_json::Value> {
    let claims = block(text, "NATS USER JWT")?.split('.').nth(1)?;
    let claims = data_encoding::BASE64URL_NOPAD.decode(claims.as_bytes()).ok()?;
    serde_json::from_slice(&claims).ok()
}

/// Describes the credentials without revealing them.
pub(crate) fn describe(credentials: &Credentials) -> String {
    match credentials {
        Credentials::File(path) | Credentials::NkeyFile(path) => format!("in {}", path.display()),
        Credentials::Text(_) => "given as text".to_owned(),
        Credentials::None => "that were not given".to_owned(),
        Credentials::Password { user, .. } => format!("of {user}"),
        Credentials::Token(_) => "given as token".to_owned(),
    }
}

/// Returns the one line between `-----BEGIN <name>-----` and the next dashes.
fn block<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| line.starts_with("---") && line.contains(&format!("BEGIN {name}")))?;
    lines
        .find(|line| !line.is_empty())
        .filter(|line| !line.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use leaf_core::host_op::Secret;

    #[test]
    fn the_caller_is_the_name_in_the_users_jwt() {
        let of = |claims: &str| {
            let claims = data_encoding::BASE64URL_NOPAD.encode(claims.as_bytes());
            let text =
                format!("-----BEGIN NATS USER JWT-----\nabc.{claims}.ghi\n------END NATS USER JWT------\n");
            caller(&Credentials::Text(Secret::new(text))).map(String::from)
        };
        assert_eq!(of(r#"{"name":"admin","sub":"U"}"#).as_deref(), Some("admin"));
        for none in ["{}", r#"{"name":7}"#, r#"{"name":"A Person"}"#, "x"] {
            assert_eq!(of(none), None, "{none}");
        }
        assert_eq!(caller(&Credentials::Text(Secret::new("abc"))), None);
        assert_eq!(caller(&Credentials::None), None);
    }

    #[test]
    fn a_credentials_file_gives_jwt_and_signature_and_a_broken_one_says_what_is_missing() {
        let pair = nkeys::KeyPair::new_user();
        let seed = pair.seed().expect("a seed");
        let text = format!(
            "-----BEGIN NATS USER JWT-----\nabc.def.ghi\n------END NATS USER JWT------\n\n*** IMPORTANT ***\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        let Ok(signed) = sign(&Credentials::Text(Secret::new(text.clone())), b"nonce") else {
            panic!("it has both");
        };
        assert_eq!(signed.jwt, "abc.def.ghi");
        pair.verify(b"nonce", &signed.signature)
            .expect("the user's own signature");
        for broken in [
            String::new(),
            text.replace("USER NKEY SEED", "X"),
            text.replace(&seed, "SUAX"),
        ] {
            assert!(sign(&Credentials::Text(Secret::new(broken)), b"").is_err());
        }
    }
}

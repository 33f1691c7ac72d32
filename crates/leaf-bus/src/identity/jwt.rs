//! The JWTs of NATS (ADR-14): JSON claims, signed with an NKEY.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// The claims about a subject: an operator, an account or a user.
pub(super) struct Claims<'a> {
    /// The subject's public key.
    pub(super) subject: &'a str,
    /// The subject's name.
    pub(super) name: &'a str,
    /// When the JWT was issued, in seconds of the Unix epoch.
    pub(super) issued_at: i64,
    /// When it ends, in the same unit.
    pub(super) expires_at: Option<i64>,
    /// The claims of NATS.
    pub(super) nats: Value,
}

/// Returns the JWT: `header.claims.signature`, each part in base64url. Deterministic.
pub(super) fn sign(claims: Claims<'_>, issuer: &KeyPair) -> String {
    let mut body = json!({
        "iat": claims.issued_at,
        "iss": issuer.public_key(),
        "name": claims.name,
        "nats": claims.nats,
        "sub": claims.subject,
    });
    if let Some(expires_at) = claims.expires_at {
        body["exp"] = expires_at.into();
    }
    body["jti"] = data_encoding::BASE32_NOPAD
        .encode(&Sha256::digest(body.to_string()))
        .into();
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let mut token = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header.to_string()),
        URL_SAFE_NO_PAD.encode(body.to_string())
    );
    let signature = issuer
        .sign(token.as_bytes())
        .expect("every key that issues was made from its seed");
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut token);
    token
}

/// The claims of a JWT whose signature by its issuer was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The public key of what it is about.
    pub subject: String,
    /// The public key of its issuer, which signed it.
    pub issuer: String,
    /// The subject's name.
    pub name: String,
    /// When it was issued, in seconds of the Unix epoch.
    pub issued_at: i64,
    /// When it ends, in the same unit.
    pub expires_at: Option<i64>,
    /// The claims of NATS.
    pub nats: Value,
}

/// Why a text is not a JWT of NATS.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It has not three parts of base64url, or no claims.
    #[error("this is not a JWT of NATS: {0}")]
    Malformed(String),
    /// Somebody else signed it, or it was altered.
    #[error("the signature of the JWT is not that of {issuer}, whom it names as its issuer")]
    Forged {
        /// The public key of the named issuer.
        issuer: String,
    },
}

impl Token {
    /// Reads a JWT, and checks that the issuer that it names signed it.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn read(jwt: &str) -> Result<Self, TokenError> {
        let malformed = |what: &str| TokenError::Malformed(what.to_owned());
        let jwt = jwt.trim();
        let (signed, signature) = jwt.rsplit_once('.').ok_or_else(|| malformed("it has no parts"))?;
        let (_, body) = signed
            .split_once('.')
            .ok_or_else(|| malformed("it has two parts"))?;
        let decode = |part: &str| {
            URL_SAFE_NO_PAD
                .decode(part)
                .map_err(|error| malformed(&error.to_string()))
        };
        let body: Value =
            serde_json::from_slice(&decode(body)?).map_err(|error| malformed(&error.to_string()))?;
        let text = |name: &str| {
            body[name]
                .as_str()
                .map(str::to_owned)
                .ok_or_else(|| malformed(&format!("its claim {name} is not a text")))
        };
        let token = Self {
            subject: text("sub")?,
            issuer: text("iss")?,
            name: text("name").unwrap_or_default(),
            issued_at: body["iat"]
                .as_i64()
                .ok_or_else(|| malformed("it has no time of issue"))?,
            // Zero is none, as in nats-io/jwt.
            expires_at: body["exp"].as_i64().filter(|at| *at != 0),
            nats: body["nats"].clone(),
        };
        let issuer = KeyPair::from_public_key(&token.issuer)
            .map_err(|error| malformed(&format!("its issuer is no public key: {error}")))?;
        issuer
            .verify(signed.as_bytes(), &decode(signature)?)
            .map_err(|_| TokenError::Forged {
                issuer: token.issuer.clone(),
            })?;
        Ok(token)
    }
}

/// Returns the text of a credentials file: the JWT and the seed, in the format of NATS clients.
pub(super) fn credentials(jwt: &str, user: &KeyPair) -> String {
    let seed = user
        .seed()
        .expect("every user's key was made here or from its seed");
    format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         ************************* IMPORTANT *************************\n\
         The NKEY seed below proves who you are: keep it secret.\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jwt_is_signed_by_its_issuer_and_the_same_claims_give_the_same_jwt() {
        let operator = KeyPair::new_operator();
        let account = KeyPair::new_account();
        let subject = account.public_key();
        let make = || {
            sign(
                Claims {
                    subject: &subject,
                    name: "LEAF",
                    issued_at: 7,
                    expires_at: None,
                    nats: json!({ "type": "account", "version": 2 }),
                },
                &operator,
            )
        };
        let jwt = make();
        assert_eq!(jwt, make());
        let token = Token::read(&jwt).expect("the operator's signature");
        assert_eq!(token.subject, subject);
        assert_eq!(token.issuer, operator.public_key());
        assert_eq!((token.issued_at, token.expires_at), (7, None));
        let body = URL_SAFE_NO_PAD
            .decode(jwt.split('.').nth(1).expect("three parts"))
            .expect("base64url");
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body["jti"].as_str().map(str::len), Some(52));
    }

    #[test]
    fn an_altered_jwt_is_forged_and_another_text_is_none() {
        let account = KeyPair::new_account();
        let user = KeyPair::new_user().public_key();
        let claims = |name| Claims {
            subject: &user,
            name,
            issued_at: 7,
            expires_at: Some(9),
            nats: json!({ "type": "user", "version": 2 }),
        };
        let (ann, bob) = (sign(claims("ann"), &account), sign(claims("bob"), &account));
        assert_eq!(Token::read(&ann).expect("a JWT").expires_at, Some(9));
        let (signed, _) = bob.rsplit_once('.').expect("three parts");
        let (_, signature) = ann.rsplit_once('.').expect("three parts");
        let error = Token::read(&format!("{signed}.{signature}")).expect_err("altered");
        assert!(matches!(error, TokenError::Forged { .. }), "{error}");
        for text in ["", "a.b", "a.b.c", "e30.e30.e30"] {
            assert!(
                matches!(Token::read(text), Err(TokenError::Malformed(_))),
                "{text}"
            );
        }
    }
}

//! The JWTs of NATS (ADR-14): JSON claims, signed with an NKEY. Covers only issuing; the server verifies them.

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
                    nats: json!({ "type": "account", "version": 2 }),
                },
                &operator,
            )
        };
        let jwt = make();
        assert_eq!(jwt, make());
        let (signed, signature) = jwt.rsplit_once('.').expect("three parts");
        let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
        operator
            .verify(signed.as_bytes(), &signature)
            .expect("the operator's signature");
        let body = URL_SAFE_NO_PAD
            .decode(signed.split_once('.').expect("two parts").1)
            .expect("base64url");
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body["sub"], subject);
        assert_eq!(body["iss"], operator.public_key());
        assert_eq!(body["jti"].as_str().map(str::len), Some(52));
    }
}

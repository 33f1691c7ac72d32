//! Nonces: what a leaf gives a caller to sign, where its clock can't tell whether a signature is new. Pure.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest as _, Sha256};

use crate::id::Caller;

/// How long a nonce is good for.
const KEPT: Duration = Duration::from_secs(300);
/// The bytes of a nonce that are the time at which it was given; the others are the code that shows who gave it.
const TIME_BYTES: usize = 4;
/// The size of a block of SHA-256, in bytes.
const BLOCK: usize = 64;

/// What a leaf gives to be signed, 16 bytes: 22 characters as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nonce([u8; 16]);

impl From<[u8; 16]> for Nonce {
    fn from(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl FromStr for Nonce {
    type Err = NonceError;

    fn from_str(text: &str) -> Result<Self, NonceError> {
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok();
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or(NonceError::Malformed)
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64URL_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a nonce is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NonceError {
    /// It is no nonce.
    #[error("a nonce is 16 bytes in base64url, 22 characters")]
    Malformed,
    /// This run of leafd did not give it to this caller.
    #[error(
        "the signed text has a nonce that this leaf did not give to this caller since leafd started: ask for one with \
         leaf.challenge, and sign again"
    )]
    Unknown,
    /// It is too old.
    #[error(
        "the nonce of the signed text is older than five minutes: ask for another one with leaf.challenge, and sign again"
    )]
    Old,
}

/// Makes the nonces of one run of leafd, and knows them again. It keeps none of them: a nonce has the time since boot at which it was
/// given, and a code of that and the caller which only this run can make (HMAC-SHA-256, cut to 12 bytes). That a signature counts
/// once follows from its command id, which the journal keeps.
#[derive(Clone)]
pub struct NonceKey([u8; 32]);

impl fmt::Debug for NonceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NonceKey")
    }
}

impl NonceKey {
    /// Returns the key of these random bytes, which nobody else may know.
    #[must_use]
    pub fn new(random: [u8; 32]) -> Self {
        Self(random)
    }

    /// Returns a nonce for a caller. `since_boot` goes on while the host is suspended.
    #[must_use]
    pub fn give(&self, caller: &Caller, since_boot: Duration) -> Nonce {
        // A host that runs for 136 years begins anew.
        let seconds = u32::try_from(since_boot.as_secs() & u64::from(u32::MAX)).unwrap_or_default();
        self.nonce(caller, seconds)
    }

    /// Checks that a nonce was given to a caller in the last five minutes.
    ///
    /// # Errors
    /// [`NonceError`].
    pub fn check(&self, nonce: &Nonce, caller: &Caller, since_boot: Duration) -> Result<(), NonceError> {
        let mut seconds = [0; TIME_BYTES];
        seconds.copy_from_slice(&nonce.0[..TIME_BYTES]);
        let seconds = u32::from_be_bytes(seconds);
        let expected = self.nonce(caller, seconds);
        // Without a stop at the first difference, whose place its time would tell.
        let differing = nonce
            .0
            .iter()
            .zip(expected.0)
            .fold(0, |bits, (one, other)| bits | (one ^ other));
        if differing != 0 {
            return Err(NonceError::Unknown);
        }
        let age = since_boot.checked_sub(Duration::from_secs(seconds.into()));
        match age {
            Some(age) if age < KEPT => Ok(()),
            _ => Err(NonceError::Old),
        }
    }

    fn nonce(&self, caller: &Caller, seconds: u32) -> Nonce {
        let seconds = seconds.to_be_bytes();
        let code = self.code(&[b"cim-leaf nonce 1\n", caller.as_str().as_bytes(), b"\n", &seconds]);
        let mut bytes = [0; 16];
        bytes[..TIME_BYTES].copy_from_slice(&seconds);
        bytes[TIME_BYTES..].copy_from_slice(&code[..16 - TIME_BYTES]);
        Nonce(bytes)
    }

    /// Returns the HMAC-SHA-256 (RFC 2104) of a message in parts.
    fn code(&self, parts: &[&[u8]]) -> [u8; 32] {
        let padded = |with: u8| {
            let mut block = [with; BLOCK];
            for (byte, key) in block.iter_mut().zip(self.0) {
                *byte ^= key;
            }
            block
        };
        let mut inner = Sha256::new_with_prefix(padded(0x36));
        for part in parts {
            inner.update(part);
        }
        let outer = Sha256::new_with_prefix(padded(0x5c)).chain_update(inner.finalize());
        outer.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    fn caller(name: &str) -> Caller {
        Caller::new(name).expect("a caller")
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_nonce_is_good_for_its_caller_for_five_minutes_of_one_run() {
        let (ann, bob) = (caller("ann"), caller("bob"));
        let (key, next_run) = (NonceKey::new([1; 32]), NonceKey::new([2; 32]));
        let nonce = key.give(&ann, at(1000));
        assert_eq!(key.check(&nonce, &ann, at(1000)), Ok(()));
        assert_eq!(key.check(&nonce, &ann, at(1299)), Ok(()));
        assert_eq!(key.check(&nonce, &ann, at(1300)), Err(NonceError::Old));
        assert_eq!(key.check(&nonce, &ann, at(999)), Err(NonceError::Old));
        assert_eq!(key.check(&nonce, &bob, at(1001)), Err(NonceError::Unknown));
        assert_eq!(next_run.check(&nonce, &ann, at(1001)), Err(NonceError::Unknown));
        for place in 0..16 {
            let mut altered = nonce;
            altered.0[place] ^= 1;
            assert_eq!(key.check(&altered, &ann, at(1001)), Err(NonceError::Unknown));
        }
    }

    /// Test case 2 of RFC 4231 has a key of another length, so this is one of `openssl dgst -sha256 -mac HMAC`.
    #[test]
    fn the_code_is_hmac_sha_256() {
        let code = NonceKey::new([0x0b; 32]).code(&[b"Hi ", b"There"]);
        assert_eq!(
            HEXLOWER.encode(&code),
            "198a607eb44bfbc69903a0f1cf2bbdc5ba0aa3f3d9ae3c1c7a3b1696a0b68cf7"
        );
    }

    #[test]
    fn a_nonce_is_written_in_one_way() {
        let nonce = NonceKey::new([3; 32]).give(&caller("ann"), at(7));
        let text = nonce.to_string();
        assert_eq!((text.len(), text.parse()), (22, Ok(nonce)));
        for other in [
            "",
            "leaf: x",
            &text[..21],
            &format!("{text}="),
            &format!("{text}A"),
            &format!(" {}", &text[1..]),
        ] {
            assert_eq!(other.parse::<Nonce>(), Err(NonceError::Malformed), "{other}");
        }
        // The last character has four bits that are none of a byte's.
        let zero = Nonce::from([0; 16]).to_string();
        assert_eq!(
            format!("{}B", &zero[..21]).parse::<Nonce>(),
            Err(NonceError::Malformed)
        );
    }
}

//! Files that only a leaf's host key decrypts: age (<https://age-encryption.org/v1>) with an SSH recipient, as
//! `age -R ssh_host_ed25519_key.pub` writes and `age -d -i /etc/ssh/ssh_host_ed25519_key`, agenix and sops-nix read them.

use std::io::{self, Read as _, Write as _};
use std::str::FromStr as _;

use age::armor::{ArmoredReader, ArmoredWriter, Format};
use age::ssh::{Identity, Recipient};
use age::{Decryptor, Encryptor};
use zeroize::Zeroizing;

use crate::host_key::HostKey;

/// Why a file could not be decrypted.
#[derive(Debug, thiserror::Error)]
pub enum DecryptError {
    /// The private key can't be read.
    #[error("this is not an SSH private key that can be used: an unencrypted ssh-ed25519 key is needed")]
    Key,
    /// The file is not an age file.
    #[error("this is not an age file")]
    Malformed(#[source] age::DecryptError),
    /// The file is encrypted to another key.
    #[error("the file is not encrypted to this host's key")]
    AnotherKey,
    /// The file is damaged, or larger than allowed.
    #[error("the encrypted file can't be read to its end")]
    Damaged(#[source] io::Error),
    /// The content is larger than allowed.
    #[error("the content has more than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
}

/// Returns an armored age file with this content for each of these keys.
///
/// # Panics
/// If no key is given.
#[must_use]
pub fn encrypt(keys: &[HostKey], content: &[u8]) -> String {
    let recipients: Vec<Recipient> = keys
        .iter()
        .map(|key| Recipient::from_str(&key.to_string()).expect("age knows ssh-ed25519 keys"))
        .collect();
    let encryptor = Encryptor::with_recipients(recipients.iter().map(|recipient| recipient as _))
        .expect("at least one key is given");
    let mut file = Vec::new();
    let written = ArmoredWriter::wrap_output(&mut file, Format::AsciiArmor).and_then(|armor| {
        let mut writer = encryptor.wrap_output(armor)?;
        writer.write_all(content)?;
        writer.finish()?.finish()
    });
    written.expect("writing into memory does not fail");
    String::from_utf8(file).expect("an armored file is ASCII")
}

/// Returns the content of an age file, armored or not, of at most `limit` bytes. `private_key` is the text of
/// `/etc/ssh/ssh_host_ed25519_key`.
///
/// # Errors
/// [`DecryptError`].
pub fn decrypt(private_key: &[u8], file: &[u8], limit: usize) -> Result<Zeroizing<Vec<u8>>, DecryptError> {
    let Ok(identity @ Identity::Unencrypted(_)) = Identity::from_buffer(private_key, None) else {
        return Err(DecryptError::Key);
    };
    let decryptor = Decryptor::new(ArmoredReader::new(file)).map_err(DecryptError::Malformed)?;
    let reader = decryptor
        .decrypt(std::iter::once(&identity as &dyn age::Identity))
        .map_err(|error| match error {
            age::DecryptError::NoMatchingKeys => DecryptError::AnotherKey,
            other => DecryptError::Malformed(other),
        })?;
    // One allocation, so that no piece of the content is left behind when it grows.
    let mut content = Zeroizing::new(Vec::with_capacity(limit + 1));
    reader
        .take(limit as u64 + 1)
        .read_to_end(&mut content)
        .map_err(DecryptError::Damaged)?;
    if content.len() > limit {
        return Err(DecryptError::TooLarge { limit });
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_keys::KeyPair;

    #[test]
    fn a_file_is_decrypted_by_each_of_its_keys_and_by_no_other() {
        let [one, two, other] = [(); 3].map(|()| KeyPair::new());
        let file = encrypt(&[one.public, two.public], b"s3cret\n\0");
        let [one, two, other] = [one.private, two.private, other.private];
        assert!(file.starts_with("-----BEGIN AGE ENCRYPTED FILE-----\n"));
        for key in [&one, &two] {
            assert_eq!(
                *decrypt(key, file.as_bytes(), 9).expect("decrypted"),
                b"s3cret\n\0"
            );
        }
        assert!(matches!(
            decrypt(&other, file.as_bytes(), 100),
            Err(DecryptError::AnotherKey)
        ));
        assert!(matches!(
            decrypt(&one, file.as_bytes(), 7),
            Err(DecryptError::TooLarge { limit: 7 })
        ));
        let mut altered = file.into_bytes();
        let last = altered.len() - 40;
        altered[last] ^= 1;
        assert!(decrypt(&one, &altered, 100).is_err());
        assert!(matches!(
            decrypt(&one, b"plain", 100),
            Err(DecryptError::Malformed(_))
        ));
        assert!(matches!(decrypt(b"no key", b"", 1), Err(DecryptError::Key)));
    }
}

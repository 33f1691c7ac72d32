//! The files that a connection's settings name: looks at them before a connection is made, so that each that is missing or
//! has the wrong content is named at once.

use std::path::{Path, PathBuf};

use async_nats::rustls::RootCertStore;
use leaf_core::error::chain;
use nkeys::{KeyPair, KeyPairType};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::connect::Credentials;
use crate::credentials;
use crate::settings::Cause;

/// Why a file can't be used. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It can't be read.
    #[error("{} can't be read by this user: make it, or correct its path, owner or mode", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Its content is of another kind, or damaged.
    #[error("{} is not {expected}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The content that the setting requires.
        expected: &'static str,
        /// The fault.
        source: Cause,
    },
}

/// A look at one file.
pub type Check = fn(&Path) -> Result<(), FileError>;

/// Looks at the files that settings name, each with its setting, and returns the setting and the error of those that can't be
/// used.
pub fn problems<'a>(files: impl IntoIterator<Item = (&'static str, Option<&'a Path>, Check)>) -> Vec<String> {
    let problem = |(setting, file, check): (_, Option<&Path>, Check)| {
        let error = check(file?).err()?;
        Some(format!("{setting}: {}", chain(&error)))
    };
    files.into_iter().filter_map(problem).collect()
}

const USER: &str = "the credentials of a NATS user: write its JWT and seed there (a creds file), or only its seed, which begins \
                    with SU";
const CERTIFICATES: &str =
    "a file of certificates in PEM: write each with its lines BEGIN CERTIFICATE and END CERTIFICATE";
const AUTHORITIES: &str = "a file of certificates in PEM that can be trusted: write that of the CA that signed the server's, or \
                           the server's own";
const KEY: &str =
    "the private key of a certificate in PEM: write it with its lines BEGIN PRIVATE KEY and END PRIVATE KEY";

/// Looks at a file with the credentials of a user: its JWT and seed, or the seed of its NKEY.
///
/// # Errors
/// [`FileError`].
pub fn check_credentials(path: &Path) -> Result<(), FileError> {
    let wrong = content(path, USER);
    let text = read(path)?;
    if !text.trim_start().starts_with("SU") {
        let file = Credentials::File(path.to_owned());
        return credentials::sign(&file, b"")
            .map(drop)
            .map_err(|(_, cause)| wrong(cause));
    }
    match KeyPair::from_seed(text.trim()) {
        Ok(pair) if pair.key_pair_type() == KeyPairType::User => Ok(()),
        Ok(_) => Err(wrong("its seed is not that of a user".into())),
        Err(error) => Err(wrong(error.into())),
    }
}

/// Looks at a file with trusted CA certificates.
///
/// # Errors
/// [`FileError`].
pub fn check_authorities(path: &Path) -> Result<(), FileError> {
    let wrong = content(path, AUTHORITIES);
    let mut trusted = RootCertStore::empty();
    for certificate in certificates(path)? {
        trusted.add(certificate).map_err(|error| wrong(error.into()))?;
    }
    Ok(())
}

/// Looks at a file with a client certificate, and those of the CAs between it and a trusted one.
///
/// # Errors
/// [`FileError`].
pub fn check_certificate(path: &Path) -> Result<(), FileError> {
    certificates(path).map(drop)
}

/// Looks at a file with the key of a certificate.
///
/// # Errors
/// [`FileError`].
pub fn check_key(path: &Path) -> Result<(), FileError> {
    let key = PrivateKeyDer::from_pem_slice(read(path)?.as_bytes());
    key.map(drop).map_err(|error| content(path, KEY)(error.into()))
}

/// Returns the certificates of a file, of which there is at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let wrong = content(path, CERTIFICATES);
    let text = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let all = all.map_err(|error| wrong(error.into()))?;
    if all.is_empty() {
        return Err(wrong("it has no certificate".into()));
    }
    Ok(all)
}

fn read(path: &Path) -> Result<String, FileError> {
    let bytes = std::fs::read(path).map_err(|source| FileError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    // All forms are text in ASCII, and what is none is not found.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn content(path: &Path, expected: &'static str) -> impl Fn(Cause) -> FileError {
    move |source| FileError::Content {
        path: path.to_owned(),
        expected,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(check: Check, content: &str) -> String {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), content).expect("a file");
        check(file.path()).map_or_else(|error| chain(&error), |()| String::new())
    }

    fn certified() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["hub.example".to_owned()]).expect("a certificate");
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn files_of_the_right_kind_are_accepted() {
        let user = KeyPair::new_user();
        let seed = user.seed().expect("a seed");
        let creds = format!(
            "-----BEGIN NATS USER JWT-----\na.b.c\n------END NATS USER JWT------\n-----BEGIN USER NKEY SEED-----\n{seed}\n\
             ------END USER NKEY SEED------\n"
        );
        let (cert, key) = certified();
        let checks: [(Check, &str); 6] = [
            (check_credentials, &seed),
            (check_credentials, &creds),
            (check_authorities, &cert),
            (check_certificate, &cert),
            (check_key, &key),
            (check_certificate, &format!("{cert}{cert}")),
        ];
        for (check, content) in checks {
            assert_eq!(said(check, content), "");
        }
    }

    #[test]
    fn a_file_of_another_kind_is_named_with_what_it_must_have() {
        let (cert, key) = certified();
        let account = KeyPair::new_account().seed().expect("a seed");
        let checks: [(Check, &str, &str, &str); 8] = [
            (
                check_credentials,
                "",
                "credentials of a NATS user",
                "it contains no user JWT",
            ),
            (
                check_credentials,
                &account,
                "credentials of a NATS user",
                "it contains no user JWT",
            ),
            (check_credentials, "SUABC", "begins with SU", ""),
            (check_credentials, &cert, "a creds file", ""),
            (
                check_authorities,
                &key,
                "certificates in PEM",
                "it has no certificate",
            ),
            (
                check_authorities,
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                "can be trusted",
                "",
            ),
            (
                check_certificate,
                "\u{0}",
                "certificates in PEM",
                "it has no certificate",
            ),
            (check_key, &cert, "private key", ""),
        ];
        for (check, content, expected, cause) in checks {
            let said = said(check, content);
            assert!(
                said.contains(" is not ") && said.contains(expected) && said.contains(cause),
                "{said:?}"
            );
            assert!(
                !said.contains("SUABC") && !said.contains(&account),
                "no secret: {said:?}"
            );
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named_by_its_path() {
        let directory = tempfile::tempdir().expect("a directory");
        let missing = directory.path().join("missing");
        let checks: [Check; 4] = [check_credentials, check_authorities, check_certificate, check_key];
        for check in checks {
            for (path, cause) in [(&*missing, "No such file"), (directory.path(), "directory")] {
                let said = chain(&check(path).expect_err("no file"));
                assert!(
                    said.contains(&path.display().to_string()) && said.contains(cause),
                    "{said}"
                );
            }
        }
    }
}

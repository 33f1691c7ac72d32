//! The document of a secret: what stands in its age file once it is decrypted.
//!
//! A header binds the content to one leaf, one name, a time and the users that may have it:
//!
//! ```text
//! cim-leaf secret 1
//! leaf: edge-1
//! name: db-password
//! made: 2026-11-30T08:00:00.123456789Z
//! bytes: 12
//! for: container web
//! for: unit postgresql.service reload
//!
//! …the bytes, and zeros behind them up to a power of two…
//! ```

use jiff::Timestamp;
use leaf_core::id::{InvalidId, LeafName, SecretName};
use leaf_core::secret::{MAX_CONTENT_BYTES, MAX_FILE_BYTES, MAX_USERS, SecretUser, SecretUserError};
use zeroize::Zeroizing;

use crate::age_file::{self, DecryptError};
use crate::host_key::HostKey;

/// The first line.
const VERSION: &str = "cim-leaf secret 1";
/// The least size of the content with its padding, in bytes.
const LEAST_PADDED_BYTES: usize = 256;
/// The maximum size of the header, in bytes.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// A secret with its content.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretDocument {
    /// The leaf that it is for.
    pub leaf: LeafName,
    /// Its name.
    pub name: SecretName,
    /// When it was encrypted, by the clock of who did: a leaf refuses one that is older than the one it has.
    pub made: Timestamp,
    /// The users that may have it, sorted. Nothing else gets it.
    pub users: Vec<SecretUser>,
    /// Its bytes.
    pub content: Zeroizing<Vec<u8>>,
}

/// Why a document can't be made or read.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The content is too large.
    #[error("the secret has {0} bytes, at most {MAX_CONTENT_BYTES} are allowed")]
    TooLarge(usize),
    /// It names too many users.
    #[error("the secret names {0} users, at most {MAX_USERS} are allowed")]
    Users(usize),
    /// A user is named twice.
    #[error("the secret names {0} twice")]
    Twice(String),
    /// The age file is larger than any of a secret.
    #[error("the age file has {0} bytes, at most {MAX_FILE_BYTES} are allowed")]
    FileTooLarge(usize),
    /// The age file can't be decrypted.
    #[error("can't decrypt it")]
    Decrypt(#[from] DecryptError),
    /// It is no document of a secret, or one of another version.
    #[error("it does not begin with the line `{VERSION}`: encrypt it with `leafctl secret set`")]
    Version,
    /// The header has another form.
    #[error("line {line} of its header is not as `leafctl secret set` writes it")]
    Header {
        /// The number of the line, from 1.
        line: usize,
    },
    /// A name in the header is not valid.
    #[error("line {line} of its header has no valid name")]
    Name {
        /// The number of the line, from 1.
        line: usize,
        /// What is wrong with it.
        source: InvalidId,
    },
    /// The content and its padding are not of the size that the header says.
    #[error("its content is cut off, or longer than its header says")]
    Size,
    /// A user in the header is not valid.
    #[error("line {line} of its header names no user")]
    User {
        /// The number of the line, from 1.
        line: usize,
        /// What is wrong with it.
        source: SecretUserError,
    },
    /// It is for another leaf.
    #[error("it is for leaf {found}, not for this one, which is {own}")]
    AnotherLeaf {
        /// The leaf in the header.
        found: LeafName,
        /// This leaf.
        own: LeafName,
    },
    /// It has another name.
    #[error("it was encrypted as the secret {found}, and not as {own}")]
    AnotherName {
        /// The name in the header.
        found: SecretName,
        /// The name that it was sent or stored under.
        own: SecretName,
    },
}

impl SecretDocument {
    /// Returns the armored age file with this document, for one leaf's host key.
    ///
    /// # Errors
    /// [`SecretError`] if the content is too large, or the users are too many or named twice.
    pub fn encrypt(&self, key: &HostKey) -> Result<String, SecretError> {
        if self.content.len() > MAX_CONTENT_BYTES {
            return Err(SecretError::TooLarge(self.content.len()));
        }
        if self.users.len() > MAX_USERS {
            return Err(SecretError::Users(self.users.len()));
        }
        let mut users = self.users.clone();
        users.sort();
        if let Some(twice) = users.windows(2).find(|pair| names_same(&pair[0], &pair[1])) {
            return Err(SecretError::Twice(twice[0].to_string()));
        }
        let bytes = self.content.len();
        let mut header = format!(
            "{VERSION}\nleaf: {}\nname: {}\nmade: {}\nbytes: {bytes}\n",
            self.leaf, self.name, self.made
        );
        for user in &users {
            header += &format!("for: {user}\n");
        }
        header.push('\n');
        // One allocation, so that no piece of the content is left behind when it grows.
        let size = header.len() + padded(bytes);
        let mut document = Zeroizing::new(Vec::with_capacity(size));
        document.extend_from_slice(header.as_bytes());
        document.extend_from_slice(&self.content);
        document.resize(size, 0);
        Ok(age_file::encrypt(std::slice::from_ref(key), &document))
    }

    /// Decrypts and reads an age file that was sent or stored as the secret `name` of a leaf. `private_key` is the text of the
    /// leaf's host key.
    ///
    /// # Errors
    /// [`SecretError`], above all if it is for another leaf or has another name.
    pub fn decrypt(
        private_key: &[u8],
        file: &[u8],
        leaf: &LeafName,
        name: &SecretName,
    ) -> Result<Self, SecretError> {
        if file.len() > MAX_FILE_BYTES {
            return Err(SecretError::FileTooLarge(file.len()));
        }
        let document = age_file::decrypt(private_key, file, MAX_HEADER_BYTES + MAX_CONTENT_BYTES)?;
        let document = Self::parse(&document)?;
        if document.leaf != *leaf {
            return Err(SecretError::AnotherLeaf {
                found: document.leaf,
                own: leaf.clone(),
            });
        }
        if document.name != *name {
            return Err(SecretError::AnotherName {
                found: document.name,
                own: name.clone(),
            });
        }
        Ok(document)
    }

    /// Reads a document, exactly in the form in which [`encrypt`](Self::encrypt) writes it.
    fn parse(document: &[u8]) -> Result<Self, SecretError> {
        let mut lines = Lines {
            rest: document,
            line: 0,
        };
        if lines.next() != Some(VERSION) {
            return Err(SecretError::Version);
        }
        let leaf = lines.field("leaf: ")?;
        let leaf = LeafName::new(leaf).map_err(|source| lines.wrong_name(source))?;
        let name = lines.field("name: ")?;
        let name = SecretName::new(name).map_err(|source| lines.wrong_name(source))?;
        let text = lines.field("made: ")?;
        let made: Timestamp = text.parse().map_err(|_| lines.wrong())?;
        if made.to_string() != text {
            return Err(lines.wrong());
        }
        let text = lines.field("bytes: ")?;
        let bytes: usize = text.parse().map_err(|_| lines.wrong())?;
        if bytes.to_string() != text {
            return Err(lines.wrong());
        }
        if bytes > MAX_CONTENT_BYTES {
            return Err(SecretError::TooLarge(bytes));
        }
        let mut users: Vec<SecretUser> = Vec::new();
        loop {
            let text = lines.next().ok_or_else(|| lines.wrong())?;
            if text.is_empty() {
                break;
            }
            let text = text.strip_prefix("for: ").ok_or_else(|| lines.wrong())?;
            let user: SecretUser = text.parse().map_err(|source| SecretError::User {
                line: lines.line,
                source,
            })?;
            let is_next = users
                .last()
                .is_none_or(|last| *last < user && !names_same(last, &user));
            if !is_next || user.to_string() != text {
                return Err(lines.wrong());
            }
            users.push(user);
            if users.len() > MAX_USERS {
                return Err(SecretError::Users(users.len()));
            }
        }
        let (content, padding) = lines.rest.split_at_checked(bytes).ok_or(SecretError::Size)?;
        if lines.rest.len() != padded(bytes) || padding.iter().any(|byte| *byte != 0) {
            return Err(SecretError::Size);
        }
        Ok(Self {
            leaf,
            name,
            made,
            users,
            content: Zeroizing::new(content.to_vec()),
        })
    }
}

/// Returns the size of a content of so many bytes with its padding, so that the size of a file tells no more than its magnitude.
fn padded(bytes: usize) -> usize {
    bytes.next_power_of_two().max(LEAST_PADDED_BYTES)
}

/// The lines of a header, and what follows them.
struct Lines<'a> {
    rest: &'a [u8],
    line: usize,
}

impl<'a> Lines<'a> {
    /// Returns the next line, if there is one that ends and is text.
    fn next(&mut self) -> Option<&'a str> {
        self.line += 1;
        let end = self
            .rest
            .iter()
            .take(MAX_HEADER_BYTES)
            .position(|byte| *byte == b'\n')?;
        let (line, rest) = self.rest.split_at(end);
        self.rest = &rest[1..];
        std::str::from_utf8(line).ok()
    }

    /// Returns the value of the field in the next line.
    fn field(&mut self, name: &str) -> Result<&'a str, SecretError> {
        let value = self.next().and_then(|line| line.strip_prefix(name));
        value.ok_or_else(|| self.wrong())
    }

    fn wrong(&self) -> SecretError {
        SecretError::Header { line: self.line }
    }

    fn wrong_name(&self, source: InvalidId) -> SecretError {
        SecretError::Name {
            line: self.line,
            source,
        }
    }
}

/// Returns whether both name the same container or unit.
fn names_same(one: &SecretUser, other: &SecretUser) -> bool {
    match (one, other) {
        (SecretUser::Container { name: one }, SecretUser::Container { name: other }) => one == other,
        (SecretUser::Unit { name: one, .. }, SecretUser::Unit { name: other, .. }) => one == other,
        _ => false,
    }
}

impl std::fmt::Debug for SecretDocument {
    /// Shows everything but the content.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretDocument")
            .field("leaf", &self.leaf)
            .field("name", &self.name)
            .field("made", &self.made)
            .field("users", &self.users)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

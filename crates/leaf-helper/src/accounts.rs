//! Looks up users and groups by name in `/etc/passwd` and `/etc/group`.

use std::path::Path;

/// A user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct User {
    /// The user id.
    pub(crate) user: u32,
    /// The id of its primary group.
    pub(crate) group: u32,
}

/// A user or a group was not found.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The file can't be read.
    #[error("can't read {file}")]
    Read {
        /// The file.
        file: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// The name is not in the file.
    #[error("{name:?} is not in {file}")]
    Unknown {
        /// The file.
        file: &'static str,
        /// The name.
        name: String,
    },
}

/// Returns a user by its name or id.
pub(crate) fn user(name: &str) -> Result<User, AccountError> {
    find("/etc/passwd", name, |fields| {
        Some(User {
            user: fields.get(2)?.parse().ok()?,
            group: fields.get(3)?.parse().ok()?,
        })
    })
}

/// Returns a group's id by its name.
pub(crate) fn group(name: &str) -> Result<u32, AccountError> {
    find("/etc/group", name, |fields| fields.get(2)?.parse().ok())
}

fn find<T>(file: &'static str, name: &str, read: impl Fn(&[&str]) -> Option<T>) -> Result<T, AccountError> {
    let text =
        std::fs::read_to_string(Path::new(file)).map_err(|source| AccountError::Read { file, source })?;
    text.lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&name))
        .and_then(|fields| read(&fields))
        .ok_or_else(|| AccountError::Unknown {
            file,
            name: name.to_owned(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_has_user_and_group_id_zero() {
        assert_eq!(user("root").expect("root"), User { user: 0, group: 0 });
        assert_eq!(group("root").expect("root"), 0);
        for name in ["", "no-such-account", "root:x"] {
            user(name).expect_err(name);
            group(name).expect_err(name);
        }
    }
}

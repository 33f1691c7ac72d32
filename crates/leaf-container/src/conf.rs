//! The `NAME.conf` files, which list the containers and their owners (nixos-containers.nix of the NixOS modules).

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use leaf_core::id::{ContainerName, LeafName, StorePath};
use leaf_host::contract::{CONF_DIGEST, conf_marker};

use crate::{Containers, ObserveError};

/// A `NAME.conf`.
#[derive(Debug)]
pub(crate) struct Conf {
    pub(crate) name: ContainerName,
    pub(crate) path: PathBuf,
    text: String,
}

impl Conf {
    /// Returns whether it was made by this leaf.
    pub(crate) fn is_of(&self, leaf: &LeafName) -> bool {
        let marker = conf_marker(leaf);
        self.text.lines().any(|line| line == marker)
    }

    /// Returns the digest of the last spec given to the helper.
    pub(crate) fn digest(&self) -> Option<String> {
        self.text
            .lines()
            .find_map(|line| line.strip_prefix(CONF_DIGEST))
            .map(str::to_owned)
    }

    /// Returns a value without the quotes of an environment file. The last occurrence counts, as for systemd.
    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        self.text
            .lines()
            .filter_map(|line| line.trim_start().split_once('='))
            .filter(|(found, _)| *found == key)
            .map(|(_, value)| unquoted(value.trim_end()))
            .next_back()
    }

    /// Returns the system that it names.
    pub(crate) fn system(&self) -> Option<StorePath> {
        self.value("SYSTEM_PATH")
            .and_then(|path| StorePath::new(path).ok())
    }
}

fn unquoted(value: &str) -> &str {
    ['"', '\'']
        .into_iter()
        .find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote))
        .unwrap_or(value)
}

impl Containers {
    /// Returns all readable files and the names of the unreadable ones, of any owner.
    pub(crate) fn confs(&self) -> Result<(Vec<Conf>, Vec<ContainerName>), ObserveError> {
        let (mut found, mut closed) = (Vec::new(), Vec::new());
        let entries = match std::fs::read_dir(&self.paths.confs) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok((found, closed)),
            other => other.map_err(ObserveError::read(&self.paths.confs))?,
        };
        for entry in entries {
            let file = entry.map_err(ObserveError::read(&self.paths.confs))?.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(".conf"));
            let Some(Ok(name)) = name.map(ContainerName::new) else {
                continue;
            };
            match self.conf(&name) {
                Ok(conf) => found.extend(conf),
                // The helper makes this leaf's files readable for its user.
                Err(ObserveError::Read { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
                    closed.push(name);
                }
                Err(e) => return Err(e),
            }
        }
        Ok((found, closed))
    }

    /// Returns the file of this name, if it exists, of any owner.
    pub(crate) fn conf(&self, name: &ContainerName) -> Result<Option<Conf>, ObserveError> {
        let path = self.paths.conf(name);
        Ok(read_if_any(&path)?.map(|bytes| Conf {
            name: name.clone(),
            path,
            text: String::from_utf8_lossy(&bytes).into_owned(),
        }))
    }
}

/// Returns the contents of a file, or nothing if there is no such file.
pub(crate) fn read_if_any(path: &Path) -> Result<Option<Vec<u8>>, ObserveError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(ObserveError::read(path)(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_loses_its_quotes_and_the_last_one_counts() {
        let conf = Conf {
            name: ContainerName::new("web").expect("a name"),
            path: "web.conf".into(),
            text: "# cim-leaf: made by leaf edge\n# cim-leaf: spec 0123\nLOCAL_ADDRESS=\"10.0.0.1\"\n\
                   SYSTEM_PATH='/nix/store/a'\nSYSTEM_PATH=/nix/store/b \nHOST_PORT=tcp:1:2=\n"
                .into(),
        };
        assert_eq!(conf.value("LOCAL_ADDRESS"), Some("10.0.0.1"));
        assert_eq!(conf.value("SYSTEM_PATH"), Some("/nix/store/b"));
        assert_eq!(conf.value("HOST_PORT"), Some("tcp:1:2="));
        assert_eq!(conf.value("FLAKE"), None);
        assert_eq!(conf.digest().as_deref(), Some("0123"));
        assert!(conf.is_of(&LeafName::new("edge").expect("a leaf")));
        assert!(!conf.is_of(&LeafName::new("edge2").expect("a leaf")));
    }
}

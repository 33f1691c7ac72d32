//! The `NAME.conf` files, which list the containers and their owners (nixos-containers.nix of the NixOS modules).

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use leaf_core::container::EntryProblem;
use leaf_core::error::chain;
use leaf_core::id::{ContainerName, InvalidId, LeafName, StorePath};
use leaf_host::contract::{CONF_DIGEST, conf_marker};
use leaf_host::files;

use crate::{Containers, ObserveError};

/// The largest `NAME.conf` or `status.json` that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// The `NAME.conf` files of the host, of any owner.
#[derive(Debug, Default)]
pub(crate) struct Confs {
    /// The readable ones.
    pub(crate) found: Vec<Conf>,
    /// The containers whose file can't be read, with the reason.
    pub(crate) unreadable: Vec<(ContainerName, ObserveError)>,
    /// The files whose names are not names of a leaf's containers.
    pub(crate) misnamed: Vec<(PathBuf, InvalidId)>,
}

impl Confs {
    /// Returns the problems of single files.
    pub(crate) fn problems(&self) -> Vec<EntryProblem> {
        let unreadable = self.unreadable.iter().map(|(_, error)| problem_of(error));
        let misnamed = self.misnamed.iter().map(|(path, error)| EntryProblem {
            entry: path.display().to_string(),
            problem: error.to_string(),
        });
        unreadable.chain(misnamed).collect()
    }
}

/// Returns the problem of the file that an error is about.
pub(crate) fn problem_of(error: &ObserveError) -> EntryProblem {
    let (path, problem) = match error {
        ObserveError::Read { path, source } => (path.display().to_string(), chain(source)),
        ObserveError::Status { path, source } => (
            path.display().to_string(),
            format!("it is not a container's status ({source}); remove it"),
        ),
        other => (String::new(), chain(other)),
    };
    EntryProblem { entry: path, problem }
}

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
    /// Returns the files of all containers, of any owner. One that can't be used does not keep the others away.
    ///
    /// # Errors
    /// [`ObserveError`] when the directory can't be listed.
    pub(crate) fn confs(&self) -> Result<Confs, ObserveError> {
        let mut confs = Confs::default();
        let entries = match std::fs::read_dir(&self.paths.confs) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(confs),
            other => other.map_err(ObserveError::read(&self.paths.confs))?,
        };
        for entry in entries {
            let path = entry.map_err(ObserveError::read(&self.paths.confs))?.path();
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            // A name that begins with a dot is of a file that is being written.
            let Some(name) = file.strip_suffix(".conf").filter(|name| !name.starts_with('.')) else {
                continue;
            };
            let name = match ContainerName::new(name) {
                Ok(name) => name,
                Err(error) => {
                    confs.misnamed.push((path, error));
                    continue;
                }
            };
            match self.conf(&name) {
                Ok(Some(conf)) => confs.found.push(conf),
                // It was removed after the directory was read.
                Ok(None) if std::fs::symlink_metadata(&path).is_err() => {}
                Ok(None) => {
                    let missing = std::io::Error::new(ErrorKind::NotFound, "it is a link to a missing file");
                    confs.unreadable.push((name, ObserveError::read(&path)(missing)));
                }
                Err(error) => confs.unreadable.push((name, error)),
            }
        }
        confs.misnamed.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(confs)
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

/// Returns the contents of a regular file, or nothing if there is no such file.
pub(crate) fn read_if_any(path: &Path) -> Result<Option<Vec<u8>>, ObserveError> {
    match files::read(path, MAX_BYTES) {
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

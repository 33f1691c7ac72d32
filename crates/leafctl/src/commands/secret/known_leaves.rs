//! The host keys of leaves that this user has confirmed: a file with `LEAF KEY` on each line, as `known_hosts` of ssh.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use leaf_core::error::chain;
use leaf_core::id::LeafName;
use leaf_trust::host_key::HostKey;

use crate::error::Error;
use crate::output::Output;

/// The file's name, below the user's directory of settings.
const FILE: &str = "cim-leaf/known_leaves";

/// The confirmed keys, and their file.
#[derive(Debug)]
pub(super) struct KnownLeaves {
    file: PathBuf,
    keys: BTreeMap<LeafName, HostKey>,
}

/// Asks a person a question that `yes` answers.
pub(super) trait Person {
    /// Returns whether the answer was `yes`; `None` if nobody can be asked.
    fn confirms(&self, question: &str) -> Option<bool>;
}

/// The person at the terminal of this process, whatever its standard input is.
pub(super) struct Terminal;

impl Person for Terminal {
    fn confirms(&self, question: &str) -> Option<bool> {
        let terminal = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/tty")
            .ok()?;
        // The question has been made printable.
        (&terminal).write_all(question.as_bytes()).ok()?;
        let mut answer = String::new();
        BufReader::new(&terminal).read_line(&mut answer).ok()?;
        Some(answer.trim() == "yes")
    }
}

impl KnownLeaves {
    /// Reads the file of this user, which may be missing.
    pub(super) fn of_this_user() -> Result<Self, Error> {
        let set = |name: &str| {
            let value = std::env::var_os(name).filter(|value| !value.is_empty());
            value.map(PathBuf::from)
        };
        let directory = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
        let directory = directory.ok_or_else(|| {
            Error::Usage(
                "neither XDG_CONFIG_HOME nor HOME is set, so there is no file of confirmed host keys; give --host-key".to_owned(),
            )
        })?;
        Self::read(directory.join(FILE))
    }

    fn read(file: PathBuf) -> Result<Self, Error> {
        let unusable = |why: String| Error::Usage(format!("can't use {}: {why}", file.display()));
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(unusable(error.to_string())),
        };
        let mut keys = BTreeMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let parsed = line.split_once(' ').and_then(|(leaf, key)| {
                let key: HostKey = key.parse().ok()?;
                Some((LeafName::new(leaf).ok()?, key))
            });
            let (leaf, key) = parsed.ok_or_else(|| {
                unusable(format!(
                    "line {number} is not a leaf's name and its ssh-ed25519 key"
                ))
            })?;
            if keys.insert(leaf, key).is_some() {
                return Err(unusable(format!(
                    "line {number} names a leaf for the second time"
                )));
            }
        }
        Ok(Self { file, keys })
    }

    /// Returns the key that a leaf names, if it is the known one, or if the person confirms it, which is kept.
    pub(super) fn confirmed(
        &self,
        leaf: &LeafName,
        told: HostKey,
        person: &impl Person,
        output: Output,
    ) -> Result<HostKey, Error> {
        match self.keys.get(leaf) {
            Some(known) if *known == told => return Ok(told),
            Some(known) => {
                return Err(Error::Refused(format!(
                    "leaf {leaf} names the host key {}, and the one confirmed before is {}: somebody may be between you and the leaf, or its \
                     host was set up anew; in that case remove its line from {}",
                    told.fingerprint(),
                    known.fingerprint(),
                    self.file.display()
                )));
            }
            None => {}
        }
        let fingerprint = told.fingerprint();
        let question = format!(
            "The host key of leaf {leaf} is not known yet. Its fingerprint is\n  {fingerprint}\nCompare it with what this says on the leaf:\n  \
             ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub\nIs it the same? (yes/no) "
        );
        match person.confirms(&question) {
            Some(true) => {}
            Some(false) => {
                return Err(Error::Refused(format!(
                    "the host key {fingerprint} of leaf {leaf} was not confirmed"
                )));
            }
            None => {
                return Err(Error::Refused(format!(
                    "the host key {fingerprint} of leaf {leaf} is not known, and there is no terminal to ask on; give the key with --host-key"
                )));
            }
        }
        self.keep(leaf, &told).map_err(|error| {
            Error::Usage(format!(
                "can't keep the key in {}: {}",
                self.file.display(),
                chain(&error)
            ))
        })?;
        output.note(&format!("kept the key in {}", self.file.display()));
        Ok(told)
    }

    fn keep(&self, leaf: &LeafName, key: &HostKey) -> std::io::Result<()> {
        let directory = self.file.parent().unwrap_or(Path::new("."));
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.file)?;
        // In one write, since another leafctl may do the same.
        file.write_all(format!("{leaf} {key}\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ5lQtfbTcZQo8IRj2nlgtdh7CnEMGtgDVwoxSrmEmRT";
    const OTHER: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g";

    /// A person who says this, and must be asked as often.
    struct Says(Option<bool>, std::cell::Cell<usize>);

    impl Person for Says {
        fn confirms(&self, question: &str) -> Option<bool> {
            assert!(question.contains("SHA256:") && question.contains("ssh-keygen -lf"));
            self.1.set(self.1.get() + 1);
            self.0
        }
    }

    fn says(answer: Option<bool>) -> Says {
        Says(answer, std::cell::Cell::new(0))
    }

    #[test]
    fn a_key_is_kept_once_it_is_confirmed_and_another_one_is_refused_later() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("below").join(FILE);
        let leaf = LeafName::new("edge-1").expect("a leaf");
        let (one, other): (HostKey, HostKey) = (ONE.parse().expect("a key"), OTHER.parse().expect("a key"));
        let confirm = |key: &HostKey, person: &Says| {
            let known = KnownLeaves::read(file.clone()).expect("a file");
            known.confirmed(&leaf, key.clone(), person, Output::new(true))
        };
        for answer in [None, Some(false)] {
            let error = confirm(&one, &says(answer)).expect_err("refused").to_string();
            assert!(error.contains("SHA256:"), "{error}");
            assert!(!file.exists());
        }
        assert_eq!(confirm(&one, &says(Some(true))).expect("confirmed"), one);
        let never = says(Some(true));
        assert_eq!(confirm(&one, &never).expect("known"), one);
        let error = confirm(&other, &never).expect_err("another").to_string();
        assert!(error.contains("confirmed before"), "{error}");
        assert_eq!(never.1.get(), 0, "nobody is asked about a known leaf");
        let text = std::fs::read_to_string(&file).expect("a file");
        assert_eq!(text, format!("edge-1 {ONE}\n"));
    }

    #[test]
    fn a_damaged_file_is_refused_with_its_line() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("known_leaves");
        for (text, says) in [
            (
                format!("# ours\n\nedge-1 {ONE}\nedge-1 {OTHER}\n"),
                "line 4 names a leaf for the second time",
            ),
            (format!("edge-1\t{ONE}\n"), "line 1 is not"),
            ("edge-1 ssh-rsa AAAA\n".to_owned(), "line 1 is not"),
        ] {
            std::fs::write(&file, text).expect("a file");
            let error = KnownLeaves::read(file.clone()).expect_err(says).to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}

//! The host keys of leaves that this user has confirmed: a file with `LEAF KEY` on each line, as `known_hosts` of ssh. Several leafctl may
//! read and extend it at once.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
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
    /// Reads this file, or else the one of this user. It may be missing.
    pub(super) fn read(file: Option<PathBuf>) -> Result<Self, Error> {
        let file = match file {
            Some(file) => file,
            None => of_this_user()?,
        };
        let read = std::fs::read_to_string(&file);
        let text = read.or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(String::new()),
            _ => Err(unusable(&file, error.to_string())),
        })?;
        let keys = parse(&text).map_err(|why| unusable(&file, why))?;
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
            Some(known) => return Err(self.another(leaf, &told, known)),
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
        let kept = self.keep(leaf, &told).map_err(|error| {
            Error::Usage(format!(
                "can't keep the key in {}: {}",
                self.file.display(),
                chain(&error)
            ))
        })??;
        if kept {
            output.note(&format!("kept the key in {}", self.file.display()));
        }
        Ok(told)
    }

    /// Adds a line to the file, unless another leafctl has added it since it was read: then returns false.
    fn keep(&self, leaf: &LeafName, key: &HostKey) -> std::io::Result<Result<bool, Error>> {
        let directory = self.file.parent().unwrap_or(Path::new("."));
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let mut file = std::fs::OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.file)?;
        // It ends with the file's handle.
        file.lock()?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        match parse(&text).map(|mut keys| keys.remove(leaf)) {
            Ok(Some(known)) if known == *key => return Ok(Ok(false)),
            Ok(Some(known)) => return Ok(Err(self.another(leaf, key, &known))),
            Ok(None) => {}
            Err(why) => return Ok(Err(unusable(&self.file, why))),
        }
        let before = if text.is_empty() || text.ends_with('\n') {
            ""
        } else {
            "\n"
        };
        file.write_all(format!("{before}{leaf} {key}\n").as_bytes())?;
        Ok(Ok(true))
    }

    fn another(&self, leaf: &LeafName, told: &HostKey, known: &HostKey) -> Error {
        Error::Refused(format!(
            "leaf {leaf} names the host key {}, and the one confirmed before is {}: somebody may be between you and the leaf, or its host \
             was set up anew; in that case remove its line from {}",
            told.fingerprint(),
            known.fingerprint(),
            self.file.display()
        ))
    }
}

/// Returns the path of this user's file.
fn of_this_user() -> Result<PathBuf, Error> {
    let set = |name: &str| {
        let value = std::env::var_os(name).filter(|value| !value.is_empty());
        value.map(PathBuf::from)
    };
    let directory = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    let directory = directory.ok_or_else(|| {
        Error::Usage(
            "neither XDG_CONFIG_HOME nor HOME is set, so there is no file of confirmed host keys; give --known-leaves or --host-key".to_owned(),
        )
    })?;
    Ok(directory.join(FILE))
}

/// Returns the keys of a file's text.
///
/// # Errors
/// What is wrong with which line.
fn parse(text: &str) -> Result<BTreeMap<LeafName, HostKey>, String> {
    let mut keys = BTreeMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let parsed = line.split_once(' ').and_then(|(leaf, key)| {
            let key: HostKey = key.parse().ok()?;
            Some((LeafName::new(leaf).ok()?, key))
        });
        let (leaf, key) =
            parsed.ok_or_else(|| format!("line {number} is not a leaf's name and its ssh-ed25519 key"))?;
        // The same line twice says nothing else than once.
        let before = keys.insert(leaf.clone(), key.clone());
        if before.is_some_and(|before| before != key) {
            return Err(format!(
                "line {number} has another key of leaf {leaf} than a line before: remove one"
            ));
        }
    }
    Ok(keys)
}

fn unusable(file: &Path, why: String) -> Error {
    Error::Usage(format!("can't use {}: {why}", file.display()))
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
            let known = KnownLeaves::read(Some(file.clone())).expect("a file");
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
                "line 4 has another key of leaf edge-1 than a line before",
            ),
            (format!("edge-1\t{ONE}\n"), "line 1 is not"),
            ("edge-1 ssh-rsa AAAA\n".to_owned(), "line 1 is not"),
        ] {
            std::fs::write(&file, text).expect("a file");
            let error = KnownLeaves::read(Some(file.clone())).expect_err(says).to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn the_same_line_twice_and_a_last_line_without_a_line_end_are_no_damage() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("known_leaves");
        let [one, other] = [ONE, OTHER].map(|key| key.parse::<HostKey>().expect("a key"));
        let [first, second] = ["edge-1", "edge-2"].map(|name| LeafName::new(name).expect("a leaf"));
        std::fs::write(&file, format!("edge-1 {ONE}\nedge-1 {ONE} root@edge-1")).expect("a file");
        let read = || KnownLeaves::read(Some(file.clone())).expect("a file");
        let confirm = |leaf: &LeafName, key: &HostKey| {
            read().confirmed(leaf, key.clone(), &says(Some(true)), Output::new(true))
        };
        assert_eq!(confirm(&first, &one).expect("known"), one);
        assert_eq!(confirm(&second, &other).expect("confirmed"), other);
        let text = std::fs::read_to_string(&file).expect("a file");
        assert_eq!(
            text,
            format!("edge-1 {ONE}\nedge-1 {ONE} root@edge-1\nedge-2 {OTHER}\n")
        );
        assert_eq!(read().keys.len(), 2);
    }

    /// Another leafctl keeps a key while the person of this one thinks.
    #[test]
    fn what_another_leafctl_kept_meanwhile_is_not_kept_twice_and_another_key_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("known_leaves");
        let [one, other] = [ONE, OTHER].map(|key| key.parse::<HostKey>().expect("a key"));
        let leaf = LeafName::new("edge-1").expect("a leaf");
        let confirm = |known: &KnownLeaves, key: &HostKey| {
            known.confirmed(&leaf, key.clone(), &says(Some(true)), Output::new(true))
        };
        let known: Vec<KnownLeaves> = (0..3)
            .map(|_| KnownLeaves::read(Some(file.clone())).expect("a file"))
            .collect();
        confirm(&known[0], &one).expect("confirmed");
        confirm(&known[1], &one).expect("confirmed");
        let error = confirm(&known[2], &other).expect_err("another").to_string();
        assert!(error.contains("confirmed before"), "{error}");
        let text = std::fs::read_to_string(&file).expect("a file");
        assert_eq!(text, format!("edge-1 {ONE}\n"));
    }

    #[test]
    fn many_leafctl_at_once_lose_no_line() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("known_leaves");
        let one: HostKey = ONE.parse().expect("a key");
        std::thread::scope(|scope| {
            for number in 0..8 {
                let (file, one) = (file.clone(), one.clone());
                scope.spawn(move || {
                    for _ in 0..20 {
                        let known = KnownLeaves::read(Some(file.clone())).expect("a file");
                        let leaf = LeafName::new(format!("edge-{number}")).expect("a leaf");
                        let kept = known.confirmed(&leaf, one.clone(), &says(Some(true)), Output::new(true));
                        kept.expect("confirmed");
                    }
                });
            }
        });
        let text = std::fs::read_to_string(&file).expect("a file");
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        let expected: Vec<String> = (0..8).map(|number| format!("edge-{number} {ONE}")).collect();
        assert_eq!(lines, expected);
    }
}

//! What Nix says to a build hook, as `hook-instance.cc` and `derivation-goal.cc` of Nix write it: numbers of 8 bytes, little-endian; texts
//! with their length in front, and zeros up to a multiple of 8.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};

/// The longest text, and the most texts of a list.
const MOST_BYTES: u64 = 16 << 20;
const MOST_TEXTS: u64 = 1 << 20;

/// The settings of the Nix that has started the hook.
#[derive(Debug, Default)]
pub(super) struct Settings(BTreeMap<String, String>);

impl Settings {
    /// Reads them: for each the number 1, the name and the value; then 0.
    pub(super) fn read(input: &mut impl Read) -> io::Result<Self> {
        let mut settings = BTreeMap::new();
        while number(input)? != 0 {
            let name = text(input)?;
            settings.insert(name, text(input)?);
        }
        Ok(Self(settings))
    }

    /// Returns the value of a setting; nothing if it has none.
    pub(super) fn get(&self, name: &str) -> &str {
        self.0.get(name).map(String::as_str).unwrap_or_default().trim()
    }

    /// Returns whether Nix has told a setting.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn words(&self, name: &str) -> impl Iterator<Item = &str> {
        self.get(name).split_whitespace()
    }
}

/// A question whether the hook builds a derivation.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Try {
    /// Whether Nix has a free place for a build of its own.
    pub(super) has_place: bool,
    /// The derivation's system.
    pub(super) system: String,
    /// The derivation.
    pub(super) derivation: String,
    /// The features that it requires (`requiredSystemFeatures`).
    pub(super) features: BTreeSet<String>,
}

impl Try {
    /// Reads the next question; nothing if Nix has no further one.
    pub(super) fn read(input: &mut impl Read) -> io::Result<Option<Self>> {
        let word = match text(input) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            word => word?,
        };
        if word != "try" {
            return Ok(None);
        }
        Ok(Some(Self {
            has_place: number(input)? != 0,
            system: text(input)?,
            derivation: text(input)?,
            features: texts(input)?.into_iter().collect(),
        }))
    }

    /// Returns whether Nix could build it now, by itself.
    pub(super) fn can_be_built_here(&self, settings: &Settings) -> bool {
        let max_jobs = settings.get("max-jobs");
        let has_jobs = max_jobs == "auto" || max_jobs.parse::<u64>().is_ok_and(|jobs| jobs > 0);
        let mut systems = std::iter::once(settings.get("system")).chain(settings.words("extra-platforms"));
        self.has_place
            && has_jobs
            && systems.any(|system| system == self.system)
            && self
                .features
                .iter()
                .all(|feature| settings.words("system-features").any(|has| has == feature))
    }
}

/// Reads a list of texts.
pub(super) fn texts(input: &mut impl Read) -> io::Result<Vec<String>> {
    let count = number(input)?;
    if count > MOST_TEXTS {
        return Err(invalid("too many texts"));
    }
    (0..count).map(|_| text(input)).collect()
}

fn number(input: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    input.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn text(input: &mut impl Read) -> io::Result<String> {
    let length = number(input)?;
    if length > MOST_BYTES {
        return Err(invalid("too long a text"));
    }
    let mut bytes = Vec::new();
    input.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut zeros = [0; 8];
    let padding = bytes.len().next_multiple_of(8) - bytes.len();
    input.read_exact(&mut zeros[..padding])?;
    String::from_utf8(bytes).map_err(|_| invalid("a text that is not UTF-8"))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(words: &[&str]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in words {
            match word.parse::<u64>() {
                Ok(number) => bytes.extend(number.to_le_bytes()),
                Err(_) => {
                    bytes.extend((word.len() as u64).to_le_bytes());
                    bytes.extend(word.as_bytes());
                    bytes.resize(bytes.len().next_multiple_of(8), 0);
                }
            }
        }
        bytes
    }

    #[test]
    fn settings_and_questions_are_read_as_nix_writes_them() {
        let bytes = written(&[
            "1",
            "max-jobs",
            "four",
            "1",
            "system",
            "x86_64-linux",
            "1",
            "system-features",
            "kvm  big",
            "0",
            "try",
            "1",
            "x86_64-linux",
            "/nix/store/x.drv",
            "2",
            "kvm",
            "big",
            "no",
        ]);
        let mut input = bytes.as_slice();
        let settings = Settings::read(&mut input).expect("readable");
        assert_eq!(settings.get("system"), "x86_64-linux");
        let ask = Try::read(&mut input).expect("readable").expect("a question");
        assert_eq!(ask.derivation, "/nix/store/x.drv");
        assert_eq!(ask.features.len(), 2);
        assert!(!ask.can_be_built_here(&settings), "max-jobs is no number");
        assert_eq!(Try::read(&mut input).expect("readable"), None, "another word");
        assert_eq!(Try::read(&mut input).expect("readable"), None, "the end");
        // What is cut off, or lies about its length.
        let cut = &bytes[..bytes.len() - 21];
        let mut input = cut;
        Settings::read(&mut input).expect("readable");
        Try::read(&mut input).expect_err("cut off");
        let mut huge = u64::MAX.to_le_bytes().to_vec();
        huge.extend([0; 8]);
        texts(&mut huge.as_slice()).expect_err("too many");
        text(&mut huge.as_slice()).expect_err("too long");
    }

    #[test]
    fn nix_could_build_what_is_for_its_system_and_features_while_it_has_a_place() {
        let settings = |max_jobs: &str| {
            let pairs = [
                ("max-jobs", max_jobs),
                ("system", "x86_64-linux"),
                ("extra-platforms", "i686-linux"),
                ("system-features", "big-parallel kvm"),
            ];
            Settings(
                pairs
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .collect(),
            )
        };
        let ask = |has_place: bool, system: &str, features: &[&str]| Try {
            has_place,
            system: system.to_owned(),
            derivation: String::new(),
            features: features.iter().map(|feature| (*feature).to_owned()).collect(),
        };
        assert!(ask(true, "i686-linux", &["kvm"]).can_be_built_here(&settings("2")));
        assert!(!ask(false, "i686-linux", &["kvm"]).can_be_built_here(&settings("2")));
        assert!(!ask(true, "i686-linux", &["kvm"]).can_be_built_here(&settings("0")));
        assert!(!ask(true, "aarch64-linux", &[]).can_be_built_here(&settings("2")));
        assert!(!ask(true, "x86_64-linux", &["fast"]).can_be_built_here(&settings("2")));
    }
}

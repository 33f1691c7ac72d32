//! The version of the `nix` program.

/// The version of the `nix` program.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NixVersion {
    /// The major number: 2.
    pub major: u32,
    /// The minor number.
    pub minor: u32,
    /// The first line of its output: `nix (Nix) 2.8.0`.
    pub text: String,
}

impl NixVersion {
    /// Returns whether it is this minor version of Nix 2, or a later one.
    pub(crate) fn is_since(&self, minor: u32) -> bool {
        (self.major, self.minor) >= (2, minor)
    }

    pub(crate) fn parse(said: &str) -> Option<Self> {
        let text = said.lines().next()?.trim().to_owned();
        if !text.starts_with("nix ") {
            return None;
        }
        let number = text
            .split_whitespace()
            .rev()
            .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
        let mut numbers = number
            .split(|c: char| !c.is_ascii_digit())
            .map_while(|part| part.parse().ok());
        Some(Self {
            major: numbers.next()?,
            minor: numbers.next()?,
            text,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_all_implementations_of_nix_are_read() {
        for (said, major, minor) in [
            ("nix (Nix) 2.8.0\n", 2, 8),
            ("nix (Nix) 2.19pre20231009_f5a5c1e", 2, 19),
            ("nix (Lix, like Nix) 2.91.1\nmore", 2, 91),
            ("nix (Determinate Nix 3.5.2) 2.28.3", 2, 28),
        ] {
            let version = NixVersion::parse(said).expect(said);
            assert_eq!((version.major, version.minor), (major, minor), "{said}");
        }
        assert_eq!(NixVersion::parse("no"), None);
    }
}

//! The settings of a leaf's hub as a change: what is asked for, and what `hub.json` has.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::id::ChangeId;
use crate::secret::Secret;

/// The longest URL of a hub, in bytes.
pub const MAX_URL_BYTES: usize = 2048;
/// The largest CA file, in bytes.
pub const MAX_CA_BYTES: usize = 64 * 1024;
/// The largest credentials file, in bytes.
pub const MAX_CREDENTIALS_BYTES: usize = 16 * 1024;

/// Another hub for a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubChange {
    /// The hub's URL, or several with commas between them.
    pub url: String,
    /// The CA certificates to trust, in PEM; none for those of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// The content of the credentials file; none for those of the settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Secret>,
    /// The hash of the section `[nats.embedded.hub]` in whose place this is used: 64 hexadecimal digits.
    pub section: String,
}

/// Why another hub is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HubChangeError {
    /// The URL is too long or empty.
    #[error("the hub's URL has {bytes} bytes; 1 to {MAX_URL_BYTES} are allowed")]
    UrlSize {
        /// Its size.
        bytes: usize,
    },
    /// The URL has a character that no URL has.
    #[error("the hub's URL contains {0:?}, which no URL does (RFC 3986)")]
    UrlCharacter(char),
    /// A text is too long.
    #[error("the {what} has {bytes} bytes; at most {max} are allowed")]
    Size {
        /// The text's name, such as `CA file`.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// A text has a character that it can't have.
    #[error("the {what} contains {found:?}; it is a text of printable ASCII characters")]
    Character {
        /// The text's name, such as `CA file`.
        what: &'static str,
        /// The character.
        found: char,
    },
    /// The hash is malformed.
    #[error("the hash of the section has 64 hexadecimal digits in lower case")]
    Section,
}

impl HubChange {
    /// Checks the sizes and the characters. It does not check that the URL leads to a hub.
    ///
    /// # Errors
    /// [`HubChangeError`], which quotes nothing of the credentials but a character.
    pub fn check(&self) -> Result<(), HubChangeError> {
        let bytes = self.url.len();
        if bytes == 0 || bytes > MAX_URL_BYTES {
            return Err(HubChangeError::UrlSize { bytes });
        }
        let is_in_urls = |c: char| c.is_ascii_graphic() && !"\"<>\\^`{|}".contains(c);
        if let Some(found) = self.url.chars().find(|c| !is_in_urls(*c)) {
            return Err(HubChangeError::UrlCharacter(found));
        }
        if let Some(ca) = &self.ca {
            check_text("CA file", ca, MAX_CA_BYTES)?;
        }
        if let Some(credentials) = &self.credentials {
            check_text("credentials file", credentials.expose(), MAX_CREDENTIALS_BYTES)?;
        }
        let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if self.section.len() != 64 || !self.section.bytes().all(is_digit) {
            return Err(HubChangeError::Section);
        }
        Ok(())
    }
}

fn check_text(what: &'static str, text: &str, max: usize) -> Result<(), HubChangeError> {
    let bytes = text.len();
    if bytes > max {
        return Err(HubChangeError::Size { what, bytes, max });
    }
    let is_text = |c: char| c.is_ascii_graphic() || matches!(c, ' ' | '\t' | '\n' | '\r');
    match text.chars().find(|c| !is_text(*c)) {
        Some(found) => Err(HubChangeError::Character { what, found }),
        None => Ok(()),
    }
}

/// The hub that leafd uses in the place of the section `[nats.embedded.hub]`, as long as that has the hash: `hub.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubOverride {
    /// The version of the file; 1.
    pub version: u32,
    /// The change that made it.
    pub change: ChangeId,
    /// The hub's URL, or several with commas between them.
    pub url: String,
    /// The name of the file with the CA certificates beside `hub.json`; none for those of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// The name of the credentials file beside `hub.json`; none for the credentials of the section.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<String>,
    /// The hash of the section that it replaces: 64 hexadecimal digits.
    pub section: String,
    /// The fields that this program does not know.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change() -> HubChange {
        HubChange {
            url: "tls://hub.example.org:7422,wss://[2001:db8::1]:443/leaf".to_owned(),
            ca: Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned()),
            credentials: Some(Secret::new("-----BEGIN NATS USER JWT-----\r\neyJ0\r\n")),
            section: "0".repeat(64),
        }
    }

    #[test]
    fn a_change_of_the_hub_has_bounded_texts_without_control_characters() {
        assert_eq!(change().check(), Ok(()));
        let with = |alter: fn(&mut HubChange)| {
            let mut altered = change();
            alter(&mut altered);
            altered.check().expect_err("it is refused")
        };
        assert_eq!(with(|c| c.url.clear()), HubChangeError::UrlSize { bytes: 0 });
        assert_eq!(with(|c| c.url.push('\n')), HubChangeError::UrlCharacter('\n'));
        assert_eq!(with(|c| c.url.push('"')), HubChangeError::UrlCharacter('"'));
        assert_eq!(with(|c| c.url.push('ü')), HubChangeError::UrlCharacter('ü'));
        assert!(matches!(
            with(|c| c.url = "x".repeat(2049)),
            HubChangeError::UrlSize { .. }
        ));
        assert!(matches!(
            with(|c| c.ca = Some("x".repeat(MAX_CA_BYTES + 1))),
            HubChangeError::Size { what: "CA file", .. }
        ));
        assert!(matches!(
            with(|c| c.ca = Some("\u{1b}[2J".to_owned())),
            HubChangeError::Character { found: '\u{1b}', .. }
        ));
        assert!(matches!(
            with(|c| c.credentials = Some(Secret::new("x".repeat(MAX_CREDENTIALS_BYTES + 1)))),
            HubChangeError::Size { .. }
        ));
        assert_eq!(with(|c| c.section = "F".repeat(64)), HubChangeError::Section);
        assert_eq!(with(|c| c.section.truncate(63)), HubChangeError::Section);
    }

    #[test]
    fn the_credentials_of_a_change_are_not_shown() {
        assert!(!format!("{:?}", change()).contains("eyJ0"));
    }

    #[test]
    fn an_override_keeps_what_a_newer_program_wrote() {
        let text = format!(
            r#"{{"version":1,"change":"0193f6b0-4c1e-7000-8000-000000000000","url":"tls://h","section":"{}","new":1}}"#,
            "0".repeat(64)
        );
        let read: HubOverride = serde_json::from_str(&text).expect("it is read");
        assert_eq!(read.more["new"], 1);
        assert_eq!(serde_json::to_value(&read).expect("JSON")["new"], 1);
    }
}

//! The headers of an event, and the encoding of their values.
//!
//! `ce-id` consists of leaf, epoch and sequence number, so an event that is sent again has the same id. Values are
//! percent-encoded as the NATS binding of CloudEvents says: a header contains only printable ASCII.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

/// The CloudEvents version: `1.0`.
pub const SPECVERSION: &str = "ce-specversion";
/// The event's id: `<leaf>/<epoch>/<sequence>`.
pub const ID: &str = "ce-id";
/// The leaf: `urn:cim-leaf:<leaf>`.
pub const SOURCE: &str = "ce-source";
/// The type with its major version.
pub const TYPE: &str = "ce-type";
/// The aggregate's token.
pub const SUBJECT: &str = "ce-subject";
/// The time in RFC 3339, UTC.
pub const TIME: &str = "ce-time";
/// The sequence number with 20 digits, so that text order is numeric order.
pub const SEQUENCE: &str = "ce-sequence";
/// The id of the command that caused it.
pub const CAUSATION_ID: &str = "ce-causationid";
/// The sender's correlation id.
pub const CORRELATION_ID: &str = "ce-correlationid";
/// The media type of the body: `application/json`, except for a job's log.
pub const DATA_CONTENT_TYPE: &str = "ce-datacontenttype";
/// The offset of a piece of a job's log, in bytes.
pub const OFFSET: &str = "ce-offset";
/// The offset of the next piece of a job's log, in bytes.
pub const NEXT_OFFSET: &str = "ce-nextoffset";
/// The media type of a reply or a lease, which are not CloudEvents.
pub const CONTENT_TYPE: &str = "content-type";

/// The encoded characters: control characters, blank, `"` and `%` (bytes beyond ASCII are always encoded).
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// Returns the value encoded for a header: blanks, `"`, `%` and everything but printable ASCII as `%` and two
/// hexadecimal digits per byte.
#[must_use]
pub fn encode(value: &str) -> Cow<'_, str> {
    utf8_percent_encode(value, ENCODED).into()
}

/// Returns the decoded value of a header: without the quotes around it, percent-decoded once. A `%` without two
/// hexadecimal digits after it is kept, and bytes that are not UTF-8 are replaced.
#[must_use]
pub fn decode(header: &str) -> Cow<'_, str> {
    match header.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inner) if inner.contains('\\') => {
            let text = unescape(inner);
            Cow::Owned(percent_decode_str(&text).decode_utf8_lossy().into_owned())
        }
        inner => percent_decode_str(inner.unwrap_or(header)).decode_utf8_lossy(),
    }
}

/// Removes the backslashes of a quoted string.
fn unescape(text: &str) -> String {
    let mut chars = text.chars();
    std::iter::from_fn(|| match chars.next()? {
        '\\' => chars.next(),
        other => Some(other),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_are_written_as_the_binding_says() {
        // The examples of the specification.
        assert_eq!(encode("Euro € 😀"), "Euro%20%E2%82%AC%20%F0%9F%98%80");
        assert_eq!(encode("100% \"sure\""), "100%25%20%22sure%22");
        assert_eq!(encode("edge-1/1763654400000/23"), "edge-1/1763654400000/23");
    }

    #[test]
    fn values_are_read_as_the_binding_says() {
        for (header, value) in [
            ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
            ("%e2%82%ac", "€"),
            ("\"Euro%20%E2%82%AC\"", "Euro €"),
            (r#""a \"b\" \\ c""#, r#"a "b" \ c"#),
            ("%2541", "%41"),
            ("100%", "100%"),
            ("%4", "%4"),
            ("%zz", "%zz"),
            ("%C3", "\u{fffd}"),
            ("", ""),
            ("\"", "\""),
        ] {
            assert_eq!(decode(header), value, "{header}");
        }
    }

    proptest! {
        #[test]
        fn any_value_is_printable_ascii_in_its_header_and_comes_back(value in ".*") {
            let header = encode(&value);
            prop_assert!(header.bytes().all(|b| b.is_ascii_graphic()), "{header}");
            prop_assert_eq!(decode(&header), value.as_str());
        }

        #[test]
        fn any_header_can_be_read(header in "[\\x20-\\x7eä€]*") {
            let _ = decode(&header);
        }
    }
}

//! The text that a client's key signs.

use crate::id::{Caller, LeafName};

/// What a request is signed for.
#[derive(Debug, Clone, Copy)]
pub struct Signed<'a> {
    /// The leaf, as in the subject.
    pub leaf: &'a LeafName,
    /// The caller, as in the subject.
    pub caller: &'a Caller,
    /// `attach`, `read`, `write` or `control`.
    pub verb: &'a str,
    /// The header with the session.
    pub session: &'a str,
    /// The number.
    pub number: u64,
    /// The offset of a write.
    pub offset: Option<u64>,
    /// The body.
    pub body: &'a [u8],
}

/// Returns the text that is signed.
#[must_use]
pub fn signed_text(signed: &Signed<'_>) -> Vec<u8> {
    let offset = signed
        .offset
        .map_or_else(|| "-".to_owned(), |offset| offset.to_string());
    let mut text = format!(
        "cim-leaf session 1\n{}\n{}\n{}\n{}\n{}\n{offset}\n",
        signed.leaf, signed.caller, signed.verb, signed.session, signed.number
    )
    .into_bytes();
    text.extend_from_slice(signed.body);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_that_of_the_contract() {
        let text = signed_text(&Signed {
            leaf: &LeafName::new("edge-1").expect("a name"),
            caller: &Caller::new("ann").expect("a caller"),
            verb: "write",
            session: "J/A",
            number: 7,
            offset: Some(0),
            body: b"a\nb\0",
        });
        assert_eq!(text, b"cim-leaf session 1\nedge-1\nann\nwrite\nJ/A\n7\n0\na\nb\0");
    }
}

//! Completes JSON whose end was cut off.

/// Returns a document that was cut off within a text, with the text ended by `…` and everything closed that is open;
/// `None` if it was not cut off within a text.
pub(super) fn completed(json: &[u8]) -> Option<Vec<u8>> {
    let mut closing = Vec::new();
    let mut in_text = false;
    // The bytes of an escape that are yet to come: one that names its kind, or hexadecimal digits.
    let (mut kind, mut digits) = (false, 0);
    // The end of the last character that is whole.
    let mut whole = 0;
    for (at, byte) in json.iter().enumerate() {
        match (in_text, *byte) {
            (false, b'"') => in_text = true,
            (false, b'{') => closing.push(b'}'),
            (false, b'[') => closing.push(b']'),
            (false, b'}' | b']') => {
                closing.pop()?;
            }
            (false, _) => {}
            (true, b'u') if kind => (kind, digits) = (false, 4),
            (true, _) if kind => kind = false,
            (true, _) if digits > 0 => digits -= 1,
            (true, b'\\') => kind = true,
            (true, b'"') => in_text = false,
            (true, _) => {}
        }
        if !kind && digits == 0 {
            whole = at + 1;
        }
    }
    if !in_text {
        return None;
    }
    let text = match std::str::from_utf8(&json[..whole]) {
        Ok(text) => text,
        // A character that was cut off; any other place has no valid end.
        Err(error) => std::str::from_utf8(&json[..error.valid_up_to()]).ok()?,
    };
    let mut document = text.as_bytes().to_vec();
    document.extend_from_slice("…\"".as_bytes());
    document.extend(closing.iter().rev());
    Some(document)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_cut_anywhere_is_completed() {
        let json = r#"{"action":"result","fields":["a\\b\"ü\u00e9 [{","x"],"id":1}"#;
        let begin = json.find("a\\").expect("the text");
        let end = json.find(r#"","x""#).expect("its end");
        for cut in begin..=end {
            let document = completed(&json.as_bytes()[..cut]).expect("completed");
            let value: serde_json::Value = serde_json::from_slice(&document).expect("JSON");
            let text = value["fields"][0].as_str().expect("a text");
            let kept = text.strip_suffix('…').expect("a mark");
            assert!(r#"a\b"üé [{"#.starts_with(kept), "{cut}: {text}");
        }
        for other in ["", "{", r#"{"a":1"#, r#"{"a":"b"}"#, "]", "x"] {
            assert_eq!(completed(other.as_bytes()), None, "{other}");
        }
    }
}

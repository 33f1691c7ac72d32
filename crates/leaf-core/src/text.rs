//! Texts for people, where there is little room.

/// Leaves out the middle of a text that is longer: an error's cause is at its beginning or at its end.
pub(crate) fn shorten_text(text: &mut String, max_bytes: usize) {
    if text.len() <= max_bytes {
        return;
    }
    let half = max_bytes / 2;
    let head = text.floor_char_boundary(half);
    let tail = text.ceil_char_boundary(text.len() - half);
    let left_out = tail - head;
    text.replace_range(head..tail, &format!(" … ({left_out} bytes left out) … "));
}

//! Messages, events and entries as JSON.

use serde::Serialize;

/// Returns a value as JSON, in a buffer that is large enough for most events and entries.
///
/// # Panics
/// If the value has a map whose keys are not strings, which no type of this crate has.
pub fn to_json(value: &impl Serialize) -> Vec<u8> {
    let mut json = Vec::with_capacity(512);
    serde_json::to_writer(&mut json, value).expect("what a leaf says has string keys only");
    json
}

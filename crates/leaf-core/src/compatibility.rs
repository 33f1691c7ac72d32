//! Compares values written by a newer version with the part that this version knows
//! ([decision 9](../../../docs/decisions/0009-what-cannot-be-read-is-kept-and-not-acted-on.md)).

use serde_json::{Map, Value};

/// Top-level fields of an entry or an event's body that this version must know completely: the desired state. An
/// unknown field elsewhere is kept, and does not prevent the leaf from acting.
const UNDERSTOOD_WHOLE: [&str; 3] = ["desired", "revisions", "task"];

/// Returns the part of a value that this version doesn't know, given `known`, the value after parsing and serializing
/// it; `None` if it knows all. A missing field equals an empty one (`null`, `false`, 0, an empty text or list).
pub(crate) fn unknown_part(found: &Value, known: &Value) -> Option<Value> {
    match (found, known) {
        (Value::Object(found), Value::Object(known)) => {
            let more = found.iter().filter_map(|(name, value)| {
                let more = match known.get(name) {
                    Some(known) => unknown_part(value, known)?,
                    None if is_empty(value) => return None,
                    None => value.clone(),
                };
                Some((name.clone(), more))
            });
            let more: Map<String, Value> = more.collect();
            (!more.is_empty()).then_some(Value::Object(more))
        }
        (Value::Array(found), Value::Array(known)) if found.len() == known.len() => {
            let all = found.iter().zip(known).all(|(f, k)| unknown_part(f, k).is_none());
            (!all).then(|| Value::Array(found.clone()))
        }
        (found, known) => (found != known).then(|| found.clone()),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_f64() == Some(0.0),
        Value::String(value) => value.is_empty(),
        Value::Array(value) => value.is_empty(),
        Value::Object(value) => value.is_empty(),
    }
}

/// Returns the path of the first unknown value that prevents this version from acting: one in the desired state, or one
/// that could not be kept beside what this version writes. `unknown` is the [unknown part](unknown_part) of an entry or
/// an event's body.
pub(crate) fn must_be_understood(unknown: &Value, known: &Value) -> Option<String> {
    let (Value::Object(unknown), Value::Object(known)) = (unknown, known) else {
        return Some(String::new());
    };
    unknown.iter().find_map(|(name, unknown)| {
        if UNDERSTOOD_WHOLE.contains(&name.as_str()) {
            return Some(path_of_first(name, unknown));
        }
        let inner = must_be_understood(unknown, known.get(name)?)?;
        Some(if inner.is_empty() {
            name.clone()
        } else {
            format!("{name}.{inner}")
        })
    })
}

/// Returns the path of the first value in a field.
fn path_of_first(name: &str, value: &Value) -> String {
    match value {
        Value::Object(fields) => match fields.iter().next() {
            Some((inner, value)) => format!("{name}.{}", path_of_first(inner, value)),
            None => name.to_owned(),
        },
        _ => name.to_owned(),
    }
}

/// Adds the unknown part of an entry to the part that this version writes.
pub(crate) fn add_unknown_part(entry: &mut Value, unknown: &Value) {
    let (Value::Object(entry), Value::Object(unknown)) = (entry, unknown) else {
        return;
    };
    for (name, unknown) in unknown {
        match entry.get_mut(name) {
            Some(known) => add_unknown_part(known, unknown),
            None => {
                entry.insert(name.clone(), unknown.clone());
            }
        }
    }
}

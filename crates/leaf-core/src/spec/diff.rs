//! The difference between two specs.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ContainerSpec;

/// The changes that applying a spec would make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SpecDiff {
    /// The values that would change, sorted by path.
    pub changes: Vec<SpecChange>,
}

/// A value of a spec that would change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SpecChange {
    /// Its path: the names of the fields on the way to it.
    pub path: Vec<String>,
    /// The present value; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<Value>,
    /// The new value; absent if it would be removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<Value>,
}

/// Returns the values that differ between two specs, sorted by path.
#[must_use]
pub fn spec_diff(now: &ContainerSpec, then: &ContainerSpec) -> SpecDiff {
    let json = |spec| serde_json::to_value(spec).expect("a spec has text keys and no failing parts");
    let mut changes = Vec::new();
    compare(&mut Vec::new(), Some(&json(now)), Some(&json(then)), &mut changes);
    SpecDiff { changes }
}

fn compare(path: &mut Vec<String>, now: Option<&Value>, then: Option<&Value>, changes: &mut Vec<SpecChange>) {
    if let (Some(Value::Object(a)), Some(Value::Object(b))) = (now, then) {
        let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for key in keys {
            path.push(key.clone());
            compare(path, a.get(key), b.get(key), changes);
            path.pop();
        }
    } else if now != then {
        changes.push(SpecChange {
            path: path.clone(),
            now: now.cloned(),
            then: then.cloned(),
        });
    }
}

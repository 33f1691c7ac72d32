//! The task `nix eval` and its result.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Installable, outputs};

/// The maximum size of a value, in bytes of JSON.
pub const MAX_VALUE_BYTES: usize = 128 * 1024;
/// The maximum length of a function, in bytes.
const MAX_APPLY_BYTES: usize = 16 * 1024;

/// The task of an evaluation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EvalTask {
    /// The flake reference or the file to evaluate.
    pub installable: Installable,
    /// A function in the Nix language, whose result is the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apply: Option<String>,
    /// Whether a flake is evaluated impurely.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub impure: bool,
    /// The time limit, in seconds.
    pub timeout_seconds: u32,
}

impl EvalTask {
    /// Checks what can be checked without the host.
    ///
    /// # Errors
    /// The reason, for the caller.
    pub fn check(&self) -> Result<(), String> {
        self.installable.check()?;
        let (Installable::Flake { reference: text }
        | Installable::File {
            attribute: Some(text),
            ..
        }) = &self.installable
        else {
            return match self.installable {
                Installable::File { .. } => self.check_apply(),
                _ => Err(format!(
                    "{} can't be evaluated: give a flake reference, or a file and an attribute",
                    self.installable
                )),
            };
        };
        if let (_, Some(outputs)) = outputs::split(text) {
            return Err(format!("a value has no outputs: leave ^{outputs} out"));
        }
        self.check_apply()
    }

    fn check_apply(&self) -> Result<(), String> {
        let apply = self.apply.as_deref().unwrap_or_default();
        if apply.len() > MAX_APPLY_BYTES {
            return Err(format!(
                "the function has {} bytes: at most {MAX_APPLY_BYTES} are taken",
                apply.len()
            ));
        }
        if apply.contains('\0') {
            return Err("the function has a NUL character".to_owned());
        }
        Ok(())
    }
}

/// The result of an evaluation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EvalResult {
    /// The value as JSON, at most 128 KiB of it.
    #[serde(default)]
    pub value: Value,
    /// The size of the value, if it was left out because the NATS server accepts only smaller messages; `value` is null then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_left_out_bytes: Option<u64>,
    /// The locked flake reference that was evaluated, without the attribute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked: Option<String>,
    /// Whether the value comes from an earlier evaluation of the same locked reference.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cached: bool,
    /// The version of Nix, such as `nix (Nix) 2.8.0`.
    pub nix: String,
    /// The wall-clock time of the evaluation, in milliseconds; 0 if it comes from an earlier one.
    pub eval_time_ms: u64,
}

impl EvalResult {
    /// Leaves the value out if it is larger: a part of it would be another value.
    pub(crate) fn shorten(&mut self, max_bytes: usize) {
        let bytes = self.value.to_string().len();
        if bytes > max_bytes {
            self.value = Value::Null;
            self.value_left_out_bytes = Some(bytes as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_value_is_refused_with_the_reason() {
        let task = |installable: Installable, apply: Option<&str>| EvalTask {
            installable,
            apply: apply.map(str::to_owned),
            impure: false,
            timeout_seconds: 60,
        };
        let flake = |reference: &str| Installable::Flake {
            reference: reference.to_owned(),
        };
        let template = Installable::Template {
            name: "minimal".to_owned(),
        };
        for (task, says) in [
            (task(flake("--impure"), None), "flag"),
            (task(flake("x#a^dev"), None), "no outputs"),
            (task(template, None), "can't be evaluated"),
            (task(flake("x#a"), Some("a\0")), "NUL"),
            (task(flake("x#a"), Some(&"x".repeat(20_000))), "20000 bytes"),
        ] {
            let why = task.check().expect_err(says);
            assert!(why.contains(says), "{why}");
        }
        let fine = task(flake("x#a"), Some("--help; $(id)\n x: x"));
        assert_eq!(fine.check(), Ok(()));
    }

    #[test]
    fn a_value_that_is_too_large_is_left_out_whole() {
        let mut result = EvalResult {
            value: Value::from("x".repeat(100)),
            ..EvalResult::default()
        };
        result.shorten(102);
        assert_eq!(result.value_left_out_bytes, None);
        result.shorten(101);
        assert_eq!(
            (result.value, result.value_left_out_bytes),
            (Value::Null, Some(102))
        );
    }
}

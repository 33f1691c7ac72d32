//! The task `nix print-dev-env` and its result.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Installable;

/// The maximum size of an environment, in bytes of JSON. That of nixpkgs' `hello` has some 100 KiB, most of it bash functions.
pub const MAX_ENVIRONMENT_BYTES: usize = 256 * 1024;

/// The task of printing a build environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PrintEnvTask {
    /// The flake reference, the file or the derivation whose build environment is asked for.
    pub installable: Installable,
    /// Whether a flake is evaluated impurely.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub impure: bool,
    /// The time limit, in seconds.
    pub timeout_seconds: u32,
}

impl PrintEnvTask {
    /// Checks what can be checked without the host.
    ///
    /// # Errors
    /// The reason, for the caller.
    pub fn check(&self) -> Result<(), String> {
        self.installable.check_derivation("build environment")
    }
}

/// The result of printing a build environment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PrintEnvResult {
    /// The environment, at most 256 KiB of JSON.
    pub environment: Environment,
    /// The size of the environment, if it was left out because the NATS server accepts only smaller messages; `environment`
    /// is empty then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment_left_out_bytes: Option<u64>,
    /// The locked flake reference that was evaluated, without the attribute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked: Option<String>,
    /// The version of Nix, such as `nix (Nix) 2.8.0`.
    pub nix: String,
    /// The number of derivations whose build began: the dependencies, and the environment itself unless it was in the store.
    pub built: u32,
    /// The wall-clock time, in milliseconds.
    pub time_ms: u64,
}

impl PrintEnvResult {
    /// Leaves the environment out if it is larger: a part of it would be another environment.
    pub(crate) fn shorten(&mut self, max_bytes: usize) {
        let bytes = self.environment.json_bytes();
        if bytes > max_bytes && self.environment != Environment::default() {
            self.environment = Environment::default();
            self.environment_left_out_bytes = Some(bytes as u64);
        }
    }
}

/// The environment of a derivation's build in bash, after `$stdenv/setup`: in the form of `nix print-dev-env --json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Environment {
    /// The bash functions by name: the commands between the braces.
    #[serde(default, rename = "bashFunctions")]
    pub bash_functions: BTreeMap<String, String>,
    /// The variables by name.
    #[serde(default)]
    pub variables: BTreeMap<String, Variable>,
    /// The files `.attrs.json` and `.attrs.sh` of a derivation with structured attributes, by name.
    #[serde(
        default,
        rename = "structuredAttrs",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub structured_attrs: BTreeMap<String, String>,
}

impl Environment {
    /// Returns its size, in bytes of JSON.
    #[must_use]
    pub fn json_bytes(&self) -> usize {
        serde_json::to_string(self).map_or(usize::MAX, |json| json.len())
    }
}

/// A variable of bash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "type", content = "value")]
pub enum Variable {
    /// A variable that is exported to programs.
    Exported(String),
    /// A variable of the shell alone.
    Var(String),
    /// An indexed array.
    Array(Vec<String>),
    /// An associative array.
    Associative(BTreeMap<String, String>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_environment_is_refused_with_the_reason() {
        let flake = |reference: &str| Installable::Flake {
            reference: reference.to_owned(),
        };
        let path = |text: &str| Installable::StorePath {
            path: crate::id::StorePath::new(text).expect("a store path"),
        };
        let check = |installable| {
            let task = PrintEnvTask {
                installable,
                impure: false,
                timeout_seconds: 60,
            };
            task.check()
        };
        for (installable, says) in [
            (flake("--impure"), "flag"),
            (flake("x#a^dev"), "no outputs"),
            (
                path("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a"),
                "no build environment",
            ),
            (
                Installable::Template {
                    name: "minimal".to_owned(),
                },
                "no build environment",
            ),
        ] {
            let why = check(installable).expect_err(says);
            assert!(why.contains(says), "{why}");
        }
        for fine in [
            flake("x#a"),
            path("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a.drv"),
        ] {
            assert_eq!(check(fine), Ok(()));
        }
    }

    #[test]
    fn an_environment_is_written_as_nix_writes_it_and_left_out_whole() {
        let json = r#"{"bashFunctions":{"f":" \n echo\n"},"variables":{"A":{"type":"exported","value":"1"},"B":{"type":"var","value":""},"C":{"type":"array","value":["x","y"]},"D":{"type":"associative","value":{"k":"v"}}}}"#;
        let environment: Environment = serde_json::from_str(json).expect("readable");
        assert_eq!(serde_json::to_string(&environment).expect("JSON"), json);
        let mut result = PrintEnvResult {
            environment,
            ..PrintEnvResult::default()
        };
        result.shorten(json.len());
        assert_eq!(result.environment_left_out_bytes, None);
        result.shorten(json.len() - 1);
        assert_eq!(
            (result.environment, result.environment_left_out_bytes),
            (Environment::default(), Some(json.len() as u64))
        );
    }
}

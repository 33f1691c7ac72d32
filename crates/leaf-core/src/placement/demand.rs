//! What a job takes of its leaf.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How much there is, or how much a job takes, of each feature, such as `kvm`.
pub type Features = BTreeMap<String, u16>;

/// The maximum number of features of a leaf or a job.
const MOST_FEATURES: usize = 32;
/// The maximum count of a feature.
const MOST_OF_ONE: u16 = 1000;
/// The time in which a waiting job gains a step of priority, in seconds.
const STEP_SECONDS: i64 = 1800;
/// The maximum length of a feature's name, in bytes.
const MAX_NAME_BYTES: usize = 32;

/// What a job takes of its leaf while it runs, and its place in the queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Demand {
    /// The count of each of the leaf's features that the job takes while it runs, by name.
    #[serde(default, skip_serializing_if = "Features::is_empty")]
    pub features: Features,
    /// Its priority among the queued jobs.
    #[serde(default, skip_serializing_if = "Priority::is_normal")]
    pub priority: Priority,
}

/// The priority of a queued job: a higher one starts first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// After all others.
    Low,
    /// The usual one.
    #[default]
    Normal,
    /// Before all others.
    High,
}

impl Priority {
    /// Returns whether it is the usual one: then it is left out of what is written.
    #[must_use]
    pub fn is_normal(&self) -> bool {
        *self == Self::Normal
    }

    /// Returns the priority of a job that has waited for this many seconds: one step higher for each half hour.
    #[must_use]
    pub fn after(self, waited_seconds: i64) -> Self {
        match (self, waited_seconds / STEP_SECONDS) {
            (Self::High, _) | (Self::Normal, 1..) | (Self::Low, 2..) => Self::High,
            (Self::Normal, _) | (Self::Low, 1) => Self::Normal,
            (Self::Low, _) => Self::Low,
        }
    }
}

impl Demand {
    /// Returns whether it takes no feature, and has the usual priority: then it is left out of what is written.
    #[must_use]
    pub fn is_usual(&self) -> bool {
        self.features.is_empty() && self.priority.is_normal()
    }
}

/// Checks the names, counts and number of features.
///
/// # Errors
/// The reason, for whoever gave them.
pub fn check_features(features: &Features) -> Result<(), String> {
    if features.len() > MOST_FEATURES {
        return Err(format!(
            "{} features are too many: at most {MOST_FEATURES} are allowed",
            features.len()
        ));
    }
    for (name, count) in features {
        let letter = |byte: u8| byte.is_ascii_alphanumeric();
        let is_name = name.len() <= MAX_NAME_BYTES
            && name.bytes().next().is_some_and(letter)
            && name.bytes().all(|byte| letter(byte) || b"._-".contains(&byte));
        if !is_name {
            let name: String = name.chars().take(MAX_NAME_BYTES).collect();
            return Err(format!(
                "{name:?} is not the name of a feature: 1 to {MAX_NAME_BYTES} of the characters A-Z, a-z, 0-9, '.', '_' and '-', beginning with \
                 a letter or digit"
            ));
        }
        if *count == 0 || *count > MOST_OF_ONE {
            return Err(format!(
                "the count of the feature {name} must be from 1 to {MOST_OF_ONE}, not {count}"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_that_no_leaf_can_have_are_refused_with_the_reason() {
        let of = |name: &str, count: u16| check_features(&[(name.to_owned(), count)].into());
        for good in ["kvm", "big-parallel", "gccarch-x86-64-v3", "9p", "a.b_c", "Apple"] {
            assert_eq!(of(good, 1), Ok(()));
        }
        for bad in ["", "-kvm", "a b", "ä", "a\u{1b}[2J", &"a".repeat(33)] {
            let why = of(bad, 1).expect_err(bad);
            assert!(!why.contains('\u{1b}'), "{why}");
        }
        for count in [0, 1001, u16::MAX] {
            assert!(of("kvm", count).expect_err("a count").contains("from 1 to 1000"));
        }
        let many = (0..33).map(|n| (format!("f{n}"), 1)).collect();
        assert!(
            check_features(&many)
                .expect_err("too many")
                .contains("33 features")
        );
    }

    #[test]
    fn each_half_hour_of_waiting_lifts_a_job_by_one_step() {
        use Priority::{High, Low, Normal};
        let after = |minutes: i64| [Low, Normal, High].map(|priority| priority.after(minutes * 60));
        // A clock that was set back counts as no time.
        assert_eq!(after(-600), [Low, Normal, High]);
        assert_eq!(after(29), [Low, Normal, High]);
        assert_eq!(after(30), [Normal, High, High]);
        assert_eq!(after(60), [High, High, High]);
        assert!(Low < Normal && Normal < High);
    }
}

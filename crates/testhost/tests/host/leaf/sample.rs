//! Samples of long sweeps: all of one runs in `cargo xtask soak`, and a sample that differs from run to run elsewhere.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

/// `all`, which `cargo xtask soak` sets, or the seed of a sample.
const VARIABLE: &str = "CIM_LEAF_SAMPLE";
/// A sample has each fifth step, so five successive seeds have all.
const STRIDE: u32 = 5;

/// The part of a sweep that is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sample {
    All,
    Seed(u32),
}

impl Sample {
    /// Returns the sample that [`VARIABLE`] names, or another one for each run, the same for all tests.
    ///
    /// # Errors
    /// If it is neither `all` nor a number.
    pub(crate) fn from_environment() -> Result<Self> {
        match std::env::var(VARIABLE) {
            Ok(text) if text == "all" => Ok(Self::All),
            Ok(text) => {
                let seed = text.parse();
                Ok(Self::Seed(seed.with_context(|| {
                    format!("{VARIABLE} is {text:?}, neither all nor a number")
                })?))
            }
            Err(_) => {
                static OF_THIS_RUN: OnceLock<u32> = OnceLock::new();
                let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
                Ok(Self::Seed(*OF_THIS_RUN.get_or_init(|| now.subsec_micros())))
            }
        }
    }

    /// Returns whether it has this step.
    pub(crate) const fn takes(self, step: u32) -> bool {
        self.takes_one_of(STRIDE, step)
    }

    /// Returns whether it has this one of `count` variants, of which a run takes one.
    pub(crate) const fn takes_one_of(self, count: u32, variant: u32) -> bool {
        match self {
            Self::All => true,
            Self::Seed(seed) => variant % count == seed % count,
        }
    }

    /// Returns a number below `limit`, another one for each `index`.
    pub(crate) const fn number(self, index: u32, limit: u32) -> u32 {
        let seed = match self {
            Self::All => 0,
            Self::Seed(seed) => seed % limit,
        };
        // A prime, so that successive numbers are far apart.
        (seed + index % limit * 331) % limit
    }

    /// Says which of these steps it has, and how to take the same again.
    pub(crate) fn of(self, step: &str) -> String {
        match self {
            Self::All => format!("each {step}"),
            Self::Seed(seed) => format!("a sample of each {step}; {VARIABLE}={seed} takes the same again"),
        }
    }
}

//! How containers run on a host, and what that can't do.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::ContainerName;

/// What runs the containers of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    /// systemd as PID 1: a unit `container@NAME.service` each, seen by `systemctl`, `machinectl` and `nixos-container`.
    Systemd,
    /// `leaf-helper supervise` with systemd-nspawn, where systemd is not PID 1. It can't do all that the other can, and says
    /// so.
    Nspawn,
}

impl Runtime {
    /// Returns what is said where a part of a spec, or a command, is beyond it.
    #[must_use]
    pub fn cant(self, what: &str) -> String {
        match self {
            Self::Systemd => format!("{what}: containers as units of systemd can't do that"),
            Self::Nspawn => {
                format!("{what}: the nspawn runtime, for hosts where systemd is not PID 1, can't do that")
            }
        }
    }

    /// The unit of a container under systemd.
    #[must_use]
    pub fn unit(name: &ContainerName) -> String {
        format!("container@{name}.service")
    }
}

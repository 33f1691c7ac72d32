//! How containers run on a host, and what that can't do.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::ContainerName;

/// The runtime of a host's containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    /// systemd as PID 1: each container is a unit `container@NAME.service`, visible to `systemctl`, `machinectl` and
    /// `nixos-container`.
    Systemd,
    /// `leaf-helper supervise` with systemd-nspawn, for hosts where systemd is not PID 1. It refuses specs that it
    /// doesn't support.
    Nspawn,
}

impl Runtime {
    /// Returns the error text for a part of a spec, or a command, that the runtime doesn't support.
    #[must_use]
    pub fn unsupported_text(self, what: &str) -> String {
        match self {
            Self::Systemd => format!("{what}: not supported for containers that run as systemd units"),
            Self::Nspawn => {
                format!(
                    "{what}: not supported by the nspawn runtime, which is used where systemd is not PID 1"
                )
            }
        }
    }

    /// Returns the name of a container's systemd unit.
    #[must_use]
    pub fn unit(name: &ContainerName) -> String {
        format!("container@{name}.service")
    }
}

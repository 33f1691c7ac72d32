//! The options of a machine.

use std::time::Duration;

use anyhow::Result;

use crate::nixos::Systems;
use crate::{Host, LIVES, Network, Programs, machine};

/// The options of a machine.
#[derive(Debug, Clone)]
pub struct Options {
    pub(crate) name: String,
    pub(crate) memory_mib: u64,
    pub(crate) processors: Option<u32>,
    pub(crate) lives: Duration,
    pub(crate) networks: Vec<(Network, String)>,
    pub(crate) programs: Option<Programs>,
    pub(crate) after: Option<String>,
    pub(crate) nixos: Option<Systems>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "leaf".to_owned(),
            memory_mib: machine::MEMORY_MIB,
            processors: None,
            lives: LIVES,
            networks: Vec::new(),
            programs: None,
            after: None,
            nixos: None,
        }
    }
}

impl Options {
    /// Sets its host name.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Sets its memory, at least 1024 MiB.
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u64) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Sets the number of its processors; by default two, or one if they are emulated.
    #[must_use]
    pub fn processors(mut self, processors: u32) -> Self {
        self.processors = Some(processors);
        self
    }

    /// Sets its lifetime, after which it ends.
    #[must_use]
    pub fn lives(mut self, lives: Duration) -> Self {
        self.lives = lives;
        self
    }

    /// Connects it to a network, with an address there (`"192.168.7.1/24"`) and a link that has the machine's name.
    #[must_use]
    pub fn on(mut self, network: &Network, address: &str) -> Self {
        self.networks.push((network.clone(), address.to_owned()));
        self
    }

    /// Installs our programs and units on it: leafd's user and sockets exist, and leafd is not started. This is done
    /// once for the same programs and cached, so it takes no longer than a machine without them.
    #[must_use]
    pub fn with(mut self, programs: &Programs) -> Self {
        self.programs = Some(programs.clone());
        self
    }

    /// Lets it continue from after a bash script that must succeed, within ten minutes. The script is run once for the
    /// same machine, on one that has the default name, and the result is cached.
    #[must_use]
    pub fn after(mut self, script: &str) -> Self {
        self.after = Some(script.to_owned());
        self
    }

    /// Makes it the NixOS host of these systems, on which leafd is running, instead of a Debian host.
    #[must_use]
    pub fn nixos(mut self, systems: &Systems) -> Self {
        self.nixos = Some(systems.clone());
        self
    }

    /// Returns a machine with these options.
    ///
    /// # Errors
    /// Where the image is not here, or QEMU does not start.
    pub fn restore(self) -> Result<Host> {
        Host::new(self)
    }
}

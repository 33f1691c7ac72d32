//! What several crates of a leaf need of a Linux host, once.
//!
//! | module | what it offers |
//! |---|---|
//! | [`cgroup`] | control groups, version 2: mount, create, attach, kill, who is in it |
//! | [`contract`] | what `leaf-helper` keeps on disk for those that observe: paths, status, markers |
//! | [`lock`] | file locks between processes (flock(2)) |
//! | [`mounts`] | the mount table |
//! | [`process`] | a program run within bounds, and processes that are not this one's children |
//! | [`program`] | lookup of programs on `PATH` |
//! | [`runtime`] | what runs the containers of this host |
//! | `systemd` | systemd and systemd-machined over D-Bus (feature `systemd`) |
//!
//! It decides nothing and keeps no state: which containers and jobs there should be is known above and below.

pub mod cgroup;
pub mod contract;
pub mod lock;
pub mod mounts;
pub mod process;
pub mod program;
pub mod runtime;
#[cfg(feature = "systemd")]
pub mod systemd;

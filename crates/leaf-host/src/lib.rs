//! Access to the Linux host that several crates of a leaf share.
//!
//! | module | contents |
//! |---|---|
//! | [`cgroup`] | cgroups, version 2: mount point, create, attach, freeze, kill, processes |
//! | [`contract`] | the contract on disk between `leaf-helper` and observers: paths, status, markers |
//! | [`files`] | reads files that may be something else, without waiting |
//! | [`log`] | where programs write their log: standard error, one printable line for each entry |
//! | [`lock`] | file locks between processes (flock(2)) |
//! | [`mounts`] | the mount table |
//! | `notify` | notifications of a daemon to systemd (feature `notify`) |
//! | [`pressure`] | how much of the time tasks wait for processors, memory and disks |
//! | [`process`] | bounded runs of programs, the list of processes, and handles of those that are not children |
//! | [`program`] | lookup of programs on `PATH` |
//! | [`runtime`] | the runtime of this host's containers |
//! | [`settings_file`] | settings files: how they are read, and errors that quote nothing of them |
//! | [`signals`] | receives signals without a moment in which one is lost |
//! | `systemd` | systemd and systemd-machined over D-Bus (feature `systemd`) |
//! | [`wall_clock`] | notice of a wall clock that was set |
//!
//! It makes no decisions and keeps no state.

pub mod cgroup;
pub mod contract;
pub mod files;
pub mod lock;
pub mod log;
pub mod mounts;
#[cfg(feature = "notify")]
pub mod notify;
pub mod pressure;
pub mod process;
pub mod program;
pub mod runtime;
pub mod settings_file;
pub mod signals;
#[cfg(feature = "systemd")]
pub mod systemd;
pub mod task_limit;
pub mod wall_clock;

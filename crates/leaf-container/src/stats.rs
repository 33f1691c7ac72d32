//! A container's resource usage, from cgroup v2 (`Documentation/admin-guide/cgroup-v2.rst` and
//! `Documentation/accounting/psi.rst` of the kernel) and its veth.

use std::path::Path;

use jiff::Timestamp;
use leaf_core::container::ContainerStats;
use leaf_core::id::ContainerName;
use leaf_core::runtime::Runtime;
use leaf_host::cgroup::{self, Cgroup, keyed};

use crate::{Containers, ObserveError};

impl Containers {
    /// Returns a container's resource usage, without figures that this host does not count. Blocks.
    ///
    /// # Errors
    /// [`ObserveError::NotRunning`] when it has no process; [`ObserveError::Systemd`] when systemd does not answer.
    pub fn stats(&self, name: &ContainerName) -> Result<ContainerStats, ObserveError> {
        let not_running = || ObserveError::NotRunning(name.clone());
        let mount = cgroup::mount().map_err(|_| not_running())?;
        let mut group = self.payload(&mount, name);
        if self.runtime == Runtime::Systemd && !group.exists() {
            // It may run in another slice: if it was adopted, or if an operator moved it.
            let other = self.group_of_unit(name)?.ok_or_else(not_running)?;
            group = Cgroup::at(mount.join(other)).child("payload");
        }
        if !group.is_populated().unwrap_or(false) {
            return Err(not_running());
        }
        let stats = stats_of(
            name.clone(),
            |file| std::fs::read_to_string(group.path().join(file)).ok(),
            |file| {
                let link = Path::new("/sys/class/net").join(format!("ve-{name}/statistics"));
                std::fs::read_to_string(link.join(file)).ok()
            },
        );
        // If it has ended in the meantime, its files are meaningless or missing.
        if group.is_populated().unwrap_or(false) {
            Ok(stats)
        } else {
            Err(not_running())
        }
    }
}

/// Returns the resource usage from the files of a cgroup and of the host's end of a veth.
fn stats_of(
    name: ContainerName,
    group: impl Fn(&str) -> Option<String>,
    link: impl Fn(&str) -> Option<String>,
) -> ContainerStats {
    let number = |file: &str| group(file)?.trim().parse().ok();
    let key = |file: &str, key: &str| keyed(&group(file)?, key);
    let io = |key: &str| Some(io_bytes(&group("io.stat")?, key));
    let pressure = |file: &str| pressure(&group(file)?);
    let bytes = |file: &str| link(file)?.trim().parse().ok();
    ContainerStats {
        name,
        at: Timestamp::now(),
        paused: key("cgroup.events", "frozen") == Some(1),
        cpu_microseconds: key("cpu.stat", "usage_usec"),
        cpu_throttled_microseconds: key("cpu.stat", "throttled_usec"),
        memory_bytes: number("memory.current"),
        memory_peak_bytes: number("memory.peak"),
        // It is `max` without a limit.
        memory_limit_bytes: number("memory.max"),
        oom_kills: key("memory.events", "oom_kill"),
        tasks: number("pids.current"),
        io_read_bytes: io("rbytes"),
        io_written_bytes: io("wbytes"),
        // The host's end sends what the container receives.
        network_received_bytes: bytes("tx_bytes"),
        network_sent_bytes: bytes("rx_bytes"),
        cpu_pressure_basis_points: pressure("cpu.pressure"),
        memory_pressure_basis_points: pressure("memory.pressure"),
        io_pressure_basis_points: pressure("io.pressure"),
    }
}

/// Returns the sum over all devices, one per line: `8:0 rbytes=1 wbytes=2 rios=3 …`.
fn io_bytes(text: &str, key: &str) -> u64 {
    text.split_ascii_whitespace()
        .filter_map(|word| word.split_once('='))
        .filter(|(found, _)| *found == key)
        .filter_map(|(_, value)| value.parse::<u64>().ok())
        .sum()
}

/// Returns the value of `some avg10=1.23 avg60=…`, in hundredths of a percent.
fn pressure(text: &str) -> Option<u32> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let average = some
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix("avg10="))?;
    let (whole, hundredths) = average.split_once('.')?;
    if hundredths.len() != 2 {
        return None;
    }
    Some(whole.parse::<u32>().ok()? * 100 + hundredths.parse::<u32>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> ContainerName {
        ContainerName::new("web").expect("a name")
    }

    #[test]
    fn all_figures_of_the_kernel_are_returned() {
        let group = |file: &str| {
            let text = match file {
                "cpu.stat" => {
                    "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_throttled 2\nthrottled_usec 70\n"
                }
                "memory.current" => "4096\n",
                "memory.peak" => "8192\n",
                "memory.max" => "16777216\n",
                "memory.events" => "low 0\nhigh 0\nmax 5\noom 1\noom_kill 1\noom_group_kill 0\n",
                "pids.current" => "3\n",
                "io.stat" => {
                    "254:0 rbytes=100 wbytes=7 rios=1 wios=2 dbytes=0 dios=0\n8:0 \n254:16 rbytes=11 wbytes=0 rios=1\n"
                }
                "cpu.pressure" => {
                    "some avg10=1.23 avg60=0.00 avg300=0.00 total=5\nfull avg10=9.99 avg60=0.00 avg300=0.00 total=5\n"
                }
                "memory.pressure" => "some avg10=100.00 avg60=0.00 avg300=0.00 total=0\n",
                "io.pressure" => "some avg10=0.05 avg60=0.00 avg300=0.00 total=0\n",
                _ => return None,
            };
            Some(text.to_owned())
        };
        let link = |file: &str| {
            Some(match file {
                "rx_bytes" => "12\n".to_owned(),
                _ => "34\n".to_owned(),
            })
        };
        let stats = stats_of(name(), group, link);
        let expected = ContainerStats {
            name: name(),
            at: stats.at,
            paused: false,
            cpu_microseconds: Some(1500),
            cpu_throttled_microseconds: Some(70),
            memory_bytes: Some(4096),
            memory_peak_bytes: Some(8192),
            memory_limit_bytes: Some(16 << 20),
            oom_kills: Some(1),
            tasks: Some(3),
            io_read_bytes: Some(111),
            io_written_bytes: Some(7),
            network_received_bytes: Some(34),
            network_sent_bytes: Some(12),
            cpu_pressure_basis_points: Some(123),
            memory_pressure_basis_points: Some(10_000),
            io_pressure_basis_points: Some(5),
        };
        assert_eq!(stats, expected);
    }

    #[test]
    fn missing_figures_are_left_out_and_max_is_no_limit() {
        let only = |file: &str| (file == "memory.max").then(|| "max\n".to_owned());
        let stats = stats_of(name(), only, |_| None);
        assert_eq!(stats.memory_limit_bytes, None);
        assert_eq!(stats.memory_bytes, None);
        assert_eq!(stats.cpu_throttled_microseconds, None);
        assert_eq!(stats.io_read_bytes, None);
        assert_eq!(stats.network_sent_bytes, None);
        assert_eq!(stats.cpu_pressure_basis_points, None);
        assert_eq!(pressure("some avg10=x.yz\n"), None);
        assert_eq!(pressure(""), None);
        // A cgroup without any I/O has an empty file.
        assert_eq!(io_bytes("", "rbytes"), 0);
    }
}

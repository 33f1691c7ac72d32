//! Names of processes: an agent that finds the name of the active one knows whether that one has ended, where both run on one host.

use std::fs;

/// Where the processes are (proc(5)).
const PROC: &str = "/proc";

/// Returns the name of this process: the host's boot, the namespace of process ids, the id and the time of the start; `None` where
/// one of them can't be read.
pub(crate) fn own() -> Option<String> {
    let id = std::process::id();
    Some(format!("{}/{id}/{}", place()?, start_of(id)?))
}

/// Returns whether the process of this name has ended; also `false` where that can't be known.
pub(crate) fn has_ended(name: &str) -> bool {
    let ended = || {
        let rest = name.strip_prefix(&place()?)?.strip_prefix('/')?;
        let (id, start) = rest.split_once('/')?;
        Some(start_of(id.parse().ok()?).as_deref() != Some(start))
    };
    ended().unwrap_or(false)
}

/// Where ids of processes mean the same, and this user sees the processes that it may have started.
fn place() -> Option<String> {
    let boot = fs::read_to_string(format!("{PROC}/sys/kernel/random/boot_id")).ok()?;
    let namespace = fs::read_link(format!("{PROC}/self/ns/pid")).ok()?;
    let status = fs::read_to_string(format!("{PROC}/self/status")).ok()?;
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let user = user.split_whitespace().next()?;
    Some(format!("{}/{}/{user}", boot.trim(), namespace.display()))
}

/// Returns the time of the start of a process, in ticks since the boot (field 22 of proc_pid_stat(5)).
fn start_of(id: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("{PROC}/{id}/stat")).ok()?;
    // The name in parentheses may contain any character.
    let (_, rest) = stat.rsplit_once(") ")?;
    // A process that has ended and was not waited for is a zombie.
    let mut fields = rest.split(' ');
    if fields.next() == Some("Z") {
        return None;
    }
    fields.nth(18).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_to_have_ended_only_on_the_same_host() {
        let own = own().expect("this process");
        assert!(!has_ended(&own));
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("it runs");
        let name = format!(
            "{}/{}/{}",
            place().expect("a place"),
            child.id(),
            start_of(child.id()).expect("its start")
        );
        assert!(!has_ended(&name));
        child.kill().expect("it is killed");
        child.wait().expect("it ends");
        assert!(has_ended(&name));
        assert!(!has_ended(&format!("elsewhere{name}")), "of another boot");
        for other in ["", "x/y/z", "////"] {
            assert!(!has_ended(other), "{other}");
        }
    }
}

//! The processor time of machines, which says what a test costs, whatever else runs beside it.

use std::cell::Cell;
use std::fs;
use std::time::Duration;

use rustix::process::Pid;

thread_local! {
    static SPENT: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Returns the processor time of all machines that were ended on this thread. Those that ended by themselves, as for a
/// reboot, don't count.
pub fn of_this_thread() -> Duration {
    SPENT.get()
}

/// Adds the processor time of machines that were ended on another thread for this one.
pub(crate) fn add(spent: Duration) {
    SPENT.set(SPENT.get() + spent);
}

/// Adds the processor time of a QEMU process that is about to be ended.
pub(crate) fn add_process(qemu: Option<Pid>) {
    let stat = qemu.and_then(|pid| fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok());
    if let Some(spent) = stat.as_deref().and_then(processor_time) {
        add(spent);
    }
}

/// Returns the user and system time in `/proc/PID/stat` (proc_pid_stat(5): the 14th and 15th field, in clock ticks).
fn processor_time(stat: &str) -> Option<Duration> {
    // The second field, the name, may contain blanks.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let ticks = user + system;
    Some(Duration::from_secs_f64(
        ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_system_time_are_added_whatever_the_name_is() {
        let ticks = rustix::param::clock_ticks_per_second();
        let stat = format!(
            "7 (qemu) 1 (x) S 1 7 7 0 -1 0 1 2 3 4 {} {} 0 0 20 0 1 0 5",
            2 * ticks,
            ticks
        );
        assert_eq!(processor_time(&stat), Some(Duration::from_secs(3)));
        assert_eq!(processor_time("7 (qemu) S 1"), None);
    }
}

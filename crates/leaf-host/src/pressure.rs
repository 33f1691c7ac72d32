//! The pressure of the host: how much of the time tasks wait for processors, memory and disks
//! (<https://docs.kernel.org/accounting/psi.html>).

use std::fs;
use std::path::Path;

use leaf_core::placement::pressure::Pressure;

const DIRECTORY: &str = "/proc/pressure";

/// Returns the pressure of the host over the last 10 seconds; `None` if its kernel does not measure it.
#[must_use]
pub fn read() -> Option<Pressure> {
    of(Path::new(DIRECTORY))
}

fn of(directory: &Path) -> Option<Pressure> {
    let avg10 = |resource: &str, of: &str| parse(&fs::read_to_string(directory.join(resource)).ok()?, of);
    Some(Pressure {
        cpu: avg10("cpu", "some ")?,
        memory: avg10("memory", "full ")?,
        io: avg10("io", "full ")?,
    })
}

/// Returns the share of the last 10 seconds in which `some ` task or the `full ` set of them waited, in percent.
fn parse(text: &str, of: &str) -> Option<f32> {
    let line = text.lines().find_map(|line| line.strip_prefix(of))?;
    let share = line.split(' ').find_map(|field| field.strip_prefix("avg10="))?;
    share
        .parse()
        .ok()
        .filter(|share: &f32| (0.0..=100.0).contains(share))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_the_last_ten_seconds_is_read() {
        let text = "some avg10=29.30 avg60=36.20 avg300=21.96 total=21161149824\nfull avg10=1.00 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(parse(text, "some "), Some(29.3));
        assert_eq!(parse(text, "full "), Some(1.0));
        for other in [
            "",
            "full avg10=1.00",
            "some avg60=1.00",
            "some avg10=x",
            "some avg10=NaN",
            "some avg10=-1",
        ] {
            assert_eq!(parse(other, "some "), None, "{other:?}");
        }
    }

    #[test]
    fn a_host_whose_kernel_measures_it_has_a_pressure_and_another_one_has_none() {
        assert_eq!(read().is_some(), Path::new("/proc/pressure/cpu").exists());
        assert_eq!(of(Path::new("/proc/no-such-directory")), None);
    }
}

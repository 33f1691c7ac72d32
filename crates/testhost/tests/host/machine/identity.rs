//! What two machines from one image have alike, and what not.

use testhost::Host;

use crate::{Outcome, Trials, ensure};

pub(crate) const TRIALS: Trials = &[
    ("each_restored_machine_is_fresh", fresh),
    ("two_machines_differ_in_name_id_card_and_randomness", differ),
    ("the_clock_is_right_after_a_restore", clock),
    ("a_machine_ends_with_its_owner_and_leaves_nothing", ends),
];

fn fresh() -> Outcome {
    let host = Host::restore()?;
    host.ok("echo mine >/root/trace; sync; touch /run/trace")?;
    drop(host);
    let host = Host::restore()?;
    let left = host.run("ls /root/trace /run/trace")?;
    ensure(left.status != 0 && left.stdout.is_empty(), format!("{left:?}"))
}

fn differ() -> Outcome {
    let (a, b) = (
        Host::options().name("anna").restore()?,
        Host::options().name("bert").restore()?,
    );
    ensure(
        a.ok("hostname; cat /etc/hostname")? == "anna\nanna\n",
        "the name of the first",
    )?;
    ensure(
        b.ok("hostname; cat /etc/hostname")? == "bert\nbert\n",
        "the name of the second",
    )?;
    for what in [
        "cat /etc/machine-id",
        "cat /sys/class/net/eth0/address",
        "cat /proc/sys/kernel/random/uuid",
    ] {
        let (of_a, of_b) = (a.ok(what)?, b.ok(what)?);
        ensure(
            of_a != of_b && of_a.len() > 16,
            format!("{what}: {of_a} and {of_b}"),
        )?;
    }
    let journal =
        a.ok("logger --tag check hello; journalctl --sync; journalctl --output cat --identifier check")?;
    ensure(
        journal == "hello\n",
        format!("the journal goes on under the new id: {journal:?}"),
    )
}

fn clock() -> Outcome {
    let host = Host::restore()?;
    let there: u64 = host.ok("date +%s")?.trim().parse()?;
    let here = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)?
        .as_secs();
    ensure(here.abs_diff(there) <= 10, format!("{there} there, {here} here"))
}

fn ends() -> Outcome {
    let host = Host::restore()?;
    let directory = host.directory().to_owned();
    let pid = std::fs::read_to_string(directory.join("pid"))?;
    let process = std::path::Path::new("/proc").join(pid.trim());
    ensure(process.exists() && directory.exists(), "it runs")?;
    drop(host);
    ensure(!process.exists(), "QEMU has ended")?;
    ensure(!directory.exists(), "its files are removed")
}

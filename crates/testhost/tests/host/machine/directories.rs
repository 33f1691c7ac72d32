//! Files and directories that both machines see.

use testhost::Host;

use crate::{Outcome, Trials, ensure};

pub(crate) const TRIALS: Trials = &[
    ("a_shared_directory_is_read_and_written_on_both_sides", shared),
    ("a_file_is_put_and_fetched_byte_by_byte", files),
];

fn shared() -> Outcome {
    let directory = tempfile::tempdir()?;
    std::fs::write(directory.path().join("here"), "from here")?;
    let mut host = Host::restore()?;
    host.share(directory.path(), "/mnt/shared")?;
    ensure(host.ok("cat /mnt/shared/here")? == "from here", "read there")?;
    host.ok("mkdir /mnt/shared/d && echo from there >/mnt/shared/d/there")?;
    ensure(
        std::fs::read_to_string(directory.path().join("d/there"))? == "from there\n",
        "written there",
    )?;
    let second = tempfile::tempdir()?;
    std::fs::write(second.path().join("other"), "")?;
    host.share(second.path(), "/mnt/second")?;
    ensure(host.ok("ls /mnt/second")? == "other\n", "a second directory")?;
    let error = host
        .share(&directory.path().join("absent"), "/mnt/absent")
        .expect_err("there is none");
    ensure(error.to_string().contains("absent"), error.to_string())
}

fn files() -> Outcome {
    let host = Host::restore()?;
    let bytes: Vec<u8> = (0..3_000_000u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes().into_iter().take(1))
        .collect();
    host.put(&bytes, "/root/file", "0640")?;
    ensure(
        host.ok("stat -c '%a %s' /root/file")? == "640 3000000\n",
        "its size and permissions",
    )?;
    ensure(
        host.fetch("/root/file")? == bytes,
        "what is fetched is what was put",
    )?;
    host.put(b"", "/root/empty", "0644")?;
    ensure(host.fetch("/root/empty")?.is_empty(), "an empty file")?;
    ensure(host.fetch("/root/absent").is_err(), "an absent file")
}

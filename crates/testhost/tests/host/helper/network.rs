//! The closed network on a machine where systemd is PID 1: there the tests of leaf-helper's network run on the machine
//! itself, and not in a network namespace of it, since systemd starts the containers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use testhost::Host;

use crate::{Outcome, Trials, ensure};

pub(crate) const TRIALS: Trials = &[
    (
        "from_inside_a_container_only_its_leafs_nats_port_is_reachable",
        || on_a_host("a_container_reaches_its_leafs_nats_and_nothing_else"),
    ),
    ("a_container_on_a_host_can_be_nobody_else", || {
        on_a_host("a_container_cannot_spoof_addresses")
    }),
    ("a_host_opens_what_allow_names_outside", || {
        on_a_host("an_opening_to_the_outside_is_limited_to_its_destination_and_masqueraded")
    }),
    ("a_host_opens_what_allow_names_between_containers", || {
        on_a_host("an_opening_to_a_container_permits_one_port_in_one_direction_also_if_it_is_created_later")
    }),
    ("a_host_leads_a_port_of_its_own_to_a_container", || {
        on_a_host("a_port_of_the_leaf_is_forwarded_to_a_container_from_outside_and_from_the_host_only")
    }),
];

/// How long one of these tests may take on an emulated machine.
const PATIENCE: Duration = Duration::from_secs(900);
/// What tells the tests of leaf-helper that they are on a machine of their own: the name of one of them.
const ON_MACHINE: &str = "LEAF_HELPER_TEST_MACHINE";

fn on_a_host(test: &str) -> Outcome {
    let tests = PathBuf::from(
        std::env::var_os("CIM_LEAF_HELPER_TESTS")
            .context("CIM_LEAF_HELPER_TESTS is not set; `cargo xtask test` sets it")?,
    );
    let init = std::env::var("CIM_LEAF_STATIC_INIT")
        .context("CIM_LEAF_STATIC_INIT is not set; `cargo xtask test` sets it")?;
    let mut host = Host::options().memory_mib(2048).restore()?;
    host.put(&std::fs::read(init)?, "/root/leaf-init", "0755")?;
    // At the same place as here: the tests know where their programs are.
    let directory = tests
        .parent()
        .and_then(Path::parent)
        .context("it is in no directory")?;
    let place = directory.to_str().context("the directory's name is no text")?;
    host.share(directory, place)?;
    let command = format!(
        "cd /root && CIM_LEAF_STATIC_INIT=/root/leaf-init {ON_MACHINE}={test} {}",
        tests.display()
    );
    let done = host.run_within(&command, PATIENCE)?;
    ensure(
        done.status == 0,
        format!("{test}: {}\n{}\n{}", done.status, done.stdout, done.stderr),
    )
}

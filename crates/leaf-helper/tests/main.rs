//! The helper on this host: real systemd-nspawn, nftables, cgroups and store paths. Where something of that is
//! missing, every test counts as ignored.

#![allow(clippy::print_stderr, reason = "a test program says why it skips")]

mod changes;
mod credentials;
mod host;
mod leftovers;
mod lifecycle;
mod network;
mod refusals;
mod running;
mod served;

use std::process::ExitCode;

use leaf_core::id::{ContainerName, LeafName};
use leaf_helper::{Helper, Settings};
use libtest_mimic::{Arguments, Trial};

/// A trial named by its function.
macro_rules! trial {
    ($module:ident :: $name:ident) => {
        Trial::test(stringify!($name), || {
            runtime().block_on($module::$name());
            Ok(())
        })
    };
}

/// A trial on a machine of its own.
macro_rules! alone {
    ($($name:ident),* $(,)?) => {{
        if let Some(test) = std::env::var_os(network::machine::ALONE) {
            match test.to_str() {
                $(Some(stringify!($name)) => runtime().block_on(network::$name()),)*
                _ => panic!("there is no test {test:?}"),
            }
            return ExitCode::SUCCESS;
        }
        let lack = network::machine::lacking();
        if let Some(lack) = &lack {
            eprintln!("the tests of the network are skipped: {lack}");
        }
        [$(stringify!($name)),*].map(|name| {
            Trial::test(name, || {
                network::machine::alone(name);
                Ok(())
            })
            .with_ignored_flag(lack.is_some())
        })
    }};
}

fn main() -> ExitCode {
    let on_machines = alone!(
        a_container_reaches_its_leafs_nats_and_nothing_else,
        a_container_cannot_spoof_addresses,
        the_rules_of_a_container_are_restored_after_a_boot_and_after_a_flush,
        a_flush_between_close_and_open_opens_nothing,
        a_host_whose_forwarding_the_leaf_enabled_is_no_router_after_a_flush,
        nothing_connects_a_container_while_the_network_is_closed,
        an_error_about_one_container_leaves_no_other_open_or_cut_off,
        a_network_that_could_not_be_opened_is_opened_by_the_next_preparation,
        a_container_whose_spec_can_not_be_read_is_closed,
        rules_that_nft_can_not_read_are_made_again,
        a_leaf_without_containers_takes_its_tables_with_it,
        an_address_that_the_leaf_did_not_add_stays_when_it_releases_its_network,
        an_opening_to_a_container_permits_one_port_in_one_direction_also_if_it_is_created_later,
        an_opening_to_the_outside_is_limited_to_its_destination_and_masqueraded,
        a_port_of_the_leaf_is_forwarded_to_a_container_from_outside_and_from_the_host_only,
        a_missing_requirement_of_the_network_is_named,
    );
    if let Some(name) = std::env::var_os("LEAF_HELPER_TEST_START") {
        runtime().block_on(play_the_starter(&name.to_string_lossy()));
        return ExitCode::SUCCESS;
    }
    if let Some(socket) = std::env::var_os(served::SPEAK) {
        served::speak(socket.as_ref());
        return ExitCode::SUCCESS;
    }
    let mut trials = vec![
        trial!(credentials::a_running_container_sees_renewed_credentials_as_its_root_alone),
        trial!(credentials::a_paused_container_has_renewed_credentials_when_it_is_resumed),
        trial!(credentials::credentials_of_another_name_or_of_no_container_are_not_renewed),
        trial!(credentials::a_container_that_an_earlier_helper_started_sees_them_at_its_next_start),
        trial!(credentials::a_container_that_starts_amid_renewals_has_the_last_ones),
        trial!(credentials::a_full_file_system_keeps_the_former_credentials_whole),
        trial!(credentials::a_full_disk_does_not_keep_them_from_a_container_that_runs),
        trial!(credentials::a_container_is_cut_at_the_end_of_its_credentials_and_goes_on_with_renewed_ones),
        trial!(credentials::the_minimal_system_starts_with_credentials_that_have_ended_once_they_are_renewed),
        trial!(lifecycle::a_container_is_made_started_stopped_and_destroyed_and_nothing_is_left),
        trial!(lifecycle::an_init_that_exits_at_once_is_reported_with_its_code_and_console),
        trial!(lifecycle::a_container_that_is_not_ready_in_time_is_stopped),
        trial!(lifecycle::an_init_that_ignores_signals_is_killed_after_the_grace_time),
        trial!(lifecycle::a_container_whose_supervisor_is_killed_is_lost_and_can_be_started_again),
        trial!(lifecycle::a_container_survives_the_process_that_started_it_and_is_observed_again),
        trial!(lifecycle::a_foreign_conf_is_refused_and_left_alone),
        trial!(lifecycle::an_interrupted_create_is_completed_or_removed),
        trial!(leftovers::notes_of_runs_that_ended_and_of_containers_that_are_gone_are_removed),
        trial!(refusals::a_toplevel_without_a_proper_init_is_refused),
        trial!(refusals::addresses_outside_the_pool_or_of_another_container_are_refused),
        trial!(refusals::the_hosts_users_are_refused_unless_root_permits_them_or_the_container_has_them),
        trial!(refusals::credentials_and_bindings_that_are_not_this_containers_are_refused),
        trial!(refusals::a_link_that_a_container_left_in_its_root_is_not_followed),
        trial!(refusals::a_container_that_was_not_created_is_not_started),
        trial!(running::the_console_output_of_a_container_is_logged),
        trial!(running::what_runs_a_container_writes_no_core_and_what_it_runs_has_its_own_limit),
        trial!(running::changes_give_hints),
        trial!(running::there_is_no_daemon_socket_and_no_write_to_the_store_inside),
        trial!(running::the_minimal_system_answers_for_its_health_with_its_own_credentials),
        trial!(served::a_container_is_managed_by_calls_of_an_unprivileged_user),
        trial!(served::the_service_describes_its_operations),
        trial!(served::a_secret_is_kept_for_root_alone_and_is_in_no_log),
        trial!(served::a_removed_secret_comes_back_neither_by_its_age_file_nor_by_an_older_one),
        trial!(served::the_helper_writes_no_core_where_cores_are_written),
        trial!(served::only_leafd_and_root_may_call),
        trial!(served::invalid_calls_are_answered_with_an_error_and_others_are_served),
        trial!(served::every_operation_refuses_what_leafd_may_not_do),
        trial!(served::a_caller_that_goes_away_does_not_stop_an_operation),
        trial!(served::operations_on_one_container_wait_for_each_other_and_on_others_do_not),
        trial!(served::a_stop_does_not_wait_until_the_container_is_ready),
        trial!(served::an_operation_can_be_repeated_after_the_helper_was_killed),
        trial!(served::a_helper_that_is_killed_amid_renewals_leaves_whole_credentials),
        trial!(served::a_helper_that_is_stopped_completes_its_operations),
        trial!(served::settings_that_are_not_roots_own_are_not_read),
        trial!(changes::a_guard_that_is_killed_again_and_again_goes_back_in_time),
        trial!(changes::a_confirmation_at_the_deadline_and_the_guard_never_disagree),
        trial!(changes::a_change_of_another_boot_goes_back_at_once),
        trial!(changes::a_guard_without_d_bus_puts_the_files_back_and_goes_on_trying),
        trial!(changes::a_change_needs_systemd_as_pid_1),
        trial!(changes::ssh_keygen_is_a_witness_as_well),
        trial!(changes::a_full_disk_refuses_a_change_before_anything_is_changed),
        trial!(changes::a_full_disk_hinders_no_way_back),
    ];
    trials.extend(on_machines);
    if let Some(lack) = host::lacking() {
        eprintln!("all tests here are skipped: {lack}");
        trials = trials
            .into_iter()
            .map(|trial| trial.with_ignored_flag(true))
            .collect();
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().expect("a runtime")
}

/// Starts a container, and stays until it is killed.
async fn play_the_starter(name: &str) {
    let variable = |name: &str| std::env::var(name).expect("the test sets it");
    let leaf = LeafName::new(variable("LEAF_HELPER_TEST_LEAF")).expect("a leaf");
    let directory = std::path::PathBuf::from(variable("LEAF_HELPER_TEST_DIRECTORY"));
    let paths = host::paths_in(&directory);
    let pool = variable("LEAF_HELPER_TEST_POOL").parse().expect("a pool");
    let init = host::leaf_init().expect("checked at the start");
    let settings = Settings::find(env!("CARGO_BIN_EXE_leaf-helper"), init, pool).expect("the programs");
    let start = host::Host::start(&ContainerName::new(name).expect("a name"));
    Helper::new(leaf, paths, settings)
        .carry_out(&start)
        .await
        .expect("it starts");
    std::future::pending::<()>().await;
}

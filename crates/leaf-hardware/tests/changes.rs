//! Differences become facts, and facts become state: over scans of machines that change at random.

use std::collections::BTreeMap;

use jiff::Timestamp;
use leaf_core::diff::diff;
use leaf_core::event::{Event, Fact};
use leaf_core::hardware::{DeviceStatus, Inventory};
use leaf_core::state::{State, apply};
use leaf_hardware::facter;
use libtest_mimic::Trial;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;

use crate::trial;

type Outcome = Result<(), Box<dyn std::error::Error>>;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "after_the_facts_of_a_difference_are_applied_the_next_difference_is_empty",
            settles,
        ),
        trial("a_replay_of_the_facts_gives_the_same_state", replays),
    ]
}

/// One USB device of a machine: port, model, serial number, driver.
type Stick = (u8, u8, Option<u8>, bool);

fn sticks() -> impl Strategy<Value = Vec<Vec<Stick>>> {
    let stick = (0..6_u8, 0..3_u8, proptest::option::of(0..3_u8), any::<bool>());
    vec(vec(stick, 0..6), 1..6)
}

/// What a report of a machine with these devices says. Two of them may claim one port, or one serial number.
fn scan(sticks: &[Stick]) -> Inventory {
    let entries: Vec<_> = sticks
        .iter()
        .map(|(port, model, serial, driven)| {
            let path = format!("/devices/pci0000:00/0000:00:14.0/usb1/1-{port}/1-{port}:1.0");
            let mut entry = json!({
                "bus_type": {"name": "USB"}, "sysfs_id": path,
                "vendor": {"value": 1133}, "device": {"value": 100 + u32::from(*model)},
                "detail": {"interface_class": {"value": 3}, "interface_protocol": 1},
            });
            if let Some(serial) = serial {
                entry["serial"] = json!(format!("8F3A{serial}7"));
            }
            if *driven {
                entry["driver"] = json!("usbhid");
            }
            entry
        })
        .collect();
    let report = json!({"version": 1, "hardware": {"keyboard": entries}});
    let inventory = facter::read(report.to_string().as_bytes())
        .expect("a report")
        .inventory;
    let ports: std::collections::BTreeSet<u8> = sticks.iter().map(|(port, ..)| *port).collect();
    assert_eq!(
        inventory.devices.len(),
        ports.len(),
        "a device for each port that is in use"
    );
    inventory
}

fn record(state: &mut State, facts: Vec<Fact>) -> Vec<Event> {
    facts
        .into_iter()
        .map(|fact| {
            let event = Event {
                sequence: state.sequence + 1,
                time: Timestamp::UNIX_EPOCH,
                causation: None,
                correlation: None,
                fact,
            };
            apply(state, &event);
            event
        })
        .collect()
}

fn check(test: impl Fn(&[Vec<Stick>]) -> Result<(), TestCaseError>) -> Outcome {
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config).run(&sticks(), |scans| test(&scans))?;
    Ok(())
}

fn settles() -> Outcome {
    check(|scans| {
        let mut state = State::default();
        for sticks in scans {
            let seen = scan(sticks);
            let facts = diff(&state.devices, &seen);
            record(&mut state, facts);
            prop_assert_eq!(diff(&state.devices, &seen), Vec::new());
            let here: BTreeMap<_, _> = state
                .devices
                .clone()
                .into_iter()
                .filter(|(_, device)| device.status != DeviceStatus::Absent)
                .collect();
            prop_assert_eq!(&here, &seen.devices);
        }
        Ok(())
    })
}

fn replays() -> Outcome {
    check(|scans| {
        let mut state = State::default();
        let mut history = Vec::new();
        for sticks in scans {
            let facts = diff(&state.devices, &scan(sticks));
            history.extend(record(&mut state, facts));
        }
        let mut again = State::default();
        for event in &history {
            apply(&mut again, event);
        }
        prop_assert_eq!(again, state);
        Ok(())
    })
}

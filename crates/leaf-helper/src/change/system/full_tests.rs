//! Switches on a disk that fills up at each of their steps.

use super::tests::{NEW, OLD, Place, ends, id};
use super::*;
use crate::change::guard::Next;
use crate::files::crashes;
use leaf_core::change::Decision;

/// The number of files that a whole switch writes, and some more.
const FILES: u32 = 12;

#[tokio::test]
async fn a_disk_that_fills_up_at_any_step_leaves_a_system_that_runs_and_a_record_that_says_why() {
    let mut decisions = Vec::new();
    let all = (0..FILES).flat_map(|files| [(files, false), (files, true)]);
    for (files, fails) in all {
        let place = Place::new();
        if fails {
            place.how(NEW, "test", "exit 1");
        }
        crashes::room(Some(files));
        let change = Place::change(SystemMode::Switch);
        if let Err(error) = place.arm(id(1), &change).await {
            crashes::room(None);
            assert!(error.is_full_disk(), "{files}: {error:?}");
            assert_eq!(place.systems(), [OLD; 3], "{files}");
            place.is_closed();
            decisions.push(None);
            continue;
        }
        let mut switcher = place.switcher();
        place.run(&mut switcher).await.expect("it waits, or is back");
        if !fails {
            place.confirm(id(1)).await.expect("confirmed");
            place.run(&mut switcher).await.expect("it is installed");
        }
        assert_eq!(place.guard_looks().await.expect("the guard looks"), Next::End);
        crashes::room(None);
        let decision = place.decided(id(1)).expect("it is decided").decision();
        if fails {
            assert_eq!(
                (decision, place.systems()),
                (Decision::Back, [OLD; 3].map(str::to_owned)),
                "{files}"
            );
            let why = place.why(id(1));
            assert!(why.contains("ended with 1"), "{files}: {why}");
        } else {
            assert_eq!(
                (decision, place.systems()),
                (Decision::Confirmed, [NEW; 3].map(str::to_owned)),
                "{files}"
            );
        }
        place.is_closed();
        decisions.push(Some(decision));
    }
    let count = |wanted| decisions.iter().filter(|decision| **decision == wanted).count();
    let (refused, back) = (count(None), count(Some(Decision::Back)));
    assert!(refused >= 6 && back >= 6, "{decisions:?}");
}

#[tokio::test]
async fn a_switch_that_fails_on_a_full_disk_goes_back_and_its_record_says_why() {
    let place = Place::new();
    // What fills the disk is the new system itself: nothing can be written from then on, and the log of the way back not be made.
    let log = place.directory().join("switch.log");
    place.how(NEW, "test", "exit 1");
    let change = Place::change(SystemMode::Switch);
    place.arm(id(1), &change).await.expect("armed");
    // The step is noted, and then nothing more.
    crashes::room(Some(1));
    std::fs::create_dir(&log).expect("a directory in the place of the log");
    ends(&mut place.switcher(), || Ok(place.now())).await;
    crashes::room(None);
    assert_eq!(place.systems(), [OLD; 3]);
    let decided = place.decided(id(1)).expect("it is decided");
    assert_eq!(decided.decision(), Decision::Back);
    let why = place.why(id(1));
    assert!(why.contains("ended with 1"), "{why}");
    std::fs::remove_dir(&log).expect("it is empty");
    place.is_closed();
}

//! The bounds of uploads: how many there are, when one is given up, and what is remembered of it.

use std::path::Path;

use super::*;

fn transfers(place: &Path) -> Transfers {
    Transfers::new(Host {
        nix: leaf_nix::Nix::new(leaf_nix::Settings::new(place)),
        directory: place.join("transfers"),
        kept: place.join("kept"),
        store: place.to_owned(),
        max_upload_bytes: 1000,
        named: watch::channel(BTreeSet::new()).0,
        min_free_bytes: 0,
    })
}

fn caller(name: &str) -> Caller {
    Caller::new(name).expect("a caller")
}

/// A path whose NAR has so many bytes.
fn paths(bytes: u64) -> Vec<SentPath> {
    let path = format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-of-{bytes}");
    vec![SentPath {
        path: StorePath::new(path).expect("a path"),
        nar_hash: format!("sha256-{}=", "A".repeat(43)),
        nar_size: bytes,
        references: Vec::new(),
        content_address: None,
        signatures: Vec::new(),
        deriver: None,
    }]
}

/// Adds an upload with a status of the test's.
fn add(transfers: &mut Transfers, number: u128, of: &str, status: Status) -> (watch::Sender<Status>, Uuid) {
    let description = Description::new(caller(of), paths(100), paths(100)).expect("the boot is known");
    let (sender, followed) = watch::channel(status);
    // Nobody listens: what an upload is told then is lost, as that of one that has ended.
    let (told, _) = mpsc::channel(1);
    let entry = Entry {
        description,
        told,
        status: followed,
        began_at: Instant::now(),
        seen: 0,
        moved_at: Instant::now(),
    };
    let id = Uuid::from_u128(number);
    transfers.all.insert(id, entry);
    (sender, id)
}

fn with(received: u64, state: UploadState) -> Status {
    Ok(Received { received, state })
}

fn ago(time: Duration) -> Instant {
    Instant::now().checked_sub(time).expect("there was such a time")
}

#[tokio::test]
async fn a_caller_has_four_uploads_and_the_one_to_which_nothing_arrives_makes_room() {
    let place = tempfile::tempdir().expect("a directory");
    let mut transfers = transfers(place.path());
    let ann = || caller("ann");
    let begin =
        |transfers: &mut Transfers, of: Caller, bytes| transfers.begin(of, paths(bytes), paths(bytes));
    let first = begin(&mut transfers, ann(), 101).expect("there is room");
    for bytes in 102..105 {
        begin(&mut transfers, ann(), bytes).expect("there is room");
    }
    let refused = begin(&mut transfers, ann(), 105).expect_err("four are all");
    assert_eq!(refused.code, ProblemCode::Overloaded, "{refused}");
    begin(&mut transfers, caller("ben"), 105).expect("another caller has room of its own");
    transfers.all.get_mut(&first).expect("it is open").moved_at = ago(REPLACED_AFTER);
    begin(&mut transfers, ann(), 105).expect("the silent one makes room");
    assert!(!transfers.all.contains_key(&first) && transfers.all.len() == 5);
    transfers
        .uploads
        .join_next()
        .await
        .expect("a task")
        .expect("it ends");
    assert!(!place.path().join("transfers").join(first.to_string()).exists());
    // One that Nix is adding makes none, however long it takes.
    for entry in transfers.all.values_mut() {
        entry.moved_at = ago(KEPT);
        entry.status = watch::channel(with(entry.description.total(), UploadState::Adding)).1;
    }
    let refused = begin(&mut transfers, ann(), 106).expect_err("all are being added");
    assert_eq!(refused.code, ProblemCode::Overloaded, "{refused}");
    assert_eq!(transfers.all.len(), 5);
    // No caller gets more than the leaf has.
    let too_large = begin(&mut transfers, caller("cyd"), 1001).expect_err("it is too large");
    assert_eq!(too_large.code, ProblemCode::TooLarge, "{too_large}");
}

#[tokio::test]
async fn an_upload_lives_by_what_arrives_and_for_a_day_at_most() {
    let place = tempfile::tempdir().expect("a directory");
    let mut transfers = transfers(place.path());
    let receiving = || with(10, UploadState::Receiving);
    let adding = || with(100, UploadState::Adding);
    let mut kept = Vec::new();
    let mut aged = |number, status, silent_for, age| {
        let (sender, id) = add(&mut transfers, number, "ann", status);
        kept.push(sender);
        let entry = transfers.all.get_mut(&id).expect("it was added");
        (entry.moved_at, entry.began_at) = (ago(silent_for), ago(age));
        id
    };
    let hour = Duration::from_secs(3600);
    // Its bytes were not counted yet: they have arrived since.
    let moving = aged(1, receiving(), 2 * hour, 2 * hour);
    let silent = aged(2, with(0, UploadState::Receiving), 2 * hour, 2 * hour);
    let old = aged(3, receiving(), Duration::ZERO, 24 * hour);
    let added = aged(4, adding(), 30 * hour, 30 * hour);
    transfers.give_up();
    let left: Vec<Uuid> = transfers.all.keys().copied().collect();
    assert_eq!(left, [moving, added], "{silent} and {old} are given up");
    // To be asked about brings nothing forward.
    transfers.all.get_mut(&moving).expect("it is open").moved_at = ago(hour);
    transfers.give_up();
    assert_eq!(transfers.all.len(), 1);
}

#[tokio::test]
async fn of_an_upload_that_has_ended_its_end_is_remembered_and_nothing_else() {
    let place = tempfile::tempdir().expect("a directory");
    let mut transfers = transfers(place.path());
    let failed = || Err(Problem::new(ProblemCode::Invalid, "other bytes"));
    let (_failed, of_failed) = add(&mut transfers, 1, "ann", failed());
    let (_added, of_added) = add(&mut transfers, 2, "ben", with(100, UploadState::Added));
    let (_open, open) = add(&mut transfers, 3, "ann", with(0, UploadState::Receiving));
    transfers.settle();
    assert_eq!(transfers.all.keys().collect::<Vec<_>>(), [&open]);
    let ended: Vec<(Uuid, Caller, Status)> = transfers.ended.iter().cloned().collect();
    let expected = [
        (of_failed, caller("ann"), failed()),
        (of_added, caller("ben"), with(100, UploadState::Added)),
    ];
    assert_eq!(ended, expected);
}

#[tokio::test]
async fn an_upload_ends_whose_paths_have_come_by_another_way() {
    let place = tempfile::tempdir().expect("a directory");
    let mut transfers = transfers(place.path());
    let sent = paths(100);
    let all: BTreeSet<StorePath> = sent.iter().map(|sent| sent.path.clone()).collect();
    let mut ask = |of: &str, lacks: &BTreeSet<StorePath>| {
        let lacking = transfers.lacking(caller(of), sent.clone(), lacks, 1000);
        lacking.expect("it is answered").upload
    };
    let of_ann = ask("ann", &all).expect("an upload");
    assert_eq!(ask("ann", &all), Some(of_ann), "the same caller goes on with it");
    let of_ben = ask("ben", &all).expect("an upload");
    assert_ne!(of_ann, of_ben);
    assert_eq!(ask("ann", &BTreeSet::new()), None);
    assert_eq!(transfers.all.keys().collect::<Vec<_>>(), [&of_ben]);
    transfers
        .uploads
        .join_next()
        .await
        .expect("a task")
        .expect("it ends");
    assert!(!place.path().join("transfers").join(of_ann.to_string()).exists());
}

#[test]
fn of_ended_uploads_the_last_ones_of_each_caller_are_remembered() {
    let mut ended = VecDeque::new();
    let first = Uuid::from_u128(1);
    remember(&mut ended, (first, caller("other"), Err(no_upload())));
    for number in 2..100 {
        remember(
            &mut ended,
            (Uuid::from_u128(number), caller("a"), Err(no_upload())),
        );
    }
    assert_eq!(ended.len(), 1 + ENDED_OF_A_CALLER);
    assert_eq!((ended[0].0, ended[8].0), (first, Uuid::from_u128(99)));
    for number in 0..1000_u128 {
        remember(
            &mut ended,
            (Uuid::nil(), caller(&format!("c{number}")), Err(no_upload())),
        );
    }
    assert_eq!(ended.len(), ENDED);
}

//! The switch with its sockets, to which the tests connect as QEMU does.

use super::switch::tests::{broadcast, frame as ethernet};
use super::*;

/// A machine, as QEMU connects it.
fn connect(network: &Network, name: &str) -> UnixStream {
    let port = network.port(name).expect("a link");
    let stream = UnixStream::connect(port).expect("the switch listens");
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a time-out");
    stream
}

/// Machines that the switch has seen.
fn connected<const COUNT: usize>(network: &Network, names: [&str; COUNT]) -> [UnixStream; COUNT] {
    let mut machines = names.map(|name| connect(network, name));
    // A first frame is lost where the others have not joined yet.
    for sender in 0..COUNT {
        let hello = broadcast(sender as u8 + 1, "hello");
        for other in (0..COUNT).filter(|other| *other != sender) {
            loop {
                machines[sender].write_all(&hello).expect("sent");
                machines[other]
                    .set_read_timeout(Some(Duration::from_millis(50)))
                    .expect("a time-out");
                let seen = frame(&mut machines[other]);
                machines[other]
                    .set_read_timeout(Some(Duration::from_secs(10)))
                    .expect("a time-out");
                if seen.is_ok() {
                    break;
                }
            }
        }
    }
    // Once the last frame of each has arrived, none of them is on its way any more.
    for sender in 0..COUNT {
        let ready = broadcast(sender as u8 + 1, "ready");
        send(&mut machines[sender], &ready);
        for other in (0..COUNT).filter(|other| *other != sender) {
            assert_eq!(next(&mut machines[other]), ready);
        }
    }
    machines
}

/// Returns the next frame that is no greeting.
fn next(machine: &mut UnixStream) -> Frame {
    loop {
        let frame = frame(machine).expect("a frame");
        if !frame.ends_with(b"hello") {
            return frame;
        }
    }
}

fn send(machine: &mut UnixStream, frame: &Frame) {
    machine.write_all(frame).expect("sent");
}

#[test]
fn a_frame_for_all_reaches_all_machines_but_its_sender() {
    let network = Network::new().expect("a network");
    let [mut a, mut b, mut c] = connected(&network, ["a", "b", "c"]);
    send(&mut a, &broadcast(1, "one"));
    assert_eq!(next(&mut b), broadcast(1, "one"));
    assert_eq!(next(&mut c), broadcast(1, "one"));
    send(&mut b, &broadcast(2, "two"));
    assert_eq!(next(&mut a), broadcast(2, "two"), "b's frame, and not its own");
}

#[test]
fn a_cut_link_passes_nothing_until_it_is_mended() {
    let network = Network::new().expect("a network");
    let [mut hub, mut leaf, mut other] = connected(&network, ["hub", "leaf-1", "leaf-2"]);
    network.cut("leaf-1").expect("cut");
    send(&mut hub, &ethernet(2, 1, "lost"));
    send(&mut hub, &ethernet(3, 1, "to the other"));
    assert_eq!(next(&mut other), ethernet(3, 1, "to the other"));
    network.mend("leaf-1").expect("mended");
    send(&mut hub, &ethernet(2, 1, "after"));
    assert_eq!(next(&mut leaf), ethernet(2, 1, "after"));
}

#[test]
fn a_slow_link_delivers_in_order_and_not_before_its_time() {
    let network = Network::new().expect("a network");
    let [mut hub, mut leaf] = connected(&network, ["hub", "leaf-1"]);
    let delay = Duration::from_millis(120);
    network.delay("leaf-1", delay).expect("slow");
    let began = Instant::now();
    for text in ["one", "two", "three"] {
        send(&mut hub, &ethernet(2, 1, text));
    }
    for text in ["one", "two", "three"] {
        assert_eq!(next(&mut leaf), ethernet(2, 1, text));
    }
    assert!(began.elapsed() >= delay, "{:?}", began.elapsed());
}

#[test]
fn a_limited_link_takes_its_time_for_each_frame() {
    let network = Network::new().expect("a network");
    let [mut hub, mut leaf] = connected(&network, ["hub", "leaf-1"]);
    // 10 frames of 1,014 bytes with 800,000 bits a second.
    network.rate("leaf-1", 800_000).expect("limited");
    let began = Instant::now();
    let sent = ethernet(2, 1, &"x".repeat(1000));
    for _ in 0..10 {
        send(&mut hub, &sent);
    }
    for _ in 0..10 {
        assert_eq!(next(&mut leaf), sent);
    }
    assert!(
        began.elapsed() >= Duration::from_millis(101),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn a_lossy_link_loses_the_same_frames_with_the_same_seed() {
    let arrived = |seed| -> Vec<u8> {
        let network = Network::with_seed(seed).expect("a network");
        let [mut hub, mut leaf, mut other] = connected(&network, ["hub", "leaf-1", "leaf-2"]);
        network.loss("leaf-1", 0.4).expect("lossy");
        for number in 0..100 {
            send(&mut hub, &ethernet(2, 1, &char::from(b' ' + number).to_string()));
        }
        // The hub's frames stay in order: this one has passed the switch after all others.
        send(&mut hub, &ethernet(3, 1, "mark"));
        assert_eq!(next(&mut other), ethernet(3, 1, "mark"));
        network.mend("leaf-1").expect("whole");
        send(&mut hub, &ethernet(2, 1, "end"));
        let mut numbers = Vec::new();
        loop {
            let frame = next(&mut leaf);
            if frame.ends_with(b"end") {
                return numbers;
            }
            numbers.push(frame[18]);
        }
    };
    let first = arrived(3);
    assert!((40..80).contains(&first.len()), "{} of 100", first.len());
    assert_eq!(first, arrived(3));
    assert_ne!(first, arrived(4));
}

#[test]
fn a_machine_that_leaves_or_sends_garbage_or_reads_nothing_does_not_disturb_the_others() {
    let network = Network::new().expect("a network");
    let [mut a, mut b, c, mut d, _asleep] = connected(&network, ["a", "b", "c", "d", "e"]);
    drop(c);
    d.write_all(b"\xff\xff\xff\xff").expect("sent");
    let large = broadcast(1, &"x".repeat(LONGEST / 2));
    for _ in 0..2 * UNREAD {
        send(&mut a, &large);
        assert_eq!(next(&mut b), large);
    }
}

#[test]
fn a_machine_that_connects_again_takes_the_place_of_its_old_connection() {
    let network = Network::new().expect("a network");
    let [mut hub, mut before] = connected(&network, ["hub", "leaf-1"]);
    let mut after = connect(&network, "leaf-1");
    let ended = loop {
        if let Err(error) = frame(&mut before) {
            break error.kind();
        }
    };
    assert_eq!(ended, ErrorKind::UnexpectedEof);
    send(&mut after, &ethernet(1, 2, "hi"));
    assert_eq!(next(&mut hub), ethernet(1, 2, "hi"));
    send(&mut hub, &ethernet(2, 1, "welcome"));
    assert_eq!(next(&mut after), ethernet(2, 1, "welcome"));
}

#[test]
fn a_network_ends_with_its_last_holder() {
    let network = Network::new().expect("a network");
    let [mut a, mut b] = connected(&network, ["a", "b"]);
    let other = network.clone();
    drop(network);
    send(&mut b, &broadcast(2, "x"));
    assert_eq!(next(&mut a), broadcast(2, "x"));
    drop(other);
    assert!(frame(&mut a).is_err(), "the network has ended");
}

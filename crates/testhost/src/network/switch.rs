//! An Ethernet switch with a machine at the end of each link. It knows no sockets and no clock: a time is the time since
//! any moment, and comes in as an argument.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::link::{Link, LinkChange, Way};

/// The bytes of a frame's header: two hardware addresses and a type.
const HEADER: usize = 14;
/// The maximum of bytes that are on their way; what comes then is lost.
const FLIGHT: usize = 64 << 20;

/// A frame with its four bytes of length before it.
pub(super) type Frame = Arc<[u8]>;

/// The number of a machine's link.
pub(super) type PortId = usize;

/// The switch with its links, and the frames that are on their way.
#[derive(Debug)]
pub(super) struct Switch {
    seed: u64,
    links: Vec<(String, Link)>,
    /// The link behind which a hardware address was last seen.
    seen: BTreeMap<[u8; 6], PortId>,
    flying: BinaryHeap<Reverse<Flying>>,
    flying_bytes: usize,
    /// The number of the next frame: frames that arrive at the same time do so in the order of their sending.
    next: u64,
}

/// A frame on a link.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flying {
    arrives: Duration,
    number: u64,
    port: PortId,
    to_machine: bool,
    frame: Frame,
}

impl Switch {
    /// Returns a switch without links. The seed determines which frames lossy links lose.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            links: Vec::new(),
            seen: BTreeMap::new(),
            flying: BinaryHeap::new(),
            flying_bytes: 0,
            next: 0,
        }
    }

    /// Returns the link of a machine, if it has one.
    pub(super) fn port(&self, name: &str) -> Option<PortId> {
        self.links.iter().position(|(link, _)| link == name)
    }

    /// Returns the names of the machines that have a link.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.links.iter().map(|(name, _)| name.as_str())
    }

    /// Adds a link for a machine that has none.
    pub(super) fn add(&mut self, name: &str) -> PortId {
        self.links.push((name.to_owned(), Link::new(self.seed, name)));
        self.links.len() - 1
    }

    /// Changes the condition of a machine's link.
    ///
    /// # Errors
    /// If there is no machine of this name, or the change has an impossible number.
    pub(super) fn change(&mut self, name: &str, change: LinkChange) -> Result<()> {
        let port = self.port(name).with_context(|| {
            let names: Vec<&str> = self.names().collect();
            format!("no machine {name} is on the network, only: {}", names.join(", "))
        })?;
        self.links[port].1.change(change)?;
        if change == LinkChange::Cut {
            self.flying.retain(|Reverse(flying)| flying.port != port);
            self.flying_bytes = self.flying.iter().map(|Reverse(flying)| flying.frame.len()).sum();
        }
        Ok(())
    }

    /// Takes a frame from a machine.
    pub(super) fn send(&mut self, now: Duration, from: PortId, frame: Frame) {
        self.pass(now, from, Way::ToSwitch, frame);
    }

    /// Returns the frames that have arrived by now, in their order, with the link at whose end the machine is.
    pub(super) fn arrived(&mut self, now: Duration) -> Vec<(PortId, Frame)> {
        let mut arrived = Vec::new();
        while self.next_arrival().is_some_and(|next| next <= now) {
            let Some(Reverse(flying)) = self.flying.pop() else {
                break;
            };
            self.flying_bytes -= flying.frame.len();
            if flying.to_machine {
                arrived.push((flying.port, flying.frame));
            } else {
                self.forward(flying.arrives, flying.port, &flying.frame);
            }
        }
        arrived
    }

    /// Returns when the next frame arrives at the end of a link.
    pub(super) fn next_arrival(&self) -> Option<Duration> {
        self.flying.peek().map(|Reverse(flying)| flying.arrives)
    }

    /// Forwards a frame to the machine it is for, or to all where it is for all or that machine was not seen yet.
    fn forward(&mut self, now: Duration, from: PortId, frame: &Frame) {
        let address = |at: usize| -> Option<[u8; 6]> { frame.get(4 + at..10 + at)?.try_into().ok() };
        // A frame without a whole header is garbage.
        let (Some(to), Some(sender), true) = (address(0), address(6), frame.len() >= 4 + HEADER) else {
            return;
        };
        self.seen.insert(sender, from);
        match self.seen.get(&to) {
            Some(port) if *port == from => {}
            Some(port) => self.pass(now, *port, Way::ToMachine, Arc::clone(frame)),
            // Also a broadcast, whose address is nobody's.
            None => {
                for port in (0..self.links.len()).filter(|port| *port != from) {
                    self.pass(now, port, Way::ToMachine, Arc::clone(frame));
                }
            }
        }
    }

    /// Lets a frame begin its way over a link.
    fn pass(&mut self, now: Duration, port: PortId, way: Way, frame: Frame) {
        if self.flying_bytes + frame.len() > FLIGHT {
            return;
        }
        // The length before the frame is not sent over a cable.
        let Some(arrives) = self.links[port].1.pass(now, way, frame.len() - 4) else {
            return;
        };
        self.flying_bytes += frame.len();
        self.next += 1;
        self.flying.push(Reverse(Flying {
            arrives,
            number: self.next,
            port,
            to_machine: way == Way::ToMachine,
            frame,
        }));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Returns a frame with these last bytes of its addresses, and this payload.
    pub(in super::super) fn frame(to: u8, from: u8, payload: &str) -> Frame {
        let mut bytes = vec![0; 4];
        bytes.extend([2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 0x88, 0xb5]);
        bytes.extend(payload.as_bytes());
        let length = u32::try_from(bytes.len() - 4).expect("it is short");
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        bytes.into()
    }

    /// Returns a frame for all.
    pub(in super::super) fn broadcast(from: u8, payload: &str) -> Frame {
        let mut bytes = frame(0, from, payload).to_vec();
        bytes[4..10].fill(0xff);
        bytes.into()
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Three machines that all know each other.
    fn three() -> Switch {
        let mut switch = Switch::new(1);
        for (port, name) in ["hub", "leaf-1", "leaf-2"].into_iter().enumerate() {
            assert_eq!(switch.add(name), port);
        }
        for port in 0..3 {
            switch.send(millis(0), port, broadcast(port as u8, "hello"));
        }
        assert_eq!(switch.arrived(millis(0)).len(), 6);
        switch
    }

    fn ports(arrived: &[(PortId, Frame)]) -> Vec<PortId> {
        arrived.iter().map(|(port, _)| *port).collect()
    }

    #[test]
    fn a_frame_goes_to_its_machine_alone_once_that_was_seen() {
        let mut switch = Switch::new(1);
        for name in ["a", "b", "c"] {
            switch.add(name);
        }
        switch.send(millis(0), 0, frame(1, 0, "who is where?"));
        assert_eq!(ports(&switch.arrived(millis(0))), [1, 2]);
        switch.send(millis(0), 1, frame(0, 1, "here"));
        assert_eq!(ports(&switch.arrived(millis(0))), [0]);
        switch.send(millis(0), 0, frame(1, 0, "to you"));
        assert_eq!(ports(&switch.arrived(millis(0))), [1]);
        switch.send(millis(0), 1, broadcast(1, "to all"));
        assert_eq!(ports(&switch.arrived(millis(0))), [0, 2]);
        switch.send(millis(0), 0, frame(0, 0, "to myself"));
        switch.send(millis(0), 0, frame(1, 0, "")[..17].into());
        assert!(switch.arrived(millis(0)).is_empty(), "nobody's, and garbage");
    }

    #[test]
    fn a_machine_that_restarts_with_another_address_or_place_is_found_there() {
        let mut switch = three();
        switch.send(millis(0), 2, broadcast(1, "the first leaf's address moved here"));
        switch.arrived(millis(0));
        switch.send(millis(0), 0, frame(1, 0, "to the first"));
        assert_eq!(ports(&switch.arrived(millis(0))), [2]);
    }

    #[test]
    fn a_cut_link_passes_nothing_in_either_direction_and_the_others_go_on() {
        let mut switch = three();
        switch.change("leaf-1", LinkChange::Cut).expect("cut");
        switch.send(millis(1), 0, frame(1, 0, "down"));
        switch.send(millis(1), 1, frame(0, 1, "up"));
        switch.send(millis(1), 2, broadcast(2, "to all"));
        assert_eq!(ports(&switch.arrived(millis(1))), [0]);
        switch.change("leaf-1", LinkChange::Mend).expect("mended");
        switch.send(millis(2), 0, frame(1, 0, "down"));
        assert_eq!(ports(&switch.arrived(millis(2))), [1]);
    }

    #[test]
    fn what_is_on_its_way_when_a_link_is_cut_does_not_arrive_after_it_is_mended() {
        let mut switch = three();
        let slow = LinkChange::Delay(millis(100));
        switch.change("leaf-1", slow).expect("slow");
        switch.change("leaf-2", slow).expect("slow");
        switch.send(millis(0), 0, broadcast(0, "to all"));
        assert!(switch.arrived(millis(50)).is_empty());
        switch.change("leaf-1", LinkChange::Cut).expect("cut");
        switch.change("leaf-1", LinkChange::Mend).expect("mended");
        assert_eq!(ports(&switch.arrived(millis(1000))), [2]);
        assert_eq!(switch.flying_bytes, 0);
    }

    #[test]
    fn a_frame_takes_the_time_of_both_links_that_it_passes() {
        let mut switch = three();
        switch
            .change("leaf-1", LinkChange::Delay(millis(100)))
            .expect("slow");
        switch
            .change("leaf-2", LinkChange::Delay(millis(30)))
            .expect("slow");
        switch.send(millis(0), 1, frame(2, 1, "one"));
        switch.send(millis(1), 1, frame(0, 1, "two"));
        assert_eq!(
            switch.next_arrival(),
            Some(millis(100)),
            "it is at the switch then"
        );
        assert!(switch.arrived(millis(100)).is_empty());
        assert_eq!(ports(&switch.arrived(millis(101))), [0]);
        assert_eq!(switch.next_arrival(), Some(millis(130)));
        assert_eq!(ports(&switch.arrived(millis(130))), [2]);
        assert_eq!(switch.next_arrival(), None);
    }

    #[test]
    fn frames_of_one_link_arrive_in_the_order_of_their_sending() {
        let mut switch = three();
        switch
            .change("leaf-1", LinkChange::Delay(millis(10)))
            .expect("slow");
        let sent: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        for text in &sent {
            switch.send(millis(0), 1, frame(0, 1, text));
        }
        let texts: Vec<String> = switch
            .arrived(millis(10))
            .iter()
            .map(|(_, frame)| String::from_utf8_lossy(&frame[18..]).into_owned())
            .collect();
        assert_eq!(texts, sent);
    }

    #[test]
    fn a_slow_link_does_not_fill_the_memory() {
        let mut switch = three();
        switch
            .change("leaf-1", LinkChange::Delay(Duration::from_secs(60)))
            .expect("slow");
        let large = "x".repeat(1 << 20);
        for _ in 0..100 {
            switch.send(millis(0), 1, frame(0, 1, &large));
        }
        assert!(switch.flying_bytes <= FLIGHT);
        assert_eq!(switch.arrived(Duration::from_secs(60)).len(), 63);
        switch.send(Duration::from_secs(60), 1, frame(0, 1, "there is room again"));
        assert_eq!(switch.arrived(Duration::from_secs(120)).len(), 1);
    }

    #[test]
    fn a_change_names_the_machines_where_there_is_none_of_its_name() {
        let error = three()
            .change("leaf-7", LinkChange::Cut)
            .expect_err("there is none");
        assert!(error.to_string().contains("only: hub, leaf-1, leaf-2"), "{error}");
        let error = three()
            .change("leaf-1", LinkChange::Loss(2.0))
            .expect_err("it can't be");
        assert!(error.to_string().contains("not 2"), "{error}");
    }
}

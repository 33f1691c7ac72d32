//! What a hostile program in a container can try on its network, for the tests of the closed network.
//!
//! | called as | what it does |
//! |---|---|
//! | `probe walk` | sends a SYN to each TCP port, a datagram to each UDP port and a ping to each address, and says what answered |
//! | `probe serve NAME PORT…` | answers on these ports, TCP and UDP, IPv4 and IPv6, with its name and the address it sees |
//! | `probe ask PROTOCOL ADDRESS PORT [SOURCE]` | says what such a server answers, or `closed` |
//!
//! It needs no library but the C one, and can be linked statically. `walk` reads a [`Walk`] from its standard input and
//! writes an [`Answer`] per line. It crafts its own packets: root in a container can.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that prints to its user"
)]

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream,
    UdpSocket,
};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto};
use serde::{Deserialize, Serialize};

/// How many packets are under way at once: fewer than the queue between the two ends of a link takes.
const BATCH: usize = 200;
/// How long the sign of life after a batch may take, and how often a batch is sent.
const PATIENCE: Duration = Duration::from_secs(3);
const TRIES: usize = 10;
/// The longest time that an answer takes.
const ANSWER: Duration = Duration::from_secs(4);
/// The port that packets are sent from, and the first of those that signs of life are asked from.
const FROM: u16 = 20_000;
const ALIVE_FROM: u16 = 30_000;

/// What is to be walked.
#[derive(Debug, Deserialize)]
struct Walk {
    /// The container's own addresses, one of each family.
    own4: Ipv4Addr,
    own6: Ipv6Addr,
    /// Where a TCP port is open: its answer says that all packets sent before have arrived.
    alive: SocketAddrV4,
    /// Whose TCP ports are walked, and which.
    tcp: Vec<IpAddr>,
    tcp_ports: Vec<u16>,
    /// Whose UDP ports are asked, and which.
    udp: Vec<IpAddr>,
    udp_ports: Vec<u16>,
    /// Who is pinged.
    ping: Vec<IpAddr>,
    /// The index of the link, for the addresses of IPv6 that mean nothing without.
    link: u32,
}

/// What answered.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Answer {
    from: IpAddr,
    how: &'static str,
    port: Option<u16>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["walk"] => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            for answer in Walker::new(serde_json::from_str(&text)?)?.walk()? {
                println!("{}", serde_json::to_string(&answer)?);
            }
            Ok(())
        }
        ["serve", name, ref ports @ ..] => serve(name, ports),
        ["ask", protocol, address, port] => ask(protocol, address.parse()?, port.parse()?, None),
        ["ask", protocol, address, port, source] => {
            ask(protocol, address.parse()?, port.parse()?, Some(source.parse()?))
        }
        _ => bail!("usage: probe walk | serve NAME PORT… | ask PROTOCOL ADDRESS PORT [SOURCE]"),
    }
}

/// Answers until it is ended.
fn serve(name: &str, ports: &[&str]) -> Result<()> {
    let mut threads = Vec::new();
    for port in ports {
        let at = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port.parse()?));
        let tcp = TcpListener::bind(at).with_context(|| format!("listen at {at}"))?;
        let udp = UdpSocket::bind(at).with_context(|| format!("listen at {at}"))?;
        let own = name.to_owned();
        threads.push(std::thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                // A client that has gone needs no answer.
                if let Ok(peer) = stream.peer_addr() {
                    let _ = stream.write_all(greeting(&own, peer).as_bytes());
                    let _ = stream.shutdown(Shutdown::Write);
                }
            }
        }));
        let own = name.to_owned();
        threads.push(std::thread::spawn(move || {
            let mut bytes = [0; 512];
            while let Ok((_, peer)) = udp.recv_from(&mut bytes) {
                let _ = udp.send_to(greeting(&own, peer).as_bytes(), peer);
            }
        }));
    }
    println!("serving");
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

fn greeting(name: &str, peer: SocketAddr) -> String {
    format!("{name} {}\n", peer.ip().to_canonical())
}

fn ask(protocol: &str, address: IpAddr, port: u16, source: Option<IpAddr>) -> Result<()> {
    let to = SocketAddr::from((address, port));
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let from = SocketAddr::from((source.unwrap_or(any), 0));
    let asked = match protocol {
        "udp" => ask_udp(from, to),
        "tcp" => ask_tcp(from, to),
        other => bail!("{other} is neither tcp nor udp"),
    };
    match asked {
        Ok(answer) => print!("{answer}"),
        Err(e) => {
            eprintln!("{e:#}");
            println!("closed");
        }
    }
    Ok(())
}

fn ask_udp(from: SocketAddr, to: SocketAddr) -> Result<String> {
    let socket = UdpSocket::bind(from)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(ANSWER))?;
    socket.send(b"who?")?;
    let mut bytes = [0; 512];
    let length = socket.recv(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

fn ask_tcp(from: SocketAddr, to: SocketAddr) -> Result<String> {
    let family = if to.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = rustix::net::socket(family, SocketType::STREAM, None)?;
    rustix::net::bind(&socket, &from)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(e) => return Err(e.into()),
    }
    ensure!(ready(&[&socket], PollFlags::OUT, ANSWER)?, "no answer in time");
    rustix::net::sockopt::socket_error(&socket)??;
    rustix::io::ioctl_fionbio(&socket, false)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(ANSWER))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Waits until one of the sockets is ready, and returns whether one is.
fn ready(sockets: &[&OwnedFd], flags: PollFlags, patience: Duration) -> Result<bool> {
    let mut polled: Vec<_> = sockets.iter().map(|s| PollFd::new(*s, flags)).collect();
    let timeout = Timespec::try_from(patience)?;
    Ok(poll(&mut polled, Some(&timeout))? > 0)
}

/// A packet to send: where to, and by which of the walker's sockets.
#[derive(Debug, Clone, Copy)]
enum Packet {
    Tcp(IpAddr, u16),
    Udp(IpAddr, u16),
    Ping(IpAddr),
}

struct Walker {
    walk: Walk,
    tcp4: OwnedFd,
    tcp6: OwnedFd,
    udp4: OwnedFd,
    udp6: OwnedFd,
    icmp4: OwnedFd,
    icmp6: OwnedFd,
    /// All addresses of the container, link-local ones included.
    own: BTreeSet<IpAddr>,
    next_alive: u16,
    answers: BTreeSet<Answer>,
}

impl Walker {
    fn new(walk: Walk) -> Result<Self> {
        let raw = |family, protocol| {
            rustix::net::socket(family, SocketType::RAW, Some(protocol)).context("open a raw socket")
        };
        let (v4, v6) = (AddressFamily::INET, AddressFamily::INET6);
        Ok(Self {
            own: own_addresses(&walk)?,
            walk,
            tcp4: raw(v4, ipproto::TCP)?,
            tcp6: raw(v6, ipproto::TCP)?,
            udp4: raw(v4, ipproto::UDP)?,
            udp6: raw(v6, ipproto::UDP)?,
            icmp4: raw(v4, ipproto::ICMP)?,
            icmp6: raw(v6, ipproto::ICMPV6)?,
            next_alive: ALIVE_FROM,
            answers: BTreeSet::new(),
        })
    }

    fn walk(mut self) -> Result<BTreeSet<Answer>> {
        let pings = self.walk.ping.iter().map(|to| Packet::Ping(*to));
        let datagrams = self
            .walk
            .udp
            .iter()
            .flat_map(|to| self.walk.udp_ports.iter().map(|port| Packet::Udp(*to, *port)));
        let mut packets: Vec<Packet> = pings.chain(datagrams).collect();
        for to in &self.walk.tcp {
            packets.extend(self.walk.tcp_ports.iter().map(|port| Packet::Tcp(*to, *port)));
        }
        for batch in packets.chunks(BATCH) {
            self.send_batch(batch)?;
        }
        Ok(self.answers)
    }

    /// Sends packets until a sign of life that was asked for after them is there.
    fn send_batch(&mut self, batch: &[Packet]) -> Result<()> {
        for _ in 0..TRIES {
            for packet in batch {
                self.send(*packet);
            }
            self.next_alive = self.next_alive.checked_add(1).unwrap_or(ALIVE_FROM);
            let alive = self.walk.alive;
            let syn = syn(
                self.walk.own4.into(),
                (*alive.ip()).into(),
                self.next_alive,
                alive.port(),
            );
            rustix::net::sendto(&self.tcp4, &syn, SendFlags::empty(), &SocketAddr::from(alive))
                .context("ask for a sign of life")?;
            let deadline = Instant::now() + PATIENCE;
            loop {
                if self.receive()? {
                    return Ok(());
                }
                let rest = deadline.saturating_duration_since(Instant::now());
                let sockets = [
                    &self.tcp4,
                    &self.tcp6,
                    &self.udp4,
                    &self.udp6,
                    &self.icmp4,
                    &self.icmp6,
                ];
                if rest.is_zero() || !ready(&sockets, PollFlags::IN, rest)? {
                    break;
                }
            }
        }
        bail!("{} gives no sign of life: nothing was shown", self.walk.alive)
    }

    /// Sends one packet. One that the container's own kernel does not take reaches nobody.
    fn send(&self, packet: Packet) {
        let (v4, v6): (IpAddr, IpAddr) = (self.walk.own4.into(), self.walk.own6.into());
        let of = |to: IpAddr| if to.is_ipv4() { v4 } else { v6 };
        let (socket, bytes, to) = match packet {
            Packet::Tcp(to, port) => {
                let socket = if to.is_ipv4() { &self.tcp4 } else { &self.tcp6 };
                (socket, syn(of(to), to, FROM, port), to)
            }
            Packet::Udp(to, port) => {
                let socket = if to.is_ipv4() { &self.udp4 } else { &self.udp6 };
                (socket, datagram(of(to), to, FROM, port), to)
            }
            Packet::Ping(to @ IpAddr::V4(_)) => {
                let mut echo = vec![8, 0, 0, 0, 0x4c, 0x46, 0, 1];
                let sum = checksum(&echo);
                echo[2..4].copy_from_slice(&sum.to_be_bytes());
                (&self.icmp4, echo, to)
            }
            // The kernel sums these up by itself (RFC 3542, 3.1).
            Packet::Ping(to) => (&self.icmp6, vec![128, 0, 0, 0, 0x4c, 0x46, 0, 1], to),
        };
        let to = match to {
            IpAddr::V4(to) => SocketAddr::from((to, 0)),
            IpAddr::V6(to) => {
                let scope = if to.is_multicast() || to.is_unicast_link_local() {
                    self.walk.link
                } else {
                    0
                };
                SocketAddrV6::new(to, 0, 0, scope).into()
            }
        };
        let _ = rustix::net::sendto(socket, &bytes, SendFlags::empty(), &to);
    }

    /// Takes what there is, and returns whether the last sign of life that was asked for is in it.
    fn receive(&mut self) -> Result<bool> {
        let mut alive = false;
        let mut bytes = [0; 2048];
        for which in 0..6 {
            let (socket, has_header, kind) = match which {
                0 => (&self.tcp4, true, "tcp"),
                1 => (&self.tcp6, false, "tcp"),
                2 => (&self.udp4, true, "udp"),
                3 => (&self.udp6, false, "udp"),
                4 => (&self.icmp4, true, "icmp"),
                _ => (&self.icmp6, false, "icmp6"),
            };
            loop {
                let (length, from) = match rustix::net::recvfrom(socket, &mut bytes[..], RecvFlags::DONTWAIT)
                {
                    Ok((length, _, from)) => (length, from),
                    Err(rustix::io::Errno::AGAIN) => break,
                    Err(e) => return Err(e).context("receive"),
                };
                let from = SocketAddr::try_from(from.context("a packet from nowhere")?)?.ip();
                let header = if has_header {
                    usize::from(bytes[0] & 0x0f) * 4
                } else {
                    0
                };
                let Some(packet) = bytes[..length].get(header..).filter(|packet| packet.len() >= 8) else {
                    continue;
                };
                let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
                let (source, target) = (word(0), word(2));
                let answer = match kind {
                    "tcp" if target == self.next_alive => {
                        alive = true;
                        continue;
                    }
                    "tcp" if target == FROM && packet.len() >= 14 => match packet[13] & 0x16 {
                        0x12 => ("tcp open", Some(source)),
                        flags if flags & 0x04 != 0 => ("tcp refused", Some(source)),
                        _ => continue,
                    },
                    "udp" if target == FROM => ("udp open", Some(source)),
                    "icmp" => match packet[0] {
                        0 => ("ping", None),
                        3 => ("unreachable", None),
                        5 => ("redirect", None),
                        _ => continue,
                    },
                    "icmp6" => match packet[0] {
                        129 => ("ping", None),
                        1 => ("unreachable", None),
                        134 => ("router advertisement", None),
                        137 => ("redirect", None),
                        _ => continue,
                    },
                    _ => continue,
                };
                // What the container's own kernel says, of what can't be reached for one, is no answer.
                if !self.own.contains(&from) {
                    self.answers.insert(Answer {
                        from,
                        how: answer.0,
                        port: answer.1,
                    });
                }
            }
        }
        Ok(alive)
    }
}

/// Returns the container's own addresses, by what the kernel says of them (proc_net(5), `if_inet6`).
fn own_addresses(walk: &Walk) -> Result<BTreeSet<IpAddr>> {
    let table = std::fs::read_to_string("/proc/self/net/if_inet6").context("read the addresses")?;
    let listed = table.lines().filter_map(|line| {
        let digits = line.split(' ').next()?;
        let bits = u128::from_str_radix(digits, 16).ok()?;
        Some(IpAddr::V6(Ipv6Addr::from_bits(bits)))
    });
    Ok(listed.chain([walk.own4.into(), walk.own6.into()]).collect())
}

/// A TCP segment that asks for a connection (RFC 9293, 3.1).
fn syn(from: IpAddr, to: IpAddr, source: u16, target: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(20);
    bytes.extend(source.to_be_bytes());
    bytes.extend(target.to_be_bytes());
    bytes.extend(0x4c65_6166_u32.to_be_bytes());
    bytes.extend([0, 0, 0, 0, 5 << 4, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let sum = transport_checksum(from, to, 6, &bytes);
    bytes[16..18].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// A UDP datagram (RFC 768).
fn datagram(from: IpAddr, to: IpAddr, source: u16, target: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(12);
    bytes.extend(source.to_be_bytes());
    bytes.extend(target.to_be_bytes());
    bytes.extend([0, 12, 0, 0]);
    bytes.extend(b"who?");
    let sum = match transport_checksum(from, to, 17, &bytes) {
        0 => 0xffff,
        sum => sum,
    };
    bytes[6..8].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn transport_checksum(from: IpAddr, to: IpAddr, protocol: u8, bytes: &[u8]) -> u16 {
    let mut all = Vec::with_capacity(40 + bytes.len());
    for address in [from, to] {
        match address {
            IpAddr::V4(v4) => all.extend(v4.octets()),
            IpAddr::V6(v6) => all.extend(v6.octets()),
        }
    }
    let length = u32::try_from(bytes.len()).unwrap_or(0);
    all.extend(length.to_be_bytes());
    all.extend([0, 0, 0, protocol]);
    all.extend(bytes);
    checksum(&all)
}

/// The sum of the internet protocols (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

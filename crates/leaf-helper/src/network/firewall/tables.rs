//! Removes tables by netlink (`include/uapi/linux/netfilter/nf_tables.h` and `nfnetlink.h` of the kernel), where
//! `nft` can't read what is in them: version 1.0.6 ends by a signal when it reads rules that version 1.1.3 made.

use std::io;
use std::time::Duration;

use leaf_core::id::LeafName;
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

use crate::error::{Error, Result};

/// The families of tables: `NFPROTO_INET` and `NFPROTO_ARP` (`include/uapi/linux/netfilter.h`).
pub(super) const INET: u8 = 1;
const ARP: u8 = 3;
/// The subsystem of nftables, and its message that deletes a table with all that is in it.
const NFTABLES: u16 = 10;
const DELETE_TABLE: u16 = (NFTABLES << 8) | 2;
/// The attribute with a table's name.
const TABLE_NAME: u16 = 1;
/// The messages around a transaction.
const BEGIN: u16 = 0x10;
const END: u16 = 0x11;
/// The answer: an error number, or 0.
const ANSWER: u16 = 2;
/// `NLM_F_REQUEST`, and `NLM_F_ACK`.
const REQUEST: u16 = 1;
const ACK: u16 = 4;
/// The length of a message's header (`struct nlmsghdr`).
const HEADER_BYTES: usize = 16;
/// The sequence number of the message that deletes the table.
const DELETION: u32 = 2;
/// The time limit for the kernel's answer, which it gives before the call that sends the message returns.
const PATIENCE: Duration = Duration::from_secs(5);

/// Removes the tables of a leaf, with all that is in them. It is not an error if there are none.
pub(super) fn delete_all(leaf: &LeafName) -> Result<()> {
    let name = format!("leaf_{leaf}");
    delete(INET, &name)?;
    delete(ARP, &name)
}

/// Removes a table, with all that is in it. It is not an error if there is none.
pub(super) fn delete(family: u8, name: &str) -> Result<()> {
    match delete_table(family, name) {
        // No such table, or no nftables in this kernel.
        Ok(()) | Err(Errno::NOENT | Errno::OPNOTSUPP | Errno::PROTONOSUPPORT) => Ok(()),
        Err(Errno::PERM) => Err(Error::Unsupported(
            "this process lacks the privilege to change the host's network rules (CAP_NET_ADMIN)".into(),
        )),
        Err(error) => {
            let failed = Error::io::<io::Error>(format!("remove the nftables table {name}"));
            Err(failed(error.into()))
        }
    }
}

fn delete_table(family: u8, name: &str) -> rustix::io::Result<()> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::NETFILTER),
    )?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    let kernel = SocketAddrNetlink::new(0, 0);
    sendto(&socket, &transaction(family, name), SendFlags::empty(), &kernel)?;
    let mut buffer = [0; 8192];
    loop {
        let (length, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        if let Some(answer) = answer_in(&buffer[..length]) {
            return answer;
        }
    }
}

/// Returns the messages that delete a table: the begin of a transaction, the deletion, and the end.
fn transaction(family: u8, name: &str) -> Vec<u8> {
    let mut attribute = Vec::new();
    let length = u16::try_from(4 + name.len() + 1).expect("a leaf's name is short");
    attribute.extend(length.to_ne_bytes());
    attribute.extend(TABLE_NAME.to_ne_bytes());
    attribute.extend(name.bytes());
    attribute.resize(usize::from(length).next_multiple_of(4), 0);
    let mut all = message(BEGIN, REQUEST, 1, 0, NFTABLES, &[]);
    all.extend(message(
        DELETE_TABLE,
        REQUEST | ACK,
        DELETION,
        family,
        0,
        &attribute,
    ));
    all.extend(message(END, REQUEST, 3, 0, NFTABLES, &[]));
    all
}

/// Returns a message: the header, the family, version 0, a resource in network byte order, and the attributes.
fn message(kind: u16, flags: u16, sequence: u32, family: u8, resource: u16, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER_BYTES + 4 + attributes.len()).expect("a message is short");
    let mut bytes = Vec::new();
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    // The sender, which the kernel fills in.
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(attributes);
    bytes
}

/// Returns the answer to the deletion, or the error of the whole transaction; `None` if it is not among these messages.
fn answer_in(mut messages: &[u8]) -> Option<rustix::io::Result<()>> {
    while let (Some(length), Some(kind), Some(sequence)) =
        (number(messages, 0), number(messages, 4), number(messages, 8))
    {
        // The kind is the lower half of this number in memory.
        let kind = u16::from_ne_bytes([kind.to_ne_bytes()[0], kind.to_ne_bytes()[1]]);
        if kind == ANSWER {
            let code = number(messages, HEADER_BYTES)?.cast_signed();
            if code != 0 {
                return Some(Err(Errno::from_raw_os_error(-code)));
            }
            if sequence == DELETION {
                return Some(Ok(()));
            }
        }
        let next = usize::try_from(length)
            .ok()?
            .max(HEADER_BYTES)
            .next_multiple_of(4);
        messages = messages.get(next..)?;
    }
    None
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_has_aligned_messages_and_its_answer_is_found() {
        for name in ["leaf_a", "leaf_ab", "leaf_abc", "leaf_abcd"] {
            let all = transaction(1, name);
            assert_eq!(all.len() % 4, 0);
            // Each message's length leads to the next.
            let mut kinds = Vec::new();
            let mut rest = &all[..];
            while let Some(length) = number(rest, 0) {
                kinds.push(u16::from_ne_bytes([rest[4], rest[5]]));
                rest = &rest[length as usize..];
            }
            assert_eq!(kinds, [BEGIN, DELETE_TABLE, END]);
        }
        let answer = |sequence, code: i32| {
            message(ANSWER, 0, sequence, 0, 0, &[])[..HEADER_BYTES]
                .iter()
                .copied()
                .chain(code.to_ne_bytes())
                .collect::<Vec<u8>>()
        };
        assert_eq!(answer_in(&answer(DELETION, 0)), Some(Ok(())));
        assert_eq!(answer_in(&answer(1, 0)), None);
        assert_eq!(answer_in(&answer(1, -1)), Some(Err(Errno::PERM)));
        let both = [answer(1, 0), answer(DELETION, -2)].concat();
        assert_eq!(answer_in(&both), Some(Err(Errno::NOENT)));
        assert_eq!(answer_in(&[]), None);
    }
}

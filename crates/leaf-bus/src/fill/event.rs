//! The bytes of an event: as the server delivers them, and as they are sent.

use leaf_core::id::{InstanceId, LeafName};
use leaf_core::subject;
use memchr::memchr;
use memchr::memmem::{self, Finder};

use super::FillError;

/// The beginning of the line of a header that fences the copy, with the end of the line before. As the server finds it
/// (`getHeaderKeyIndex` of nats-server): the first one, with exactly these letters.
const FENCE: &[u8] = b"\r\nNats-Expected-Last-Sequence:";

/// A message in its frame: `MSG subject id [reply] size` or `HMSG subject id [reply] header-size size`, header and body.
pub(super) struct Delivered<'a> {
    pub(super) subject: &'a [u8],
    reply: &'a [u8],
    /// Its header, up to the empty line; empty if it has none.
    header: &'a [u8],
    pub(super) body: &'a [u8],
    /// The frame from its sizes on.
    from_sizes: &'a [u8],
}

impl<'a> Delivered<'a> {
    pub(super) fn parse(frame: &'a [u8]) -> Option<Self> {
        let end_of_line = memchr(b'\n', frame)?;
        let line = frame[..end_of_line].strip_suffix(b"\r")?;
        let has_header = matches!(line.first(), Some(b'H' | b'h'));
        let mut blanks = [0; 5];
        let mut words = 1;
        for at in memchr::memchr_iter(b' ', line) {
            *blanks.get_mut(words - 1)? = at;
            words += 1;
        }
        let reply_and_sizes = words.checked_sub(3)?;
        let (reply, sizes) = match (has_header, reply_and_sizes) {
            (true, 3) | (false, 2) => (&line[blanks[2] + 1..blanks[3]], blanks[3] + 1),
            (true, 2) | (false, 1) => (&line[..0], blanks[2] + 1),
            _ => return None,
        };
        let content = frame[end_of_line + 1..].strip_suffix(b"\r\n")?;
        let header_size = if has_header {
            let size = line[sizes..].split(|byte| *byte == b' ').next()?;
            usize::try_from(number(size)?).ok()?
        } else {
            0
        };
        let (header, body) = content.split_at_checked(header_size)?;
        Some(Self {
            subject: &line[blanks[0] + 1..blanks[1]],
            reply,
            header,
            body,
            from_sizes: &frame[sizes..],
        })
    }

    /// The status, if it is one: `404 No Messages`.
    pub(super) fn status(&self) -> Option<&'a [u8]> {
        let first = self.header.strip_prefix(b"NATS/1.0 ")?;
        let end = memchr(b'\r', first)?;
        Some(first[..end].trim_ascii())
    }
}

/// An event that was passed on.
#[derive(Debug)]
pub(super) struct Passed {
    /// How many bytes of `max_bytes` the server counts for it.
    pub(super) counted_bytes: usize,
    /// How many events the stream has after it.
    pub(super) pending: u64,
}

/// The events of a leaf, one after the other.
pub(super) struct Events {
    /// The prefix of the subjects in the stream.
    stored: Vec<u8>,
    /// The first part of each subject to publish on.
    sent: Vec<u8>,
    /// The part of an event's reply subject before its numbers.
    numbers: Finder<'static>,
    fence: Finder<'static>,
    last: u64,
}

impl Events {
    pub(super) fn new(leaf: &LeafName, instance: InstanceId, consumer: &str, from: u64) -> Self {
        let stored = subject::events_of(leaf);
        Self {
            stored: stored.trim_end_matches('>').as_bytes().to_vec(),
            sent: format!("HPUB {}", subject::up_prefix(leaf, instance)).into_bytes(),
            numbers: Finder::new(format!(".{consumer}.").as_bytes()).into_owned(),
            fence: Finder::new(FENCE),
            last: from - 1,
        }
    }

    /// The sequence number of the last event.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Appends what is to be sent for an event; `None` if the message comes from no stream.
    pub(super) fn pass(
        &mut self,
        message: &Delivered<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Option<Passed>, FillError> {
        let Some((sequence, pending)) = self.numbers(message.reply) else {
            return Ok(None);
        };
        let expected = self.last + 1;
        if sequence != expected {
            return Err(FillError::Gap {
                expected,
                first: sequence,
            });
        }
        let not_an_event = FillError::NotAnEvent { sequence };
        let Some(rest) = message.subject.strip_prefix(&self.stored[..]) else {
            return Err(not_an_event);
        };
        let fenced = match self.fence.find(message.header) {
            Some(at) if is_fence(&message.header[at + FENCE.len()..], self.last) => None,
            at => match mended(message.header, at, self.last) {
                Some(header) => Some(header),
                None => return Err(not_an_event),
            },
        };
        out.extend_from_slice(&self.sent);
        out.extend_from_slice(rest);
        out.push(b' ');
        match fenced {
            None => out.extend_from_slice(message.from_sizes),
            Some(header) => {
                let size = header.len() + message.body.len();
                out.extend_from_slice(format!("{} {size}\r\n", header.len()).as_bytes());
                out.extend_from_slice(&header);
                out.extend_from_slice(message.body);
                out.extend_from_slice(b"\r\n");
            }
        }
        self.last = sequence;
        Ok(Some(Passed {
            counted_bytes: message.subject.len()
                + message.reply.len()
                + message.header.len()
                + message.body.len(),
            pending,
        }))
    }

    /// Returns an event's sequence number in the stream, and how many are after it. Of its reply subject
    /// `$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<deliveries>.<sequence>.<number>.<time>.<pending>[.…]`
    /// (ADR-15 of NATS).
    fn numbers(&self, reply: &[u8]) -> Option<(u64, u64)> {
        if !reply.starts_with(b"$JS.ACK.") {
            return None;
        }
        let at = self.numbers.find(reply)? + self.numbers.needle().len();
        let mut tokens = reply[at..].split(|byte| *byte == b'.');
        let sequence = number(tokens.nth(1)?)?;
        let pending = number(tokens.nth(2)?)?;
        Some((sequence, pending))
    }
}

/// Whether the line of a header ends with this number.
fn is_fence(value: &[u8], number: u64) -> bool {
    let value = value.strip_prefix(b" ").unwrap_or(value);
    let digits = value.iter().take_while(|byte| byte.is_ascii_digit()).count();
    value[digits..].starts_with(b"\r\n") && self::number(&value[..digits]) == Some(number)
}

/// Returns the header with this number in the line that begins `at`, or in a new one; `None` if it is no header.
fn mended(header: &[u8], at: Option<usize>, number: u64) -> Option<Vec<u8>> {
    let first = memmem::find(header, b"\r\n")?;
    if !header.starts_with(b"NATS/1.0") || !header.ends_with(b"\r\n\r\n") {
        return None;
    }
    let (start, end) = match at {
        Some(at) => (at, at + 2 + memmem::find(&header[at + 2..], b"\r\n")?),
        None => (first, first),
    };
    let number = number.to_string();
    Some([&header[..start], FENCE, b" ", number.as_bytes(), &header[end..]].concat())
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    digits.iter().try_fold(0, |number: u64, byte| {
        byte.is_ascii_digit()
            .then(|| number * 10 + u64::from(*byte - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: &str = "leaf.v1.up.edge.00000000-0000-0000-0000-000000000007";

    fn events(from: u64) -> Events {
        let leaf = LeafName::new("edge").expect("a leaf");
        Events::new(&leaf, InstanceId(uuid::Uuid::from_u128(7)), "c", from)
    }

    fn stored(subject: &str, sequence: u64, header: &str, body: &str) -> String {
        let reply = format!("$JS.ACK.EVENTS_edge.c.1.{sequence}.1.1700000000000000000.4");
        let size = header.len() + body.len();
        if header.is_empty() {
            return format!("MSG {subject} 1 {reply} {size}\r\n{body}\r\n");
        }
        format!(
            "HMSG {subject} 1 {reply} {} {size}\r\n{header}{body}\r\n",
            header.len()
        )
    }

    fn pass(events: &mut Events, frame: &str) -> Result<String, FillError> {
        let mut out = Vec::new();
        let message = Delivered::parse(frame.as_bytes()).expect("a message");
        let passed = events.pass(&message, &mut out)?.expect("an event");
        assert_eq!(passed.pending, 4);
        Ok(String::from_utf8(out).expect("text"))
    }

    #[test]
    fn an_event_is_sent_as_it_is_stored_but_for_its_subject() {
        let mut events = events(8);
        let header =
            "NATS/1.0\r\nA: Nats-Expected-Last-Sequence: 9\r\nNats-Expected-Last-Sequence: 7\r\n\r\n";
        for (sequence, sent) in [(8, "b\r\nc"), (9, "")] {
            let header = header.replace(": 7", &format!(": {}", sequence - 1));
            let frame = stored("leaf.v1.evt.edge.a.b.c", sequence, &header, sent);
            let (head, size) = (header.len(), header.len() + sent.len());
            assert_eq!(
                pass(&mut events, &frame).expect("it is one"),
                format!("HPUB {UP}.a.b.c {head} {size}\r\n{header}{sent}\r\n")
            );
        }
        assert_eq!(events.last(), 9);
    }

    #[test]
    fn a_header_without_the_right_number_gets_it_and_nothing_else() {
        let right = "NATS/1.0\r\nA: 1\r\nNats-Expected-Last-Sequence: 7\r\nB: 2\r\n\r\n";
        for (found, sent) in [
            (right.replace(": 7", ": 8"), right.to_owned()),
            (right.replace(": 7", ":"), right.to_owned()),
            (right.replace(": 7", ": 7 "), right.to_owned()),
            (right.replace(": 7", ": 7x"), right.to_owned()),
            (right.replace(": 7", ":7"), right.replace(": 7", ":7")),
            (
                "NATS/1.0\r\nA: 1\r\n\r\n".to_owned(),
                "NATS/1.0\r\nNats-Expected-Last-Sequence: 7\r\nA: 1\r\n\r\n".to_owned(),
            ),
            (
                "NATS/1.0\r\nNats-Expected-Last-Sequences: 7\r\n\r\n".to_owned(),
                "NATS/1.0\r\nNats-Expected-Last-Sequence: 7\r\nNats-Expected-Last-Sequences: 7\r\n\r\n"
                    .to_owned(),
            ),
            (
                "NATS/1.0\r\nnats-expected-last-sequence: 7\r\n\r\n".to_owned(),
                "NATS/1.0\r\nNats-Expected-Last-Sequence: 7\r\nnats-expected-last-sequence: 7\r\n\r\n"
                    .to_owned(),
            ),
        ] {
            let (head, size) = (sent.len(), sent.len() + 4);
            assert_eq!(
                pass(&mut events(8), &stored("leaf.v1.evt.edge.a", 8, &found, "body")).expect("it is one"),
                format!("HPUB {UP}.a {head} {size}\r\n{sent}body\r\n"),
                "{found:?}"
            );
        }
    }

    #[test]
    fn what_is_out_of_order_or_no_event_is_not_sent() {
        let header = "NATS/1.0\r\nNats-Expected-Last-Sequence: 7\r\n\r\n";
        for sequence in [7, 9] {
            let error = pass(
                &mut events(8),
                &stored("leaf.v1.evt.edge.a", sequence, header, ""),
            );
            assert!(
                matches!(error, Err(FillError::Gap { expected: 8, first }) if first == sequence),
                "{error:?}"
            );
        }
        for (subject, header) in [
            ("leaf.v1.evt.edgy.a", header),
            ("other", header),
            ("leaf.v1.evt.edge.a", ""),
            ("leaf.v1.evt.edge.a", "NATS/1.0\r\n"),
            ("leaf.v1.evt.edge.a", "nothing"),
        ] {
            let error = pass(&mut events(8), &stored(subject, 8, header, "x"));
            assert!(
                matches!(error, Err(FillError::NotAnEvent { sequence: 8 })),
                "{error:?}"
            );
        }
    }

    #[test]
    fn the_numbers_of_an_event_are_found_in_either_form_of_its_reply_subject() {
        let events = events(1);
        for (reply, found) in [
            ("$JS.ACK.EVENTS_edge.c.1.12.3.17.4", Some((12, 4))),
            ("$JS.ACK._.hash.EVENTS_edge.c.1.12.3.17.4", Some((12, 4))),
            ("$JS.ACK.dom.hash.EVENTS_edge.c.1.12.3.17.4.random", Some((12, 4))),
            ("$JS.ACK.EVENTS_edge.d.1.12.3.17.4", None),
            ("$JS.ACK.EVENTS_edge.c.1.x.3.17.4", None),
            ("$JS.ACK.EVENTS_edge.c.1.12.3.17", None),
            ("_INBOX.c.1.12.3.17.4", None),
            ("", None),
        ] {
            assert_eq!(events.numbers(reply.as_bytes()), found, "{reply}");
        }
    }

    #[test]
    fn what_is_no_message_of_the_server_is_none() {
        for frame in [
            "",
            "HMSG\r\n\r\n",
            "MSG s\r\n\r\n",
            "HMSG s 1 5\r\nab\r\n",
            "HMSG s 1 r q 1 2 3\r\n\r\n",
            "HMSG s 1 12 2\r\nab\r\n",
            "HMSG s 1 x 2\r\nab\r\n",
            "MSG s 1 2\r\nabcd",
        ] {
            assert!(Delivered::parse(frame.as_bytes()).is_none(), "{frame:?}");
        }
    }
}

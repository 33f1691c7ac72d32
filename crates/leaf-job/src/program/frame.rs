//! How the messages between leafd and the runner of a program are framed on their socket.
//!
//! A frame is two lengths (32 bits each, big-endian), then the message as JSON, then raw bytes: output or input.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest message and the most raw bytes of a frame.
const MAX_FRAME_BYTES: usize = 128 * 1024;

/// Appends a frame.
///
/// # Panics
/// Never: messages have string keys only.
pub fn write_frame(to: &mut Vec<u8>, message: &impl Serialize, bytes: &[u8]) {
    let json = serde_json::to_vec(message).expect("a message has string keys only");
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
    to.extend_from_slice(&length(&json));
    to.extend_from_slice(&length(bytes));
    to.extend_from_slice(&json);
    to.extend_from_slice(bytes);
}

/// Takes the first whole frame; `None` if it has not all arrived.
///
/// # Errors
/// The bytes are no frame.
pub fn take_frame<T: DeserializeOwned>(from: &mut Vec<u8>) -> io::Result<Option<(T, Vec<u8>)>> {
    let Some((lengths, rest)) = from.split_first_chunk::<8>() else {
        return Ok(None);
    };
    let number = |bytes: &[u8]| {
        let bytes = bytes.try_into().expect("four bytes");
        usize::try_from(u32::from_be_bytes(bytes)).unwrap_or(usize::MAX)
    };
    let (json, raw) = (number(&lengths[..4]), number(&lengths[4..]));
    if json > MAX_FRAME_BYTES || raw > MAX_FRAME_BYTES {
        return Err(io::Error::other("a frame is too large"));
    }
    if rest.len() < json + raw {
        return Ok(None);
    }
    let message = serde_json::from_slice(&rest[..json]).map_err(io::Error::other)?;
    let bytes = rest[json..json + raw].to_vec();
    from.drain(..8 + json + raw);
    Ok(Some((message, bytes)))
}

#[cfg(test)]
mod tests {
    use leaf_core::session::wire::ToRunner;

    use super::*;

    #[test]
    fn frames_are_taken_whole_and_what_is_none_is_refused() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &ToRunner::Input { offset: 7 }, b"\0\xff");
        write_frame(&mut bytes, &ToRunner::Finish, b"");
        let mut arrived = Vec::new();
        let mut taken = Vec::new();
        for byte in bytes {
            arrived.push(byte);
            taken.extend(take_frame::<ToRunner>(&mut arrived).expect("frames"));
        }
        assert_eq!(
            taken,
            [
                (ToRunner::Input { offset: 7 }, b"\0\xff".to_vec()),
                (ToRunner::Finish, Vec::new())
            ]
        );
        assert!(arrived.is_empty());
        take_frame::<ToRunner>(&mut vec![0xff; 8]).expect_err("too large");
        take_frame::<ToRunner>(&mut vec![0, 0, 0, 1, 0, 0, 0, 0, b'{']).expect_err("no JSON");
    }
}

//! An event as bytes, and its headers.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::header;

/// An event as it is stored and sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// The leaf's own sequence number.
    pub sequence: u64,
    /// The NATS subject.
    pub subject: String,
    /// The `ce-*` headers, sorted by name, their values [encoded](header::encode).
    pub headers: Headers,
    /// The JSON body.
    pub body: Vec<u8>,
}

impl EventRecord {
    /// Returns the decoded value of a header: see [`header`] for the names.
    #[must_use]
    pub fn attribute(&self, name: &str) -> Option<Cow<'_, str>> {
        Some(header::decode(self.headers.get(name)?))
    }

    /// Returns the epoch of the event's history, from its id.
    #[must_use]
    pub fn epoch(&self) -> Option<u64> {
        self.attribute(header::ID)?.split('/').nth(1)?.parse().ok()
    }

    /// Returns the event's type, from its header.
    #[must_use]
    pub fn kind(&self) -> Option<&str> {
        self.headers.get(header::TYPE)
    }

    /// Returns its approximate size on the wire, in bytes.
    #[must_use]
    pub fn wire_bytes(&self) -> usize {
        // `: ` separates name and value, and a line end follows the value.
        self.subject.len() + self.headers.text.len() + 4 * self.headers.len() + self.body.len()
    }
}

/// Names and values in order, in one allocation: each event has about ten of them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers {
    text: String,
    /// The ends of all names and values.
    ends: Vec<u32>,
}

impl Headers {
    /// Returns empty headers, with room for `count` of about `bytes` in total.
    #[must_use]
    pub fn with_capacity(count: usize, bytes: usize) -> Self {
        Self {
            text: String::with_capacity(bytes),
            ends: Vec::with_capacity(2 * count),
        }
    }

    /// Appends a header.
    pub fn push(&mut self, name: &str, value: impl fmt::Display) {
        self.text.push_str(name);
        self.end();
        write!(self.text, "{value}").expect("writing to a string can't fail");
        self.end();
    }

    /// Returns the value of the first header with this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value)
    }

    /// Iterates over names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut from = 0;
        self.ends.chunks_exact(2).map(move |ends| {
            let (name, value) = (ends[0] as usize, ends[1] as usize);
            let pair = (&self.text[from..name], &self.text[name..value]);
            from = value;
            pair
        })
    }

    /// Returns the number of headers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len() / 2
    }

    /// Returns whether there are no headers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    fn end(&mut self) {
        let end = u32::try_from(self.text.len()).expect("headers are shorter than 4 GiB");
        self.ends.push(end);
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<N: AsRef<str>, V: AsRef<str>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut headers = Self::default();
        for (name, value) in pairs {
            headers.push(name.as_ref(), value.as_ref());
        }
        headers
    }
}

impl Serialize for Headers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let pairs = Vec::<(String, String)>::deserialize(deserializer)?;
        Ok(pairs.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn headers_come_back_as_they_were_put_in(pairs in proptest::collection::vec((".{0,9}", ".{0,9}"), 0..6)) {
            let headers: Headers = pairs.iter().map(|(name, value)| (name, value)).collect();
            prop_assert_eq!(headers.len(), pairs.len());
            let found: Vec<(String, String)> = headers.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
            prop_assert_eq!(&found, &pairs);
            let json = serde_json::to_string(&headers).expect("JSON");
            prop_assert_eq!(&json, &serde_json::to_string(&pairs).expect("JSON"));
            prop_assert_eq!(&serde_json::from_str::<Headers>(&json).expect("headers"), &headers);
            for (name, _) in &pairs {
                let first = pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
                prop_assert_eq!(headers.get(name), first);
            }
        }
    }
}

//! The properties of an object on D-Bus at one moment.

use std::collections::BTreeMap;

use jiff::Timestamp;
use zbus::{Connection, OwnedVariant, Variant};

use super::PROPERTIES;

/// The properties of an object by name. One that is missing, or has another type, reads as empty or 0.
#[derive(Debug, Default)]
pub struct Properties(BTreeMap<String, OwnedVariant>);

impl Properties {
    /// Returns properties with these names and values.
    #[must_use]
    pub fn new(values: BTreeMap<String, OwnedVariant>) -> Self {
        Self(values)
    }

    fn value(&self, name: &str) -> Option<&Variant<'_>> {
        self.0.get(name).map(|value| &**value)
    }

    /// Returns a text.
    #[must_use]
    pub fn text(&self, name: &str) -> &str {
        self.value(name)
            .and_then(|value| <&str>::try_from(value).ok())
            .unwrap_or_default()
    }

    /// Returns a number without a sign.
    #[must_use]
    pub fn unsigned(&self, name: &str) -> u64 {
        match self.value(name) {
            Some(Variant::U64(number)) => *number,
            Some(Variant::U32(number)) => u64::from(*number),
            _ => 0,
        }
    }

    /// Returns a number with a sign.
    #[must_use]
    pub fn signed(&self, name: &str) -> i32 {
        match self.value(name) {
            Some(Variant::I32(number)) => *number,
            _ => 0,
        }
    }

    /// Returns whether a property is set to true.
    #[must_use]
    pub fn is_set(&self, name: &str) -> bool {
        matches!(self.value(name), Some(Variant::Bool(true)))
    }

    /// Returns a point in time, which is in microseconds since 1970 on D-Bus; `None` if it is 0.
    #[must_use]
    pub fn time(&self, name: &str) -> Option<Timestamp> {
        Some(self.unsigned(name))
            .filter(|microseconds| *microseconds > 0)
            .and_then(|microseconds| i64::try_from(microseconds).ok())
            .and_then(|microseconds| Timestamp::from_microsecond(microseconds).ok())
    }

    /// Returns a list of pairs of texts.
    #[must_use]
    pub fn pairs(&self, name: &str) -> Vec<(String, String)> {
        let Some(Variant::Array(pairs)) = self.value(name) else {
            return Vec::new();
        };
        let pair = |pair: &Variant<'_>| match pair {
            Variant::Structure(pair) => match pair.fields() {
                [Variant::Str(one), Variant::Str(other)] => Some((one.to_string(), other.to_string())),
                _ => None,
            },
            _ => None,
        };
        pairs.iter().filter_map(pair).collect()
    }

    /// Returns the number at the beginning of the structure with this name.
    pub(super) fn first_number(&self, name: &str) -> u32 {
        match self.value(name) {
            Some(Variant::Structure(structure)) => match structure.fields().first() {
                Some(Variant::U32(number)) => *number,
                _ => 0,
            },
            _ => 0,
        }
    }

    /// Returns bytes as hexadecimal digits.
    pub(super) fn hex(&self, name: &str) -> String {
        match self.value(name) {
            Some(Variant::Array(bytes)) => bytes
                .iter()
                .filter_map(|byte| match byte {
                    Variant::U8(byte) => Some(format!("{byte:02x}")),
                    _ => None,
                })
                .collect(),
            _ => String::new(),
        }
    }
}

/// Queries the properties of an object; those of all its interfaces if `interface` is empty.
pub(super) async fn get_all(
    connection: &Connection,
    destination: &str,
    path: &str,
    interface: &str,
) -> zbus::Result<Properties> {
    let reply = connection
        .call_method(Some(destination), path, Some(PROPERTIES), "GetAll", &interface)
        .await?;
    reply.body().deserialize().map(Properties)
}

//! The URL of a hub: its scheme, host and port.

use std::net::IpAddr;

use super::error::KeysError;

/// The URL of a hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HubUrl {
    /// Whether connections are encrypted.
    pub(super) tls: bool,
    /// The host's name or address; a v6 address without brackets.
    pub(super) host: String,
    /// The port.
    pub(super) port: u16,
}

impl HubUrl {
    /// Parses `tls://host:port`; without TLS (`nats://`) only an address of loopback.
    pub(super) fn parse(url: &str, default_port: u16) -> Result<Self, KeysError> {
        let wrong = |why| KeysError::HubUrl {
            url: url.to_owned(),
            why,
        };
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| wrong("the form is tls://hub.example:7422"))?;
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && !port.ends_with(']') => {
                (host, port.parse().map_err(|_| wrong("its port is no number"))?)
            }
            _ => (rest, default_port),
        };
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        let address = host.parse::<IpAddr>().ok();
        let is_name = |host: &str| {
            host.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.')
        };
        if host.is_empty() || (address.is_none() && !is_name(host)) {
            return Err(wrong("its host is neither a name nor an address"));
        }
        let tls = match scheme {
            "tls" => true,
            "nats" if address.is_some_and(|address| address.is_loopback()) => false,
            "nats" => return Err(wrong("it has no TLS: write tls://")),
            _ => return Err(wrong("it begins with tls://")),
        };
        Ok(Self {
            tls,
            host: host.to_owned(),
            port,
        })
    }

    /// Whether the host is an address of loopback.
    pub(super) fn is_loopback(&self) -> bool {
        self.host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
    }

    /// Returns the address that the hub's server listens on for it: its own on loopback, else all; those of IPv6 as well for one of them.
    pub(super) fn listens_on(&self) -> String {
        match (self.is_loopback(), self.host.contains(':')) {
            (true, true) => format!("[{}]:{}", self.host, self.port),
            (true, false) => format!("{}:{}", self.host, self.port),
            (false, true) => format!("[::]:{}", self.port),
            (false, false) => format!("0.0.0.0:{}", self.port),
        }
    }
}

impl std::fmt::Display for HubUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls { "tls" } else { "nats" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_tls_unless_it_is_of_loopback_and_a_port_of_its_own_or_the_usual_one() {
        for (url, shown, listens) in [
            ("tls://hub.example", "tls://hub.example:7422", "0.0.0.0:7422"),
            ("tls://hub.example:443", "tls://hub.example:443", "0.0.0.0:443"),
            ("tls://192.0.2.1:1", "tls://192.0.2.1:1", "0.0.0.0:1"),
            ("nats://127.0.0.1:9", "nats://127.0.0.1:9", "127.0.0.1:9"),
            ("tls://[::1]", "tls://[::1]:7422", "[::1]:7422"),
            ("tls://[2001:db8::1]", "tls://[2001:db8::1]:7422", "[::]:7422"),
        ] {
            let parsed = HubUrl::parse(url, 7422).expect(url);
            assert_eq!(
                (parsed.to_string(), parsed.listens_on()),
                (shown.to_owned(), listens.to_owned())
            );
        }
        for url in [
            "hub.example",
            "nats://hub.example",
            "tls://",
            "tls://a:b",
            "wss://hub.example",
            "tls://user@hub.example",
            "tls://a\"b",
        ] {
            assert!(HubUrl::parse(url, 7422).is_err(), "{url}");
        }
    }
}

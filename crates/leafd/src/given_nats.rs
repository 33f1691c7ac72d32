//! The leaf's users on a given NATS server, as the settings name them.

use std::path::Path;

use leaf_bus::connect::{ConnectSettings, Credentials, Tls};
use leaf_bus::identity::daemon_caller;
use leaf_core::id::LeafName;
use leaf_core::subject;

use crate::settings::Settings;

/// The settings of the leaf's connections to a given server.
#[derive(Debug, Clone)]
pub struct GivenNats {
    /// The user that answers callers.
    pub callers: ConnectSettings,
    /// The user that owns the streams, if it is another one.
    pub streams: Option<ConnectSettings>,
}

impl GivenNats {
    /// Returns the connections that these settings name; `None` where the leaf has an embedded server.
    #[must_use]
    pub fn of(settings: &Settings, leaf: &LeafName) -> Option<Self> {
        let nats = &settings.nats;
        let url = nats.url.as_deref()?;
        let as_user = |file: Option<&Path>| ConnectSettings {
            credentials: file.map_or(Credentials::None, Credentials::in_file),
            inbox_prefix: subject::inbox_prefix(&daemon_caller()),
            tls: Tls {
                ca: nats.ca.clone(),
                cert: nats.cert.clone(),
                key: nats.key.clone(),
                required: false,
            },
            name: format!("leafd {leaf}"),
            jetstream_domain: nats.jetstream_domain.clone(),
            ..ConnectSettings::new(url)
        };
        Some(Self {
            callers: as_user(nats.credentials.as_deref()),
            streams: nats.stream_credentials.as_deref().map(|file| as_user(Some(file))),
        })
    }
}

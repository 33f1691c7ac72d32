//! Converts our settings to those of async-nats, and its connection errors to ours.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{ConnectErrorKind, ConnectOptions, rustls};

use crate::credentials;
use crate::level::{Mode, Shared, soon};
use crate::settings::{Cause, ConnectError, ConnectSettings, Credentials};

/// How long one attempt to connect may take, where others follow.
pub(crate) const ATTEMPT: Duration = Duration::from_secs(5);
/// How many messages one subscription buffers before it drops some.
const SUBSCRIPTION_CAPACITY: usize = 8192;

/// Returns how long the attempt with each server may take where all together have a time limit and none is tried twice.
pub(crate) fn attempt_of(limit: Duration, servers: usize) -> Duration {
    let servers = u32::try_from(servers).unwrap_or(u32::MAX).max(1);
    (limit / servers).max(ATTEMPT.min(limit))
}

pub(crate) fn options(
    settings: &ConnectSettings,
    mode: Mode,
    attempt: Duration,
    shared: &Arc<Shared>,
    servers: &str,
) -> Result<ConnectOptions, ConnectError> {
    let unreadable = |what: String, source: Cause| ConnectError::CredentialsUnreadable { what, source };
    let mut options = match &settings.credentials {
        Credentials::None => ConnectOptions::new(),
        Credentials::Password { user, password } => {
            ConnectOptions::with_user_and_password(user.clone(), password.expose().to_owned())
        }
        Credentials::Token(token) => ConnectOptions::with_token(token.expose().to_owned()),
        Credentials::NkeyFile(path) => {
            let seed = std::fs::read_to_string(path)
                .map_err(|e| unreadable(format!("in {}", path.display()), e.into()))?;
            let pair = nkeys::KeyPair::from_seed(seed.trim());
            pair.map_err(|e| unreadable(format!("in {}", path.display()), e.into()))?;
            ConnectOptions::with_nkey(seed.trim().to_owned())
        }
        Credentials::File(_) | Credentials::Text(_) => {
            let credentials = settings.credentials.clone();
            credentials::sign(&credentials, b"").map_err(|(what, source)| unreadable(what, source))?;
            ConnectOptions::with_auth_callback(move |nonce| {
                let auth = credentials::sign(&credentials, &nonce).map(|signed| {
                    let mut auth = async_nats::Auth::new();
                    auth.jwt = Some(signed.jwt);
                    auth.signature = Some(signed.signature);
                    auth
                });
                async move { auth.map_err(|(what, e)| async_nats::AuthError::new(format!("{what}: {e}"))) }
            })
        }
    };
    let tls = &settings.tls;
    if let Some(ca) = &tls.ca {
        options = options.add_root_certificates(ca.clone());
    }
    if let (Some(cert), Some(key)) = (&tls.cert, &tls.key) {
        options = options.add_client_certificate(cert.clone(), key.clone());
    }
    if mode != Mode::Once {
        options = options.retry_on_initial_connect();
    }
    let (on_event, on_pool) = (shared.clone(), shared.clone());
    let servers: Arc<str> = servers.into();
    Ok(options
        .require_tls(tls.required)
        .name(&settings.name)
        .custom_inbox_prefix(&settings.inbox_prefix)
        .connection_timeout(attempt)
        .ping_interval(Duration::from_secs(10))
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .max_reconnects(None)
        // A patient connection pauses below, where a hint ends the pause.
        .reconnect_delay_callback(move |attempt| match mode {
            Mode::Patiently => Duration::ZERO,
            Mode::Forever | Mode::Once => soon(attempt),
        })
        .reconnect_to_server_callback(move |pool, _| {
            let problems: Vec<String> = pool
                .iter()
                .filter_map(|s| {
                    Some(format!(
                        "{}:{}: {}",
                        s.addr.host(),
                        s.addr.port(),
                        s.last_error.as_ref()?
                    ))
                })
                .collect();
            if !problems.is_empty() {
                on_pool.problem(problems.join("; "), false);
            }
            let patient = (mode == Mode::Patiently).then(|| on_pool.clone());
            async move {
                if let Some(shared) = patient {
                    shared.pause().await;
                }
                None
            }
        })
        .event_callback(move |event| {
            on_event.event(&event, &servers);
            async {}
        }))
}

/// Checks that the TLS files can be read: such an error is permanent, also for the daemon.
pub(crate) fn check_tls_files(settings: &ConnectSettings, servers: &str) -> Result<(), ConnectError> {
    let tls = &settings.tls;
    let error = |source: Cause| ConnectError::Tls {
        servers: servers.to_owned(),
        source,
    };
    if tls.cert.is_some() != tls.key.is_some() {
        return Err(error("cert and key must be set together".into()));
    }
    for path in [&tls.ca, &tls.cert, &tls.key].into_iter().flatten() {
        std::fs::File::open(path).map_err(|e| error(format!("{}: {e}", path.display()).into()))?;
    }
    Ok(())
}

pub(crate) fn classify(
    error: &async_nats::ConnectError,
    attempt: Duration,
    servers: &str,
    settings: &ConnectSettings,
) -> ConnectError {
    let servers = servers.to_owned();
    let io = std::error::Error::source(error).and_then(|s| s.downcast_ref::<std::io::Error>());
    let server_error =
        std::error::Error::source(error).and_then(|s| s.downcast_ref::<async_nats::ServerError>());
    let tls = io
        .and_then(|e| e.get_ref())
        .and_then(|e| e.downcast_ref::<rustls::Error>());
    let text = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation => ConnectError::CredentialsRefused { servers },
        ConnectErrorKind::Authentication => ConnectError::CredentialsUnreadable {
            what: credentials::describe(&settings.credentials),
            source: text.into(),
        },
        ConnectErrorKind::TimedOut | ConnectErrorKind::MaxReconnects => ConnectError::TimedOut {
            servers,
            seconds: attempt.as_secs_f64(),
        },
        ConnectErrorKind::ServerParse => ConnectError::BadAddress { server: servers },
        ConnectErrorKind::Tls => ConnectError::Tls {
            servers,
            source: text.into(),
        },
        ConnectErrorKind::Dns => ConnectError::NoServer {
            servers,
            source: text.into(),
        },
        ConnectErrorKind::Io => match (tls, server_error) {
            (Some(rustls::Error::InvalidCertificate(problem)), _) => ConnectError::WrongCa {
                servers,
                source: format!("{problem}").into(),
            },
            (Some(other), _) => ConnectError::Tls {
                servers,
                source: other.to_string().into(),
            },
            (None, Some(error)) => {
                let reason = error.to_string();
                if reason.to_lowercase().contains("authenti") {
                    ConnectError::CredentialsRefused { servers }
                } else {
                    ConnectError::Refused { servers, reason }
                }
            }
            (None, None) if text.contains("tls") => ConnectError::Tls {
                servers,
                source: text.into(),
            },
            (None, None) => ConnectError::NoServer {
                servers,
                source: text.into(),
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_attempt_may_take_the_whole_limit_and_several_share_it() {
        for (limit_ms, servers, attempt_ms) in [
            (60_000, 1, 60_000),
            (60_000, 3, 20_000),
            (10_000, 4, 5_000),
            (300, 1, 300),
            (300, 4, 300),
            (300, 0, 300),
        ] {
            assert_eq!(
                attempt_of(Duration::from_millis(limit_ms), servers),
                Duration::from_millis(attempt_ms),
                "{limit_ms} ms, {servers} servers"
            );
        }
    }
}

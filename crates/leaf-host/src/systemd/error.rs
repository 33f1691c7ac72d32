//! What a failed call over D-Bus means.
//!
//! zbus turns an error reply whose name stands in the D-Bus specification (`org.freedesktop.DBus.Error.NoReply`) into
//! [`zbus::Error::FDO`], and each other one (`org.freedesktop.systemd1.NoSuchUnit`) into [`zbus::Error::MethodError`]. Both
//! have to be looked for where they arrive.

use std::time::Duration;

use zbus::fdo;

/// The names by which systemd and machined say that something does not exist.
const NOT_FOUND: [&str; 2] = [
    "org.freedesktop.systemd1.NoSuchUnit",
    "org.freedesktop.machine1.NoSuchMachine",
];
/// The names by which systemd says that a unit has no process to be signalled (the second is its word for `ESRCH`).
const NO_SUCH_PROCESS: [&str; 2] = ["org.freedesktop.systemd1.NoSuchProcess", "System.Error.ESRCH"];

/// A call to systemd or machined failed.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// D-Bus or systemd can't be reached.
    #[error("can't {what}: D-Bus or systemd can't be reached, for {} s now", after.as_secs())]
    Away {
        /// What was to be done: `start container@web.service`.
        what: String,
        /// How long it was tried.
        after: Duration,
        /// The last error.
        source: zbus::Error,
    },
    /// systemd or machined refused, or the answer was not as documented.
    #[error("can't {what}: {said}")]
    Refused {
        /// What was to be done.
        what: String,
        /// What systemd said, in its own words.
        said: String,
        /// The error of the call.
        source: zbus::Error,
    },
    /// systemd did not answer in time.
    #[error("can't {what}: systemd did not answer within {} s", after.as_secs())]
    NoAnswer {
        /// What was to be done.
        what: String,
        /// How long the answer was waited for.
        after: Duration,
    },
}

/// Returns whether a failed call may work over another connection or a little later: the bus, or whoever was called, is
/// being restarted.
#[must_use]
pub fn is_away(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::InputOutput(_) | zbus::Error::Connection(..) | zbus::Error::Handshake(_) => true,
        zbus::Error::FDO(error) => matches!(
            **error,
            fdo::Error::ServiceUnknown(_)
                | fdo::Error::NameHasNoOwner(_)
                | fdo::Error::NoReply(_)
                | fdo::Error::Disconnected(_)
                | fdo::Error::NoServer(_)
                | fdo::Error::IOError(_)
                // What the bus says while systemd has not come back to it.
                | fdo::Error::SpawnExecFailed(_)
                | fdo::Error::SpawnForkFailed(_)
                | fdo::Error::SpawnChildExited(_)
                | fdo::Error::SpawnChildSignaled(_)
                | fdo::Error::SpawnFailed(_)
                | fdo::Error::SpawnFailedToSetup(_)
                | fdo::Error::SpawnServiceNotFound(_)
        ),
        _ => false,
    }
}

/// Returns whether a call failed since the unit, the machine or the object that it is about does not exist.
#[must_use]
pub fn is_not_found(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::MethodError(name, ..) => NOT_FOUND.contains(&name.as_str()),
        zbus::Error::FDO(error) => matches!(**error, fdo::Error::UnknownObject(_)),
        _ => false,
    }
}

/// Whether a signal was sent to no process, since the unit has none, or its process has just ended.
pub(super) fn has_no_process(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::MethodError(name, ..) => NO_SUCH_PROCESS.contains(&name.as_str()),
        zbus::Error::FDO(error) => matches!(**error, fdo::Error::UnixProcessIdUnknown(_)),
        _ => false,
    }
}

/// What systemd said, in its own words, and the name of the error where it has one.
pub(super) fn describe(error: &zbus::Error) -> String {
    match error {
        zbus::Error::MethodError(name, Some(detail), _) => format!("{detail} ({name})"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use zbus::Message;

    use super::*;

    /// The error that zbus makes of an error reply of this name, as it comes over the wire.
    fn reply(name: &str) -> zbus::Error {
        let call = Message::method_call("/", "Ask")
            .destination(":1.2")
            .build(&())
            .expect("a call");
        Message::error(&call.header(), name)
            .build(&"no detail")
            .expect("a reply")
            .into()
    }

    #[test]
    fn a_bus_or_service_that_is_being_restarted_is_away_and_a_refusal_is_not() {
        for name in [
            "ServiceUnknown",
            "NameHasNoOwner",
            "NoReply",
            "Disconnected",
            "NoServer",
            "IOError",
            "Spawn.ChildExited",
            "Spawn.Failed",
        ] {
            let error = reply(&format!("org.freedesktop.DBus.Error.{name}"));
            assert!(matches!(error, zbus::Error::FDO(_)), "{error:?}");
            assert!(is_away(&error), "{name}");
            assert!(!is_not_found(&error), "{name}");
        }
        for name in [
            "AccessDenied",
            "InvalidArgs",
            "UnknownMethod",
            "UnknownObject",
            "Spawn.PermissionsInvalid",
        ] {
            assert!(
                !is_away(&reply(&format!("org.freedesktop.DBus.Error.{name}"))),
                "{name}"
            );
        }
        assert!(!is_away(&reply("org.freedesktop.systemd1.NoSuchUnit")));
        let broken = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert!(is_away(&zbus::Error::InputOutput(broken.into())));
    }

    #[test]
    fn what_does_not_exist_is_told_by_systemds_names_and_by_the_buss() {
        for name in [
            "org.freedesktop.systemd1.NoSuchUnit",
            "org.freedesktop.machine1.NoSuchMachine",
            "org.freedesktop.DBus.Error.UnknownObject",
        ] {
            assert!(is_not_found(&reply(name)), "{name}");
        }
        for name in [
            "org.freedesktop.systemd1.UnitMasked",
            "org.freedesktop.systemd1.NoSuchProcess",
            "org.freedesktop.DBus.Error.ServiceUnknown",
        ] {
            assert!(!is_not_found(&reply(name)), "{name}");
        }
        assert!(has_no_process(&reply("org.freedesktop.systemd1.NoSuchProcess")));
        assert!(has_no_process(&reply(
            "org.freedesktop.DBus.Error.UnixProcessIdUnknown"
        )));
        assert!(!has_no_process(&reply("org.freedesktop.systemd1.NoSuchUnit")));
    }

    #[test]
    fn an_error_is_described_in_systemds_words() {
        let said = describe(&reply("org.freedesktop.systemd1.UnitMasked"));
        assert_eq!(said, "no detail (org.freedesktop.systemd1.UnitMasked)");
    }
}

//! Interprets failed calls over D-Bus.
//!
//! zbus turns an error reply with a name of the D-Bus specification (`org.freedesktop.DBus.Error.NoReply`) into
//! [`zbus::Error::FDO`], and any other one (`org.freedesktop.systemd1.NoSuchUnit`) into [`zbus::Error::MethodError`].
//! Both must be matched.

use std::time::Duration;

use zbus::fdo;

/// The error names with which systemd and machined report that something does not exist.
const NOT_FOUND: [&str; 2] = [
    "org.freedesktop.systemd1.NoSuchUnit",
    "org.freedesktop.machine1.NoSuchMachine",
];
/// The error names with which systemd reports that a unit has no process to signal (the second is for `ESRCH`).
const NO_SUCH_PROCESS: [&str; 2] = ["org.freedesktop.systemd1.NoSuchProcess", "System.Error.ESRCH"];

/// An error of a call to systemd or machined.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// D-Bus or systemd is unreachable.
    #[error("can't {what}: D-Bus or systemd has been unreachable for {} s", after.as_secs())]
    Away {
        /// The attempted action: `start container@web.service`.
        what: String,
        /// How long the call was repeated.
        after: Duration,
        /// The last error.
        source: zbus::Error,
    },
    /// systemd or machined refused, or its answer was not as documented.
    #[error("can't {what}: {said}")]
    Refused {
        /// The attempted action.
        what: String,
        /// systemd's message.
        said: String,
        /// The error of the call.
        source: zbus::Error,
    },
    /// systemd did not answer in time.
    #[error("can't {what}: systemd did not answer within {} s", after.as_secs())]
    NoAnswer {
        /// The attempted action.
        what: String,
        /// How long the caller waited.
        after: Duration,
    },
}

/// Returns whether a failed call may succeed over another connection or a little later, because the bus or the called
/// service is being restarted.
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
                // The bus's error while systemd has not reconnected.
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

/// Returns whether a call failed because its unit, machine or object does not exist.
#[must_use]
pub fn is_not_found(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::MethodError(name, ..) => NOT_FOUND.contains(&name.as_str()),
        zbus::Error::FDO(error) => matches!(**error, fdo::Error::UnknownObject(_)),
        _ => false,
    }
}

/// Returns whether a signal reached no process, because the unit has none or its process has just ended.
pub(super) fn has_no_process(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::MethodError(name, ..) => NO_SUCH_PROCESS.contains(&name.as_str()),
        zbus::Error::FDO(error) => matches!(**error, fdo::Error::UnixProcessIdUnknown(_)),
        _ => false,
    }
}

/// Returns systemd's message, with the error's name if it has one.
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
    fn not_found_is_recognized_by_systemds_and_the_buss_error_names() {
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
    fn an_error_is_described_by_systemds_message() {
        let said = describe(&reply("org.freedesktop.systemd1.UnitMasked"));
        assert_eq!(said, "no detail (org.freedesktop.systemd1.UnitMasked)");
    }
}

//! [`HostOp`]s as calls of the varlink interface `cim.leaf.Helper`, and the answers.
//!
//! The method is the operation's name, and the parameters are its fields, by the serde tags of [`HostOp`]. The
//! interface's description is generated from the declarations in leaf-core; a test compares it with
//! `cim.leaf.Helper.varlink`, which is for readers.

use std::fmt::{self, Write as _};

use leaf_core::host_op::{HostOp, HostOpError, HostOpErrorKind, HostReport};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The interface.
pub(crate) const INTERFACE: &str = "cim.leaf.Helper";
/// The interface that every varlink service has.
pub(crate) const SERVICE: &str = "org.varlink.service";

/// A call. `Debug` does not show its parameters, which may contain secrets.
#[derive(Serialize, Deserialize)]
pub(crate) struct Message {
    /// The interface and the method, joined by a dot.
    pub(crate) method: String,
    /// The parameters by name.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(crate) parameters: Map<String, Value>,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}

/// An error answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Fault {
    /// The interface and the error, joined by a dot.
    pub(crate) error: String,
    /// The parameters by name.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(crate) parameters: Map<String, Value>,
}

impl Fault {
    /// Returns an error of the interface that every varlink service has.
    pub(crate) fn service(error: &str, parameter: Option<(&str, &str)>) -> Self {
        let parameters = parameter.map(|(name, value)| (name.to_owned(), Value::from(value)));
        Self {
            error: format!("{SERVICE}.{error}"),
            parameters: parameters.into_iter().collect(),
        }
    }
}

impl From<HostOpError> for Fault {
    fn from(error: HostOpError) -> Self {
        let name = match error.kind {
            HostOpErrorKind::Refused => "Refused",
            HostOpErrorKind::Unsupported => "Unsupported",
            HostOpErrorKind::NotReady => "NotReady",
            HostOpErrorKind::Failed | HostOpErrorKind::Interrupted => "Failed",
        };
        Self {
            error: format!("{INTERFACE}.{name}"),
            parameters: [("op", error.op), ("reason", error.reason)]
                .map(|(name, value)| (name.to_owned(), Value::from(value)))
                .into_iter()
                .collect(),
        }
    }
}

/// Returns the operation's error from an error answer.
pub(crate) fn error_of(op: &HostOp, fault: &Fault) -> HostOpError {
    let text = |name: &str| fault.parameters.get(name).and_then(Value::as_str);
    let kind = match fault.error.strip_prefix(INTERFACE) {
        Some(".Refused") => HostOpErrorKind::Refused,
        Some(".Unsupported") => HostOpErrorKind::Unsupported,
        Some(".NotReady") => HostOpErrorKind::NotReady,
        _ => HostOpErrorKind::Failed,
    };
    HostOpError {
        op: text("op").map_or_else(|| op.summary(), str::to_owned),
        kind,
        reason: text("reason").map_or_else(|| fault.error.clone(), str::to_owned),
    }
}

/// Returns the call for an operation.
pub(crate) fn message(op: &HostOp) -> Message {
    let value = serde_json::to_value(op).expect("an operation has text keys and no failing parts");
    let mut message = Message::deserialize(value).expect("an operation is a method with parameters");
    message.method = format!("{INTERFACE}.{}", message.method);
    message
}

/// Parses a call into an operation.
///
/// # Errors
/// The error answer for an unknown method or invalid parameters.
pub(crate) fn operation(message: Message) -> Result<HostOp, Fault> {
    let Message { method, parameters } = message;
    let name = method
        .strip_prefix(INTERFACE)
        .and_then(|rest| rest.strip_prefix('.'))
        .filter(|name| HostOp::DECLARATIONS.iter().any(|known| known.method == *name))
        .ok_or_else(|| Fault::service("MethodNotFound", Some(("method", &method))))?;
    HostOp::deserialize(json!({ "method": name, "parameters": parameters })).map_err(|e| {
        Fault::from(HostOpError {
            op: name.to_owned(),
            kind: HostOpErrorKind::Refused,
            reason: format!("invalid parameters: {e}"),
        })
    })
}

/// Returns the parameters of an answer with a report.
pub(crate) fn parameters_of(report: &HostReport) -> Map<String, Value> {
    match serde_json::to_value(report).expect("a report has text keys and no failing parts") {
        Value::Object(parameters) => parameters,
        _ => unreachable!("a report is an object"),
    }
}

/// Returns the report in the parameters of an answer.
///
/// # Errors
/// The parser's error.
pub(crate) fn report_of(parameters: Map<String, Value>) -> Result<HostReport, serde_json::Error> {
    serde_json::from_value(Value::Object(parameters))
}

/// The interface's description before the methods.
const HEAD: &str = "\
# The privileged side of a leaf: a closed list of idempotent operations on the host. Every operation is validated here,
# whoever sends it. Operations on different subjects run concurrently, those on one subject one after another. An operation
# continues when its caller disconnects.
interface cim.leaf.Helper

# The addresses of a container's veth: the host's end and the container's end.
type Network (host_address: string, container_address: string, host_address6: ?string, container_address6: ?string)

# A container's binding to its leaf.
type Binding (leaf: string, container: string, nats_url: string, inbox_prefix: string, subject_prefix: string)

# A user of a secret: its type is container or unit; on_change of a unit is restart, reload or nothing.
type SecretUser (type: string, name: string, on_change: ?string)

# A secret's age file: its size, its SHA-256, and why it can't be used, if it can't.
type StoredSecret (name: string, file_bytes: int, digest: string, users: ?[]SecretUser, problem: ?string)

# A hub: its URL, CA certificates in PEM, the content of the credentials file, and the hash of the section of leafd's settings in
# whose place it is used. Without ca or credentials those of the host or of the section are used.
type Hub (url: string, ca: ?string, credentials: ?string, section: string)

# Another NixOS system: its toplevel, what it leads to (switch, test or boot), the units that may fail, whether a boot that nobody
# guards is accepted, and the format of the leaf's journal.
type System (toplevel: string, mode: string, allow_failed: ?[]string, uncounted: bool, journal_format: int)

# Who confirms a change: a witness by its SSH signature in base64, or a person. One of them is set.
type Confirmation (signature: ?string, caller: ?string)
";

/// The interface's description after the methods.
const ERRORS: &str = "
# The helper refused it: a name, a path or a value is not allowed.
error Refused (op: string, reason: string)

# The host lacks something: a program, a privilege or a kernel feature.
error Unsupported (op: string, reason: string)

# The container ended before it was ready, or was not ready in time.
error NotReady (op: string, reason: string)

# It failed.
error Failed (op: string, reason: string)
";

/// Returns the interface's description in varlink's language.
pub(crate) fn description() -> String {
    let mut text = HEAD.to_owned();
    for declaration in HostOp::DECLARATIONS {
        text.push('\n');
        for line in declaration.doc {
            let _ = writeln!(text, "#{line}");
        }
        let parameters: Vec<_> = declaration
            .parameters
            .iter()
            .map(|(name, varlink)| format!("{name}: {varlink}"))
            .collect();
        let _ = writeln!(
            text,
            "method {}({}) -> ({})",
            declaration.method,
            parameters.join(", "),
            declaration.report
        );
    }
    text.push_str(ERRORS);
    text
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use leaf_core::address_pool::AddressPool;
    use leaf_core::change::{ConfirmedBy, HubChange, SystemChange, SystemMode};
    use leaf_core::host_op::{ContainerBinding, HostSubject, HostWait, Secret};
    use leaf_core::id::{Caller, ChangeId, ContainerName, JobId, LeafName, SecretName, StorePath};
    use leaf_core::spec::ContainerOptions;
    use zlink::idl::{Interface, Type};

    use super::*;

    fn every_operation() -> Vec<HostOp> {
        let name = ContainerName::new("web").expect("a name");
        let leaf = LeafName::new("edge").expect("a name");
        let secret = SecretName::new("key").expect("a name");
        let id: JobId = "01890000-0000-7000-8000-000000000001".parse().expect("an id");
        vec![
            HostOp::PrepareNetwork {
                leaf_address: [10, 233, 0, 1].into(),
                nats_port: 4222,
            },
            HostOp::ReleaseNetwork {
                leaf_address: [10, 233, 0, 1].into(),
            },
            HostOp::CreateContainer {
                name: name.clone(),
                toplevel: StorePath::new("/nix/store/00000000000000000000000000000000-web").expect("a path"),
                network: AddressPool::default().link(1),
                options: Box::new(ContainerOptions::default()),
                adopt: false,
                secrets: BTreeMap::from([(secret.clone(), "0".repeat(64))]),
                binding: ContainerBinding::new(&leaf, &name, "nats://10.233.0.1:4222"),
                credentials: BTreeMap::from([("nats.creds".to_owned(), Secret::new("hidden"))]),
            },
            HostOp::RenewCredentials {
                name: name.clone(),
                credentials: BTreeMap::from([("nats.creds".to_owned(), Secret::new("hidden"))]),
            },
            HostOp::StartContainer {
                name: name.clone(),
                ready_timeout_seconds: 60,
            },
            HostOp::UpdateContainer {
                name: name.clone(),
                ready_timeout_seconds: 60,
                grace_seconds: 30,
            },
            HostOp::FreezeContainer {
                name: name.clone(),
                frozen: true,
            },
            HostOp::StopContainer {
                name: name.clone(),
                grace_seconds: 30,
            },
            HostOp::DestroyContainer { name },
            HostOp::StartJob { id },
            HostOp::StartProgram { id },
            HostOp::StopJob {
                id,
                grace_seconds: 10,
            },
            HostOp::RemoveJob { id },
            HostOp::StoreSecret {
                name: secret.clone(),
                age: Secret::new("hidden"),
            },
            HostOp::RemoveSecret { name: secret },
            HostOp::ListSecrets {},
            HostOp::ArmChange {
                id: ChangeId(id.0),
                caller: Caller::new("ann").expect("a caller"),
                seconds: 120,
                unwitnessed: false,
                hub: Box::new(HubChange {
                    url: "tls://hub.example.org:7422".to_owned(),
                    ca: None,
                    credentials: Some(Secret::new("hidden")),
                    section: "0".repeat(64),
                }),
            },
            HostOp::ArmSystem {
                id: ChangeId(id.0),
                caller: Caller::new("ann").expect("a caller"),
                seconds: 300,
                unwitnessed: true,
                system: Box::new(SystemChange {
                    toplevel: StorePath::new("/nix/store/00000000000000000000000000000000-nixos")
                        .expect("a path"),
                    mode: SystemMode::Switch,
                    allow_failed: vec!["nginx.service".to_owned()],
                    uncounted: false,
                    journal_format: 1,
                }),
            },
            HostOp::ConfirmChange {
                id: ChangeId(id.0),
                by: ConfirmedBy::Caller(Caller::new("ann").expect("a caller")),
            },
            HostOp::ShowHostKey {},
        ]
    }

    #[test]
    fn every_operation_survives_the_round_trip_through_its_call() {
        for op in every_operation() {
            let sent = serde_json::to_vec(&message(&op)).expect("JSON");
            let got = serde_json::from_slice(&sent).expect("a message");
            assert_eq!(operation(got).expect("an operation"), op);
        }
    }

    #[test]
    fn the_description_names_every_operation_with_its_parameters_and_every_error() {
        let description = description();
        let interface = Interface::try_from(&*description).expect("a description");
        assert_eq!(interface.name().as_str(), INTERFACE);
        let mut described = BTreeSet::new();
        for op in every_operation() {
            let Message { method, parameters } = message(&op);
            let name = method.rsplit('.').next().expect("a name").to_owned();
            let method = interface
                .methods()
                .find(|method| method.name().as_str() == name)
                .unwrap_or_else(|| panic!("{name} is not described"));
            let told: BTreeSet<&str> = method.inputs().map(|input| input.name().as_str()).collect();
            assert_eq!(told, parameters.keys().map(String::as_str).collect(), "{name}");
            for input in method.inputs() {
                let value = &parameters[input.name().as_str()];
                let fits = match input.ty() {
                    Type::Int => value.is_u64(),
                    Type::String => value.is_string(),
                    Type::Bool => value.is_boolean(),
                    _ => value.is_object(),
                };
                assert!(fits, "{name}: {} is {value}", input.name().as_str());
            }
            described.insert(name);
        }
        assert_eq!(
            interface
                .methods()
                .map(|method| method.name().as_str().to_owned())
                .collect::<BTreeSet<_>>(),
            described,
            "every_operation() has each that is declared"
        );
        for kind in [
            HostOpErrorKind::Refused,
            HostOpErrorKind::Unsupported,
            HostOpErrorKind::NotReady,
            HostOpErrorKind::Failed,
        ] {
            let op = every_operation().remove(0);
            let error = HostOpError {
                op: op.summary(),
                kind,
                reason: "why".to_owned(),
            };
            let fault = Fault::from(error.clone());
            assert_eq!(error_of(&op, &fault), error);
            assert!(
                interface
                    .errors()
                    .any(|known| fault.error == format!("{INTERFACE}.{}", known.name().as_str())),
                "{} is not described",
                fault.error
            );
        }
    }

    #[test]
    fn the_committed_description_is_up_to_date() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/service/cim.leaf.Helper.varlink");
        let committed = std::fs::read_to_string(file).expect("the file");
        assert_eq!(description(), committed, "update {file} to the text on the left");
    }

    #[test]
    fn an_operations_properties_follow_from_its_declaration() {
        let web = ContainerName::new("web").expect("a name");
        let id = "01890000-0000-7000-8000-000000000001";
        for op in every_operation() {
            let waits = match &op {
                HostOp::StartContainer { .. } | HostOp::UpdateContainer { .. } => HostWait::Readiness,
                HostOp::StopContainer { .. } | HostOp::StopJob { .. } => HostWait::End,
                _ => HostWait::Nothing,
            };
            assert_eq!(op.waits_for(), waits, "{op:?}");
            match op.subject() {
                HostSubject::Container(name) => {
                    assert!(name == web && op.summary().contains("container web"));
                }
                HostSubject::Job(id) => assert!(op.summary().ends_with(&format!("job {id}"))),
                HostSubject::Secret(name) => assert!(op.summary().ends_with(&format!("secret {name}"))),
                HostSubject::Change => {
                    assert!(op.summary().starts_with(&format!("arm change {id} of the ")));
                }
                HostSubject::Confirmation => assert_eq!(op.summary(), format!("confirm change {id}")),
                HostSubject::Secrets => assert_eq!(op.summary(), "list the secrets"),
                HostSubject::HostKey => assert_eq!(op.summary(), "show the host key"),
                HostSubject::Network => assert!(op.summary().contains(" 10.233.0.1"), "{}", op.summary()),
            }
        }
    }

    #[test]
    fn debug_does_not_show_the_parameters_of_a_call() {
        for op in every_operation() {
            assert!(!format!("{:?}", message(&op)).contains("hidden"));
        }
    }

    #[test]
    fn unknown_methods_and_invalid_parameters_are_reported() {
        let ask = |method: &str, parameters: Value| {
            let Value::Object(parameters) = parameters else {
                panic!("no object")
            };
            let method = method.to_owned();
            operation(Message { method, parameters }).expect_err("it is wrong")
        };
        for method in [
            "cim.leaf.Helper.Reboot",
            "cim.leaf.Helper",
            "x",
            "cim.leaf.Helper.stop_container",
        ] {
            assert_eq!(
                ask(method, serde_json::json!({})).error,
                "org.varlink.service.MethodNotFound"
            );
        }
        for parameters in [
            serde_json::json!({}),
            serde_json::json!({"name": "web", "grace_seconds": "soon"}),
            serde_json::json!({"name": 5, "grace_seconds": 5}),
            serde_json::json!({"name": "web", "grace_seconds": -1}),
            serde_json::json!({"name": "web", "grace_seconds": 5, "force": true}),
            serde_json::json!({"name": "web", "grace_seconds": 5, "op": "start_container"}),
            serde_json::json!({"name": "../web", "grace_seconds": 5}),
        ] {
            let fault = ask("cim.leaf.Helper.StopContainer", parameters);
            assert_eq!(fault.error, "cim.leaf.Helper.Refused", "{fault:?}");
        }
    }
}

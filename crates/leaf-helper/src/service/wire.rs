//! [`HostOp`]s as calls of the varlink interface `cim.leaf.Helper`, and what comes back.
//!
//! The method is the operation's name, its parameters are the operation's fields: there is one definition, that of
//! leaf-core. The description beside this file is what `varlinkctl introspect` shows; a test compares the two.

use std::fmt;

use leaf_core::host_op::{HostOp, HostOpError, HostOpErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The interface.
pub(crate) const INTERFACE: &str = "cim.leaf.Helper";
/// Its description, in varlink's own language.
pub(crate) const DESCRIPTION: &str = include_str!("cim.leaf.Helper.varlink");
/// The interface that every varlink service has.
pub(crate) const SERVICE: &str = "org.varlink.service";

/// A call. Its parameters are never shown: there may be secrets among them.
#[derive(Serialize, Deserialize)]
pub(crate) struct Message {
    /// The interface and the method, with a dot between.
    pub(crate) method: String,
    /// By name.
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

/// An answer that is an error.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Fault {
    /// The interface and the error, with a dot between.
    pub(crate) error: String,
    /// By name.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(crate) parameters: Map<String, Value>,
}

impl Fault {
    /// Returns an error of the interface that every service has.
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

/// Returns the error of an operation that an answer tells.
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
    let Value::Object(mut parameters) = value else {
        unreachable!("an operation is an object");
    };
    let Some(Value::String(name)) = parameters.remove("op") else {
        unreachable!("an operation names itself");
    };
    Message {
        method: format!("{INTERFACE}.{}", camel(&name)),
        parameters,
    }
}

/// Returns the operation that a call asks for.
///
/// # Errors
/// The answer, where there is no such method, or its parameters are not those that it takes.
pub(crate) fn operation(message: Message) -> Result<HostOp, Fault> {
    let Message {
        method,
        mut parameters,
    } = message;
    let unknown = || Fault::service("MethodNotFound", Some(("method", &method)));
    let name = method
        .strip_prefix(INTERFACE)
        .and_then(|rest| rest.strip_prefix('.'))
        .filter(|name| methods().any(|known| known == *name))
        .ok_or_else(unknown)?;
    let refused = |reason: String| {
        Fault::from(HostOpError {
            op: name.to_owned(),
            kind: HostOpErrorKind::Refused,
            reason,
        })
    };
    if parameters.contains_key("op") {
        return Err(refused("it has no parameter op".to_owned()));
    }
    parameters.insert("op".to_owned(), Value::from(snake(name)));
    HostOp::deserialize(Value::Object(parameters)).map_err(|e| refused(format!("its parameters: {e}")))
}

/// The methods that the description names.
pub(crate) fn methods() -> impl Iterator<Item = &'static str> {
    DESCRIPTION
        .lines()
        .filter_map(|line| line.strip_prefix("method ")?.split('(').next())
}

fn camel(name: &str) -> String {
    name.split('_')
        .flat_map(|word| {
            let mut letters = word.chars();
            let first = letters.next().map(|c| c.to_ascii_uppercase());
            first.into_iter().chain(letters)
        })
        .collect()
}

fn snake(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 2);
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use leaf_core::decide::AddressPool;
    use leaf_core::host_op::{ContainerBinding, Secret};
    use leaf_core::id::{ContainerName, JobId, LeafName, StorePath};
    use leaf_core::spec::ContainerOptions;
    use zlink::idl::{Interface, Type};

    use super::*;

    fn every_operation() -> Vec<HostOp> {
        let name = ContainerName::new("web").expect("a name");
        let leaf = LeafName::new("edge").expect("a name");
        let id: JobId = "01890000-0000-7000-8000-000000000001".parse().expect("an id");
        vec![
            HostOp::PrepareNetwork {
                leaf_address: [10, 233, 0, 1].into(),
                nats_port: 4222,
            },
            HostOp::CreateContainer {
                name: name.clone(),
                toplevel: StorePath::new("/nix/store/00000000000000000000000000000000-web").expect("a path"),
                network: AddressPool::default().link(1),
                options: Box::new(ContainerOptions::default()),
                adopt: false,
                binding: ContainerBinding::new(&leaf, &name, "nats://10.233.0.1:4222"),
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
            HostOp::StopContainer {
                name: name.clone(),
                grace_seconds: 30,
            },
            HostOp::DestroyContainer { name },
            HostOp::StartJob { id },
            HostOp::StopJob {
                id,
                grace_seconds: 10,
            },
            HostOp::RemoveJob { id },
        ]
    }

    #[test]
    fn every_operation_comes_out_of_its_call_as_it_went_in() {
        for op in every_operation() {
            let sent = serde_json::to_vec(&message(&op)).expect("JSON");
            let got = serde_json::from_slice(&sent).expect("a message");
            assert_eq!(operation(got).expect("an operation"), op);
        }
    }

    #[test]
    fn the_description_names_every_operation_with_its_parameters_and_every_error() {
        let interface = Interface::try_from(DESCRIPTION).expect("a description");
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
            methods().map(str::to_owned).collect::<BTreeSet<_>>(),
            described,
            "no method is described that is none"
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
    fn a_call_is_shown_without_its_parameters() {
        for op in every_operation() {
            assert!(!format!("{:?}", message(&op)).contains("hidden"));
        }
    }

    #[test]
    fn a_method_that_is_none_and_parameters_that_do_not_belong_are_told() {
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

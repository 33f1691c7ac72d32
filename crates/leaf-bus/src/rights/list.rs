//! What each user may and may not do, as single rights that can be tried. Derived from [`Permissions`], which is the
//! policy: what one of the other users may do, and this one may not, is a right that it must not have.

use std::collections::BTreeSet;

use leaf_core::id::{Caller, ContainerName, LeafName};
use leaf_core::subject;
use serde::Serialize;

use crate::identity::Permissions;

/// The container whose user is tried.
pub(super) const PROBE: &str = "cim-check";
/// A leaf, a caller, a container and a stream that no one has.
pub(super) const OTHER: &str = "cim-other";

/// Requests of the JetStream API that change something, or make the server send: for a stream that does not exist. Who may
/// only read may send none of them.
/// <https://docs.nats.io/reference/reference-protocols/nats_api_reference>
const CHANGES: [&str; 10] = [
    "$JS.API.STREAM.CREATE.cim-other",
    "$JS.API.STREAM.UPDATE.cim-other",
    "$JS.API.STREAM.DELETE.cim-other",
    "$JS.API.STREAM.PURGE.cim-other",
    "$JS.API.STREAM.MSG.DELETE.cim-other",
    "$JS.API.STREAM.SNAPSHOT.cim-other",
    "$JS.API.STREAM.RESTORE.cim-other",
    "$JS.API.CONSUMER.CREATE.cim-other",
    "$JS.API.CONSUMER.MSG.NEXT.cim-other.cim-other",
    "$JS.ACK.cim-other",
];

/// A user of a leaf's NATS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Role {
    /// The leaf's user in the account of the streams.
    Streams,
    /// The leaf's user in the callers' account.
    Callers,
    /// A person.
    Person(Caller),
    /// A container.
    Container,
}

impl Role {
    pub(super) fn permissions(&self, leaf: &LeafName) -> Permissions {
        match self {
            Self::Streams => Permissions::keeper(leaf),
            Self::Callers => Permissions::service(leaf),
            Self::Person(caller) => Permissions::person(caller),
            Self::Container => Permissions::container(leaf, &probe()),
        }
    }
}

/// The container whose user is tried.
pub(super) fn probe() -> ContainerName {
    ContainerName::new(PROBE).expect("a container's name")
}

/// What a right allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// To connect.
    Connect,
    /// To publish a message, which nobody answers.
    Publish,
    /// To send a request, and to get its reply.
    Request,
    /// To subscribe.
    Subscribe,
    /// To hear what the leaf publishes in the account of the streams.
    Hear,
    /// To answer a request.
    Answer,
    /// To reach the leaf's user in the account of the streams.
    Reach,
}

/// One right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Right {
    pub(super) action: Action,
    /// The subject that is tried.
    pub(super) subject: String,
    /// The subjects of the permission that it is an example of; the subject itself where it must not be allowed.
    pub(super) of: String,
    pub(super) allowed: bool,
}

/// Returns the rights of a user, in order: those that it must have, and those that it must not have.
pub(super) fn rights(role: &Role, leaf: &LeafName, domain: Option<&str>) -> Vec<Right> {
    let own = role.permissions(leaf);
    let in_domain = |subject: &str| match (domain, subject.strip_prefix("$JS.API.")) {
        (Some(domain), Some(rest)) => format!("$JS.{domain}.API.{rest}"),
        _ => subject.to_owned(),
    };
    let mut rights = Vec::new();
    for of in own.publish.iter().map(|of| in_domain(of)) {
        let is_asked = of.starts_with("$JS.") || of.starts_with("$SYS.");
        rights.push(Right {
            action: if is_asked {
                Action::Request
            } else {
                Action::Publish
            },
            subject: if is_asked { question(&of) } else { example(&of) },
            of,
            allowed: true,
        });
    }
    rights.extend(own.subscribe.iter().map(|of| Right {
        action: Action::Subscribe,
        subject: of.clone(),
        of: of.clone(),
        allowed: true,
    }));
    let may_publish = |subject: &str| {
        own.publish.iter().any(|of| matches(of, subject))
            && !own.publish_denied.iter().any(|of| matches(of, subject))
    };
    let may_subscribe = |subject: &str| own.subscribe.iter().any(|of| matches(of, subject));
    let not = |action| {
        move |subject: String| Right {
            action,
            of: subject.clone(),
            subject,
            allowed: false,
        }
    };
    let known = examples(leaf);
    let denied: BTreeSet<String> = known
        .iter()
        .cloned()
        .chain(own.publish_denied.iter().map(|of| example(of)))
        .chain(CHANGES.map(str::to_owned))
        .filter(|subject| !may_publish(subject))
        .collect();
    rights.extend(denied.into_iter().map(not(Action::Publish)));
    let deaf = known.into_iter().filter(|subject| !may_subscribe(subject));
    rights.extend(deaf.map(not(Action::Subscribe)));
    rights
}

/// Returns an example of each subject that any user may publish or subscribe to, of this leaf and of another.
fn examples(leaf: &LeafName) -> BTreeSet<String> {
    let other = LeafName::new(OTHER).expect("a leaf's name");
    let caller = Caller::new(OTHER).expect("a caller");
    let container = ContainerName::new(OTHER).expect("a container's name");
    let mut users = vec![Permissions::person(&caller)];
    for leaf in [leaf, &other] {
        users.push(Permissions::keeper(leaf));
        users.push(Permissions::service(leaf));
        users.push(Permissions::container(leaf, &probe()));
        users.push(Permissions::container(leaf, &container));
    }
    let subjects = users
        .iter()
        .flat_map(|user| user.publish.iter().chain(&user.subscribe));
    let mut examples: BTreeSet<String> = subjects.map(|of| example(of)).collect();
    // What every user of a server may know of itself.
    examples.remove("$SYS.REQ.USER.INFO");
    examples
}

/// Returns whether some subject matches both patterns.
pub(super) fn overlaps(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        match (one.next(), other.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(a), Some(b)) if a == b || a == "*" || b == "*" => {}
            _ => return false,
        }
    }
}

/// Returns a subject that a pattern matches, below which nothing is.
pub(super) fn example(pattern: &str) -> String {
    let tokens = pattern.split('.');
    tokens
        .map(|token| if matches!(token, "*" | ">") { OTHER } else { token })
        .collect::<Vec<_>>()
        .join(".")
}

/// Returns the request without effect that a pattern of requests allows: JetStream answers each, if only that there is no
/// such stream. A direct get is answered by the stream itself.
fn question(pattern: &str) -> String {
    if let Some(api) = pattern.strip_suffix(".API.>") {
        return format!("{api}.API.INFO");
    }
    match pattern.strip_suffix("DIRECT.GET.>") {
        Some(api) => format!("{api}DIRECT.GET.KV_{}", subject::STATE_BUCKET),
        None => example(pattern),
    }
}

/// Returns whether a pattern of subjects matches a subject without wildcards.
fn matches(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) => return true,
            (Some(of), Some(token)) if of == "*" || of == token => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(role: &Role) -> Vec<Right> {
        rights(role, &LeafName::new("edge").expect("a name"), None)
    }

    fn roles() -> [Role; 4] {
        let admin = Caller::new("admin").expect("a caller");
        [Role::Streams, Role::Callers, Role::Person(admin), Role::Container]
    }

    #[test]
    fn each_permission_is_a_right_and_no_right_is_both() {
        for role in roles() {
            let rights = of(&role);
            let own = role.permissions(&LeafName::new("edge").expect("a name"));
            let count = rights.iter().filter(|right| right.allowed).count();
            assert_eq!(count, own.publish.len() + own.subscribe.len(), "{role:?}");
            let mut seen = BTreeSet::new();
            for right in &rights {
                let publishes = right.action != Action::Subscribe;
                assert!(
                    seen.insert((publishes, right.subject.clone())),
                    "{role:?}: {right:?}"
                );
                assert!(
                    right.subject.split('.').all(|token| !token.is_empty()),
                    "{right:?}"
                );
            }
        }
    }

    #[test]
    fn what_decision_6_forbids_is_tried() {
        let [_, callers, person, container] = roles().map(|role| of(&role));
        let lacks = |rights: &[Right], action, subject: &str| {
            let found = rights
                .iter()
                .find(|right| right.action == action && right.subject == subject);
            assert!(
                found.is_some_and(|right| !right.allowed),
                "{action:?} {subject}: {found:?}"
            );
        };
        for rights in [&callers, &person, &container] {
            for subject in CHANGES {
                lacks(rights, Action::Publish, subject);
            }
            lacks(rights, Action::Publish, "leaf.v1.evt.edge.cim-other");
            lacks(rights, Action::Publish, "leaf.v1.beat.edge");
            lacks(rights, Action::Publish, "$KV.leaf_state.edge.cim-other");
            lacks(rights, Action::Subscribe, "_INBOX.cim-other.cim-other");
        }
        lacks(
            &person,
            Action::Publish,
            "leaf.v1.cmd.cim-other.cim-other.cim-other",
        );
        lacks(&person, Action::Publish, "_INBOX.cim-other");
        lacks(&container, Action::Publish, "leaf.v1.ctr.edge.cim-check.health");
        lacks(
            &container,
            Action::Publish,
            "leaf.v1.ctr.edge.cim-other.cim-other",
        );
        lacks(
            &container,
            Action::Publish,
            "leaf.v1.ctr.cim-other.cim-check.cim-other",
        );
        lacks(&container, Action::Subscribe, "leaf.cim-other.cmd.edge.cim-other");
    }

    #[test]
    fn requests_go_to_the_domain_of_the_streams() {
        let leaf = LeafName::new("edge").expect("a name");
        let rights = rights(&Role::Streams, &leaf, Some("hub"));
        assert!(
            rights
                .iter()
                .any(|right| right.subject == "$JS.hub.API.INFO" && right.allowed)
        );
    }

    #[test]
    fn a_pattern_matches_as_a_server_takes_it() {
        for (pattern, subject, expected) in [
            ("a.*.c", "a.b.c", true),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            ("a.*", "a.b.c", false),
            ("a.b", "a.b", true),
            ("a.b", "a.c", false),
        ] {
            assert_eq!(matches(pattern, subject), expected, "{pattern} {subject}");
        }
    }
}

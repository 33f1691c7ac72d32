//! Inboxes: the subjects below which replies are sent.

use super::is_literal;
use crate::id::{Caller, LeafName};

/// The first token of all inboxes.
pub const INBOX: &str = "_INBOX";

/// Returns the inbox prefix of a caller, without a final dot.
#[must_use]
pub fn inbox_prefix(caller: &Caller) -> String {
    inbox_prefix_of_token(caller.as_str())
}

/// Like [`inbox_prefix`], for a placeholder of the caller in a template of permissions.
#[must_use]
pub fn inbox_prefix_of_token(caller: &str) -> String {
    format!("{INBOX}.{caller}")
}

/// Returns the caller of an inbox prefix, if it is a caller's.
#[must_use]
pub fn caller_of_inbox_prefix(prefix: &str) -> Option<Caller> {
    Caller::new(prefix.strip_prefix(INBOX)?.strip_prefix('.')?).ok()
}

/// Returns the inbox prefix of a leaf at its hub, without a final dot.
#[must_use]
pub fn leaf_inbox_prefix(leaf: &LeafName) -> String {
    inbox_prefix_of_token(leaf.as_str())
}

/// Returns whether a reply subject is below the inbox prefix of a leaf and without wildcards.
#[must_use]
pub fn is_inbox_of_leaf(reply: &str, leaf: &LeafName) -> bool {
    is_below_inbox(reply, leaf.as_str())
}

/// The first token of the reply subjects that a server makes for requests from another account. No client may send a
/// request with such a reply subject, so the reply ends in the account of the request.
pub const MAPPED_REPLY: &str = "_R_";

/// Returns whether a server made this reply subject, for a request from another account.
#[must_use]
pub fn is_mapped_reply(reply: &str) -> bool {
    reply
        .strip_prefix(MAPPED_REPLY)
        .and_then(|rest| rest.strip_prefix('.'))
        .is_some_and(is_literal)
}

/// Returns whether a reply subject is below an inbox prefix.
#[must_use]
pub fn is_inbox(reply: &str) -> bool {
    reply
        .strip_prefix(INBOX)
        .is_some_and(|rest| rest.len() > 1 && rest.starts_with('.'))
}

/// Returns whether a reply subject is below the caller's own inbox prefix and without wildcards. Otherwise a caller
/// could make the leaf publish anywhere, for example into the leaf's event log.
#[must_use]
pub fn is_own_inbox(reply: &str, caller: &Caller) -> bool {
    is_below_inbox(reply, caller.as_str())
}

fn is_below_inbox(reply: &str, token: &str) -> bool {
    reply
        .strip_prefix(INBOX)
        .and_then(|rest| rest.strip_prefix('.'))
        .and_then(|rest| rest.strip_prefix(token))
        .and_then(|rest| rest.strip_prefix('.'))
        .is_some_and(is_literal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admin() -> Caller {
        Caller::new("admin").expect("a caller")
    }

    #[test]
    fn an_inbox_prefix_names_its_caller() {
        let caller = admin();
        assert_eq!(
            caller_of_inbox_prefix(&inbox_prefix(&caller)).as_ref(),
            Some(&caller)
        );
        for other in ["_INBOX", "_INBOX.", "_INBOX.a.b", "_INBOXadmin", "admin"] {
            assert_eq!(caller_of_inbox_prefix(other), None, "{other}");
        }
        assert!(is_inbox("_INBOX.admin.1") && !is_inbox("_INBOX.") && !is_inbox("_INBOXES.a"));
    }

    #[test]
    fn an_inbox_of_a_leaf_is_its_own() {
        let leaf = LeafName::new("edge-1").expect("a leaf");
        assert!(is_inbox_of_leaf("_INBOX.edge-1.x", &leaf) && !is_inbox_of_leaf("_INBOX.edge-2.x", &leaf));
    }

    #[test]
    fn a_mapped_reply_is_known() {
        assert!(is_mapped_reply("_R_.W24mOf.XmrFCU"));
        for other in ["_R_", "_R_.", "_R_.>", "_R_x.y", "_INBOX.admin.1"] {
            assert!(!is_mapped_reply(other), "{other}");
        }
    }

    #[test]
    fn only_the_callers_own_inbox_is_accepted() {
        let caller = admin();
        assert!(is_own_inbox("_INBOX.admin.x7.1", &caller));
        for bad in [
            "_INBOX.adminx.1",
            "_INBOX.admin",
            "_INBOX.admin.",
            "_INBOX.admin..a",
            "_INBOX.admin.>",
            "_INBOX.bob.1",
            "leaf.v1.evt.edge-1.leaf.edge-1.started",
            "_INBOX.admin.a b",
        ] {
            assert!(!is_own_inbox(bad, &caller), "{bad}");
        }
    }
}

//! The revocations of an account: they are merged, and never shrink but for those that no credential can be concerned by any more.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

/// The users of an account that are revoked: by public key (`*` for all users), the second of the Unix epoch up to which
/// credentials that were issued are void.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revocations(BTreeMap<String, i64>);

/// A revocation that another list has, and this one lacks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it lacks the revocation of {user}, which is there already")]
pub struct Shrunk {
    /// The public key of the user.
    pub user: String,
}

impl Revocations {
    /// Returns those in the claims of an account.
    #[must_use]
    pub fn in_claims(nats: &Value) -> Self {
        let listed = nats["revocations"].as_object().into_iter().flatten();
        Self(
            listed
                .filter_map(|(user, until)| Some((user.clone(), until.as_i64()?)))
                .collect(),
        )
    }

    /// Returns the second up to which a user's credentials are void.
    #[must_use]
    pub fn of(&self, user: &str) -> Option<i64> {
        let (own, all) = (self.0.get(user), self.0.get("*"));
        own.into_iter().chain(all).max().copied()
    }

    /// Voids the credentials of a user that were issued up to this second. One that is there already stays, if it is later.
    pub fn add(&mut self, user: &str, until: i64) {
        let at = self.0.entry(user.to_owned()).or_insert(until);
        *at = until.max(*at);
    }

    /// Takes over all revocations of another list.
    pub fn merge(&mut self, other: &Self) {
        for (user, until) in &other.0 {
            self.add(user, *until);
        }
    }

    /// Drops those that are older than the longest life: the credentials that they void have ended by themselves. `still_valid` says whether
    /// a user has a credential all the same that has not ended.
    pub fn prune(&mut self, now: i64, longest_life: Duration, still_valid: impl Fn(&str) -> bool) {
        let life = i64::try_from(longest_life.as_secs()).unwrap_or(i64::MAX);
        self.0
            .retain(|user, until| until.saturating_add(life) >= now || still_valid(user));
    }

    /// Checks that this list has all revocations of another one, each with the same time or a later one.
    ///
    /// # Errors
    /// [`Shrunk`] with the first one that is missing.
    pub fn includes(&self, other: &Self) -> Result<(), Shrunk> {
        let missing = other
            .0
            .iter()
            .find(|(user, until)| self.0.get(*user).is_none_or(|own| own < *until));
        match missing {
            None => Ok(()),
            Some((user, _)) => Err(Shrunk { user: user.clone() }),
        }
    }

    /// The number of users that are revoked.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nobody is revoked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns them as a claim.
    pub(super) fn to_claim(&self) -> Value {
        self.0
            .iter()
            .map(|(user, until)| (user.clone(), Value::from(*until)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(&str, i64)]) -> Revocations {
        Revocations(
            entries
                .iter()
                .map(|(user, until)| ((*user).to_owned(), *until))
                .collect(),
        )
    }

    #[test]
    fn of_two_lists_each_revocation_stays_with_its_latest_time() {
        let mut ours = list(&[("UA", 5), ("UB", 9)]);
        let theirs = list(&[("UB", 7), ("UC", 3)]);
        assert_eq!(
            ours.includes(&theirs),
            Err(Shrunk {
                user: "UC".to_owned()
            })
        );
        ours.merge(&theirs);
        assert_eq!(ours, list(&[("UA", 5), ("UB", 9), ("UC", 3)]));
        assert_eq!(ours.includes(&theirs), Ok(()));
        assert_eq!(
            list(&[("UB", 6), ("UC", 3)])
                .includes(&theirs)
                .map_err(|shrunk| shrunk.user),
            Err("UB".to_owned())
        );
        assert_eq!(
            Revocations::in_claims(&serde_json::json!({ "revocations": ours.to_claim() })),
            ours
        );
    }

    #[test]
    fn a_revocation_is_dropped_once_all_that_it_voids_has_ended() {
        let mut revoked = list(&[("UA", 100), ("UB", 100), ("UC", 200)]);
        revoked.prune(150, Duration::from_secs(50), |_| false);
        assert_eq!(revoked.len(), 3);
        revoked.prune(151, Duration::from_secs(50), |user| user == "UB");
        assert_eq!(revoked, list(&[("UB", 100), ("UC", 200)]));
    }

    #[test]
    fn a_revocation_of_all_users_is_one_of_each() {
        let revoked = list(&[("*", 9), ("UA", 5), ("UB", 11)]);
        assert_eq!(
            ["UA", "UB", "UC"].map(|user| revoked.of(user)),
            [Some(9), Some(11), Some(9)]
        );
    }
}

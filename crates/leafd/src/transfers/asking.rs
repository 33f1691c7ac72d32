//! How many questions of each caller are looked into at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use leaf_core::id::Caller;

/// The questions of each caller.
#[derive(Debug, Default)]
pub(super) struct Asking(BTreeMap<Caller, Arc<()>>);

/// A question, which counts until this is dropped, also by a panic of the task that has it.
#[derive(Debug)]
pub(super) struct Asked(#[expect(dead_code, reason = "it is counted")] Arc<()>);

impl Asking {
    /// Counts one more question of a caller; `None` if the caller has `most` of them open.
    pub(super) fn begin(&mut self, caller: &Caller, most: usize) -> Option<Asked> {
        // One is the count's own.
        self.0.retain(|_, questions| Arc::strong_count(questions) > 1);
        let questions = self.0.entry(caller.clone()).or_default();
        (Arc::strong_count(questions) <= most).then(|| Asked(questions.clone()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn a_question_counts_until_its_task_has_ended_also_by_a_panic() {
        let [ann, ben] = ["ann", "ben"].map(|name| Caller::new(name).expect("a caller"));
        let mut asking = Asking::default();
        let mut questions = JoinSet::new();
        for _ in 0..2 {
            let asked = asking.begin(&ann, 2).expect("two may be open");
            questions.spawn(async move {
                let _asked = asked;
                panic!("of the test");
            });
        }
        assert!(asking.begin(&ann, 2).is_none());
        let of_ben = asking.begin(&ben, 2);
        assert!(of_ben.is_some(), "another caller has bounds of its own");
        while let Some(ended) = questions.join_next().await {
            let ended: Result<(), _> = ended;
            assert!(ended.is_err_and(|error| error.is_panic()));
        }
        let of_ann = [asking.begin(&ann, 2), asking.begin(&ann, 2)];
        assert!(of_ann.iter().all(Option::is_some) && asking.begin(&ann, 2).is_none());
        drop((of_ann, of_ben));
        let _one = asking.begin(&ben, 2);
        assert_eq!(asking.0.len(), 1, "who asks nothing takes no memory");
    }
}

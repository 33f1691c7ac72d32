//! Starts all tasks of the daemon. A task that ends unexpectedly ends the daemon.

use std::future::Future;

use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinSet};

/// The tasks of the daemon: those that run as long as it does (`keep`), and those that end by themselves (`run`).
#[derive(Default)]
pub struct Tasks {
    set: JoinSet<Ended>,
    elsewhere: Option<Handle>,
}

enum Ended {
    Kept {
        name: &'static str,
        result: anyhow::Result<()>,
    },
    Done,
}

impl Tasks {
    /// Returns a set for tasks that run on another runtime than the one that waits for them.
    #[must_use]
    pub fn on(runtime: Handle) -> Self {
        Self {
            set: JoinSet::new(),
            elsewhere: Some(runtime),
        }
    }

    /// Starts a task that ends only with the daemon.
    pub fn keep(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) -> AbortHandle {
        self.spawn(async move {
            Ended::Kept {
                name,
                result: task.await,
            }
        })
    }

    /// Starts a task that ends only with the daemon, on another runtime.
    pub fn keep_on(
        &mut self,
        runtime: &Handle,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) -> AbortHandle {
        let task = async move {
            Ended::Kept {
                name,
                result: task.await,
            }
        };
        self.set.spawn_on(task, runtime)
    }

    /// Starts a task that may end.
    pub fn run(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn(async move {
            task.await;
            Ended::Done
        });
    }

    fn spawn(&mut self, task: impl Future<Output = Ended> + Send + 'static) -> AbortHandle {
        match &self.elsewhere {
            Some(runtime) => self.set.spawn_on(task, runtime),
            None => self.set.spawn(task),
        }
    }

    /// Waits until a task ends that should not have ended, and returns the error. Cancel-safe.
    pub async fn unexpected_end(&mut self) -> anyhow::Error {
        loop {
            match self.set.join_next().await {
                None => std::future::pending().await,
                Some(Ok(Ended::Done)) => {}
                Some(Ok(Ended::Kept { name, result: Ok(()) })) => {
                    return anyhow::anyhow!("the task {name} ended unexpectedly");
                }
                Some(Ok(Ended::Kept {
                    name,
                    result: Err(error),
                })) => {
                    return error.context(format!("the task {name} failed"));
                }
                Some(Err(error)) if error.is_cancelled() => {}
                Some(Err(error)) => return anyhow::Error::new(error).context("a task panicked"),
            }
        }
    }

    /// Aborts all tasks and waits until they have ended.
    pub async fn stop(mut self) {
        self.set.shutdown().await;
    }
}

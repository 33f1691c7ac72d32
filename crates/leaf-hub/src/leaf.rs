//! The task of one leaf: answers its requests, and keeps the copy of its events as [`Copy`] decides.

use std::future::pending;
use std::pin::Pin;
use std::time::Duration;

use leaf_bus::hub::{Asked, CopyStream, LeafRequest, RemoteLeaf};
use leaf_bus::stream::StreamError;
use leaf_core::error::chain;
use leaf_core::fleet::claims::{Holder, Verdict, decide};
use leaf_core::fleet::copy::{Copy, Input, Output};
use leaf_core::fleet::{
    Claim, ClaimReply, CopyEnd, CopyStatus, Fill, FillReply, Release, Released, fingerprint,
};
use leaf_core::id::LeafName;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;

use crate::shared::Shared;
use crate::shown::Shown;
use crate::state::{Signals, StateTask};
use crate::work::{Done, admit, compare, look, open, read_copy, refuse};

/// With more events missing than this, listeners don't hear those that are filled: nobody waits for so many old ones. Several times what a
/// leaf sends before it asks again, so that all that it records meanwhile is heard.
const NOT_HEARD: u64 = 50_000;
/// How long a leaf may fill its copy without one more event there, until another one may in its place.
const FILLS_FOR: Duration = Duration::from_secs(5);

/// What is kept of a leaf while its task is started again after a panic.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kept {
    pub(crate) holder: Option<Holder>,
    pub(crate) status: Option<CopyStatus>,
    /// The last sequence number of the leaf's stream by its last claim, if it has claimed its name since the agent's start.
    stream_last: Option<u64>,
}

impl Kept {
    #[cfg(test)]
    pub(crate) fn claimed(holder: Holder, stream_last: u64) -> Self {
        Self {
            holder: Some(holder),
            status: None,
            stream_last: Some(stream_last),
        }
    }

    /// Returns what the hub's streams have of a leaf.
    pub(crate) fn stored(holder: Option<Holder>, status: Option<CopyStatus>) -> Self {
        Self {
            holder,
            status,
            stream_last: None,
        }
    }
}

/// What the agent tells a leaf's task.
#[derive(Debug)]
pub(crate) enum Message {
    #[cfg(test)]
    Panic,
    /// A request of the leaf.
    Request(Box<LeafRequest>),
    /// Its copy was deleted, to begin anew.
    Reset,
}

type Work = Pin<Box<dyn Future<Output = Done> + Send>>;
/// A leaf that fills its copy.
struct Filling {
    /// Where the copy ended when it asked last, and since when it ends there.
    last: u64,
    since: Duration,
    permit: OwnedSemaphorePermit,
}

/// A leaf's task.
pub(crate) struct LeafTask {
    shared: Shared,
    leaf: LeafName,
    holder: Option<Holder>,
    /// Whether another instance claimed the name since the holder's last claim.
    contested: bool,
    messages: mpsc::Receiver<Message>,
    kept: watch::Sender<Kept>,
    copy: Copy,
    shown: Shown,
    remote: RemoteLeaf,
    stream: CopyStream,
    work: Option<Work>,
    filling: Option<Filling>,
    /// Whether the copy publishes what it stores.
    publishes: bool,
    state: watch::Sender<Signals>,
    state_task: Option<StateTask>,
    /// The last error of a request, which is logged once.
    complaint: String,
}

/// What wakes the task.
enum Wake {
    Message(Message),
    Reconnected,
    Done(Done),
    Tick,
}

impl LeafTask {
    pub(crate) fn new(
        shared: Shared,
        leaf: LeafName,
        kept: watch::Sender<Kept>,
        messages: mpsc::Receiver<Message>,
    ) -> Self {
        let Kept { holder, status, .. } = kept.borrow().clone();
        let (state, signals) = watch::channel(Signals::default());
        let remote = shared.hub.leaf(&leaf);
        let copied = status.as_ref().map_or(0, |status| status.copied);
        Self {
            copy: Copy::new(shared.now(), copied, status.as_ref().map(|status| status.state)),
            shown: Shown::new(status),
            stream: shared.hub.copy(&leaf, shared.max_bytes),
            state_task: Some(StateTask::new(
                shared.states.clone(),
                leaf.clone(),
                remote.clone(),
                signals,
                shared.works.clone(),
            )),
            shared,
            leaf,
            holder,
            contested: false,
            messages,
            kept,
            remote,
            work: None,
            filling: None,
            publishes: true,
            state,
            complaint: String::new(),
        }
    }

    /// Runs as long as the agent does, and returns why it can't go on.
    pub(crate) async fn run(mut self) -> anyhow::Error {
        let state_task = self.state_task.take().expect("a task is run once");
        tokio::select! {
            result = self.watch_copy() => match result {
                Ok(()) => anyhow::anyhow!("the agent dropped it"),
                Err(error) => error.into(),
            },
            error = state_task.run() => error.into(),
        }
    }

    async fn watch_copy(&mut self) -> Result<(), StreamError> {
        let mut connection = self.shared.hub.fleet_status();
        self.resume().await;
        loop {
            let now = self.shared.now();
            let deadline = [self.copy.deadline(now), self.shown.retry(), self.filling_until()]
                .into_iter()
                .flatten()
                .min();
            let wake = tokio::select! {
                biased;
                message = self.messages.recv() => match message {
                    Some(message) => Wake::Message(message),
                    None => return Ok(()),
                },
                changed = connection.changed() => match changed {
                    // A loss of the connection is an error of what is under way.
                    Ok(()) if connection.borrow_and_update().is_connected() => Wake::Reconnected,
                    Ok(()) => continue,
                    Err(_) => return Err(StreamError::Disconnected),
                },
                done = work(&mut self.work) => Wake::Done(done),
                () = until(self.shared.started, deadline) => Wake::Tick,
            };
            self.wake(wake).await;
            let now = self.shared.now();
            self.end_filling(now);
            if let Some(view) = self.copy.view(now) {
                self.shown.show(&self.shared, &self.leaf, view, now).await;
                if self.shown.written() != self.kept.borrow().status.as_ref() {
                    let status = self.shown.written().cloned();
                    self.kept.send_modify(|kept| kept.status = status);
                }
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn is_watching(&mut self) -> bool {
        self.copy.view(self.shared.now()).is_some()
    }

    /// Goes on with the claim that the task before this one had granted, if it panicked.
    pub(crate) async fn resume(&mut self) {
        let Kept {
            holder, stream_last, ..
        } = self.kept.borrow().clone();
        let Some((holder, stream_last)) = holder.zip(stream_last) else {
            return;
        };
        if holder.is_expired(self.shared.now()) {
            return;
        }
        let instance = holder.beat.instance;
        self.remote.is_held_by(instance);
        let claimed = Input::Claimed {
            anew: true,
            stream_last,
        };
        self.tell(claimed).await;
        self.state.send_modify(|signals| {
            signals.holder = Some(instance);
            signals.all += 1;
        });
    }

    async fn wake(&mut self, wake: Wake) {
        match wake {
            #[cfg(test)]
            Wake::Message(Message::Panic) => panic!("as the test says"),
            Wake::Message(Message::Request(request)) => self.request(*request).await,
            Wake::Message(Message::Reset) | Wake::Reconnected => {
                self.shown.write_again();
                self.tell(Input::Reconnected).await;
                self.state.send_modify(|signals| signals.all += 1);
            }
            Wake::Done(Done::Opened(extent)) => self.tell(Input::Opened(extent)).await,
            Wake::Done(Done::Compared(compared)) => self.tell(Input::Compared(compared)).await,
            Wake::Done(Done::Admitted) => self.tell(Input::Admitted).await,
            Wake::Done(Done::Refused) => {}
            Wake::Done(Done::Looked(extent)) => self.tell(Input::Looked(extent)).await,
            Wake::Done(Done::Failed(why)) => self.tell(Input::Failed(why)).await,
            Wake::Tick => self.tell(Input::Tick).await,
        }
    }

    /// Gives an input to the copy, and does what it says.
    async fn tell(&mut self, input: Input) {
        for output in self.copy.handle(input, self.shared.now()) {
            // Opening it has it publish again.
            self.publishes |= output == Output::Open;
            let (stream, remote) = (self.stream.clone(), self.remote.clone());
            let holder = self.holder.as_ref().map(|holder| holder.beat.instance);
            self.work = match (output, holder) {
                (Output::Close, _) | (_, None) => None,
                (Output::Open, Some(holder)) => Some(Box::pin(open(stream, remote, holder))),
                (Output::Compare(extent), _) => Some(Box::pin(compare(stream, remote, extent))),
                (Output::Admit(last), Some(holder)) => Some(Box::pin(admit(stream, holder, last))),
                (Output::Refuse, _) => Some(Box::pin(refuse(stream))),
                (Output::Look, _) => Some(Box::pin(look(stream))),
            };
        }
    }

    /// When a leaf that fills its copy has sent nothing for too long.
    fn filling_until(&self) -> Option<Duration> {
        self.filling.as_ref().map(|filling| filling.since + FILLS_FOR)
    }

    /// Lets another leaf fill its copy once this one's has all, or gets nothing.
    fn end_filling(&mut self, now: Duration) {
        let is_stuck = self.filling_until().is_some_and(|until| now >= until);
        if self.filling.is_some() && (is_stuck || !self.copy.lacks_events()) {
            self.filling = None;
            // The state has changed with those events, and that was not heard live either.
            self.state.send_modify(|signals| signals.changes += 1);
        }
    }

    async fn request(&mut self, mut request: LeafRequest) {
        let asked = std::mem::replace(
            &mut request.asked,
            Asked::ReadCopy(leaf_core::fleet::ReadCopy { from: 0 }),
        );
        let answered = match asked {
            Asked::Claim(claim) => self.claim(*claim, request).await,
            Asked::Release(release) => self.release(release, request).await,
            Asked::Fill(fill) => self.fill(fill, request).await,
            Asked::ReadCopy(read) => read_copy(self.stream.clone(), read.from, request).await,
            // The agent answers it before it comes here.
            Asked::Witness(_) | Asked::Work(_) => Ok(()),
        };
        if let Err(error) = answered {
            let why = chain(&error);
            if self.complaint != why {
                tracing::warn!(leaf = %self.leaf, error = why, "can't answer a request of a leaf");
                self.complaint = why;
            }
        }
    }

    async fn claim(&mut self, claim: Claim, request: LeafRequest) -> Result<(), StreamError> {
        let now = self.shared.now();
        let anew = match decide(self.holder.as_ref(), &self.leaf, &claim, now) {
            Verdict::Foreign => {
                tracing::warn!(leaf = %self.leaf, claims = %claim.beat.leaf, "a leaf claims the name of another one");
                return Ok(());
            }
            Verdict::Held(by) => {
                tracing::warn!(
                    leaf = %self.leaf, holder = %by.instance, refused = %claim.beat.instance,
                    host = claim.beat.hostname, "another instance claims the name of a leaf"
                );
                self.contested = true;
                return request.reply(&ClaimReply::Held { by }).await;
            }
            Verdict::Granted { anew } => anew,
        };
        let contested = std::mem::take(&mut self.contested);
        self.holder = Some(Holder::now(claim.beat.clone(), now));
        self.remote.is_held_by(claim.beat.instance);
        let kept = self.holder.clone();
        self.kept.send_modify(|of_task| {
            of_task.holder = kept;
            of_task.stream_last = Some(claim.stream_last);
        });
        let stored = self.shared.registry.put_beat(&claim.beat).await;
        let end = self.copy_end().await;
        let claimed = Input::Claimed {
            anew,
            stream_last: claim.stream_last,
        };
        self.tell(claimed).await;
        self.state.send_modify(|signals| {
            signals.holder = Some(claim.beat.instance);
            // Of another instance changes may have been taken for the holder's.
            let which = if anew || contested {
                &mut signals.all
            } else {
                &mut signals.claims
            };
            *which += 1;
        });
        stored?;
        let granted = ClaimReply::Granted {
            copy: end?,
            works: true,
        };
        request.reply(&granted).await
    }

    /// The leaf is stopped: its name is free, unless another instance holds it.
    async fn release(&mut self, release: Release, request: LeafRequest) -> Result<(), StreamError> {
        let holder = self.holder.as_mut();
        let released = match holder.filter(|holder| holder.beat.instance == release.instance) {
            Some(holder) => {
                holder.release();
                let kept = Some(holder.clone());
                self.kept.send_modify(|of_task| of_task.holder = kept);
                let stored = self.shared.registry.put_released(&holder.beat).await;
                let stream_last = release.stream_last;
                self.tell(Input::Released { stream_last }).await;
                stored?;
                true
            }
            None => false,
        };
        request.reply(&Released { released }).await
    }

    /// Answers a leaf that would send what its copy lacks.
    async fn fill(&mut self, fill: Fill, request: LeafRequest) -> Result<(), StreamError> {
        let is_holder = |holder: &Holder| holder.beat.instance == fill.instance;
        let answer = if self.holder.as_ref().is_some_and(is_holder) {
            self.may_fill().await
        } else {
            Ok(Err("another instance has the name".to_owned()))
        };
        let (reply, failed) = match answer {
            Ok(Ok(after)) => (FillReply::Send { after }, Ok(())),
            Ok(Err(why)) => (FillReply::Wait { why }, Ok(())),
            Err(error) => (FillReply::Wait { why: chain(&error) }, Err(error)),
        };
        request.reply(&reply).await?;
        failed
    }

    /// Returns the last number of the copy, if the leaf may send the events after it, or why it may not.
    async fn may_fill(&mut self) -> Result<Result<u64, String>, StreamError> {
        let now = self.shared.now();
        if !self.copy.takes_events() {
            return Ok(Err(
                "the copy is not compared with the leaf's events yet, or differs".to_owned(),
            ));
        }
        let (permit, before) = match self.filling.take() {
            Some(filling) => (filling.permit, Some((filling.last, filling.since))),
            None => match self.shared.fills.clone().try_acquire_owned() {
                Ok(permit) => (permit, None),
                Err(_) => {
                    self.copy.waits_its_turn(now);
                    return Ok(Err("other leaves fill their copies first".to_owned()));
                }
            },
        };
        let extent = self.stream.extent().await?;
        self.tell(Input::Looked(extent)).await;
        match extent {
            Some(extent) if self.copy.takes_events() => {
                let publishes = self.copy.lacking() <= NOT_HEARD;
                if self.publishes != publishes {
                    self.stream.publishes(publishes).await?;
                    self.publishes = publishes;
                }
                let since = before.filter(|(last, _)| *last == extent.last);
                self.filling = Some(Filling {
                    last: extent.last,
                    since: since.map_or(now, |(_, since)| since),
                    permit,
                });
                Ok(Ok(extent.last))
            }
            _ => Ok(Err("the copy is opened anew".to_owned())),
        }
    }

    /// Returns where the copy begins and ends.
    async fn copy_end(&mut self) -> Result<Option<CopyEnd>, StreamError> {
        let extent = self.stream.extent().await?;
        self.tell(Input::Looked(extent)).await;
        let Some(extent) = extent.filter(|extent| !extent.is_empty()) else {
            return Ok(None);
        };
        let end = |fingerprint| CopyEnd {
            first: extent.first,
            last: extent.last,
            fingerprint,
        };
        match self.stream.read(extent.last).await {
            Ok(last) => Ok(last.map(|last| end(fingerprint(&last)))),
            // It is no event, so none of the leaf's.
            Err(StreamError::NotAnEvent { .. }) => Ok(Some(end(String::new()))),
            Err(error) => Err(error),
        }
    }
}

async fn work(work: &mut Option<Work>) -> Done {
    match work {
        Some(running) => {
            let done = running.await;
            *work = None;
            done
        }
        None => pending().await,
    }
}

async fn until(started: Instant, deadline: Option<Duration>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(started + deadline).await,
        None => pending().await,
    }
}

//! The task of one leaf: answers its requests, and keeps the copy of its events as [`Copy`] decides.

use std::collections::VecDeque;
use std::future::pending;
use std::pin::Pin;
use std::time::Duration;

use leaf_bus::hub::{
    Asked, CopyEvents, CopyStream, EventsRequest, LeafRequest, LiveEvents, RemoteError, RemoteLeaf,
    RemotePage,
};
use leaf_bus::stream::StreamError;
use leaf_core::error::chain;
use leaf_core::event::EventRecord;
use leaf_core::fleet::claims::{Holder, Verdict, decide};
use leaf_core::fleet::copy::{Copy, Input, Output};
use leaf_core::fleet::{Claim, ClaimReply, CopyEnd, CopyStatus, Release, Released, fingerprint};
use leaf_core::id::{InstanceId, LeafName};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;

use crate::shared::Shared;
use crate::shown::Shown;
use crate::state::{Signals, StateTask};
use crate::work::{Done, compare, open, read_copy};

/// How often the copy is looked up at a claim, though nothing was copied: somebody may have deleted it.
const LOOK_EVERY: Duration = Duration::from_secs(60);

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
type Permit = Pin<Box<dyn Future<Output = OwnedSemaphorePermit> + Send>>;

/// A page that was asked for, and its share of the pages under way.
struct Reading {
    request: EventsRequest,
    _permit: OwnedSemaphorePermit,
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
    /// The copy's end as it was read last, and when.
    end: Option<(CopyEnd, Duration)>,
    publisher: Option<CopyEvents>,
    work: Option<Work>,
    /// The pages to ask for, the permit for the next one, and those that were asked for.
    wanted: VecDeque<(u64, u64)>,
    permit: Option<Permit>,
    reads: VecDeque<Reading>,
    state: watch::Sender<Signals>,
    state_task: Option<StateTask>,
    /// The last error of a request, which is logged once.
    complaint: String,
}

/// What wakes the task.
enum Wake {
    Message(Message),
    Reconnected,
    Acked(Result<u64, StreamError>),
    Done(Done),
    Heard(Result<(EventRecord, InstanceId), StreamError>),
    Permit(OwnedSemaphorePermit),
    Page(Result<RemotePage, RemoteError>),
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
            )),
            shared,
            leaf,
            holder,
            contested: false,
            messages,
            kept,
            remote,
            end: None,
            publisher: None,
            work: None,
            wanted: VecDeque::new(),
            permit: None,
            reads: VecDeque::new(),
            state,
            complaint: String::new(),
        }
    }

    /// Runs as long as the agent does, and returns why it can't go on.
    pub(crate) async fn run(mut self) -> anyhow::Error {
        let state_task = self.state_task.take().expect("a task is run once");
        tokio::select! {
            result = self.copy_events() => match result {
                Ok(()) => anyhow::anyhow!("the agent dropped it"),
                Err(error) => error.into(),
            },
            error = state_task.run() => error.into(),
        }
    }

    async fn copy_events(&mut self) -> Result<(), StreamError> {
        let mut live = self.remote.live_events().await?;
        let mut connection = self.shared.hub.fleet_status();
        self.resume().await;
        loop {
            let now = self.shared.now();
            let deadline = [self.copy.deadline(now), self.shown.retry()]
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
                acked = acked(&mut self.publisher) => Wake::Acked(acked),
                done = work(&mut self.work) => Wake::Done(done),
                heard = live.next() => Wake::Heard(heard),
                permit = granted(&mut self.permit) => Wake::Permit(permit),
                page = read(&mut self.reads) => Wake::Page(page),
                () = until(self.shared.started, deadline) => Wake::Tick,
            };
            self.wake(wake, &mut live).await?;
            let now = self.shared.now();
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
    pub(crate) fn is_copying(&mut self) -> bool {
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

    async fn wake(&mut self, wake: Wake, live: &mut LiveEvents) -> Result<(), StreamError> {
        match wake {
            #[cfg(test)]
            Wake::Message(Message::Panic) => panic!("as the test says"),
            Wake::Message(Message::Request(request)) => self.request(*request).await,
            Wake::Message(Message::Reset) | Wake::Reconnected => {
                self.shown.write_again();
                self.end = None;
                self.tell(Input::Reconnected).await;
                self.state.send_modify(|signals| signals.all += 1);
            }
            Wake::Acked(Ok(sequence)) => self.tell(Input::Stored(sequence)).await,
            Wake::Acked(Err(error)) => self.failed("can't write the copy", &error).await,
            Wake::Done(Done::Opened(extent, publisher)) => {
                self.publisher = Some(*publisher);
                self.tell(Input::Opened(extent)).await;
            }
            Wake::Done(Done::Compared(compared)) => self.tell(Input::Compared(compared)).await,
            Wake::Done(Done::Failed(why)) => self.tell(Input::Failed(why)).await,
            Wake::Heard(heard) => {
                self.heard(heard?).await;
                while let Some(heard) = live.arrived() {
                    self.heard(heard).await;
                }
            }
            Wake::Permit(permit) => self.ask(permit).await,
            Wake::Page(Ok(RemotePage { from, events, end })) => {
                let reading = self.reads.pop_front();
                self.tell(Input::Page { from, events, end }).await;
                drop(reading);
                // What was not heard live may have changed the state.
                self.state.send_modify(|signals| signals.changes += 1);
            }
            Wake::Page(Err(error)) => self.failed("can't read the leaf's events", &error).await,
            Wake::Tick => self.tell(Input::Tick).await,
        }
        Ok(())
    }

    /// Takes a live event of the instance that holds the name. Another one may have another history.
    async fn heard(&mut self, (event, instance): (EventRecord, InstanceId)) {
        if self
            .holder
            .as_ref()
            .is_some_and(|holder| holder.beat.instance == instance)
        {
            self.tell(Input::Heard(event)).await;
        }
    }

    async fn failed(&mut self, what: &str, error: &(dyn std::error::Error + Send + Sync)) {
        let why = format!("{what}: {}", chain(error));
        self.tell(Input::Failed(why)).await;
    }

    /// Gives an input to the copy, and does what it says.
    async fn tell(&mut self, input: Input) {
        let mut next = Some(input);
        while let Some(input) = next.take() {
            for output in self.copy.handle(input, self.shared.now()) {
                match output {
                    Output::Open => {
                        self.close();
                        self.work = Some(Box::pin(open(self.stream.clone(), self.remote.clone())));
                    }
                    Output::Close => self.close(),
                    Output::Compare(extent) => {
                        self.work = Some(Box::pin(compare(
                            self.stream.clone(),
                            self.remote.clone(),
                            extent,
                        )));
                    }
                    Output::Read { from, events } => {
                        self.wanted.push_back((from, events));
                        self.want();
                    }
                    Output::StopReading => self.stop_reading(),
                    Output::Publish(events) => {
                        if let Err(error) = self.publish(events).await {
                            let why = format!("can't write the copy: {}", chain(&error));
                            next = Some(Input::Failed(why));
                        }
                    }
                }
            }
        }
    }

    async fn publish(&mut self, events: Vec<EventRecord>) -> Result<(), StreamError> {
        let publisher = self.publisher.as_mut().ok_or(StreamError::Disconnected)?;
        publisher.publish(events).await
    }

    fn close(&mut self) {
        self.work = None;
        self.publisher = None;
        self.stop_reading();
    }

    fn stop_reading(&mut self) {
        self.wanted.clear();
        self.permit = None;
        self.reads.clear();
    }

    fn want(&mut self) {
        if self.permit.is_none() && !self.wanted.is_empty() {
            let pages = self.shared.pages.clone();
            self.permit = Some(Box::pin(async move {
                pages
                    .acquire_owned()
                    .await
                    .expect("the semaphore is never closed")
            }));
        }
    }

    async fn ask(&mut self, permit: OwnedSemaphorePermit) {
        self.permit = None;
        if let Some((from, events)) = self.wanted.pop_front() {
            match self.remote.ask_events(from, events).await {
                Ok(request) => self.reads.push_back(Reading {
                    request,
                    _permit: permit,
                }),
                Err(error) => self.failed("can't read the leaf's events", &error).await,
            }
        }
        self.want();
    }

    async fn request(&mut self, mut request: LeafRequest) {
        let asked = std::mem::replace(
            &mut request.asked,
            Asked::ReadCopy(leaf_core::fleet::ReadCopy { from: 0 }),
        );
        let answered = match asked {
            Asked::Claim(claim) => self.claim(*claim, request).await,
            Asked::Release(release) => self.release(release, request).await,
            Asked::ReadCopy(read) => read_copy(self.stream.clone(), read.from, request).await,
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
                self.end = None;
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
        if anew {
            self.end = None;
        }
        let end = self.copy_end(now).await;
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
        request.reply(&ClaimReply::Granted { copy: end? }).await
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

    /// Returns where the copy begins and ends.
    async fn copy_end(&mut self, now: Duration) -> Result<Option<CopyEnd>, StreamError> {
        if let Some((end, read)) = &self.end
            && end.last == self.copy.stored()
            && now < *read + LOOK_EVERY
        {
            return Ok(Some(end.clone()));
        }
        self.end = None;
        let Some(extent) = self.stream.open().await?.filter(|extent| !extent.is_empty()) else {
            if self.copy.stored() > 0 {
                self.tell(Input::Reconnected).await;
            }
            return Ok(None);
        };
        if extent.last < self.copy.stored() {
            // An older one, or another.
            self.tell(Input::Reconnected).await;
        }
        let Some(last) = self.stream.read(extent.last).await? else {
            return Ok(None);
        };
        let end = CopyEnd {
            first: extent.first,
            last: extent.last,
            fingerprint: fingerprint(&last),
        };
        self.end = Some((end.clone(), now));
        Ok(Some(end))
    }
}

async fn acked(publisher: &mut Option<CopyEvents>) -> Result<u64, StreamError> {
    match publisher {
        Some(publisher) if publisher.is_waiting() => publisher.next_ack().await,
        _ => pending().await,
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

async fn granted(permit: &mut Option<Permit>) -> OwnedSemaphorePermit {
    match permit {
        Some(permit) => permit.await,
        None => pending().await,
    }
}

async fn read(reads: &mut VecDeque<Reading>) -> Result<RemotePage, RemoteError> {
    match reads.front_mut() {
        Some(reading) => reading.request.collect().await,
        None => pending().await,
    }
}

async fn until(started: Instant, deadline: Option<Duration>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(started + deadline).await,
        None => pending().await,
    }
}

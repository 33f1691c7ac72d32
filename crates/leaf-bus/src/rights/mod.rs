//! Tries the rights of users for real: each that a user must have, and each that it must not have.
//!
//! Nothing is changed. A forbidden publish is refused by the server before anybody hears it. Should it be allowed, then its
//! subject is one that nobody uses, or no stream stores the message; requests are those without effect, for a stream that
//! does not exist. The rights are those of [`Permissions`](crate::identity::Permissions): no list is kept here.

mod list;
mod probe;

use std::io;
use std::time::Duration;

use leaf_core::error::chain;
use leaf_core::id::{Caller, LeafName};
use leaf_core::subject;
use serde::Serialize;

use crate::identity::ContainerSigner;
use crate::settings::{ConnectSettings, Credentials};
use list::{Right, Role, probe as probe_container, rights};
use probe::{Asked, Probe};

pub use crate::raw::LoginError;
pub use list::Action;

/// How long a reply or a message may take.
const COMES_WITHIN: Duration = Duration::from_secs(2);
/// How long a message that must not come is waited for.
const COMES_NOT: Duration = Duration::from_millis(300);

/// The users whose rights are tried.
#[derive(Debug, Clone, Default)]
pub struct Users {
    /// The leaf's user in the account of the streams.
    pub streams: Option<ConnectSettings>,
    /// The leaf's user in the callers' account.
    pub callers: Option<ConnectSettings>,
    /// A person, by the name that its user has as a caller.
    pub person: Option<(Caller, ConnectSettings)>,
    /// A container of the leaf.
    pub container: Option<ConnectSettings>,
}

impl Users {
    /// Returns the settings of a container's user as a given key issues it, at the servers of the leaf's own user.
    #[must_use]
    pub fn container_of(
        leaf: &LeafName,
        signer: &ContainerSigner,
        callers: &ConnectSettings,
    ) -> ConnectSettings {
        let container = probe_container();
        ConnectSettings {
            credentials: Credentials::Text(signer.credentials(leaf, &container)),
            inbox_prefix: subject::inbox_prefix(&container.caller(leaf)),
            jetstream_domain: None,
            ..callers.clone()
        }
    }
}

/// What a try showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// The user may do it.
    Allowed,
    /// The server refuses it.
    Refused,
    /// The server lets the user do it, but no reply or message comes.
    Silent,
    /// It could not be tried.
    Untried,
}

/// What became of one right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The user: `leafd (streams)`, `leafd (callers)`, `person NAME`, `container`.
    pub user: String,
    /// What it tried.
    pub action: Action,
    /// The subject that it tried.
    pub subject: String,
    /// Whether it must be allowed.
    pub expected: bool,
    /// What was found.
    pub found: Found,
    /// Whether this is as it must be. True of what could not be tried.
    pub ok: bool,
    /// What to do, or why it could not be tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    /// Returns the finding as a row of a table for people, below [`Report::HEADING`].
    #[must_use]
    pub fn row(&self) -> [String; 6] {
        let expected = if self.expected { "allowed" } else { "refused" };
        let found = match self.found {
            Found::Allowed => "allowed",
            Found::Refused => "refused",
            Found::Silent => "no reply",
            Found::Untried => "not tried",
        };
        let found = if self.ok {
            found.to_owned()
        } else {
            found.to_uppercase()
        };
        [
            self.user.clone(),
            verb(self.action).to_owned(),
            self.subject.clone(),
            expected.to_owned(),
            found,
            self.advice.clone().unwrap_or_default(),
        ]
    }
}

/// The outcome of all tries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether every right is as it must be.
    pub ok: bool,
    /// One for each right.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The heading of the table of the [rows](Finding::row). What is not as expected is in capitals.
    pub const HEADING: [&str; 6] = ["USER", "ACTION", "SUBJECT", "EXPECTED", "FOUND", "WHAT TO DO"];

    fn new() -> Self {
        Self {
            ok: true,
            findings: Vec::new(),
        }
    }

    /// The number of rights that are not as they must be.
    #[must_use]
    pub fn wrong(&self) -> usize {
        self.findings.iter().filter(|finding| !finding.ok).count()
    }
}

/// Tries the rights of each of these users of a leaf. What needs two of them is tried where both are given.
pub async fn check(leaf: &LeafName, users: &Users) -> Report {
    let mut report = Report::new();
    let mut streams = None;
    if let Some(settings) = &users.streams {
        let mut user = User::new(Role::Streams, leaf, settings, &mut report);
        user.connect().await;
        user.try_own(None).await;
        streams = user.probe;
    }
    let mut callers = None;
    if let Some(settings) = &users.callers {
        let mut user = User::new(Role::Callers, leaf, settings, &mut report);
        user.connect().await;
        user.try_own(None).await;
        user.try_to_reach(streams.as_mut()).await;
        callers = user.probe;
    }
    if let Some((caller, settings)) = &users.person {
        let mut user = User::new(Role::Person(caller.clone()), leaf, settings, &mut report);
        user.connect().await;
        user.try_own(streams.as_mut()).await;
    }
    if let Some(settings) = &users.container {
        let mut user = User::new(Role::Container, leaf, settings, &mut report);
        user.connect().await;
        user.try_own(None).await;
        user.try_to_answer(callers.as_mut()).await;
    }
    report
}

/// Tries what a container may and may not do, as a given key issues its user; returns what it may and can't.
///
/// # Errors
/// [`ScopeError`]: the server refuses its users, or lets them do more than a container may.
pub async fn check_scope(
    leaf: &LeafName,
    signer: &ContainerSigner,
    callers: &ConnectSettings,
) -> Result<Vec<Finding>, ScopeError> {
    let mut report = Report::new();
    let settings = Users::container_of(leaf, signer, callers);
    let mut user = User::new(Role::Container, leaf, &settings, &mut report);
    user.probe = Some(Probe::connect(&settings).await.map_err(|source| match source {
        LoginError::Refused(said) => ScopeError::Refused {
            key: signer.public_key(),
            account: signer.account().to_owned(),
            said,
        },
        source => ScopeError::Untried { source },
    })?);
    user.try_own(None).await;
    let key = signer.public_key();
    let account = signer.account().to_owned();
    let wrong = report.findings.into_iter().filter(|finding| !finding.ok);
    let (missing, extra): (Vec<_>, Vec<_>) = wrong.partition(|finding| finding.expected);
    if let Some(Finding { action, subject, .. }) = extra.first() {
        let what = format!("{} {subject}", verb(*action));
        return Err(ScopeError::TooWide { key, account, what });
    }
    if missing.iter().any(|finding| finding.action == Action::Connect) {
        return Err(ScopeError::Closed { key, account });
    }
    Ok(missing)
}

/// Why a given signing key can't be trusted with containers.
#[derive(Debug, thiserror::Error)]
pub enum ScopeError {
    /// The server refuses users that the key issues.
    #[error(
        "the NATS server refuses users of the signing key {key} ({said}): add the key to the account {account} with the scope of docs/nats.md"
    )]
    Refused {
        /// The key's public half.
        key: String,
        /// The account that it must be of.
        account: String,
        /// The server's words.
        said: String,
    },
    /// The server closes the connection of a user that the key issues.
    #[error(
        "the NATS server closes the connections of users of the signing key {key} when they do what a container does, as for a key without a scope: set its scope in the account {account} to that of docs/nats.md"
    )]
    Closed {
        /// The key's public half.
        key: String,
        /// The account that lists it.
        account: String,
    },
    /// A container could do more than it may.
    #[error(
        "the signing key {key} is not scoped as containers need, who could {what}: set its scope in the account {account} to that of docs/nats.md"
    )]
    TooWide {
        /// The key's public half.
        key: String,
        /// The account that lists it.
        account: String,
        /// What a container could do.
        what: String,
    },
    /// The server is away.
    #[error("the scope of the containers' signing key can't be tried at the moment")]
    Untried {
        /// Why not.
        source: LoginError,
    },
}

/// Returns an action for people: `publish to`.
#[must_use]
pub fn verb(action: Action) -> &'static str {
    match action {
        Action::Connect => "connect",
        Action::Publish => "publish to",
        Action::Request => "ask",
        Action::Subscribe => "subscribe to",
        Action::Hear => "hear",
        Action::Answer => "answer",
        Action::Reach => "reach the streams' user at",
    }
}

/// One user while its rights are tried.
struct User<'a> {
    role: Role,
    name: String,
    leaf: &'a LeafName,
    settings: &'a ConnectSettings,
    report: &'a mut Report,
    /// Its connection; none before it is made and after it is lost.
    probe: Option<Probe>,
}

impl<'a> User<'a> {
    fn new(role: Role, leaf: &'a LeafName, settings: &'a ConnectSettings, report: &'a mut Report) -> Self {
        let name = match &role {
            Role::Streams => "leafd (streams)".to_owned(),
            Role::Callers => "leafd (callers)".to_owned(),
            Role::Person(caller) => format!("person {caller}"),
            Role::Container => "container".to_owned(),
        };
        Self {
            role,
            name,
            leaf,
            settings,
            report,
            probe: None,
        }
    }

    fn add(&mut self, right: &Right, found: Found, advice: Option<String>) {
        let ok = match found {
            Found::Allowed => right.allowed,
            Found::Refused => !right.allowed,
            Found::Silent => false,
            Found::Untried => true,
        };
        let advice = advice.or_else(|| (!ok).then(|| advise(right, found)));
        self.report.ok &= ok;
        self.report.findings.push(Finding {
            user: self.name.clone(),
            action: right.action,
            subject: right.subject.clone(),
            expected: right.allowed,
            found,
            ok,
            advice,
        });
    }

    async fn connect(&mut self) {
        let right = Right {
            action: Action::Connect,
            subject: self.settings.servers_text(),
            of: String::new(),
            allowed: true,
        };
        match Probe::connect(self.settings).await {
            Ok(probe) => {
                self.probe = Some(probe);
                self.add(&right, Found::Allowed, None);
            }
            Err(error) => self.add(&right, Found::Refused, Some(chain(&error))),
        }
    }

    /// Tries the user's own rights. `streams` publishes what it is to hear.
    async fn try_own(&mut self, mut streams: Option<&mut Probe>) {
        let domain = self.settings.jetstream_domain.as_deref();
        let rights = rights(&self.role, self.leaf, domain);
        // Without an inbox no reply is heard: that is one right that is missing, and not several.
        let Some(probe) = &mut self.probe else { return };
        let inbox = probe.new_inbox();
        let hears_replies = match probe.subscribe(&inbox).await {
            Ok(subscribed) => subscribed.is_ok(),
            Err(error) => return self.lost(&error),
        };
        for right in rights {
            let tried = try_right(self.probe.as_mut(), &right, hears_replies).await;
            match tried {
                Ok(found) => self.add(&right, found, untried(&right, found)),
                Err(error) => return self.lost(&error),
            }
            if right.allowed && right.action == Action::Subscribe {
                let heard = self.try_to_hear(&right, streams.as_deref_mut()).await;
                if let Err(error) = heard {
                    return self.lost(&error);
                }
            }
        }
    }

    /// Tries whether the user hears what the leaf publishes in the other account.
    async fn try_to_hear(&mut self, right: &Right, streams: Option<&mut Probe>) -> io::Result<()> {
        let published = Role::Streams.permissions(self.leaf).publish;
        let Some(of) = published
            .iter()
            .find(|of| !of.starts_with("$JS.") && list::overlaps(&right.subject, of))
        else {
            return Ok(());
        };
        let heard = Right {
            action: Action::Hear,
            subject: list::example(of),
            of: right.subject.clone(),
            allowed: true,
        };
        let (Some(streams), Some(probe)) = (streams, &mut self.probe) else {
            let why =
                "only with the leaf's user of the streams: `leafd check-nats --context` on the leaf tries it";
            self.add(&heard, Found::Untried, Some(why.to_owned()));
            return Ok(());
        };
        let Ok(subscription) = probe.subscribe(&right.subject).await? else {
            self.add(
                &heard,
                Found::Untried,
                Some("it may not subscribe there".to_owned()),
            );
            return Ok(());
        };
        if streams.publish(&heard.subject, "").await?.is_some() {
            let why = "the leaf's user of the streams may not publish there".to_owned();
            self.add(&heard, Found::Untried, Some(why));
            return Ok(());
        }
        let message = probe.hear(subscription, COMES_WITHIN).await?;
        probe.unsubscribe(subscription).await?;
        let found = if message.is_some() {
            Found::Allowed
        } else {
            Found::Silent
        };
        self.add(&heard, found, None);
        Ok(())
    }

    /// Tries whether the user reaches the one in the account of the streams, by a message to its inbox.
    async fn try_to_reach(&mut self, streams: Option<&mut Probe>) {
        let (Some(streams), Some(probe)) = (streams, &mut self.probe) else {
            return;
        };
        let inbox = streams.new_inbox();
        let right = Right {
            action: Action::Reach,
            subject: inbox.clone(),
            of: inbox.clone(),
            allowed: false,
        };
        let tried = async {
            let Ok(subscription) = streams.subscribe(&inbox).await? else {
                return Ok(Found::Untried);
            };
            if probe.publish(&inbox, "").await?.is_some() {
                return Ok(Found::Untried);
            }
            let came = streams.hear(subscription, COMES_NOT).await?;
            streams.unsubscribe(subscription).await?;
            Ok(if came.is_some() {
                Found::Allowed
            } else {
                Found::Refused
            })
        };
        match tried.await {
            Ok(found) => self.add(&right, found, untried(&right, found)),
            Err(error) => self.lost(&error),
        }
    }

    /// Tries whether a container may answer a request of the leaf's user.
    async fn try_to_answer(&mut self, callers: Option<&mut Probe>) {
        let (Some(callers), Some(probe)) = (callers, &mut self.probe) else {
            return;
        };
        let health = subject::container_health(self.leaf, &probe_container());
        let right = Right {
            action: Action::Answer,
            subject: health.clone(),
            of: health.clone(),
            allowed: true,
        };
        let tried = async {
            let inbox = callers.new_inbox();
            let (Ok(requests), Ok(replies)) =
                (probe.subscribe(&health).await?, callers.subscribe(&inbox).await?)
            else {
                return Ok(Found::Untried);
            };
            if callers.request(&health, &inbox).await?.is_some() {
                return Ok(Found::Untried);
            }
            let Some(request) = probe.hear(requests, COMES_WITHIN).await? else {
                return Ok(Found::Silent);
            };
            let reply = request.reply.unwrap_or_default();
            let refused = probe.publish(&reply, "").await?;
            let heard = callers.hear(replies, COMES_NOT).await?;
            callers.unsubscribe(replies).await?;
            probe.unsubscribe(requests).await?;
            Ok(match (refused, heard) {
                (None, Some(_)) => Found::Allowed,
                (None, None) => Found::Silent,
                (Some(_), _) => Found::Refused,
            })
        };
        match tried.await {
            Ok(found) => self.add(&right, found, untried(&right, found)),
            Err(error) => self.lost(&error),
        }
    }

    /// Notes that the connection was lost while the rights were tried.
    fn lost(&mut self, error: &io::Error) {
        self.probe = None;
        let right = Right {
            action: Action::Connect,
            subject: self.settings.servers_text(),
            of: String::new(),
            allowed: true,
        };
        let advice = format!("the connection was lost, and the other rights were not tried: {error}");
        self.add(&right, Found::Silent, Some(advice));
    }
}

/// Tries one right.
async fn try_right(probe: Option<&mut Probe>, right: &Right, hears_replies: bool) -> io::Result<Found> {
    let Some(probe) = probe else {
        return Ok(Found::Untried);
    };
    let found = |refused: Option<String>| {
        if refused.is_some() {
            Found::Refused
        } else {
            Found::Allowed
        }
    };
    match right.action {
        Action::Subscribe => Ok(match probe.subscribe(&right.subject).await? {
            Ok(subscription) => {
                probe.unsubscribe(subscription).await?;
                Found::Allowed
            }
            Err(_) => Found::Refused,
        }),
        Action::Request if hears_replies => match probe.ask(&right.subject, COMES_WITHIN).await? {
            Asked::Refused => Ok(Found::Refused),
            Asked::Replied(reply) if !reply.is_jetstream_off() => Ok(Found::Allowed),
            // A direct get is answered by the stream, which a leaf makes at its first start.
            _ if right.subject.contains(".DIRECT.GET.") => {
                let stream = right.subject.replace(".DIRECT.GET.", ".STREAM.INFO.");
                let stream = probe.ask(&stream, COMES_WITHIN).await?;
                let exists = matches!(stream, Asked::Replied(reply) if !reply.is_error());
                Ok(if exists { Found::Silent } else { Found::Untried })
            }
            _ => Ok(Found::Silent),
        },
        Action::Request => Ok(found(probe.request(&right.subject, "").await?)),
        _ => Ok(found(probe.publish(&right.subject, "").await?)),
    }
}

/// Returns why a right could not be tried.
fn untried(right: &Right, found: Found) -> Option<String> {
    (found == Found::Untried).then(|| {
        match right.action {
            Action::Request => "there is no such stream yet: start the leaf once, and repeat this",
            Action::Answer => "it, or the leaf's user in its account, lacks another right that this needs",
            _ => "another right that this needs is missing",
        }
        .to_owned()
    })
}

/// Returns what to do about a right that is not as it must be.
fn advise(right: &Right, found: Found) -> String {
    let Right { action, of, .. } = right;
    match (action, found) {
        (Action::Reach, _) => {
            "give the leaf two users of two accounts: who may ask JetStream in the account of the streams can write into them"
                .to_owned()
        }
        (Action::Answer, _) => "let it answer one message within 10 s: `allow_responses`".to_owned(),
        (Action::Hear, _) => format!("export the stream {of} of the streams' account, and import it where people are"),
        (Action::Request, Found::Silent) => {
            format!("nothing answers: enable JetStream in the streams' account, and export and import the service {of}")
        }
        (Action::Subscribe, Found::Refused) => format!("allow it to subscribe to {of}"),
        (Action::Subscribe, _) => format!("don't allow it to subscribe to {of}"),
        (_, Found::Refused) => format!("allow it to publish to {of}"),
        _ => format!("don't allow it to publish to {of}"),
    }
}

//! A connection, and the leaves that the command is for.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use leaf_bus::client::{CallError, Client, Leaves};
use leaf_bus::connect::ConnectSettings;
use leaf_bus::context::{self, ContextError};
use leaf_core::command::Request;
use leaf_core::id::{CommandId, LeafName};
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::error::Error;
use crate::fleet::{self, Failures};
use crate::global::Global;
use crate::leaf::Leaf;
use crate::output::Output;
use crate::progress::waiting;
use crate::selection::{Selected, Selection, Several};
use crate::signing::Signing;
use crate::text::Text;
use crate::view::View;

/// The hint where nothing names a server.
const NOTHING_NAMED: &str = "there is no --context, no LEAFCTL_CONTEXT, no selected context (`nats context select`), and no \
leaf with an embedded NATS server on this host (/run/cim-leaf/access/context.json), so nats://127.0.0.1:4222 was tried. Such a \
leaf writes context.json into its state directory: name that file";
/// The hint where the leaf on this host was tried.
const LOCAL_LEAF: &str =
    "no context is named or selected, so the leaf on this host was tried: `systemctl status leafd`";

/// A connection to NATS.
#[derive(Clone)]
pub(crate) struct Session {
    /// The connection.
    pub client: Client,
    /// How it was made.
    settings: ConnectSettings,
    timeout: Duration,
    selection: Selection,
    /// Whether flags select the leaves, and not the variable or nothing.
    by_flags: bool,
    /// The given id of the first change.
    command_id: Option<CommandId>,
    /// The key to sign with.
    sign_with: Option<PathBuf>,
    output: Output,
}

impl Session {
    /// Connects as given by the context and the flags.
    pub(crate) async fn open(global: &Global) -> Result<Self, Error> {
        let selection = Selection::of(global)?;
        let (settings, hint) = found(global)?;
        let client = Client::connect(&settings, global.timeout)
            .await
            .map_err(|source| Error::Connect { source, hint })?;
        Ok(Self {
            client,
            settings,
            timeout: global.timeout,
            selection,
            by_flags: global.selects_leaves(),
            command_id: global.command_id.clone(),
            sign_with: global.sign_with.clone(),
            output: Output::new(global.json),
        })
    }

    /// Returns a session with a connection of its own, for one leaf.
    pub(crate) async fn anew(&self, leaf: LeafName) -> Result<Self, Error> {
        let client = Client::connect(&self.settings, self.timeout)
            .await
            .map_err(|source| Error::Connect { source, hint: None })?;
        Ok(Self {
            client,
            selection: Selection::One(leaf),
            command_id: None,
            ..self.clone()
        })
    }

    /// Returns the session for the leaf that a command's own argument names, or else this one.
    pub(crate) fn named(&self, leaf: Option<LeafName>) -> Result<Self, Error> {
        let selection = match (leaf, &self.selection) {
            (None, selection) => selection.clone(),
            (Some(leaf), Selection::One(other)) if *other == leaf => Selection::One(leaf),
            (Some(leaf), _) if self.by_flags => {
                return Err(Error::Usage(format!(
                    "leaf {leaf} is named beside --leaf, --selector or --all-leaves: leave one of the two out"
                )));
            }
            (Some(leaf), _) => Selection::One(leaf),
        };
        Ok(Self {
            selection,
            ..self.clone()
        })
    }

    /// Returns those of the listed leaves that flags select, or else all.
    pub(crate) fn listed(&self, leaves: Leaves) -> Result<Vec<Selected>, Error> {
        match &self.selection {
            Selection::Several(several) => several.select(leaves),
            Selection::One(leaf) if self.by_flags => Several::named(leaf.clone()).select(leaves),
            Selection::Only | Selection::One(_) if leaves == Leaves::default() => Ok(Vec::new()),
            Selection::Only | Selection::One(_) => Several::default().select(leaves),
        }
    }

    /// Returns the leaves that flags select, or else all that are listed: the variable that names one leaf counts for nothing.
    pub(crate) async fn selected_or_all(&self) -> Result<Vec<Selected>, Error> {
        let leaves = self.client.leaves().await?;
        if self.by_flags || leaves == Leaves::default() {
            return self.listed(leaves);
        }
        Several::default().select(leaves)
    }

    /// Returns whether the command is for any number of leaves, so that its output names them.
    pub(crate) fn is_for_several(&self) -> bool {
        matches!(self.selection, Selection::Several(_))
    }

    /// Returns the one leaf of a command that can't be for several.
    pub(crate) async fn leaf(&self) -> Result<Leaf, Error> {
        let mut leaves = self.leaves().await?;
        match leaves.pop() {
            Some(leaf) if leaves.is_empty() => Ok(self.alone(leaf.name)),
            last => {
                let names: Vec<&str> = leaves
                    .iter()
                    .chain(&last)
                    .map(|leaf| leaf.name.as_str())
                    .collect();
                Err(Error::Usage(format!(
                    "this command works with one leaf at a time, and several are selected; name one with --leaf: {}",
                    names.join(", ")
                )))
            }
        }
    }

    /// Returns the leaves that the command is for, sorted by name: at least one.
    pub(crate) async fn leaves(&self) -> Result<Vec<Leaf>, Error> {
        match &self.selection {
            Selection::Only => Ok(vec![self.alone(self.only().await?)]),
            Selection::One(leaf) => Ok(vec![self.alone(leaf.clone())]),
            Selection::Several(several) => {
                let selected = several.select(self.client.leaves().await?)?;
                let id = self.command_id.clone().unwrap_or_else(|| Uuid::now_v7().into());
                let names = selected.iter().map(|selected| selected.leaf.clone()).collect();
                let signing = self.signing(names, Some(id.clone()));
                let leaf = |Selected { leaf, heard }| {
                    Leaf::one_of_several(
                        leaf,
                        heard,
                        self.client.clone(),
                        self.timeout,
                        &id,
                        signing.clone(),
                    )
                };
                Ok(selected.into_iter().map(leaf).collect())
            }
        }
    }

    /// Returns a leaf that a command is for, and no other.
    pub(crate) fn alone(&self, leaf: LeafName) -> Leaf {
        let signing = self.signing(vec![leaf.clone()], None);
        Leaf::alone(
            leaf,
            self.client.clone(),
            self.timeout,
            self.command_id.clone(),
            signing,
        )
    }

    /// Returns the signatures of a command to these leaves.
    fn signing(&self, leaves: Vec<LeafName>, shared: Option<CommandId>) -> Rc<Signing> {
        Rc::new(Signing::new(
            self.client.clone(),
            leaves,
            shared,
            self.sign_with.clone(),
            self.timeout,
            self.output,
        ))
    }

    /// Returns the only leaf.
    async fn only(&self) -> Result<LeafName, Error> {
        let mut leaves = self
            .client
            .leaves()
            .await?
            .heard
            .into_iter()
            .map(|heard| heard.beat.leaf);
        match (leaves.next(), leaves.next()) {
            (Some(leaf), None) => Ok(leaf),
            (None, _) => Err(Error::NoLeaf(
                "no leaf holds a lease on this server: `systemctl status leafd` on the leaf says whether it runs, or what it \
                 waits for"
                    .to_owned(),
            )),
            (Some(one), Some(two)) => {
                let all: Vec<String> = [one, two]
                    .into_iter()
                    .chain(leaves)
                    .map(|leaf| leaf.to_string())
                    .collect();
                Err(Error::Usage(format!(
                    "there are several leaves; name one with --leaf, or select several with --leaf, --selector or --all-leaves: {}",
                    all.join(", ")
                )))
            }
        }
    }

    /// Does the work for each leaf of the command, at once, and prints the results: as JSON, or as formatted by `view`.
    pub(crate) async fn each<T: Serialize, V: Into<View>>(
        &self,
        output: Output,
        work: impl AsyncFn(&Leaf) -> Result<T, Error>,
        view: impl Fn(&T) -> V,
    ) -> Result<(), Error> {
        let leaves = self.leaves().await?;
        if let [leaf] = leaves.as_slice()
            && leaf.is_alone()
        {
            return print(work(leaf).await, output, view);
        }
        let results = waiting("waiting for the leaves", fleet::at_each(&leaves, work)).await;
        let mut failures = Failures::of(leaves.len(), output);
        let mut views = Vec::new();
        for (Leaf { name, .. }, result) in leaves.into_iter().zip(results) {
            match readable(result) {
                Ok(reply) if output.is_json() => output.json_line(&fleet::reply_line(&name, &reply))?,
                Ok(reply) => {
                    let view = reply.view(output, &view);
                    views.push((name, view));
                }
                Err(error) => {
                    if output.is_json() {
                        output.json_line(&fleet::error_line(&name, &error))?;
                    }
                    failures.add(&name, error);
                }
            }
        }
        if !views.is_empty() {
            output.line(Text::from(View::of_leaves(views)).trimmed())?;
        }
        failures.end()
    }

    /// Sends a command to each leaf, and prints the replies: as JSON, or as formatted by `view`.
    pub(crate) async fn show<R: Request, V: Into<View>>(
        &self,
        request: &R,
        output: Output,
        view: impl Fn(&R::Reply) -> V,
    ) -> Result<(), Error> {
        self.each(output, async |leaf| leaf.call(request).await, view)
            .await
    }

    /// Like [`Session::show`], for a command that waits for the host. `what` is the spinner's text.
    pub(crate) async fn show_slow<R: Request, V: Into<View>>(
        &self,
        what: &'static str,
        request: &R,
        output: Output,
        view: impl Fn(&R::Reply) -> V,
    ) -> Result<(), Error> {
        let call = async |leaf: &Leaf| leaf.waiting(what, leaf.call_slow(request)).await;
        self.each(output, call, view).await
    }
}

/// Returns how to connect, as given by the context and the flags.
pub(crate) fn settings(global: &Global) -> Result<ConnectSettings, Error> {
    found(global).map(|(settings, _)| settings)
}

fn found(global: &Global) -> Result<(ConnectSettings, Option<&'static str>), Error> {
    let (settings, hint) = find(global)?;
    let settings = settings.overridden(global.server.as_deref(), global.creds.as_deref());
    Ok((settings, hint))
}

/// Returns the context by the order that the help of `--context` names, and the hint for a connection that fails.
fn find(global: &Global) -> Result<(ConnectSettings, Option<&'static str>), Error> {
    // The flag, or else the variable.
    if let Some(context) = &global.context {
        return Ok((context::load(Some(context))?, None));
    }
    if let Some(selected) = context::selected()? {
        return Ok((selected, None));
    }
    if global.server.is_some() {
        return Ok((context::load(None)?, None));
    }
    match context::local_leaf() {
        Ok(Some(local)) => Ok((local, Some(LOCAL_LEAF))),
        Ok(None) => Ok((context::load(None)?, Some(NOTHING_NAMED))),
        Err(source @ ContextError::Unreadable { .. }) => Err(Error::LocalLeaf(source)),
        Err(damaged) => Err(damaged.into()),
    }
}

/// A reply to a command.
#[derive(Serialize)]
#[serde(untagged)]
enum Reply<T> {
    /// One that this version knows.
    Known(T),
    /// One with a value that is unknown to this version, as the leaf sent it, and a note on that.
    Unknown(Value, #[serde(skip)] String),
}

impl<T> Reply<T> {
    /// Returns what is printed of it for people. A note on an unknown value goes to standard error.
    fn view<V: Into<View>>(&self, output: Output, view: impl Fn(&T) -> V) -> View {
        match self {
            Self::Known(reply) => view(reply).into(),
            Self::Unknown(document, note) => {
                output.note(note);
                format!("{document:#}").into()
            }
        }
    }
}

/// Returns the reply to a command, also one with a value that is unknown to this version.
fn readable<T>(answer: Result<T, Error>) -> Result<Reply<T>, Error> {
    match answer {
        Ok(reply) => Ok(Reply::Known(reply)),
        Err(Error::Call(CallError::Unreadable { leaf, reply, source })) => {
            match serde_json::from_slice(&reply) {
                Ok(document) => {
                    let note = format!(
                        "leaf {leaf} may be of a newer version: {source}; its reply follows unchanged"
                    );
                    Ok(Reply::Unknown(document, note))
                }
                Err(_) => Err(Error::Call(CallError::Unreadable { leaf, reply, source })),
            }
        }
        Err(error) => Err(error),
    }
}

/// Prints the reply of one leaf. One with a value unknown to this version is printed as the leaf sent it.
fn print<T: Serialize, V: Into<View>>(
    answer: Result<T, Error>,
    output: Output,
    view: impl Fn(&T) -> V,
) -> Result<(), Error> {
    let reply = readable(answer)?;
    output.document(&reply, |reply| reply.view(output, view))
}

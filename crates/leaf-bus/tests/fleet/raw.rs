//! The protocol of leaf nodes by hand, for attackers that keep to no rule of a nats-server. `server/leafnode.go` and
//! `server/parser.go` of nats-server 2.15 are the source of its form.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::support::LIMIT;

/// A message as the other side sent it.
#[derive(Debug, Clone)]
pub(super) struct RawMessage {
    pub(super) subject: String,
    pub(super) reply: Option<String>,
}

/// The messages, interest and errors that the other side has sent so far.
#[derive(Debug, Default)]
struct Heard {
    messages: Vec<RawMessage>,
    /// The subjects of `LS+`.
    interest: Vec<String>,
    errors: Vec<String>,
    pongs: usize,
    is_closed: bool,
}

/// One end of a connection of two servers.
pub(super) struct RawPeer {
    writer: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    heard: watch::Receiver<Heard>,
    sent_pings: usize,
    _reader: JoinSet<()>,
}

/// How a thief says who it is.
pub(super) struct Introduction<'a> {
    /// The key that it names.
    pub(super) key: &'a KeyPair,
    /// The key that it signs with.
    pub(super) signed_by: &'a KeyPair,
    /// Fields of `CONNECT` that are added to those of an honest server, or replace them.
    pub(super) says: Value,
}

impl<'a> Introduction<'a> {
    pub(super) fn honest(key: &'a KeyPair) -> Self {
        Self {
            key,
            signed_by: key,
            says: json!({}),
        }
    }

    pub(super) fn saying(key: &'a KeyPair, says: Value) -> Self {
        Self {
            says,
            ..Self::honest(key)
        }
    }
}

impl RawPeer {
    /// Connects to a hub and sends nothing. Returns the nonce that is to be signed.
    pub(super) async fn reach(port: u16) -> anyhow::Result<(Self, String)> {
        let (reader, writer) = TcpStream::connect(("127.0.0.1", port)).await?.into_split();
        let mut reader = BufReader::new(reader);
        let mut line = String::new();
        tokio::time::timeout(LIMIT, reader.read_line(&mut line)).await??;
        let info: Value = serde_json::from_str(line.strip_prefix("INFO ").context("INFO")?)?;
        let nonce = info["nonce"].as_str().context("a nonce")?.to_owned();
        Ok((Self::with(reader, writer), nonce))
    }

    /// Connects to a hub as a leaf.
    pub(super) async fn connect(port: u16, introduction: &Introduction<'_>) -> anyhow::Result<Self> {
        let (mut peer, nonce) = Self::reach(port).await?;
        peer.introduce(&nonce, introduction).await?;
        ensure!(peer.still_there().await, "{:?}", peer.errors());
        Ok(peer)
    }

    /// Sends `CONNECT`, whatever comes of it.
    pub(super) async fn introduce(
        &mut self,
        nonce: &str,
        introduction: &Introduction<'_>,
    ) -> anyhow::Result<()> {
        let signature = introduction.signed_by.sign(nonce.as_bytes())?;
        let mut connect = json!({
            "version": "2.15.1",
            "name": "thief",
            "server_id": "NTHIEF",
            "headers": true,
            "protocol": 1,
            "nkey": introduction.key.public_key(),
            "sig": URL_SAFE_NO_PAD.encode(signature),
            "remote_account": "LINK",
        });
        for (name, value) in introduction.says.as_object().context("an object")? {
            connect[name] = value.clone();
        }
        self.send(format!("CONNECT {connect}\r\n")).await
    }

    /// Takes the connection of a leaf's server as its hub, which says all of this in `INFO`.
    pub(super) async fn accept(stream: TcpStream, port: u16, says: &Value) -> anyhow::Result<Self> {
        let (reader, mut writer) = stream.into_split();
        let mut info = json!({
            "server_id": "NHUB", "server_name": "hub", "version": "2.15.1", "proto": 1, "headers": true, "max_payload": 1 << 20,
            "host": "127.0.0.1", "port": port, "client_id": 7, "leafnode_urls": [format!("127.0.0.1:{port}")],
            "nonce": "it is signed all the same",
        });
        for (name, value) in says.as_object().context("an object")? {
            info[name] = value.clone();
        }
        writer.write_all(format!("INFO {info}\r\n").as_bytes()).await?;
        let mut peer = Self::with(BufReader::new(reader), writer);
        ensure!(
            peer.still_there().await,
            "the leaf's server left: {:?}",
            peer.errors()
        );
        Ok(peer)
    }

    fn with(reader: BufReader<OwnedReadHalf>, writer: OwnedWriteHalf) -> Self {
        let writer = Arc::new(tokio::sync::Mutex::new(writer));
        let (notes, heard) = watch::channel(Heard::default());
        let mut tasks = JoinSet::new();
        let answers = writer.clone();
        tasks.spawn(async move {
            let _ = listen(reader, &answers, &notes).await;
            notes.send_modify(|heard| heard.is_closed = true);
        });
        Self {
            writer,
            heard,
            sent_pings: 0,
            _reader: tasks,
        }
    }

    /// Sends bytes. That the other side has closed the connection is no error: what it said is read.
    pub(super) async fn send(&self, bytes: impl AsRef<[u8]>) -> anyhow::Result<()> {
        let mut writer = self.writer.lock().await;
        match tokio::time::timeout(LIMIT, writer.write_all(bytes.as_ref())).await {
            Ok(_) => Ok(()),
            Err(_) => bail!("the other side reads no more"),
        }
    }

    /// Sends a message.
    pub(super) async fn publish(&self, subject: &str, reply: Option<&str>, body: &str) -> anyhow::Result<()> {
        let reply = reply.map_or(String::new(), |reply| format!("{reply} "));
        self.send(format!("LMSG {subject} {reply}{}\r\n{body}\r\n", body.len()))
            .await
    }

    /// Sends a message with a header.
    pub(super) async fn publish_with_header(
        &self,
        subject: &str,
        name: &str,
        value: &str,
    ) -> anyhow::Result<()> {
        let header = format!("NATS/1.0\r\n{name}: {value}\r\n\r\n");
        let (head, all) = (header.len(), header.len() + 4);
        self.send(format!("HMSG {subject} {head} {all}\r\n{header}evil\r\n"))
            .await
    }

    /// Asks for all messages on a subject.
    pub(super) async fn subscribe(&self, subject: &str) -> anyhow::Result<()> {
        self.send(format!("LS+ {subject}\r\n")).await
    }

    /// Returns whether the other side has read all that was sent, and has not closed the connection.
    pub(super) async fn still_there(&mut self) -> bool {
        self.sent_pings += 1;
        let wanted = self.sent_pings;
        if self.send("PING\r\n").await.is_err() {
            return false;
        }
        let read = |heard: &Heard| heard.pongs >= wanted || heard.is_closed;
        let answered = tokio::time::timeout(LIMIT, self.heard.wait_for(read)).await;
        matches!(answered, Ok(Ok(heard)) if !heard.is_closed)
    }

    /// Waits until the other side has closed the connection.
    pub(super) async fn is_closed_within(&mut self, limit: Duration) -> bool {
        let closed = self.heard.wait_for(|heard| heard.is_closed);
        matches!(tokio::time::timeout(limit, closed).await, Ok(Ok(_)))
    }

    /// Waits for a message on a subject that begins like this.
    pub(super) async fn hears(&mut self, start: &str) -> anyhow::Result<RawMessage> {
        let find = |heard: &Heard| {
            let mut messages = heard.messages.iter();
            messages
                .find(|message| message.subject.starts_with(start))
                .cloned()
        };
        let arrived = self
            .heard
            .wait_for(|heard| heard.is_closed || find(heard).is_some());
        let heard = tokio::time::timeout(LIMIT, arrived)
            .await
            .with_context(|| format!("waiting for {start}"))??;
        find(&heard).with_context(|| format!("the connection ended before {start} arrived"))
    }

    /// All messages so far.
    pub(super) fn messages(&self) -> Vec<RawMessage> {
        self.heard.borrow().messages.clone()
    }

    /// All subjects that the other side asked for.
    pub(super) fn interest(&self) -> Vec<String> {
        self.heard.borrow().interest.clone()
    }

    pub(super) fn errors(&self) -> Vec<String> {
        self.heard.borrow().errors.clone()
    }
}

/// Notes all that the other side sends, and answers its pings.
async fn listen(
    mut reader: BufReader<OwnedReadHalf>,
    writer: &tokio::sync::Mutex<OwnedWriteHalf>,
    notes: &watch::Sender<Heard>,
) -> anyhow::Result<()> {
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).await? > 0 {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        line.clear();
        let (verb, rest) = text.split_once(' ').unwrap_or((&text, ""));
        match verb {
            "PING" => writer.lock().await.write_all(b"PONG\r\n").await?,
            "PONG" => notes.send_modify(|heard| heard.pongs += 1),
            "LS+" => notes.send_modify(|heard| heard.interest.push(rest.to_owned())),
            "-ERR" => notes.send_modify(|heard| heard.errors.push(rest.to_owned())),
            "LMSG" | "HMSG" => {
                let fields: Vec<&str> = rest.split(' ').collect();
                let [subject, others @ .., size] = &fields[..] else {
                    bail!("{text:?} is no message");
                };
                let mut body = vec![0; size.parse::<usize>()? + 2];
                reader.read_exact(&mut body).await?;
                // Subject, then one reply subject, or `+`, a reply subject and queue groups, or `|` and those.
                let others = if verb == "HMSG" {
                    &others[..others.len().saturating_sub(1)]
                } else {
                    others
                };
                let reply = match others {
                    ["+", reply, ..] => Some(*reply),
                    ["|", ..] | [] => None,
                    [reply, ..] => Some(*reply),
                };
                let message = RawMessage {
                    subject: (*subject).to_owned(),
                    reply: reply.map(str::to_owned),
                };
                notes.send_modify(|heard| heard.messages.push(message));
            }
            _ => {}
        }
    }
    Ok(())
}

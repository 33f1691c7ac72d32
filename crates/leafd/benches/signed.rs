//! Sends a running leaf signed and unsigned changes in turn, and prints how long the answers take, as JSON. `cargo xtask bench`
//! runs it: `signed STATE_DIR LEAF ROUNDS COMMANDS KEY`, where KEY is a private key that may sign for `admin`.
#![allow(clippy::print_stdout, reason = "a program")]

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use async_nats::{Client, HeaderMap};
use data_encoding::BASE64;
use jiff::{SignedDuration, Timestamp};
use leaf_bus::identity::{Identity, admin_caller};
use leaf_core::command::{COMMAND_ID_HEADER, Challenge};
use leaf_core::id::{CommandId, LeafName};
use leaf_core::signed::{NAMESPACE, Nonce, SIGNATURE_HEADER, SignedText, TEXT_HEADER, body_hash};
use leaf_core::subject;
use leaf_trust::ssh_signature::SshSignature;
use serde_json::json;
use uuid::Uuid;

const WARM_UP: usize = 100;

// As `#[tokio::main]` makes it: like a minimal program.
#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [state, leaf, rounds, commands, key] = args.as_slice() else {
        bail!("this is a part of `cargo xtask bench`");
    };
    let (rounds, commands): (usize, usize) = (rounds.parse()?, commands.parse()?);
    let scene = Scene::connect(Path::new(state), leaf.parse()?, Path::new(key)).await?;
    scene.send(WARM_UP, true).await?;
    let mut found = Vec::new();
    for _ in 0..rounds {
        let unsigned = scene.send(commands, false).await?;
        let signed = scene.send(commands, true).await?;
        found.push(json!({ "unsigned": unsigned, "signed": signed }));
    }
    println!("{}", json!({ "rounds": found }));
    Ok(())
}

struct Scene {
    leaf: LeafName,
    client: Client,
    key: Vec<u8>,
}

impl Scene {
    async fn connect(state: &Path, leaf: LeafName, key: &Path) -> Result<Self> {
        let identity = Identity::open_or_create(&state.join("identity"), &leaf)?;
        let context = leaf_bus::context::load(state.join("context.json").to_str())?;
        let client = async_nats::ConnectOptions::with_credentials(identity.admin_credentials().expose())?
            .custom_inbox_prefix(subject::inbox_prefix(&admin_caller()))
            .connect(context.servers.join(","))
            .await?;
        Ok(Self {
            leaf,
            client,
            key: std::fs::read(key)?,
        })
    }

    fn subject(&self, verb: &str) -> String {
        format!("leaf.v1.cmd.{}.{}.leaf.{verb}", self.leaf, admin_caller())
    }

    /// Sends so many changes, one after the other, and returns the median of their round trips in microseconds. They are signed
    /// before.
    async fn send(&self, count: usize, are_signed: bool) -> Result<f64> {
        let answer = self.client.request(self.subject("challenge"), "".into()).await?;
        let challenge: Challenge = serde_json::from_slice(&answer.payload)?;
        ensure!(challenge.keys.len() == 1, "the key may not sign: {challenge:?}");
        let nonce: Option<Nonce> = challenge.nonce.map(|nonce| nonce.parse()).transpose()?;
        let mut messages = Vec::new();
        for number in 0..count {
            let id = CommandId::from(Uuid::now_v7());
            let body = json!({ "set": { "bench": format!("{number}-{are_signed}") } }).to_string();
            let mut headers = HeaderMap::new();
            headers.insert(COMMAND_ID_HEADER, id.as_str());
            if are_signed {
                self.sign(&mut headers, id, &body, nonce)?;
            }
            messages.push((headers, body));
        }
        let mut took = Vec::new();
        for (headers, body) in messages {
            let began = Instant::now();
            let request = async_nats::Request::new().headers(headers).payload(body.into());
            let answer = self.client.send_request(self.subject("label"), request).await?;
            took.push(began.elapsed());
            let refused = answer
                .headers
                .as_ref()
                .and_then(|all| all.get("Nats-Service-Error"));
            ensure!(refused.is_none(), "refused: {refused:?}");
        }
        took.sort_unstable();
        let median = took.get(took.len() / 2).copied().context("no command")?;
        Ok(micros(median))
    }

    fn sign(&self, headers: &mut HeaderMap, id: CommandId, body: &str, nonce: Option<Nonce>) -> Result<()> {
        let now = Timestamp::from_second(Timestamp::now().as_second())?;
        let text = SignedText {
            caller: admin_caller(),
            noun: "leaf".to_owned(),
            verb: "label".to_owned(),
            leaves: [(self.leaf.clone(), nonce)].into(),
            body: body_hash(body.as_bytes()),
            id,
            time: now,
            expires: now.checked_add(SignedDuration::from_mins(30))?,
        };
        let text = text.to_string();
        let signature = SshSignature::sign(&self.key, NAMESPACE, text.as_bytes())?.to_bytes();
        headers.insert(TEXT_HEADER, BASE64.encode(text.as_bytes()).as_str());
        headers.insert(
            SIGNATURE_HEADER,
            format!("ssh:{}", BASE64.encode(&signature)).as_str(),
        );
        Ok(())
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

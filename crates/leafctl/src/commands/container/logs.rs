use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use leaf_core::command::ReadContainerLog;
use leaf_core::id::ContainerName;

use crate::error::Error;
use crate::output::Output;
use crate::session::Session;
use crate::text::Text;

/// The pause between two requests while following.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// The number of lines per request while following.
const LINES_AT_ONCE: u32 = 10_000;

/// Print a container's console.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The container's name.
    name: ContainerName,
    /// The number of lines to print, counted from the end.
    #[arg(long, short = 'n', default_value_t = 200)]
    lines: u32,
    /// Print only what was written since then: a time (2026-11-20T16:00:00Z), or an age (10m).
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    since: Option<Timestamp>,
    /// Keep printing new output. With --json, each reply is one line.
    #[arg(long, short)]
    follow: bool,
    /// Keep the console's colours. Other control characters are always shown as escapes, such as \u{1b}; --json has them
    /// unchanged.
    #[arg(long, alias = "colors", alias = "color")]
    colours: bool,
}

impl Logs {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let mut request = ReadContainerLog {
            name: self.name.clone(),
            lines: Some(self.lines),
            since: self.since,
            cursor: None,
        };
        if !self.follow && session.is_for_several() {
            return session.show(&request, output, |log| self.shown(&log.text)).await;
        }
        let leaf = session.leaf().await?;
        let log = leaf.call(&request).await?;
        if !self.follow {
            return if output.is_json() {
                output.document(&log, |log| log.text.clone())
            } else {
                output.text(self.shown(&log.text))
            };
        }
        let mut log = log;
        loop {
            if output.is_json() {
                if !log.text.is_empty() {
                    output.item(&log, |log| log.text.clone())?;
                }
            } else {
                output.text(self.shown(&log.text))?;
            }
            request.lines = Some(LINES_AT_ONCE);
            if log.cursor.is_some() {
                request.since = None;
                request.cursor = log.cursor;
            }
            tokio::time::sleep(ASK_AGAIN_AFTER).await;
            log = leaf.call(&request).await?;
        }
    }

    fn shown(&self, text: &str) -> Text {
        if self.colours {
            Text::coloured(text)
        } else {
            Text::from(text)
        }
    }
}

fn parse_since(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let ago = humantime::parse_duration(text).map_err(|_| {
        "it is neither a time such as 2026-11-20T16:00:00Z nor a duration such as 10m".to_owned()
    })?;
    let ago = jiff::SignedDuration::try_from(ago).map_err(|e| e.to_string())?;
    Timestamp::now().checked_sub(ago).map_err(|e| e.to_string())
}

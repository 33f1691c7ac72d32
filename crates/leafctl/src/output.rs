//! Prints results: tables and text for people, JSON for programs. Colours only on a terminal.
//!
//! This is the only place that writes to standard output and standard error, beside the bars of `progress`. For people it
//! takes a [`Text`], which can't command the terminal; JSON is printed exactly.

use std::io::{IsTerminal as _, Write as _};

use jiff::Timestamp;
use leaf_core::error::chain;
use leaf_core::id::LeafName;
use serde::Serialize;

use crate::error::Error;
use crate::text::{Table, Text};

/// The format of results.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
    colours: bool,
}

impl Output {
    /// Returns the format: JSON if asked for; colours where standard output is a terminal and `NO_COLOR` is not set.
    pub(crate) fn new(json: bool) -> Self {
        let colours =
            std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Self { json, colours }
    }

    /// Returns whether results are printed as JSON.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Prints one document: as JSON, or as formatted by `text`.
    pub(crate) fn document<T: Serialize, P: Into<Text>>(
        self,
        value: &T,
        text: impl FnOnce(&T) -> P,
    ) -> Result<(), Error> {
        if self.json {
            let json = serde_json::to_string_pretty(value).expect("a message has string keys only");
            return print(&format!("{json}\n"));
        }
        self.line(text(value).into().trimmed())
    }

    /// Prints what a program printed, unchanged: where standard output or standard error is a terminal, as text.
    pub(crate) fn of_program(self, stdout: &[u8], stderr: &[u8]) -> Result<(), Error> {
        let shown = |bytes: &[u8], is_terminal: bool| {
            if is_terminal {
                Text::from(String::from_utf8_lossy(bytes).into_owned())
                    .as_str()
                    .as_bytes()
                    .to_vec()
            } else {
                bytes.to_vec()
            }
        };
        let mut out = std::io::stdout();
        out.write_all(&shown(stdout, out.is_terminal()))?;
        out.flush()?;
        let mut err = std::io::stderr();
        err.write_all(&shown(stderr, err.is_terminal()))?;
        Ok(())
    }

    /// Prints a document as one line of JSON.
    pub(crate) fn json_line(self, document: &impl Serialize) -> Result<(), Error> {
        let json = serde_json::to_string(document).expect("a message has string keys only");
        print(&format!("{json}\n"))
    }

    /// Prints one item of a stream as one line: as JSON, or as formatted by `text`.
    pub(crate) fn item<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Error> {
        if self.json {
            return self.json_line(value);
        }
        self.line(Text::line(&text(value)))
    }

    /// Prints a text and the end of its line.
    pub(crate) fn line(self, text: impl Into<Text>) -> Result<(), Error> {
        self.text(text.into().then("\n"))
    }

    /// Prints a text.
    pub(crate) fn text(self, text: impl Into<Text>) -> Result<(), Error> {
        print(text.into().as_str())
    }

    /// Returns a table with these headings.
    pub(crate) fn table(self, headings: &[&str]) -> Table {
        Table::new(headings, std::io::stdout().is_terminal(), self.colours)
    }

    /// Prints an error with its causes to standard error: as text, or with `--json` the problem as one document.
    pub(crate) fn error(self, error: &Error) {
        if self.json {
            let _ = writeln!(std::io::stderr(), "{}", error.document());
            return;
        }
        tell(self.label().then(format!(" {}", chain(error))));
        if let Some(hint) = error.hint() {
            tell(format!("hint: {hint}"));
        }
    }

    /// Prints the error of one of several leaves as one line to standard error.
    pub(crate) fn error_of(self, leaf: &LeafName, error: &Error) {
        if self.json {
            let mut body = error.document();
            body["leaf"] = leaf.as_str().into();
            let _ = writeln!(std::io::stderr(), "{body}");
            return;
        }
        let text = Text::line(&format!(" {leaf}: {}", chain(error)));
        tell(self.label().then(text));
    }

    fn label(self) -> Text {
        if std::io::stderr().is_terminal() && self.colours {
            Text::alarm("error:")
        } else {
            Text::from("error:")
        }
    }

    /// Prints a note about progress to standard error.
    pub(crate) fn note(self, text: &str) {
        if !self.json {
            tell(text);
        }
    }
}

/// Prints a line to standard error, ignoring errors.
pub(crate) fn tell(text: impl Into<Text>) {
    let _ = writeln!(std::io::stderr(), "{}", text.into().as_str());
}

fn print(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(Error::Print)
}

/// Returns a time as its age: `3m ago`.
pub(crate) fn ago(time: Timestamp) -> String {
    let seconds = Timestamp::now().duration_since(time).as_secs().max(0);
    match seconds {
        0..=119 => format!("{seconds}s ago"),
        120..=7199 => format!("{}m ago", seconds / 60),
        7200..=172_799 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86400),
    }
}

/// Returns the first line of an error, for a table.
pub(crate) fn first_line(error: Option<&str>) -> String {
    error
        .and_then(|error| error.lines().next())
        .unwrap_or_default()
        .to_owned()
}

/// Returns a size with a unit: `1.5 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

/// Returns a value as its JSON name: `running` for `ContainerPhase::Running`.
pub(crate) fn name_of(value: &impl Serialize) -> String {
    match serde_json::to_value(value).expect("a message has string keys only") {
        serde_json::Value::String(name) => name,
        other => other.to_string(),
    }
}

//! Prints results: tables and text for people, JSON for programs. Colours only on a terminal.

use std::io::{IsTerminal as _, Write as _};

use comfy_table::{Attribute, Cell, ContentArrangement, Table, presets};
use jiff::Timestamp;
use leaf_core::error::chain;
use serde::Serialize;

use crate::error::Error;

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
    pub(crate) fn document<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Error> {
        let text = if self.json {
            serde_json::to_string_pretty(value).expect("a message has string keys only")
        } else {
            text(value)
        };
        self.line(text.trim_end_matches('\n'))
    }

    /// Prints one item of a stream: as one line of JSON, or as formatted by `text`.
    pub(crate) fn item<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Error> {
        let text = if self.json {
            serde_json::to_string(value).expect("a message has string keys only")
        } else {
            text(value)
        };
        self.line(&text)
    }

    /// Prints a line.
    pub(crate) fn line(self, text: &str) -> Result<(), Error> {
        self.raw(&format!("{text}\n"))
    }

    /// Prints a text unchanged.
    pub(crate) fn raw(self, text: &str) -> Result<(), Error> {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .map_err(Error::Print)
    }

    /// Returns a table with these headings.
    pub(crate) fn table(self, headings: &[&str]) -> Table {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic);
        if !std::io::stdout().is_terminal() {
            table.set_content_arrangement(ContentArrangement::Disabled);
        }
        table.set_header(headings.iter().map(|heading| {
            let cell = Cell::new(heading);
            if self.colours {
                cell.add_attribute(Attribute::Bold)
            } else {
                cell
            }
        }));
        if !self.colours {
            table.force_no_tty();
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        table
    }

    /// Prints an error with its causes to standard error: as text, or with `--json` the problem as one document.
    pub(crate) fn error(self, error: &Error) {
        if self.json {
            let mut body = match error {
                Error::Problem(problem) => {
                    serde_json::to_value(problem).expect("a problem has string keys only")
                }
                other => serde_json::json!({ "title": other.to_string(), "detail": chain(other) }),
            };
            body["exit_code"] = error.exit_code().into();
            tell(&body.to_string());
            return;
        }
        let colours = std::io::stderr().is_terminal() && self.colours;
        let label = if colours {
            "\u{1b}[1;31merror:\u{1b}[0m"
        } else {
            "error:"
        };
        tell(&format!("{label} {}", chain(error)));
        if let Some(hint) = error.hint() {
            tell(&format!("hint: {hint}"));
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
pub(crate) fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Returns a table as text, without trailing blanks.
pub(crate) fn text_of(table: &Table) -> String {
    let text = table.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

/// Returns names and values, one pair per line, with the values aligned.
pub(crate) fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    fields
        .iter()
        .map(|(name, value)| format!("{}\n", format!("{name:<width$}  {value}").trim_end()))
        .collect()
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

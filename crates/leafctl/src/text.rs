//! Text for people. A [`Text`] can't command the terminal: what is put into it, wherever it came from, has its control
//! characters shown as escapes ([`leaf_core::printable`]). `output` prints nothing else, except JSON.

use comfy_table::{Attribute, Cell, ContentArrangement, presets};
use leaf_core::printable::{printable, printable_line};

/// The end of all colours and attributes (SGR, ECMA-48).
const RESET: &str = "\u{1b}[0m";

/// Text that may be printed as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Text(String);

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(printable(text).into_owned())
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl Text {
    /// Returns a text of one line: ends of lines in it are shown as escapes.
    pub(crate) fn line(text: &str) -> Self {
        Self(printable_line(text).into_owned())
    }

    /// Returns a text with its colours (SGR sequences) kept. They end with it.
    pub(crate) fn coloured(text: &str) -> Self {
        let mut shown = String::with_capacity(text.len());
        let (mut from, mut last) = (0, "");
        for (start, _) in text.match_indices("\u{1b}[") {
            let Some(length) = sgr_length(&text[start..]) else {
                continue;
            };
            shown += &printable(&text[from..start]);
            from = start + length;
            last = &text[start..from];
            shown += last;
        }
        shown += &printable(&text[from..]);
        if !["", RESET, "\u{1b}[m"].contains(&last) {
            shown += RESET;
        }
        Self(shown)
    }

    /// Returns a text in bold red.
    pub(crate) fn alarm(text: &str) -> Self {
        Self(format!("\u{1b}[1;31m{}{RESET}", printable_line(text)))
    }

    /// Returns this text and another one after it.
    pub(crate) fn then(mut self, next: impl Into<Self>) -> Self {
        self.0 += &next.into().0;
        self
    }

    /// Returns it with a prefix before each line.
    pub(crate) fn with_prefix(&self, prefix: &str) -> Self {
        let prefix = printable_line(prefix);
        let lines: Vec<String> = self
            .0
            .lines()
            .map(|line| format!("{prefix}{line}").trim_end().to_owned())
            .collect();
        Self(lines.join("\n"))
    }

    /// Returns it without ends of lines at its end.
    pub(crate) fn trimmed(mut self) -> Self {
        self.0.truncate(self.0.trim_end_matches('\n').len());
        self
    }

    /// Returns it as a string to be printed.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Returns the length of the SGR sequence at the beginning of a text: `ESC [`, numbers, `m`.
fn sgr_length(text: &str) -> Option<usize> {
    let numbers = text.strip_prefix("\u{1b}[")?;
    let end = numbers.find(|c: char| !(c.is_ascii_digit() || c == ';' || c == ':'))?;
    numbers[end..].starts_with('m').then_some(2 + end + 1)
}

/// A table with one line per row, as wide as the terminal.
pub(crate) struct Table {
    pub(crate) headings: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
    terminal: bool,
    bold: bool,
}

impl Table {
    /// Returns a table with these headings. Without a terminal, rows are as wide as they are.
    pub(crate) fn new(headings: &[&str], terminal: bool, bold: bool) -> Self {
        Self {
            headings: headings.iter().map(|heading| (*heading).to_owned()).collect(),
            rows: Vec::new(),
            terminal,
            bold,
        }
    }

    /// Adds a row.
    pub(crate) fn add_row(&mut self, cells: impl IntoIterator<Item = impl AsRef<str>>) {
        let cells = cells.into_iter();
        self.rows.push(
            cells
                .map(|cell| printable_line(cell.as_ref()).into_owned())
                .collect(),
        );
    }
}

impl From<Table> for Text {
    /// Returns the table without blanks at the ends of its lines.
    fn from(table: Table) -> Self {
        let mut drawn = comfy_table::Table::new();
        drawn
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic);
        if !table.terminal {
            drawn.set_content_arrangement(ContentArrangement::Disabled);
        }
        drawn.set_header(table.headings.iter().map(|heading| {
            let cell = Cell::new(heading);
            if table.bold {
                cell.add_attribute(Attribute::Bold)
            } else {
                cell
            }
        }));
        if !table.bold {
            drawn.force_no_tty();
        }
        for column in drawn.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for row in table.rows {
            drawn.add_row(row);
        }
        let text = drawn.to_string();
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        Self(lines.join("\n"))
    }
}

/// Names and values of one thing.
pub(crate) struct Fields(pub(crate) Vec<(String, String)>);

/// Returns names and values.
pub(crate) fn fields(fields: &[(&str, String)]) -> Fields {
    let owned = |(name, value): &(&str, String)| ((*name).to_owned(), value.clone());
    Fields(fields.iter().map(owned).collect())
}

impl From<Fields> for Text {
    /// Returns one pair per line, with the values aligned, also each further line of a value.
    fn from(fields: Fields) -> Self {
        let fields: Vec<_> = fields
            .0
            .iter()
            .map(|(name, value)| (printable_line(name), printable(value)))
            .collect();
        let width = fields
            .iter()
            .map(|(name, _)| name.chars().count())
            .max()
            .unwrap_or(0);
        let mut text = String::new();
        for (name, value) in &fields {
            let mut name = name.as_ref();
            for line in value.split('\n') {
                text += format!("{name:<width$}  {line}").trim_end();
                text.push('\n');
                name = "";
            }
        }
        Self(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "\u{1b}]52;c;eA==\u{7}\u{1b}[2J\u{1b}[31m\rx\u{202e}";

    #[test]
    fn a_text_has_no_control_characters_however_it_is_made() {
        let mut table = Table::new(&["A", "B"], true, false);
        table.add_row([HOSTILE, "a\nb"]);
        for text in [
            Text::from(HOSTILE),
            Text::line(HOSTILE),
            Text::from(table),
            fields(&[(HOSTILE, HOSTILE.to_owned())]).into(),
            Text::from("x").then(HOSTILE),
        ] {
            let hidden = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
            assert!(!text.as_str().contains(hidden), "{text:?}");
            assert!(text.as_str().contains(r"\u{1b}]52;"), "{text:?}");
        }
    }

    #[test]
    fn colours_are_kept_where_asked_and_end_with_the_text() {
        let text = "\u{1b}[1;31mred\u{1b}[0m \u{1b}[38:5:1mx \u{1b}]0;t\u{7}\u{1b}[2J\u{1b}[3";
        assert_eq!(
            Text::coloured(text).as_str(),
            "\u{1b}[1;31mred\u{1b}[0m \u{1b}[38:5:1mx \\u{1b}]0;t\\u{7}\\u{1b}[2J\\u{1b}[3\u{1b}[0m"
        );
        assert_eq!(
            Text::coloured("\u{1b}[1mx\u{1b}[0m\r\n").as_str(),
            "\u{1b}[1mx\u{1b}[0m\n"
        );
        assert_eq!(Text::coloured("plain").as_str(), "plain");
    }

    #[test]
    fn a_row_is_one_line_and_a_further_line_of_a_value_begins_below_it() {
        let mut table = Table::new(&["DEVICE", "WHAT"], false, false);
        table.add_row(["usb-1", "Mouse\ndisk-0  present"]);
        assert_eq!(Text::from(table).as_str().lines().count(), 2);
        let text = Text::from(fields(&[
            ("error", "it failed\nphase  running".to_owned()),
            ("phase", "failed".to_owned()),
        ]));
        assert_eq!(
            text.as_str(),
            "error  it failed\n       phase  running\nphase  failed\n"
        );
    }
}

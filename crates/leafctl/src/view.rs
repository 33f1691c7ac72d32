//! What a reply is printed as for people: tables, descriptions of one thing, and other text; of one leaf, or of several
//! together.

use leaf_core::id::LeafName;

use crate::text::{Fields, Table, Text};

/// What is printed of a reply.
#[derive(Default)]
pub(crate) struct View(Vec<Part>);

enum Part {
    Table(Table),
    Fields(Fields),
    Text(Text),
}

impl View {
    /// Returns it with another part below it.
    pub(crate) fn and(mut self, below: impl Into<Self>) -> Self {
        self.0.extend(below.into().0);
        self
    }

    /// Returns the views of several leaves as one, in their order. Tables with the same headings become one with the column
    /// `LEAF`, a description of one thing begins with the leaf's name, and other text has it before each line.
    pub(crate) fn of_leaves(views: Vec<(LeafName, Self)>) -> Self {
        let width = views.iter().map(|(leaf, _)| leaf.as_str().len()).max();
        let width = width.unwrap_or_default();
        let mut all: Vec<Part> = Vec::new();
        for (leaf, view) in views {
            for part in view.0 {
                match part {
                    Part::Table(table) => add_table(&mut all, &leaf, table),
                    Part::Fields(Fields(mut fields)) => {
                        if fields.first().is_none_or(|(name, _)| name != "leaf") {
                            fields.retain(|(name, _)| name != "leaf");
                            fields.insert(0, ("leaf".to_owned(), leaf.to_string()));
                        }
                        all.push(Part::Fields(Fields(fields)));
                    }
                    Part::Text(text) => {
                        let text = text.with_prefix(&prefix(&leaf, width));
                        match all.last_mut() {
                            Some(Part::Text(before)) => {
                                *before = std::mem::take(before).then("\n").then(text);
                            }
                            _ => all.push(Part::Text(text)),
                        }
                    }
                }
            }
        }
        Self(all)
    }
}

/// Returns what stands before a line about a leaf; `width` is the length of the longest name.
pub(crate) fn prefix(leaf: &LeafName, width: usize) -> String {
    format!("{:<width$}  ", leaf.as_str())
}

/// Adds the rows of a leaf's table to the table with these headings.
fn add_table(all: &mut Vec<Part>, leaf: &LeafName, mut table: Table) {
    table.headings.insert(0, "LEAF".to_owned());
    for row in &mut table.rows {
        row.insert(0, leaf.to_string());
    }
    let same = all.iter_mut().find_map(|part| match part {
        Part::Table(other) if other.headings == table.headings => Some(other),
        _ => None,
    });
    match same {
        Some(other) => other.rows.append(&mut table.rows),
        None => all.push(Part::Table(table)),
    }
}

impl From<Table> for View {
    fn from(table: Table) -> Self {
        Self(vec![Part::Table(table)])
    }
}

impl From<Fields> for View {
    fn from(fields: Fields) -> Self {
        Self(vec![Part::Fields(fields)])
    }
}

impl From<Text> for View {
    fn from(text: Text) -> Self {
        Self(vec![Part::Text(text)])
    }
}

impl From<&str> for View {
    fn from(text: &str) -> Self {
        Text::from(text).into()
    }
}

impl From<String> for View {
    fn from(text: String) -> Self {
        Text::from(text).into()
    }
}

impl From<View> for Text {
    /// Returns the parts with an empty line between them.
    fn from(view: View) -> Self {
        let mut text = Self::default();
        for (number, part) in view.0.into_iter().enumerate() {
            let part = match part {
                Part::Table(table) => Self::from(table),
                Part::Fields(fields) => Self::from(fields).trimmed(),
                Part::Text(text) => text,
            };
            if number > 0 {
                text = text.then("\n\n");
            }
            text = text.then(part);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::fields;

    fn leaf(name: &str) -> LeafName {
        LeafName::new(name).expect("a name")
    }

    fn table(rows: &[&str]) -> Table {
        let mut table = Table::new(&["A"], false, false);
        for row in rows {
            table.add_row([row]);
        }
        table
    }

    fn shown(views: Vec<(LeafName, View)>) -> String {
        Text::from(View::of_leaves(views)).as_str().to_owned()
    }

    #[test]
    fn tables_with_the_same_headings_become_one_with_the_leaf_before_each_row() {
        let other = || {
            let mut other = Table::new(&["B"], false, false);
            other.add_row(["z"]);
            other
        };
        let text = shown(vec![
            (leaf("a"), View::from(table(&["1", "2"])).and(other())),
            (leaf("edge-2"), table(&[]).into()),
            (leaf("edge-3"), View::from(table(&["3"])).and(other())),
        ]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "LEAF    A",
                "a       1",
                "a       2",
                "edge-3  3",
                "",
                "LEAF    B",
                "a       z",
                "edge-3  z"
            ]
        );
    }

    #[test]
    fn a_description_begins_with_the_leaf_and_other_text_has_it_on_each_line() {
        let device = |id: &str| fields(&[("device", id.to_owned())]);
        let text = shown(vec![
            (leaf("a"), device("x").into()),
            (leaf("b"), device("y").into()),
        ]);
        assert_eq!(text, "leaf    a\ndevice  x\n\nleaf    b\ndevice  y");
        let own = fields(&[("container", "web".to_owned()), ("leaf", "b".to_owned())]);
        assert_eq!(
            shown(vec![(leaf("b"), own.into())]),
            "leaf       b\ncontainer  web"
        );
        let text = shown(vec![
            (leaf("a"), "one\ntwo\n".into()),
            (leaf("edge-2"), "x\u{1b}[2J".into()),
        ]);
        assert_eq!(text, "a       one\na       two\nedge-2  x\\u{1b}[2J");
    }
}

//! What documents quote is there: the messages of `docs/troubleshooting.md` are those of the programs, and the tests of
//! `docs/security.md` exist.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn document(name: &str) -> String {
    fs::read_to_string(root().join("docs").join(name)).expect("the document")
}

/// Returns the texts of all sources below these directories of the crates, where a crate has them.
fn texts(directories: &[&str]) -> Vec<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(root().join("crates")).expect("the crates") {
        let path = entry.expect("a crate").path();
        for directory in directories.iter().map(|directory| path.join(directory)) {
            if directory.is_dir() {
                sources(&directory, &mut files);
            }
        }
    }
    let text = |file: &PathBuf| joined(&fs::read_to_string(file).expect("a source is text"));
    files.iter().map(text).collect()
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory of sources can be read") {
        let path = entry.expect("an entry can be read").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Returns a source with each string literal in one line.
fn joined(source: &str) -> String {
    let mut pieces = source.split("\\\n");
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |text, piece| text + piece.trim_start())
}

/// Returns the quoted parts of the first cell of each row in which a message stands.
fn messages(document: &str) -> Vec<&str> {
    let rows = document.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.filter_map(|row| row.split(" | ").next());
    cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect()
}

#[test]
fn each_message_in_the_document_is_one_of_the_programs() {
    let (document, texts) = (document("troubleshooting.md"), texts(&["src"]));
    let messages = messages(&document);
    assert!(
        messages.len() > 30,
        "the tables were not recognised: {messages:?}"
    );
    let unknown: Vec<_> = messages
        .into_iter()
        .filter(|message| !texts.iter().any(|text| text.contains(message)))
        .collect();
    assert!(unknown.is_empty(), "no program says these: {unknown:#?}");
}

/// Returns the quoted parts of the last cell of each row of the table below this heading.
fn tests_of<'a>(document: &'a str, heading: &str) -> Vec<&'a str> {
    let section = document.split(heading).nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| "));
    let cells = rows.filter_map(|row| row.trim_end_matches(" |").rsplit(" | ").next());
    cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect()
}

#[test]
fn each_test_that_the_summary_of_threats_names_exists() {
    let (document, texts) = (document("security.md"), texts(&["src", "tests"]));
    let named = tests_of(&document, "\n## Who can do what\n");
    assert!(named.len() > 15, "the table was not recognised: {named:?}");
    let unknown: Vec<_> = named
        .into_iter()
        .filter(|name| {
            let (function, literal) = (format!("fn {name}("), format!("\"{name}\""));
            !texts
                .iter()
                .any(|text| text.contains(&function) || text.contains(&literal))
        })
        .collect();
    assert!(unknown.is_empty(), "no test has these names: {unknown:#?}");
}

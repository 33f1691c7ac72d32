//! The messages in `docs/troubleshooting.md` are those of the programs.

use std::fs;
use std::path::{Path, PathBuf};

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
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let document = fs::read_to_string(root.join("docs/troubleshooting.md")).expect("the document");
    let mut files = Vec::new();
    for entry in fs::read_dir(root.join("crates")).expect("the crates") {
        let source = entry.expect("a crate").path().join("src");
        if source.is_dir() {
            sources(&source, &mut files);
        }
    }
    let texts: Vec<String> = files
        .iter()
        .map(|file| joined(&fs::read_to_string(file).expect("a source is text")))
        .collect();
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

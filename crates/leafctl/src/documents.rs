//! Tests of what the README and `docs/` say: each command line of leafctl in them is one that it takes, to the last word.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Parser as _;
use clap::error::ErrorKind;

use crate::commands::Cli;

/// A command line in a document.
#[derive(Debug, PartialEq, Eq)]
struct Written {
    words: Vec<String>,
    /// Whether it is written to be typed as it is; else it may lack arguments, as where a sentence names the command.
    is_whole: bool,
}

/// Returns the command lines of leafctl in a document, of its blocks and of its inline code.
fn command_lines(document: &str) -> Vec<Written> {
    let mut found = Vec::new();
    let (mut text, mut language): (String, Option<String>) = (String::new(), None);
    for line in document.replace("\\\n", " ").lines() {
        if let Some(of) = line.strip_prefix("```") {
            language = language.is_none().then(|| of.to_owned());
        } else if let Some(language) = &language {
            found.extend(of_block(line, language));
        } else {
            text.push_str(&format!("{line}\n"));
        }
    }
    for code in text.split('`').skip(1).step_by(2) {
        if code.starts_with("leafctl ") {
            found.extend(alternatives(&code.replace("\\|", "|").replace('\n', " "), false));
        }
    }
    found
}

fn of_block(line: &str, language: &str) -> Vec<Written> {
    let typed = line.strip_prefix("$ ");
    if language.is_empty() && typed.is_none() && line.starts_with("leafctl ") {
        return alternatives(line, true);
    }
    if !["", "sh"].contains(&language) {
        return Vec::new();
    }
    let of_shell = words(typed.unwrap_or(line), true);
    of_shell
        .into_iter()
        .filter(|words| words.first().is_some_and(|word| word == "leafctl") && words.len() > 1)
        .map(|words| Written {
            words: words.into_iter().map(meant).collect(),
            is_whole: true,
        })
        .collect()
}

/// `leafctl a b | c D` stands for `leafctl a b` and `leafctl a c D`; square brackets enclose what may be left out.
fn alternatives(code: &str, is_block: bool) -> Vec<Written> {
    let parts: Vec<&str> = code.split(" | ").collect();
    let is_whole = is_block && parts.len() == 1;
    let mut found: Vec<Written> = Vec::new();
    for part in parts {
        for words in words(part, false) {
            let mut words: Vec<String> = words
                .into_iter()
                .map(meant)
                .filter(|word| !word.is_empty())
                .collect();
            if let Some(first) = found.first()
                && words.first().is_some_and(|word| word != "leafctl")
            {
                // The noun that they have in common, or none where the first is a verb's option.
                let group = if words[0].starts_with('-') { 3 } else { 2 };
                words.splice(0..0, first.words[..group.min(first.words.len())].to_vec());
            }
            found.push(Written { words, is_whole });
        }
    }
    found
}

/// Returns the words of each command of a line as a shell reads it, without redirections and comments.
fn words(line: &str, has_pipes: bool) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let (mut word, mut quote, mut is_target) = (None::<String>, None::<char>, false);
    let end = |word: &mut Option<String>, is_target: &mut bool, commands: &mut Vec<Vec<String>>| {
        if let Some(word) = word.take()
            && !std::mem::take(is_target)
            && let Some(command) = commands.last_mut()
        {
            command.push(word);
        }
    };
    for character in line.chars() {
        match (character, quote) {
            (character, Some(open)) if character == open => quote = None,
            (character, Some(_)) => word.get_or_insert_default().push(character),
            ('\'' | '"', None) => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            ('#', None) if word.is_none() => break,
            ('<' | '>', None) => {
                end(&mut word, &mut is_target, &mut commands);
                is_target = true;
            }
            ('|' | ';' | '&', None) if has_pipes => {
                end(&mut word, &mut is_target, &mut commands);
                commands.push(Vec::new());
            }
            (blank, None) if blank.is_whitespace() => end(&mut word, &mut is_target, &mut commands),
            (character, None) => word.get_or_insert_default().push(character),
        }
    }
    end(&mut word, &mut is_target, &mut commands);
    commands.retain(|command| !command.is_empty());
    commands
}

/// Returns a word with a value in the place of one that stands for it.
fn meant(word: String) -> String {
    const JOB: &str = "01a1fa19-3499-7075-b997-19a0d15c7240";
    const STORE: &str = "/nix/store/krvm1bsdn8riwzm1qlm6imcgkw1a7if3";
    let bare = word
        .trim_matches(['[', ']'])
        .trim_end_matches('…')
        .trim_end_matches(']');
    match bare {
        "SEQ" => "1".to_owned(),
        "TIME" => "1h".to_owned(),
        "SHELL" => "bash".to_owned(),
        "JOB" | "ID" | "WORK" | "W" | "019c" => JOB.to_owned(),
        "PATH" => format!("{STORE}-hello"),
        value if value.starts_with(|letter: char| letter.is_ascii_uppercase()) && !value.contains('_') => {
            value.to_lowercase()
        }
        given => given.replace("/nix/store/…", STORE).replace("$PWD", "/srv"),
    }
}

fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let entries = std::fs::read_dir(root.join("docs")).expect("docs is readable");
    let mut all: Vec<PathBuf> = entries
        .map(|entry| entry.expect("docs is readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    all.push(root.join("README.md"));
    all.sort();
    all
}

#[test]
fn each_command_line_of_leafctl_in_the_documents_is_one_that_it_takes() {
    let mut wrong = Vec::new();
    for file in documents() {
        let text = std::fs::read_to_string(&file).expect("a document is readable");
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let found = command_lines(&text);
        // What is not recognised is not tried.
        let least = match name.as_str() {
            "README.md" => 50,
            "nix.md" => 55,
            "deploy.md" => 20,
            "keys.md" => 20,
            _ => 0,
        };
        assert!(found.len() >= least, "{name}: {} in {found:#?}", found.len());
        for Written { words, is_whole } in found {
            let Err(refused) = Cli::try_parse_from(words.iter().map(OsString::from)) else {
                continue;
            };
            let lacks_arguments = matches!(
                refused.kind(),
                ErrorKind::MissingRequiredArgument
                    | ErrorKind::MissingSubcommand
                    | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            );
            if !lacks_arguments || is_whole {
                wrong.push(format!("{name}: {words:?}: {refused}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn command_lines_are_read_as_a_shell_and_as_a_reader_do() {
    let document = "Text `leafctl nix why JOB` and `leafctl: no`.\n```sh\nleafctl nix build 'a#b c' --detach   # prints it\n\
                    tar c . | leafctl nix run p#z -- z -d > out.zst\n```\n```\nleafctl leaf list | show [NAME]\n  leafctl, a drawing\n$ leafctl events\n```\n\
                    ```toml\nx = \"leafctl no\"\n```\n| `leafctl container update NAME [--toplevel PATH \\| --flake REF]` |\n";
    let found = command_lines(document);
    let lines: Vec<(String, bool)> = found
        .iter()
        .map(|written| (written.words.join("|"), written.is_whole))
        .collect();
    let line = |text: &str, is_whole| (text.to_owned(), is_whole);
    assert_eq!(
        lines,
        [
            line("leafctl|nix|build|a#b c|--detach", true),
            line("leafctl|nix|run|p#z|--|z|-d", true),
            line("leafctl|leaf|list", false),
            line("leafctl|leaf|show|name", false),
            line("leafctl|events", true),
            line("leafctl|nix|why|01a1fa19-3499-7075-b997-19a0d15c7240", false),
            line(
                "leafctl|container|update|name|--toplevel|/nix/store/krvm1bsdn8riwzm1qlm6imcgkw1a7if3-hello",
                false
            ),
            line("leafctl|container|update|--flake|ref", false),
        ]
    );
}

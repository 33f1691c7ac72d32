//! Parses the command line, and tells what is wrong with it: as text, or with `--json` as the document that every other
//! error is.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;

use crate::commands::Cli;
use crate::error::Error;
use crate::output::Output;

/// A command line that names no command to carry out: it is invalid, or asks for the help or the version.
#[derive(Debug)]
pub(crate) enum Unparsed {
    /// Its text is printed as it is.
    Text(clap::Error),
    /// It is invalid, and has `--json`.
    Document(Error),
}

/// Parses a command line, which begins with the program's name.
///
/// # Errors
/// [`Unparsed`], which says how it is told.
pub(crate) fn parse(line: impl IntoIterator<Item = OsString>) -> Result<Cli, Unparsed> {
    let line: Vec<OsString> = line.into_iter().collect();
    Cli::try_parse_from(&line).map_err(|error| {
        // The parser gives up at the first error, so what it read before is not known. A value that begins with a dash is
        // written behind `=` or `--`, so this word is the flag.
        let wants_json = line
            .iter()
            .skip(1)
            .take_while(|word| *word != "--")
            .any(|word| word == "--json");
        if wants_json && error.use_stderr() {
            Unparsed::Document(Error::Usage(detail(&error)))
        } else {
            Unparsed::Text(error)
        }
    })
}

impl Unparsed {
    /// Prints it, and returns the exit code.
    pub(crate) fn tell(self) -> ExitCode {
        match self {
            Self::Text(error) => error.exit(),
            Self::Document(error) => {
                Output::new(true).error(&error);
                ExitCode::from(error.exit_code())
            }
        }
    }
}

/// Returns the parser's error without the label, the usage and the reference to the help, which follow it as paragraphs.
fn detail(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let ends = ["\n\nUsage: ", "\n\nFor more information"];
    let end = ends.iter().filter_map(|end| text.find(end)).min();
    text[..end.unwrap_or(text.len())].trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &[&str]) -> Unparsed {
        let line = std::iter::once("leafctl").chain(line.iter().copied());
        parse(line.map(OsString::from)).expect_err("no command")
    }

    fn document(line: &[&str]) -> serde_json::Value {
        match refused(line) {
            Unparsed::Document(error) => error.document(),
            Unparsed::Text(error) => panic!("{line:?} is told as text: {error}"),
        }
    }

    #[test]
    fn an_invalid_command_line_with_json_is_told_as_a_document() {
        for (line, detail) in [
            (
                &["leaf", "show", "--json", "--nonsense"][..],
                "unexpected argument '--nonsense' found",
            ),
            (
                &["--json", "leaf", "show", "Bad"],
                "invalid value 'Bad' for '[NAME]': \"Bad\" is not a leaf name",
            ),
            (
                &["container", "show", "--json"],
                "the following required arguments were not provided:\n  <NAME>",
            ),
            (
                &["lef", "--json"],
                "unrecognized subcommand 'lef'\n\n  tip: a similar subcommand exists: 'leaf'",
            ),
            (
                &["leaf", "--json"],
                "'leafctl leaf' requires a subcommand but one was not provided\n  [subcommands: list",
            ),
            (
                &["--json"],
                "'leafctl' requires a subcommand but one was not provided\n  [subcommands: leaf",
            ),
        ] {
            let document = document(line);
            let said = document["detail"].as_str().expect("a detail");
            assert!(said.starts_with(detail), "{line:?}: {said:?}");
            assert!(
                !said.contains("Usage") && !said.contains("For more information"),
                "{said:?}"
            );
            assert_eq!(document["title"], "The command line is invalid");
            assert_eq!(document["exit_code"], 2, "{line:?}");
        }
    }

    #[test]
    fn help_and_what_has_no_json_flag_are_told_as_text() {
        for line in [
            &["leaf", "show", "--nonsense"][..],
            &["--json", "--help"],
            &["--version", "--json"],
            &["container", "show", "--", "a", "--json"],
        ] {
            assert!(matches!(refused(line), Unparsed::Text(_)), "{line:?}");
        }
    }
}

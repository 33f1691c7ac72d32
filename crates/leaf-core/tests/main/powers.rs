//! The table of commands by power in `docs/security.md` is that of the declarations.

use leaf_core::command::{COMMANDS, Power};

#[test]
fn the_table_of_powers_in_the_document_names_each_command_once_under_its_power() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/security.md");
    let document = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let made: Vec<String> = Power::ALL.into_iter().map(row).collect();
    let (_, after) = document
        .split_once("| power | commands |\n|---|---|\n")
        .expect("the table is there");
    let found: Vec<&str> = after.lines().take_while(|line| line.starts_with('|')).collect();
    assert_eq!(found, made, "docs/security.md must have these rows");
}

fn row(power: Power) -> String {
    let commands: Vec<String> = COMMANDS
        .iter()
        .filter(|command| command.power == power)
        .map(|command| format!("`{}`", command.noun_verb))
        .collect();
    let commands = match commands.is_empty() {
        true => "none yet".to_owned(),
        false => commands.join(", "),
    };
    format!("| `{}` | {commands} |", power.as_str())
}

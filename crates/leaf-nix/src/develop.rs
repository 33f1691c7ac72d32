//! `nix develop`: the script with which the bash of a development shell sets up its environment.
//!
//! The environment is that of `nix print-dev-env` ([`print_env`](crate::print_env)); the script does what that of `nix develop` does
//! (`src/nix/develop.cc` of Nix). The runner of leaf-job writes it into a file, and starts bash.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use leaf_core::job::develop::{DevelopTask, Shell, ShellPath, ShellStart};
use leaf_core::job::print_env::{Environment, Variable};

/// The variables of a build that are none of a shell, as in Nix, and `BASH`, the path of the bash that reads the script.
const LEFT_OUT: [&str; 17] = [
    "BASH",
    "BASHOPTS",
    "EUID",
    "HOME",
    "NIX_BUILD_TOP",
    "NIX_ENFORCE_PURITY",
    "NIX_LOG_FD",
    "NIX_REMOTE",
    "PPID",
    "SHELLOPTS",
    "SSL_CERT_FILE",
    "TEMP",
    "TEMPDIR",
    "TERM",
    "TMP",
    "TMPDIR",
    "UID",
];
/// The variables whose values are behind those of the build.
const SAVED: [&str; 2] = ["PATH", "XDG_DATA_DIRS"];
/// The files of structured attributes, and the variables with their paths.
const ATTRIBUTE_FILES: [(&str, &str); 2] = [
    (".attrs.json", "NIX_ATTRS_JSON_FILE"),
    (".attrs.sh", "NIX_ATTRS_SH_FILE"),
];

/// Returns the shell of a task: in this environment of a build, or else with packages.
#[must_use]
pub fn shell(task: &DevelopTask, environment: Option<&Environment>) -> Shell {
    let start = match &task.session {
        _ if !task.command.is_empty() => ShellStart::Command,
        Some(session) if session.terminal.is_some() => ShellStart::Interactive,
        _ => ShellStart::Input,
    };
    let mut script = "unset shellHook BASH_ENV\n".to_owned();
    if let Some(environment) = environment {
        for name in SAVED {
            line(
                &mut script,
                format_args!("{name}=${{{name}:-}}\nnix_saved_{name}=\"${name}\""),
            );
        }
        declare(&mut script, environment);
        for name in SAVED {
            line(
                &mut script,
                format_args!("{name}=\"${name}${{nix_saved_{name}:+:$nix_saved_{name}}}\""),
            );
        }
    }
    let purity = if task.pure { "pure" } else { "impure" };
    line(&mut script, format_args!("export IN_NIX_SHELL={purity}"));
    // The program's own, which is empty, and removed with it.
    line(
        &mut script,
        format_args!(
            "export NIX_BUILD_TOP=\"$TMPDIR\" TMP=\"$TMPDIR\" TEMP=\"$TMPDIR\" TEMPDIR=\"$TMPDIR\" SHELL=\"$BASH\""
        ),
    );
    for (name, value) in &task.environment {
        line(&mut script, format_args!("export {name}={}", quoted(value)));
    }
    line(&mut script, format_args!("eval \"${{shellHook:-}}\""));
    if let Some(hook) = &task.shell_hook {
        // What is wrong in it keeps the rest of the script from nothing.
        line(&mut script, format_args!("eval {}", quoted(hook)));
    }
    match start {
        ShellStart::Interactive => {
            script = format!("shopt -u expand_aliases\n{script}shopt -s expand_aliases\n");
        }
        ShellStart::Input => {}
        ShellStart::Command => {
            let words: Vec<String> = task.command.iter().map(|word| quoted(word)).collect();
            line(&mut script, format_args!("exec -- {}", words.join(" ")));
        }
    }
    Shell {
        start,
        script,
        files: environment
            .map(|environment| environment.structured_attrs.clone())
            .unwrap_or_default()
            .into_iter()
            .filter(|(name, _)| ATTRIBUTE_FILES.iter().any(|(known, _)| known == name))
            .collect(),
        paths: environment.map(paths).unwrap_or_default(),
        bash_directories: environment
            .and_then(|environment| text(environment, "builder"))
            .and_then(|builder| Some(Path::new(builder).parent()?.to_str()?.to_owned()))
            .filter(|directory| directory.starts_with('/'))
            .into_iter()
            .collect(),
    }
}

fn line(script: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(script, "{line}").expect("a string can be written");
}

/// Appends what sets the variables and the functions of an environment.
fn declare(script: &mut String, environment: &Environment) {
    let variables = environment.variables.iter();
    for (name, variable) in
        variables.filter(|(name, _)| is_variable(name) && !LEFT_OUT.contains(&name.as_str()))
    {
        match variable {
            Variable::Exported(value) => {
                line(script, format_args!("{name}={}\nexport {name}", quoted(value)));
            }
            Variable::Var(value) => line(script, format_args!("{name}={}", quoted(value))),
            Variable::Array(values) => {
                let values: Vec<String> = values.iter().map(|value| quoted(value)).collect();
                line(script, format_args!("declare -a {name}=({})", values.join(" ")));
            }
            Variable::Associative(values) => {
                let values: Vec<String> = values
                    .iter()
                    .map(|(key, value)| format!("[{}]={}", quoted(key), quoted(value)))
                    .collect();
                line(script, format_args!("declare -A {name}=({})", values.join(" ")));
            }
        }
    }
    let functions = environment.bash_functions.iter();
    for (name, body) in functions.filter(|(name, _)| is_function(name)) {
        line(script, format_args!("{name} ()\n{{\n{body}}}"));
    }
}

/// Returns what is replaced by paths that the runner knows: the output paths, and the files of structured attributes.
fn paths(environment: &Environment) -> BTreeMap<String, ShellPath> {
    let outputs: BTreeMap<&str, &str> = match environment.variables.get("outputs") {
        Some(Variable::Associative(outputs)) => outputs
            .iter()
            .map(|(name, path)| (name.as_str(), path.as_str()))
            .collect(),
        Some(Variable::Array(names)) => of_names(environment, names.iter().map(String::as_str)),
        Some(Variable::Exported(names) | Variable::Var(names)) => {
            of_names(environment, names.split_whitespace())
        }
        None => of_names(environment, ["out"]),
    };
    // Everything else is no output, and would be replaced anywhere.
    let outputs = outputs.into_iter().filter(|(name, path)| {
        path.starts_with("/nix/store/") && !name.contains('/') && !name.starts_with('.')
    });
    let mut paths: BTreeMap<String, ShellPath> = outputs
        .map(|(name, path)| (path.to_owned(), ShellPath::Home(format!("outputs/{name}"))))
        .collect();
    for (file, variable) in ATTRIBUTE_FILES {
        if environment.structured_attrs.contains_key(file)
            && let Some(path) = text(environment, variable).filter(|path| path.starts_with('/'))
        {
            paths.insert(path.to_owned(), ShellPath::File(file.to_owned()));
        }
    }
    paths
}

/// Returns the paths of outputs whose variables have their names.
fn of_names<'a>(
    environment: &'a Environment,
    names: impl IntoIterator<Item = &'a str>,
) -> BTreeMap<&'a str, &'a str> {
    names
        .into_iter()
        .filter_map(|name| Some((name, text(environment, name)?)))
        .collect()
}

/// Returns the value of a variable that is text.
fn text<'a>(environment: &'a Environment, name: &str) -> Option<&'a str> {
    match environment.variables.get(name)? {
        Variable::Exported(value) | Variable::Var(value) => Some(value),
        Variable::Array(_) | Variable::Associative(_) => None,
    }
}

/// Returns a text as one word of bash, which expands nothing in it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn is_variable(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Returns whether this is the name of a function in whose definition it can stand as it is.
fn is_function(name: &str) -> bool {
    let odd = |c: char| c.is_whitespace() || c.is_control() || "\"'`$\\|&;()<>{}*?[]#~!=".contains(c);
    !name.is_empty() && !name.contains(odd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use leaf_core::job::Installable;
    use std::process::Command;

    fn task() -> DevelopTask {
        DevelopTask {
            installable: Some(Installable::Flake {
                reference: "github:o/r".to_owned(),
            }),
            packages: Vec::new(),
            command: Vec::new(),
            shell_hook: None,
            environment: BTreeMap::new(),
            pure: false,
            impure: false,
            timeout_seconds: 60,
            session: None,
        }
    }

    const OUT: &str = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a-env";

    fn environment() -> Environment {
        let exported = |name: &str, value: &str| (name.to_owned(), Variable::Exported(value.to_owned()));
        Environment {
            bash_functions: BTreeMap::from([
                ("greet".to_owned(), " \n    echo \"hello $1\"\n".to_owned()),
                ("a::b-c".to_owned(), " \n    echo odd\n".to_owned()),
                ("x; touch /tmp/no".to_owned(), " \n    echo no\n".to_owned()),
            ]),
            variables: BTreeMap::from([
                exported("given", "it's \"a\" $b\n\\ \u{1b}[31m"),
                exported("PATH", "/tools/bin"),
                exported("HOME", "/homeless-shelter"),
                exported("TERM", "none"),
                exported("out", OUT),
                exported("outputs", "out"),
                exported("builder", "/nix/store/b-bash/bin/bash"),
                exported("shellHook", "hooked=\"$given\"; late=$after"),
                exported("1x", "no name"),
                ("own".to_owned(), Variable::Var("not exported".to_owned())),
                (
                    "list".to_owned(),
                    Variable::Array(vec!["a b".to_owned(), "c'd".to_owned()]),
                ),
                (
                    "map".to_owned(),
                    Variable::Associative(BTreeMap::from([("k ]".to_owned(), "$v".to_owned())])),
                ),
            ]),
            structured_attrs: BTreeMap::new(),
        }
    }

    /// Runs a script in bash, as the runner does with a command, and returns what is printed.
    fn run(task: &DevelopTask, environment: Option<&Environment>, probe: &str) -> String {
        let shell = shell(task, environment);
        let output = Command::new("/bin/bash")
            .args(["-c", &format!("{}\n{probe}", shell.script)])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("TMPDIR", "/tmp")
            .env("HOME", "/h")
            .output()
            .expect("bash runs");
        assert!(
            output.stderr.is_empty(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    #[test]
    fn bash_gets_the_variables_and_functions_of_the_environment_as_they_are() {
        let probe = "k='k ]'; printf '%s|' \"$given\" \"$own\" \"${list[1]}\" \"${map[$k]}\" \"$PATH\" \"$HOME\" \"$IN_NIX_SHELL\" \"$NIX_BUILD_TOP\"; greet you; a::b-c; env | grep -c ^own=";
        let said = run(&task(), Some(&environment()), probe);
        assert_eq!(
            said,
            "it's \"a\" $b\n\\ \u{1b}[31m|not exported|c'd|$v|/tools/bin:/usr/bin:/bin|/h|impure|/tmp|hello you\nodd\n0\n"
        );
    }

    #[test]
    fn the_callers_variables_come_before_the_hooks_and_its_hook_comes_last() {
        let task = DevelopTask {
            environment: BTreeMap::from([("after".to_owned(), "x'y".to_owned())]),
            shell_hook: Some("last=\"$late, $hooked\" # the end".to_owned()),
            pure: true,
            ..task()
        };
        let said = run(&task, Some(&environment()), "echo \"$last\"; echo $IN_NIX_SHELL");
        assert_eq!(said, "x'y, it's \"a\" $b\n\\ \u{1b}[31m\npure\n");
        let said = run(&task, None, "echo \"$last\"; echo $PATH");
        assert_eq!(said, ", \n/usr/bin:/bin\n");
    }

    #[test]
    fn a_hook_with_a_mistake_ends_nothing() {
        let task = DevelopTask {
            shell_hook: Some("if then".to_owned()),
            ..task()
        };
        let shell = shell(&task, None);
        let output = Command::new("/bin/bash")
            .args(["-c", &format!("{}\necho goes on", shell.script)])
            .output()
            .expect("bash runs");
        assert_eq!(output.stdout, b"goes on\n");
        assert!(!output.stderr.is_empty());
    }

    #[test]
    fn a_command_takes_the_place_of_the_shell_with_its_words_as_they_are() {
        let task = DevelopTask {
            command: [
                "/bin/bash",
                "-c",
                "printf '%s,' \"$@\"",
                "x",
                "a b",
                "$HOME",
                "-c",
            ]
            .map(str::to_owned)
            .to_vec(),
            ..task()
        };
        assert_eq!(shell(&task, None).start, ShellStart::Command);
        assert_eq!(run(&task, None, "echo not reached"), "a b,$HOME,-c,");
    }

    #[test]
    fn output_paths_and_the_files_of_attributes_are_the_runners() {
        let of_environment = shell(&task(), Some(&environment()));
        assert_eq!(of_environment.start, ShellStart::Input);
        assert_eq!(
            of_environment.paths,
            BTreeMap::from([(OUT.to_owned(), ShellPath::Home("outputs/out".to_owned()))])
        );
        assert_eq!(of_environment.bash_directories, ["/nix/store/b-bash/bin"]);
        let mut structured = environment();
        structured.structured_attrs = BTreeMap::from([
            (".attrs.sh".to_owned(), "declare out".to_owned()),
            ("../x".to_owned(), String::new()),
        ]);
        let outputs = [("out", OUT), ("../up", OUT), ("odd", "/")];
        let outputs = outputs.map(|(name, path)| (name.to_owned(), path.to_owned()));
        structured
            .variables
            .insert("outputs".to_owned(), Variable::Associative(outputs.into()));
        structured.variables.insert(
            "NIX_ATTRS_SH_FILE".to_owned(),
            Variable::Exported("/build/.attrs.sh".to_owned()),
        );
        let shell = shell(&task(), Some(&structured));
        assert_eq!(
            shell.paths,
            BTreeMap::from([
                (
                    "/build/.attrs.sh".to_owned(),
                    ShellPath::File(".attrs.sh".to_owned())
                ),
                (OUT.to_owned(), ShellPath::Home("outputs/out".to_owned())),
            ])
        );
        assert_eq!(shell.files.keys().collect::<Vec<_>>(), [".attrs.sh"]);
    }
}

//! The modules of a crate use each other in one direction: no file uses one that uses it, directly or through others.
//!
//! A use is a path that begins with `crate::`, `super::` or `self::`, outside of unit tests and comments. It is a use of the
//! module that has the item, not of one that re-exports it. The items of a crate's root are free, since all modules share it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The path of a module below its crate's root.
type Module = Vec<String>;

#[test]
fn no_file_uses_one_that_uses_it() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    for entry in std::fs::read_dir(&crates).expect("the crates") {
        let package = entry.expect("an entry").path();
        let Some(name) = package.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if !package.join("src").is_dir() {
            continue;
        }
        for circle in circles(&uses(&read(&package.join("src")))) {
            let modules = circle.iter().map(|module| module.join("::")).collect();
            found.push((name.to_owned(), modules));
        }
    }
    assert!(found.is_empty(), "these files use each other: {found:?}");
}

/// The sources of a crate by their modules.
fn read(sources: &Path) -> BTreeMap<Module, String> {
    let mut found = BTreeMap::new();
    let mut open: Vec<PathBuf> = vec![sources.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).expect("a directory of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let below = path
                .strip_prefix(sources)
                .expect("it is below")
                .with_extension("");
            let mut module: Module = below
                .components()
                .map(|part| part.as_os_str().to_string_lossy().into_owned())
                .collect();
            // Each file of `bin` is a crate of its own.
            if module[0] == "bin" {
                continue;
            }
            if ["lib", "main", "mod"].contains(&module[module.len() - 1].as_str()) {
                module.pop();
            }
            let text = std::fs::read_to_string(&path).expect("a source is text");
            // A program beside a library has the same root.
            found
                .entry(module)
                .or_insert_with(String::new)
                .push_str(&code(&text));
        }
    }
    found
}

/// A source without its comments and its unit tests, which stand at its end.
fn code(text: &str) -> String {
    let (text, _) = text.split_once("#[cfg(test)]\nmod tests").unwrap_or((text, ""));
    let mut code = String::new();
    for line in text.lines() {
        code.push_str(line.split("//").next().unwrap_or_default());
        code.push('\n');
    }
    code
}

/// The modules that each uses.
fn uses(sources: &BTreeMap<Module, String>) -> BTreeMap<Module, BTreeSet<Module>> {
    let exports: BTreeMap<Module, Vec<Module>> = sources
        .iter()
        .map(|(module, code)| (module.clone(), re_exports(module, code, sources)))
        .collect();
    let of = |(module, code): (&Module, &String)| {
        let used = paths(code).into_iter().map(|path| {
            let path = absolute(module, path).expect("it begins in its crate");
            home(&path, sources, &exports)
        });
        let used = used.filter(|used| !used.is_empty() && used != module);
        (module.clone(), used.collect())
    };
    sources
        .iter()
        .filter(|(module, _)| !module.is_empty())
        .map(of)
        .collect()
}

/// A path from its crate's root; nothing if it does not begin with `crate`, `super` or `self`.
fn absolute(module: &Module, path: Vec<String>) -> Option<Module> {
    let mut absolute = module.clone();
    let mut names = path.into_iter().peekable();
    let mut begins_here = false;
    while let Some(first) = names.next_if(|name| ["crate", "self", "super"].contains(&name.as_str())) {
        begins_here = true;
        match first.as_str() {
            "crate" => absolute.clear(),
            "super" => drop(absolute.pop()),
            _ => {}
        }
    }
    absolute.extend(names);
    begins_here.then_some(absolute)
}

/// What a module re-exports of its crate: items, and modules of which it re-exports all.
fn re_exports(module: &Module, code: &str, sources: &BTreeMap<Module, String>) -> Vec<Module> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("pub") {
        let rest = &code[at + 3..];
        let rest = match rest.strip_prefix('(') {
            Some(scope) => scope.split_once(')').map_or("", |(_, rest)| rest),
            None => rest,
        };
        if let Some(tree) = rest.strip_prefix(" use ") {
            branches(tree, &[], &mut found);
        }
    }
    let from_root = found.into_iter().filter_map(|path| {
        let first = path.first()?;
        let child: Module = module.iter().chain([first]).cloned().collect();
        let is_child = sources.contains_key(&child);
        absolute(module, path.clone()).or_else(|| is_child.then(|| [module.as_slice(), &path].concat()))
    });
    from_root.collect()
}

/// The module that has the item of this path, which may lead through re-exports; or the module of this path.
fn home(
    path: &[String],
    sources: &BTreeMap<Module, String>,
    exports: &BTreeMap<Module, Vec<Module>>,
) -> Module {
    let mut length = path.len();
    while length > 0 && !sources.contains_key(&path[..length]) {
        length -= 1;
    }
    let (module, rest) = path.split_at(length);
    let Some((item, below)) = rest.split_first() else {
        return module.to_vec();
    };
    let re_exported = exports.get(module).into_iter().flatten().find_map(|export| {
        if !sources.contains_key(export) {
            let leads_on = export.last() == Some(item);
            return leads_on.then(|| home(&[export, below].concat(), sources, exports));
        }
        let found = home(&[export.as_slice(), rest].concat(), sources, exports);
        has(&sources[&found], item).then_some(found)
    });
    re_exported.unwrap_or_else(|| module.to_vec())
}

/// Whether a source has an item of this name.
fn has(code: &str, item: &str) -> bool {
    let kinds = ["struct", "enum", "fn", "const", "static", "type", "trait"];
    kinds.iter().any(|kind| {
        let declaration = format!("{kind} {item}");
        code.match_indices(&declaration).any(|(at, _)| {
            !code[at + declaration.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
        })
    })
}

/// The paths of a source that begin in its crate; one for each branch of a tree of them.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '$';
    for root in ["crate", "super", "self"] {
        for (at, _) in code.match_indices(&format!("{root}::")) {
            // `super::super::a` and `$crate::a` begin once.
            if !code[..at].ends_with(part_of_name) {
                branches(&code[at..], &[], &mut found);
            }
        }
    }
    found
}

/// Adds the paths that a text begins with, below `above`; returns the text behind them.
fn branches<'a>(text: &'a str, above: &[String], found: &mut Vec<Vec<String>>) -> &'a str {
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
            match rest.strip_prefix('}') {
                Some(behind) => return behind,
                None if rest.is_empty() => return rest,
                None => {
                    let behind = branches(rest, above, found);
                    // What is no path, such as `a as b`.
                    let end = behind.find([',', '}']).unwrap_or(behind.len());
                    rest = &behind[end..];
                }
            }
        }
    }
    let end = text
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let mut path = above.to_vec();
    if !name.is_empty() && (name != "self" || above.is_empty()) {
        path.push(name.to_owned());
    }
    match rest.strip_prefix("::") {
        Some(below) if below.starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '{') => {
            branches(below, &path, found)
        }
        _ => {
            found.push(path);
            rest
        }
    }
}

/// The largest sets of modules in which each uses each other, directly or through others, sorted.
fn circles(uses: &BTreeMap<Module, BTreeSet<Module>>) -> Vec<Vec<Module>> {
    let reached: BTreeMap<&Module, BTreeSet<&Module>> = uses
        .keys()
        .map(|from| {
            let mut reached = BTreeSet::new();
            let mut open = vec![from];
            while let Some(module) = open.pop() {
                let next = uses.get(module).into_iter().flatten();
                open.extend(next.filter(|next| reached.insert(*next)));
            }
            (from, reached)
        })
        .collect();
    let circles: BTreeSet<Vec<Module>> = reached
        .iter()
        .filter(|(module, own)| own.contains(*module))
        .map(|(module, own)| {
            let back = own.iter().filter(|other| reached[*other].contains(module));
            back.map(|other| (*other).clone()).collect()
        })
        .collect();
    circles.into_iter().collect()
}

#[test]
fn a_circle_is_found_whatever_form_its_uses_have() {
    let sources = |texts: &[(&str, &str)]| -> BTreeMap<Module, String> {
        texts
            .iter()
            .map(|(module, text)| {
                let module = module
                    .split("::")
                    .filter(|name| !name.is_empty())
                    .map(str::to_owned);
                (module.collect(), code(text))
            })
            .collect()
    };
    let found = |texts: &[(&str, &str)]| -> Vec<String> {
        circles(&uses(&sources(texts)))
            .iter()
            .map(|circle| circle.iter().map(|m| m.join("::")).collect::<Vec<_>>().join(" "))
            .collect()
    };
    assert_eq!(
        found(&[
            ("a", "use crate::{b::{self, X}, c};"),
            ("b", "fn f() { super::a::g() }"),
            ("c", "")
        ]),
        ["a b"]
    );
    assert_eq!(
        found(&[
            ("a", "use crate::b::X as Y;"),
            ("b", "use crate::c::*;"),
            ("c", "use self::super::a::Z;")
        ]),
        ["a b c"]
    );
    assert_eq!(
        found(&[
            ("a", "mod b; use b::X;\nuse self::b::Y;"),
            ("a::b", "use super::Z;")
        ]),
        ["a a::b"]
    );
    // A re-export hides none.
    assert_eq!(
        found(&[
            ("", "pub use a::X;"),
            ("a", "use crate::b::Y;\npub struct X;"),
            ("b", "use crate::X;")
        ]),
        ["a b"]
    );
    assert_eq!(
        found(&[
            ("a", "pub(crate) use b::*;"),
            ("a::b", "use crate::c::Y;\npub enum X {}"),
            ("c", "pub fn f() -> crate::a::X {}")
        ]),
        ["a::b c"]
    );
    // The root, a comment and a unit test make none.
    assert_eq!(
        found(&[
            ("", "use crate::a::X;"),
            ("a", "use crate::{Root, b::X};"),
            (
                "b",
                "// crate::a::X\nuse crate::Root;\n#[cfg(test)]\nmod tests { use crate::a::X; }"
            ),
        ]),
        [""; 0]
    );
}

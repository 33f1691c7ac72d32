//! Compares two files or directories by what a NAR has of them: types, contents, the executable bit, and targets of links.
//! Times, owners and other permissions are none of it (Nix thesis, figure 5.2).

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use leaf_core::job::check::{DifferenceKind, FileDifference, MOST_DIFFERENCES};
use serde::{Deserialize, Serialize};

/// The maximum length of a file's name in a difference, in bytes.
const FILE_BYTES: usize = 400;
const BUFFER_BYTES: usize = 64 << 10;

/// The differences of two trees.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Differences {
    /// The first of them, in the order of names: at most 32.
    pub listed: Vec<FileDifference>,
    /// The number of further ones.
    pub left_out: u64,
}

impl Differences {
    fn push(&mut self, file: &Path, what: DifferenceKind, first_byte: Option<u64>) {
        if self.listed.len() == MOST_DIFFERENCES {
            self.left_out += 1;
            return;
        }
        let mut name = file.to_string_lossy().into_owned();
        crate::internal_json::cut(&mut name, FILE_BYTES);
        self.listed.push(FileDifference {
            file: name,
            what,
            first_byte,
        });
    }
}

/// Compares two files or directories, and follows no links.
///
/// # Errors
/// One of them can't be read.
pub fn compare(first: &Path, second: &Path) -> io::Result<Differences> {
    let mut differences = Differences::default();
    // Names inside both trees, the next one last.
    let mut open = vec![PathBuf::new()];
    while let Some(inside) = open.pop() {
        let one = in_tree(first, &inside);
        let other = in_tree(second, &inside);
        let (of_one, of_other) = (fs::symlink_metadata(&one)?, fs::symlink_metadata(&other)?);
        if of_one.file_type() != of_other.file_type() {
            differences.push(&one, DifferenceKind::Type, None);
        } else if of_one.is_dir() {
            let (names, others) = (names(&one)?, names(&other)?);
            for name in names.difference(&others) {
                differences.push(&one.join(name), DifferenceKind::OnlyInFirst, None);
            }
            for name in others.difference(&names) {
                differences.push(&one.join(name), DifferenceKind::OnlyInSecond, None);
            }
            let in_both = names.iter().rev().filter(|name| others.contains(*name));
            open.extend(in_both.map(|name| inside.join(name)));
        } else if of_one.is_symlink() {
            if fs::read_link(&one)? != fs::read_link(&other)? {
                differences.push(&one, DifferenceKind::LinkTarget, None);
            }
        } else if of_one.is_file() {
            if let Some(byte) = first_difference(&one, &other)? {
                differences.push(&one, DifferenceKind::Content, Some(byte));
            } else if is_executable(&of_one) != is_executable(&of_other) {
                differences.push(&one, DifferenceKind::Executable, None);
            }
        }
    }
    Ok(differences)
}

/// Returns the path of a name inside a tree; a tree that is one file has the empty name only.
fn in_tree(tree: &Path, inside: &Path) -> PathBuf {
    if inside.as_os_str().is_empty() {
        tree.to_owned()
    } else {
        tree.join(inside)
    }
}

fn names(directory: &Path) -> io::Result<BTreeSet<OsString>> {
    fs::read_dir(directory)?
        .map(|entry| Ok(entry?.file_name()))
        .collect()
}

fn is_executable(metadata: &Metadata) -> bool {
    metadata.permissions().mode() & 0o100 != 0
}

/// Returns the place of the first byte that differs.
pub(crate) fn first_difference(one: &Path, other: &Path) -> io::Result<Option<u64>> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (mut here, mut there) = (vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]);
    let mut before = 0;
    loop {
        let (read, other_read) = (fill(&mut one, &mut here)?, fill(&mut other, &mut there)?);
        let (here, there) = (&here[..read], &there[..other_read]);
        if here != there {
            let same = here.iter().zip(there).take_while(|(a, b)| a == b).count();
            return Ok(Some(before + same as u64));
        }
        if read == 0 {
            return Ok(None);
        }
        before += read as u64;
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::{OpenOptionsExt as _, symlink};

    use super::*;

    /// Makes a tree: names, and what each of them is.
    fn tree(at: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(at).expect("a directory");
        for (name, what) in files {
            let path = at.join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            let mode = if what.starts_with('x') { 0o555 } else { 0o444 };
            match what.strip_prefix("-> ") {
                Some(target) => symlink(target, path).expect("a link"),
                None => {
                    let mut options = fs::OpenOptions::new();
                    let mut file = options
                        .write(true)
                        .create_new(true)
                        .mode(mode)
                        .open(path)
                        .expect("a file");
                    file.write_all(&what.as_bytes()[1..]).expect("written");
                }
            }
        }
    }

    #[test]
    fn trees_differ_by_types_contents_executable_bits_and_targets_and_by_nothing_else() {
        let scratch = tempfile::tempdir().expect("a directory");
        let (first, second) = (scratch.path().join("first"), scratch.path().join("second"));
        let long = format!(" {}", "a".repeat(BUFFER_BYTES + 5));
        let longer = format!("{long}b");
        let same: &[(&str, &str)] = &[
            ("same", " 1"),
            ("d/same", "x1"),
            ("d/link", "-> /nowhere"),
            ("d-e/f", " 1"),
        ];
        tree(&first, same);
        tree(&second, same);
        assert_eq!(
            compare(&first, &second).expect("readable"),
            Differences::default()
        );
        tree(
            &first,
            &[
                ("bit", "x1"),
                ("d/kind", " 1"),
                ("d/long", &long),
                ("d/other", "-> a"),
                ("gone/x", " 1"),
            ],
        );
        tree(
            &second,
            &[
                ("bit", " 1"),
                ("d/kind", "-> 1"),
                ("d/long", &longer),
                ("d/other", "-> b"),
                ("new", " 1"),
            ],
        );
        let found = compare(&first, &second).expect("readable");
        let inside = |file: &str| first.join(file).display().to_string();
        let expected = [
            ("gone", DifferenceKind::OnlyInFirst, None),
            ("new", DifferenceKind::OnlyInSecond, None),
            ("bit", DifferenceKind::Executable, None),
            ("d/kind", DifferenceKind::Type, None),
            ("d/long", DifferenceKind::Content, Some(BUFFER_BYTES as u64 + 5)),
            ("d/other", DifferenceKind::LinkTarget, None),
        ];
        let expected: Vec<FileDifference> = expected
            .map(|(file, what, first_byte)| FileDifference {
                file: inside(file),
                what,
                first_byte,
            })
            .into();
        assert_eq!(found.listed, expected);
        // Files, and more than are listed.
        let found = compare(&first.join("same"), &second.join("d/long")).expect("readable");
        assert_eq!(found.listed.first().map(|first| first.first_byte), Some(Some(0)));
        for n in 0..100 {
            fs::write(first.join(format!("many-{n}")), "x").expect("written");
        }
        let found = compare(&first, &second).expect("readable");
        assert_eq!(
            (found.listed.len(), found.left_out),
            (MOST_DIFFERENCES, 106 - MOST_DIFFERENCES as u64)
        );
        compare(&first.join("nothing"), &second).expect_err("it is not there");
    }
}

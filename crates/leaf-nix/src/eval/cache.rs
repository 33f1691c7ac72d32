//! The values of earlier evaluations, by locked reference: files of one directory, bounded in number and bytes.
//!
//! leafd reads and writes them; the process of a job, which runs as another user, gets those that may be its own in the order.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use leaf_core::id::JobId;
use leaf_core::job::Installable;
use leaf_core::job::eval::{EvalResult, EvalTask};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::installable::split_fragment;

/// The maximum number of values.
const MOST_VALUES: usize = 256;
/// The maximum size of all values, in bytes.
const MOST_BYTES: u64 = 16 << 20;
/// The maximum number of values in one order: those of the last revisions of a flake.
const MOST_KNOWN: usize = 8;

/// A value of an earlier evaluation of the same attribute with the same function, system and Nix settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// The locked reference, without the attribute.
    pub(crate) locked: String,
    /// The version of Nix.
    pub(crate) nix: String,
    /// The value.
    pub(crate) value: Value,
}

/// A file of the cache.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    about: About,
    #[serde(flatten)]
    known: Known,
}

/// What the value depends on, other than the reference and the version of Nix.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct About {
    fragment: Option<String>,
    apply: Option<String>,
    system: String,
    options: BTreeMap<String, String>,
}

/// The cache in its directory, which is created when the first value is added.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    directory: PathBuf,
}

impl Cache {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Returns the values that may be that of a task, newest first. A file that can't be read is left out.
    pub(crate) fn known(&self, task: &EvalTask, options: &BTreeMap<String, String>) -> Vec<Known> {
        let Some(about) = About::of(task, options) else {
            return Vec::new();
        };
        let prefix = about.prefix();
        self.files()
            .iter()
            .rev()
            .filter(|(_, path, _)| name_of(path).starts_with(&prefix))
            .filter_map(|(_, path, _)| serde_json::from_slice::<Entry>(&fs::read(path).ok()?).ok())
            .filter(|entry| entry.about == about)
            .map(|entry| entry.known)
            .take(MOST_KNOWN)
            .collect()
    }

    /// Adds the value of a job, unless it can't be found again, and removes the oldest values above the bounds.
    pub(crate) fn add(
        &self,
        job: JobId,
        task: &EvalTask,
        options: &BTreeMap<String, String>,
        result: &EvalResult,
    ) -> io::Result<()> {
        let (Some(about), Some(locked), false, None) = (
            About::of(task, options),
            &result.locked,
            result.cached,
            result.value_left_out_bytes,
        ) else {
            return Ok(());
        };
        fs::create_dir_all(&self.directory)?;
        // Ids of jobs sort by time.
        let path = self.directory.join(format!("{}.{job}.json", about.prefix()));
        let entry = Entry {
            about,
            known: Known {
                locked: locked.clone(),
                nix: result.nix.clone(),
                value: result.value.clone(),
            },
        };
        let draft = self.directory.join("draft");
        let mut file = fs::File::create(&draft)?;
        file.write_all(&serde_json::to_vec(&entry)?)?;
        fs::rename(&draft, &path)?;
        let files = self.files();
        let (mut count, mut bytes) = (files.len(), files.iter().map(|(_, _, size)| size).sum::<u64>());
        for (_, path, size) in files {
            if count <= MOST_VALUES && bytes <= MOST_BYTES {
                break;
            }
            fs::remove_file(path)?;
            count -= 1;
            bytes -= size;
        }
        Ok(())
    }

    /// Returns the files, oldest first: the id of the job, the path, the size.
    fn files(&self) -> Vec<(JobId, PathBuf, u64)> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let mut files: Vec<_> = entries
            .filter_map(|entry| {
                let path = entry.path();
                let job = name_of(&path)
                    .strip_suffix(".json")?
                    .split_once('.')?
                    .1
                    .parse()
                    .ok()?;
                Some((job, path, entry.metadata().ok()?.len()))
            })
            .collect();
        files.sort();
        files
    }
}

fn name_of(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

impl About {
    /// Returns what the value of a task depends on; `None` if it can't be kept.
    fn of(task: &EvalTask, options: &BTreeMap<String, String>) -> Option<Self> {
        let Installable::Flake { reference } = &task.installable else {
            return None;
        };
        if task.impure {
            return None;
        }
        Some(Self {
            fragment: split_fragment(reference).1.map(str::to_owned),
            apply: task.apply.clone(),
            system: std::env::consts::ARCH.to_owned(),
            options: options.clone(),
        })
    }

    /// Returns the beginning of its files' names. Another hash in a later version only finds less.
    fn prefix(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(reference: &str) -> EvalTask {
        EvalTask {
            installable: Installable::Flake {
                reference: reference.to_owned(),
            },
            apply: None,
            impure: false,
            timeout_seconds: 60,
        }
    }

    fn result(locked: &str, value: Value) -> EvalResult {
        EvalResult {
            value,
            locked: Some(locked.to_owned()),
            nix: "nix (Nix) 2.8.0".to_owned(),
            ..EvalResult::default()
        }
    }

    fn id(number: usize) -> JobId {
        let id = format!("00000000-0000-0000-0000-{number:012}");
        id.parse().expect("an id")
    }

    #[test]
    fn a_value_is_found_by_attribute_function_and_settings_whatever_the_reference() {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = Cache::new(directory.path().join("new"));
        let options = BTreeMap::new();
        assert!(cache.known(&task("x#a"), &options).is_empty());
        for number in 1..=10 {
            let result = result(&format!("x?rev={number}"), Value::from(number));
            cache
                .add(id(number), &task("x#a"), &options, &result)
                .expect("added");
        }
        let known = cache.known(&task("y#a"), &options);
        assert_eq!(known.len(), MOST_KNOWN);
        assert_eq!(
            (&*known[0].locked, &known[0].value),
            ("x?rev=10", &Value::from(10))
        );
        let apply = EvalTask {
            apply: Some("x: x".to_owned()),
            ..task("x#a")
        };
        let others = BTreeMap::from([("pure-eval".to_owned(), "false".to_owned())]);
        assert!(cache.known(&apply, &options).is_empty());
        assert!(cache.known(&task("x#b"), &options).is_empty());
        assert!(cache.known(&task("x#a"), &others).is_empty());
    }

    #[test]
    fn the_oldest_values_are_removed_above_the_bounds_and_damaged_files_are_left_out() {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = Cache::new(directory.path().to_owned());
        let options = BTreeMap::new();
        let add = |number: usize, value: Value| {
            let task = task(&format!("x#a{number}"));
            cache
                .add(id(number), &task, &options, &result("x?rev=1", value))
                .expect("added");
        };
        for number in 1..=MOST_VALUES + 1 {
            add(number, Value::Null);
        }
        assert_eq!(cache.files().len(), MOST_VALUES);
        assert!(cache.known(&task("x#a1"), &options).is_empty());
        assert_eq!(cache.known(&task("x#a2"), &options).len(), 1);
        for number in 1000..1200 {
            add(number, Value::from("x".repeat(128 * 1024 - 500)));
        }
        let files = cache.files();
        assert!(files.iter().map(|(_, _, size)| size).sum::<u64>() <= MOST_BYTES);
        assert_eq!(files.last().map(|(job, _, _)| *job), Some(id(1199)));
        fs::write(&files[0].1, "{").expect("written");
        let number: usize = files[0].0.to_string()[24..].parse().expect("a number");
        assert!(cache.known(&task(&format!("x#a{number}")), &options).is_empty());
    }
}

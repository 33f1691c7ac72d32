//! A place for one test: its own folders, GC roots and cgroup, gone when it is dropped.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Command;
use std::time::Duration;

use leaf_core::id::JobId;
use leaf_core::job::{BuildTask, Installable, JobOutcome};
use leaf_nix::{JobNews, Launch, Nix, RunningJob, Settings};
use uuid::Uuid;

pub(crate) type TestFn = fn() -> Pin<Box<dyn Future<Output = ()>>>;
/// Name, whether it needs a cgroup, and what it does.
pub(crate) type Test = (&'static str, bool, TestFn);

/// Names a test and puts it into a list.
#[macro_export]
macro_rules! tests {
    ($($name:ident $(($cgroup:ident))?),* $(,)?) => {
        pub(crate) const TESTS: &[$crate::lab::Test] =
            &[$((stringify!($name), tests!(@ $($cgroup)?), || Box::pin($name()))),*];
    };
    (@ needs_cgroup) => { true };
    (@) => { false };
}

pub(crate) fn has_nix() -> bool {
    // GC roots of its own need root.
    rustix::process::geteuid().is_root()
        && Path::new("/bin/busybox").exists()
        && Command::new("nix")
            .arg("--version")
            .output()
            .is_ok_and(|o| o.status.success())
}

pub(crate) fn run(test: TestFn) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(async { tokio::time::timeout(Duration::from_secs(120), test()).await })
        .expect("the test takes too long");
}

pub(crate) fn new_id() -> JobId {
    JobId(Uuid::now_v7())
}

pub(crate) struct Lab {
    pub(crate) dir: PathBuf,
    pub(crate) nix: Nix,
    pub(crate) settings: Settings,
    /// Different in each run, so that nothing was built before.
    pub(crate) unique: String,
    owned: bool,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("leaf-nix-")
            .tempdir()
            .expect("a folder")
            .keep();
        let mut lab = Self::at(&dir);
        lab.owned = true;
        lab
    }

    pub(crate) fn at(dir: &Path) -> Self {
        let unique = dir
            .file_name()
            .and_then(|n| n.to_str())
            .expect("a name")
            .replace('.', "");
        let roots = PathBuf::from("/nix/var/nix/gcroots").join(&unique);
        let runner = std::env::current_exe().expect("this program");
        let mut settings = Settings::new(dir, roots, runner, vec!["nix-job".into()]);
        settings.nix_options = Self::options();
        let cgroup = leaf_nix::default_cgroup().map(|path| path.with_file_name(format!("{unique}.slice")));
        settings.launch = Launch::Own { cgroup };
        Self {
            dir: dir.to_owned(),
            nix: Nix::new(settings.clone()),
            settings,
            unique,
            owned: false,
        }
    }

    /// Where the jobs have their cgroups.
    pub(crate) fn cgroup(&self) -> Option<&Path> {
        match &self.settings.launch {
            Launch::Own { cgroup } => cgroup.as_deref(),
            Launch::ByHelper { .. } => None,
        }
    }

    pub(crate) fn options() -> BTreeMap<String, String> {
        [
            ("sandbox", "true"),
            ("sandbox-paths", "/bin/sh=/bin/busybox"),
            ("sandbox-fallback", "false"),
            ("substituters", ""),
            ("build-users-group", ""),
            ("flake-registry", ""),
            ("max-jobs", "4"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    /// Settles changed settings.
    pub(crate) fn set(&mut self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings);
        self.nix = Nix::new(self.settings.clone());
    }

    /// A file with one derivation that runs a script.
    pub(crate) fn script(&self, name: &str, script: &str) -> Installable {
        self.file(
            name,
            &format!(
                "{{ outputs ? [ \"out\" ] }}: {}",
                self.derivation(name, script, "inherit outputs;")
            ),
        )
    }

    pub(crate) fn derivation(&self, name: &str, script: &str, more: &str) -> String {
        let full = format!("{}-{name}", self.unique);
        format!(
            "derivation {{ name = \"{full}\"; system = \"{}-linux\"; builder = \"/bin/sh\"; args = [ \"-c\" ''{script}'' ]; {more} }}",
            std::env::consts::ARCH
        )
    }

    pub(crate) fn file(&self, name: &str, text: &str) -> Installable {
        let path = self.dir.join(format!("{name}.nix"));
        std::fs::write(&path, text).expect("written");
        Installable::File {
            path: path.to_str().expect("UTF-8").to_owned(),
            attribute: None,
        }
    }

    pub(crate) fn start(&self, installable: Installable) -> RunningJob {
        self.start_within(installable, 100)
    }

    pub(crate) fn start_within(&self, installable: Installable, timeout_seconds: u32) -> RunningJob {
        let task = BuildTask {
            installable,
            timeout_seconds,
            container: None,
        };
        self.nix.start(new_id(), &task).expect("started")
    }

    pub(crate) async fn build(&self, installable: Installable) -> JobOutcome {
        self.start(installable).ended().await
    }

    pub(crate) fn gc_root(&self, id: JobId) -> PathBuf {
        self.settings.gc_roots_dir.join(id.to_string())
    }

    pub(crate) fn nix_command(&self, words: &[&str]) -> String {
        let mut command = Command::new("nix");
        command.args(["--extra-experimental-features", "nix-command flakes"]);
        for (name, value) in Self::options() {
            command.args(["--option", &name, &value]);
        }
        let output = command.args(words).output().expect("nix runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Command lines of all processes that have this test's name in theirs: the scripts hold it.
    pub(crate) fn processes(&self) -> Vec<String> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
            if let Ok(line) = std::fs::read(entry.path().join("cmdline")) {
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                if line.contains(&self.unique) {
                    found.push(line);
                }
            }
        }
        found
    }

    pub(crate) fn whole_log(&self, id: JobId) -> String {
        let (mut text, mut offset) = (String::new(), 0);
        loop {
            let chunk = self.nix.read_log(id, offset, 1 << 20).expect("readable");
            text.push_str(&chunk.text);
            if chunk.complete {
                return text;
            }
            assert!(chunk.next_offset > offset, "no progress at {offset}");
            offset = chunk.next_offset;
        }
    }
}

/// Waits until the job's log says this.
pub(crate) async fn says(job: &mut RunningJob, wanted: &str) {
    let mut all = String::new();
    while !all.contains(wanted) {
        match job.next().await {
            JobNews::Log(chunk) => all.push_str(&chunk.text),
            JobNews::Progress(_) => {}
            JobNews::Ended(outcome) => panic!("it ended with {outcome:?} and said {all:?}"),
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        let _ = std::fs::remove_dir_all(&self.dir);
        let _ = std::fs::remove_dir_all(&self.settings.gc_roots_dir);
        if let Some(cgroup) = self.cgroup() {
            for job in std::fs::read_dir(cgroup).into_iter().flatten().flatten() {
                let _ = std::fs::write(job.path().join("cgroup.kill"), "1");
                let _ = std::fs::remove_dir(job.path());
            }
            let _ = std::fs::remove_dir(cgroup);
        }
    }
}

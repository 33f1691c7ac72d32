//! `/etc` of a NixOS host against the system that runs: what its activation made of `$toplevel/etc`, and what is there beside it.
//!
//! The activation (`nixos/modules/system/etc/setup-etc.pl` of nixpkgs) makes, for each link `NAME` in `$toplevel/etc`: a link to
//! `/etc/static/NAME`; or, if there is a file `NAME.mode`, a copy with the mode, owner and group of `NAME.mode`, `NAME.uid` and
//! `NAME.gid`, and for the mode `direct-symlink` a link to what the link in the system leads to. `/etc/static` leads to
//! `$toplevel/etc`. An `/etc` that is an overlay has none of this, and is not compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use leaf_core::job::verify::{EtcDifference, EtcDifferenceKind, EtcReport, MOST_DIFFERENCES};

use crate::compare::first_difference;
use crate::internal_json::cut;

/// The maximum length of a file's name in a difference, in bytes.
const NAME_BYTES: usize = 400;
/// The maximum size of a file with a mode, owner or group, in bytes.
const ATTRIBUTE_BYTES: u64 = 256;
/// The most entries of `/etc` that are looked at.
const MOST_ENTRIES: usize = 200_000;
/// The type of an overlay file system (statfs(2)).
const OVERLAY_MAGIC: rustix::fs::FsWord = 0x794c_7630;
/// Where the links of an activated system lead to.
const STATIC: &str = "/etc/static";

/// What is in `/etc` of NixOS hosts, and of no system: a name (of a directory with `/`), or with `*` at the end its beginning, and what makes it.
const EXPLAINED: &[(&str, &str)] = &[
    (".clean", "the activation's list of copied files"),
    (".pwd.lock", "the lock of the files of accounts"),
    (".updated", "systemd's mark of the last update"),
    ("NIXOS", "the activation's mark of a NixOS host"),
    (
        "NetworkManager/system-connections/",
        "NetworkManager's connections",
    ),
    ("adjtime", "hwclock and timedated"),
    ("cups/", "CUPS"),
    ("group", "accounts"),
    ("group-", "accounts"),
    ("gshadow", "accounts"),
    ("gshadow-", "accounts"),
    ("hostid", "the host's id"),
    ("ld.so.cache", "ldconfig"),
    ("locale.conf", "localed"),
    ("localtime", "timedated"),
    ("machine-id", "systemd"),
    ("mtab", "systemd-tmpfiles"),
    ("nixos/", "the configuration of the host's administrator"),
    ("nixos-containers/", "nixos-container"),
    ("nixos-containers/*", "nixos-container"),
    ("passwd", "accounts"),
    ("passwd-", "accounts"),
    ("resolv.conf", "resolvconf and networkd"),
    ("resolv.conf.bak", "resolvconf"),
    ("shadow", "accounts"),
    ("shadow-", "accounts"),
    ("ssh/ssh_host_*", "sshd's host keys"),
    ("subgid", "accounts"),
    ("subgid-", "accounts"),
    ("subuid", "accounts"),
    ("subuid-", "accounts"),
];

/// What a system has under a name.
#[derive(Debug, PartialEq, Eq)]
enum Made {
    /// A link into `/etc/static`.
    Link,
    /// A link that leads where the system's own does.
    Direct(PathBuf),
    /// A copy.
    Copy {
        source: PathBuf,
        mode: u32,
        /// `None` where the account is not known.
        uid: Option<u32>,
        gid: Option<u32>,
    },
}

/// Returns how `/etc` compares with a system.
pub(super) fn compare(toplevel: &Path, etc: &Path) -> EtcReport {
    let not_compared = |why: String| EtcReport {
        not_compared: Some(why),
        ..EtcReport::default()
    };
    match rustix::fs::statfs(etc) {
        Ok(of) if of.f_type == OVERLAY_MAGIC => {
            return not_compared(format!(
                "{} is an overlay (system.etc.overlay), which is not looked at",
                etc.display()
            ));
        }
        Ok(_) => {}
        Err(error) => return not_compared(format!("{}: {error}", etc.display())),
    }
    let source = toplevel.join("etc");
    let made = fs::canonicalize(&source).and_then(|source| {
        let accounts = Accounts::read(etc);
        made(&source, &accounts).map(|made| (source, made))
    });
    let (source, made) = match made {
        Ok(made) => made,
        Err(error) => return not_compared(format!("{}: {error}", source.display())),
    };
    let mut look = Look::default();
    // The tag of the activation: all links lead through it.
    let is_static = fs::canonicalize(etc.join("static")).is_ok_and(|target| target == source);
    if !is_static {
        look.found("static", EtcDifferenceKind::Changed, None);
    }
    for (name, made) in &made {
        if let Some(what) = difference(made, name, &etc.join(name)) {
            look.found(name, what, None);
        }
    }
    look.beside(&made, etc);
    look.report(made.len() as u64)
}

/// Returns what a system has in `/etc`, by name.
fn made(source: &Path, accounts: &Accounts) -> io::Result<BTreeMap<String, Made>> {
    let mut made = BTreeMap::new();
    let mut open = vec![String::new()];
    while let Some(inside) = open.pop() {
        for entry in fs::read_dir(source.join(&inside))? {
            let entry = entry?;
            let name = below(&inside, &entry.file_name().to_string_lossy());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                open.push(name);
                continue;
            }
            let attribute = |what: &str| attribute(&source.join(format!("{name}.{what}")));
            let of = match attribute("mode") {
                Some(mode) if mode == "direct-symlink" => Made::Direct(fs::read_link(entry.path())?),
                Some(mode) => Made::Copy {
                    source: entry.path(),
                    mode: u32::from_str_radix(&mode, 8).unwrap_or_default(),
                    uid: accounts.user(&attribute("uid").unwrap_or_default()),
                    gid: accounts.group(&attribute("gid").unwrap_or_default()),
                },
                // Files are those with attributes of others.
                None if kind.is_symlink() => Made::Link,
                None => continue,
            };
            made.insert(name, of);
        }
    }
    Ok(made)
}

/// Returns the text of a small file, without its end of line.
fn attribute(path: &Path) -> Option<String> {
    let small = fs::metadata(path).is_ok_and(|of| of.is_file() && of.len() <= ATTRIBUTE_BYTES);
    let text = small.then(|| fs::read_to_string(path).ok()).flatten()?;
    Some(text.trim_end_matches('\n').to_owned())
}

fn below(inside: &str, name: &str) -> String {
    match inside {
        "" => name.to_owned(),
        inside => format!("{inside}/{name}"),
    }
}

/// Returns how a file of the system differs.
fn difference(made: &Made, name: &str, file: &Path) -> Option<EtcDifferenceKind> {
    let of = match fs::symlink_metadata(file) {
        Ok(of) => of,
        // A directory of the system that only root enters.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Some(EtcDifferenceKind::Unreadable);
        }
        Err(_) => return Some(EtcDifferenceKind::Missing),
    };
    let changed = |is_same: bool| (!is_same).then_some(EtcDifferenceKind::Changed);
    match made {
        Made::Link => {
            let wanted = Path::new(STATIC).join(name);
            changed(fs::read_link(file).is_ok_and(|target| target == wanted))
        }
        Made::Direct(wanted) => changed(fs::read_link(file).is_ok_and(|target| target == *wanted)),
        Made::Copy {
            source,
            mode,
            uid,
            gid,
        } => copy_difference(source, file, &of).or_else(|| {
            let is_owned = |wanted: &Option<u32>, id| wanted.is_none_or(|wanted| wanted == id);
            let is_right = of.permissions().mode() & 0o7777 == *mode
                && is_owned(uid, of.uid())
                && is_owned(gid, of.gid());
            match (is_right, fs::File::open(file)) {
                (false, _) => Some(EtcDifferenceKind::Mode),
                (true, Err(_)) => Some(EtcDifferenceKind::Unreadable),
                (true, Ok(_)) => None,
            }
        }),
    }
}

/// Returns how a copied file differs, as far as it can be read.
fn copy_difference(source: &Path, file: &Path, of: &Metadata) -> Option<EtcDifferenceKind> {
    if !of.is_file() {
        return Some(EtcDifferenceKind::Changed);
    }
    let has_length = fs::metadata(source).is_ok_and(|source| source.len() == of.len());
    if !has_length {
        return Some(EtcDifferenceKind::Changed);
    }
    match first_difference(source, file) {
        Ok(Some(_)) => Some(EtcDifferenceKind::Changed),
        Ok(None) | Err(_) => None,
    }
}

/// The differences that were found.
#[derive(Debug, Default)]
struct Look {
    found: Vec<EtcDifference>,
    unexplained: u64,
    /// Whether not all of `/etc` was looked at.
    too_many: bool,
}

impl Look {
    fn found(&mut self, name: &str, what: EtcDifferenceKind, explained: Option<&str>) {
        let mut name = name.to_owned();
        cut(&mut name, NAME_BYTES);
        // What can't be read is as it should be, as far as it can be seen.
        if explained.is_none() && what != EtcDifferenceKind::Unreadable {
            self.unexplained += 1;
        }
        self.found.push(EtcDifference {
            name,
            what,
            explained: explained.map(str::to_owned),
        });
    }

    /// Finds what is beside the files of the system, and follows no links.
    fn beside(&mut self, made: &BTreeMap<String, Made>, etc: &Path) {
        let mut directories = BTreeSet::new();
        for name in made.keys() {
            let mut parent = Path::new(name).parent();
            while let Some(of) = parent.filter(|of| !of.as_os_str().is_empty()) {
                directories.insert(of.to_string_lossy().into_owned());
                parent = of.parent();
            }
        }
        let (mut open, mut seen) = (vec![String::new()], 0);
        while let Some(inside) = open.pop() {
            let Ok(entries) = fs::read_dir(etc.join(&inside)) else {
                self.found(&format!("{inside}/"), EtcDifferenceKind::Unreadable, None);
                continue;
            };
            for entry in entries.filter_map(Result::ok) {
                seen += 1;
                if seen > MOST_ENTRIES {
                    self.too_many = true;
                    return;
                }
                let name = below(&inside, &entry.file_name().to_string_lossy());
                let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
                if made.contains_key(&name) || name == "static" {
                    continue;
                }
                if is_directory && directories.contains(&name) {
                    open.push(name);
                    continue;
                }
                // NixOS and its services make empty directories, which say nothing.
                if is_directory && fs::read_dir(entry.path()).is_ok_and(|mut inside| inside.next().is_none())
                {
                    continue;
                }
                let name = if is_directory { format!("{name}/") } else { name };
                self.found(&name, EtcDifferenceKind::Added, explanation(&name));
            }
        }
    }

    fn report(mut self, of_system: u64) -> EtcReport {
        let is_explained =
            |file: &EtcDifference| file.explained.is_some() || file.what == EtcDifferenceKind::Unreadable;
        self.found
            .sort_by(|a, b| (is_explained(a), &a.name).cmp(&(is_explained(b), &b.name)));
        let left_out = self.found.len().saturating_sub(MOST_DIFFERENCES) as u64;
        self.found.truncate(MOST_DIFFERENCES);
        EtcReport {
            not_compared: self.too_many.then(|| {
                format!("it has more than {MOST_ENTRIES} entries, and the others were not looked at")
            }),
            of_system,
            unexplained: self.unexplained,
            differences: self.found,
            left_out,
        }
    }
}

/// Returns what makes a file on every NixOS host.
fn explanation(name: &str) -> Option<&'static str> {
    let is = |pattern: &str| match pattern.strip_suffix('*') {
        Some(beginning) => name
            .strip_prefix(beginning)
            .is_some_and(|rest| !rest.contains('/')),
        None => name == pattern,
    };
    EXPLAINED
        .iter()
        .find(|(pattern, _)| is(pattern))
        .map(|(_, explained)| *explained)
}

/// The accounts of the host, by name.
#[derive(Debug, Default)]
struct Accounts {
    users: BTreeMap<String, u32>,
    groups: BTreeMap<String, u32>,
}

impl Accounts {
    fn read(etc: &Path) -> Self {
        // Both files have the name first and the id third (passwd(5), group(5)).
        let ids = |file: &str| {
            let text = fs::read_to_string(etc.join(file)).unwrap_or_default();
            let ids = text.lines().filter_map(|line| {
                let mut fields = line.split(':');
                let name = fields.next()?.to_owned();
                Some((name, fields.nth(1)?.parse().ok()?))
            });
            ids.collect()
        };
        Self {
            users: ids("passwd"),
            groups: ids("group"),
        }
    }

    fn user(&self, text: &str) -> Option<u32> {
        Self::id(&self.users, text)
    }

    fn group(&self, text: &str) -> Option<u32> {
        Self::id(&self.groups, text)
    }

    /// Returns the id of a name, or of `+NUMBER`.
    fn id(ids: &BTreeMap<String, u32>, text: &str) -> Option<u32> {
        match text.strip_prefix('+') {
            Some(number) => number.parse().ok(),
            None => ids.get(text).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    /// A toplevel and the `/etc` that its activation makes.
    struct Host {
        place: TempDir,
    }

    impl Host {
        fn new() -> Self {
            let host = Self {
                place: tempfile::tempdir().expect("a directory"),
            };
            let (own, etc) = (host.of_system(), host.etc());
            for directory in [
                own.join("ssh"),
                own.join("deep/er"),
                etc.join("ssh"),
                etc.join("deep/er"),
            ] {
                fs::create_dir_all(directory).expect("a directory");
            }
            for name in ["hosts", "ssh/sshd_config", "deep/er/file"] {
                symlink("/nix/store/x", own.join(name)).expect("a link");
                symlink(Path::new(STATIC).join(name), etc.join(name)).expect("a link");
            }
            let text = host.place.path().join("sudoers-text");
            fs::write(&text, "root ALL\n").expect("written");
            symlink(&text, own.join("sudoers")).expect("a link");
            for (what, value) in [("mode", "0440\n"), ("uid", "me\n"), ("gid", "+GID\n")] {
                let gid = rustix::process::getegid().as_raw().to_string();
                fs::write(own.join(format!("sudoers.{what}")), value.replace("GID", &gid)).expect("written");
            }
            host.put("sudoers", "root ALL\n", 0o440);
            symlink("/run/zone", own.join("zone")).expect("a link");
            fs::write(own.join("zone.mode"), "direct-symlink\n").expect("written");
            symlink("/run/zone", etc.join("zone")).expect("a link");
            let uid = rustix::process::geteuid().as_raw();
            host.put("passwd", &format!("root:x:4294:0::/:\nme:x:{uid}:1::/:\n"), 0o644);
            symlink(&own, etc.join("static")).expect("a link");
            host
        }

        fn toplevel(&self) -> PathBuf {
            self.place.path().join("system")
        }

        fn of_system(&self) -> PathBuf {
            self.toplevel().join("etc")
        }

        fn etc(&self) -> PathBuf {
            self.place.path().join("etc")
        }

        fn put(&self, name: &str, text: &str, mode: u32) {
            let path = self.etc().join(name);
            let _ = fs::remove_file(&path);
            fs::write(&path, text).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
        }

        /// Returns the names and kinds of what differs that nothing explains, and checks their number.
        fn unexplained(&self) -> Vec<(String, EtcDifferenceKind)> {
            let report = compare(&self.toplevel(), &self.etc());
            assert_eq!(
                (report.not_compared, report.of_system, report.left_out),
                (None, 5, 0)
            );
            let unexplained = report
                .differences
                .into_iter()
                .filter(|file| file.explained.is_none());
            let unexplained: Vec<_> = unexplained.map(|file| (file.name, file.what)).collect();
            assert_eq!(unexplained.len() as u64, report.unexplained);
            unexplained
        }
    }

    #[test]
    fn what_the_activation_made_differs_in_nothing_and_accounts_are_explained() {
        let host = Host::new();
        host.put("machine-id", "x", 0o444);
        host.put("passwd-", "x", 0o644);
        host.put("ssh/ssh_host_ed25519_key.pub", "x", 0o644);
        fs::create_dir_all(host.etc().join("nixos/deep")).expect("a directory");
        fs::create_dir(host.etc().join("empty")).expect("a directory");
        assert_eq!(host.unexplained(), []);
        let report = compare(&host.toplevel(), &host.etc());
        let names: Vec<_> = report.differences.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "machine-id",
                "nixos/",
                "passwd",
                "passwd-",
                "ssh/ssh_host_ed25519_key.pub"
            ]
        );
    }

    #[test]
    fn each_change_by_hand_is_found() {
        use EtcDifferenceKind::{Added, Changed, Missing, Mode};

        let host = Host::new();
        // In the place of a link, a file of the same text.
        host.put("hosts", "127.0.0.1 localhost\n", 0o644);
        fs::remove_file(host.etc().join("deep/er/file")).expect("removed");
        host.put("sudoers", "root NONE", 0o440);
        fs::create_dir(host.etc().join("cron.d")).expect("a directory");
        host.put("cron.d/evil\u{1b}[2J", "x", 0o644);
        host.put("ssh/sshd_config.d", "x", 0o644);
        fs::remove_file(host.etc().join("zone")).expect("removed");
        symlink("/tmp/zone", host.etc().join("zone")).expect("a link");
        // A link of an earlier system that leads nowhere.
        symlink("/etc/static/gone", host.etc().join("gone")).expect("a link");
        let found = [
            ("cron.d/", Added),
            ("deep/er/file", Missing),
            ("gone", Added),
            ("hosts", Changed),
            ("ssh/sshd_config.d", Added),
            ("sudoers", Changed),
            ("zone", Changed),
        ];
        let found: Vec<_> = found.map(|(name, what)| (name.to_owned(), what)).into();
        assert_eq!(host.unexplained(), found);

        let host = Host::new();
        // The same length, and another mode.
        host.put("sudoers", "root ALL\n", 0o444);
        assert_eq!(host.unexplained(), [("sudoers".to_owned(), Mode)]);
        host.put("sudoers", "toor ALL\n", 0o440);
        assert_eq!(host.unexplained(), [("sudoers".to_owned(), Changed)]);
    }

    #[test]
    fn another_owner_is_found_and_an_account_that_is_not_known_is_no_difference() {
        let host = Host::new();
        fs::write(host.of_system().join("sudoers.uid"), "root\n").expect("written");
        assert_eq!(
            host.unexplained(),
            [("sudoers".to_owned(), EtcDifferenceKind::Mode)]
        );
        fs::write(host.of_system().join("sudoers.uid"), "nobody-knows\n").expect("written");
        assert_eq!(host.unexplained(), []);
    }

    #[test]
    fn the_files_of_another_system_are_found() {
        let host = Host::new();
        let other = host.place.path().join("other");
        fs::create_dir(&other).expect("a directory");
        fs::remove_file(host.etc().join("static")).expect("removed");
        symlink(&other, host.etc().join("static")).expect("a link");
        assert_eq!(
            host.unexplained(),
            [("static".to_owned(), EtcDifferenceKind::Changed)]
        );
        let report = compare(&host.place.path().join("absent"), &host.etc());
        assert!(report.not_compared.is_some_and(|why| why.contains("absent/etc")));
    }

    #[test]
    fn a_long_list_is_cut_and_counted() {
        let host = Host::new();
        for nth in 0..MOST_DIFFERENCES + 2 {
            host.put(&format!("{nth:04}"), "x", 0o644);
        }
        let report = compare(&host.toplevel(), &host.etc());
        // The file of accounts is explained, and comes last.
        assert_eq!((report.differences.len(), report.left_out), (MOST_DIFFERENCES, 3));
        assert_eq!(report.unexplained, MOST_DIFFERENCES as u64 + 2);
    }
}

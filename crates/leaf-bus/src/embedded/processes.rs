//! Looks up processes in `/proc`: a server that an earlier leafd left behind, and the process that listens on a port.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use leaf_host::process::{self, ProcessHandle};
use rustix::process::{Pid, Signal};

use super::EmbeddedError;

/// How long a process may take to exit after SIGKILL.
const AFTER_KILL: Duration = Duration::from_secs(10);

/// Ends every server that was started with this configuration and is not our child: those that a killed leafd left
/// behind. SIGTERM first, and SIGKILL after the grace time. Returns how many there were.
pub(super) async fn end_leftovers(config: &Path, grace: Duration) -> Result<usize, EmbeddedError> {
    let mut ended = 0;
    for pid in process::all() {
        if !is_server_of(pid, config) {
            continue;
        }
        let failed = |source: std::io::Error| EmbeddedError::Leftover {
            pid: pid.as_raw_nonzero().get(),
            source,
        };
        let Some(handle) = ProcessHandle::of(pid).map_err(failed)? else {
            continue;
        };
        // Only a check after opening the handle proves that it is the same process.
        if !is_server_of(pid, config) {
            continue;
        }
        tracing::warn!(
            pid = pid.as_raw_nonzero().get(),
            "ending the nats-server that an earlier leafd left behind"
        );
        end(&handle, grace).await.map_err(failed)?;
        ended += 1;
    }
    Ok(ended)
}

async fn end(process: &ProcessHandle, grace: Duration) -> std::io::Result<()> {
    for (signal, wait) in [(Signal::TERM, grace), (Signal::KILL, AFTER_KILL)] {
        if !process.signal(signal)? {
            return Ok(());
        }
        if let Ok(ended) = tokio::time::timeout(wait, process.ended()).await {
            return ended;
        }
    }
    Err(std::io::ErrorKind::TimedOut.into())
}

/// Returns whether this is `nats-server -c <config>` in the configuration's own directory. The directory is compared by
/// device and inode, to tell it from a server in a container with the same path in another root.
fn is_server_of(pid: Pid, config: &Path) -> bool {
    let proc = Path::new("/proc").join(pid.as_raw_nonzero().to_string());
    let Ok(line) = fs::read(proc.join("cmdline")) else {
        return false;
    };
    let mut arguments = line.split(|b| *b == 0).skip(1).map(OsStr::from_bytes);
    if arguments.next() != Some(OsStr::new("-c")) || arguments.next() != Some(config.as_os_str()) {
        return false;
    }
    let Some(dir) = config.parent().and_then(|dir| fs::metadata(dir).ok()) else {
        return false;
    };
    fs::metadata(proc.join("cwd")).is_ok_and(|cwd| (cwd.dev(), cwd.ino()) == (dir.dev(), dir.ino()))
}

/// Returns the process that listens on this TCP port, as far as this user may know it: `nats-server (process 77)`.
pub(super) fn listener_on(port: u16) -> Option<String> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| listening_inodes(&table, port))
        .collect();
    for pid in process::all() {
        let proc = Path::new("/proc").join(pid.as_raw_nonzero().to_string());
        let descriptors = fs::read_dir(proc.join("fd")).into_iter().flatten().flatten();
        let holds = descriptors
            .filter_map(|fd| fs::read_link(fd.path()).ok())
            .any(|link| {
                inodes
                    .iter()
                    .any(|i| link.as_os_str() == format!("socket:[{i}]").as_str())
            });
        if holds {
            let name = fs::read_to_string(proc.join("comm")).unwrap_or_default();
            return Some(format!("{} (process {})", name.trim(), pid.as_raw_nonzero()));
        }
    }
    None
}

/// Returns the inodes of the sockets that listen on a port, from a table like `/proc/net/tcp` (proc_net(5)).
fn listening_inodes(table: &str, port: u16) -> Vec<String> {
    const LISTEN: &str = "0A";
    let suffix = format!(":{port:04X}");
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
            (local.ends_with(&suffix) && *state == LISTEN).then(|| (*inode).to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listener_of_a_port_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let holder = listener_on(port).expect("this process is seen");
        assert!(holder.contains(&std::process::id().to_string()), "{holder}");
    }

    #[test]
    fn a_process_with_other_arguments_is_not_a_leftover() {
        let me = Pid::from_raw(i32::try_from(std::process::id()).expect("a pid")).expect("not 0");
        assert!(!is_server_of(me, Path::new("/nats-server.conf")));
    }
}

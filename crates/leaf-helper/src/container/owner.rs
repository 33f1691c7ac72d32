//! The owner of a container, by its `NAME.conf`.
//!
//! A foreign container is one with a `NAME.conf` that this leaf did not write. It is left alone, unless it is
//! [adopted](super::adopt).

use leaf_core::id::ContainerName;
use leaf_host::contract::{CONF_MADE_BY, conf_marker};
use rustix::fs::{AtFlags, FileType};

use crate::Helper;
use crate::container::conf::conf_name;
use crate::error::{Error, Result};
use crate::files::Directory;

/// The owner of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    /// No container of this name exists.
    None,
    /// This leaf.
    Leaf,
    /// Another owner.
    Foreign(Foreign),
}

/// The owner of a foreign container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Foreign {
    /// The host's NixOS configuration, with the evidence.
    Declared(String),
    /// Another leaf of this host.
    OtherLeaf(String),
    /// A person, by `nixos-container` or by hand.
    Person,
    /// Unknown, since the name belongs to something that can't be read as a `NAME.conf`, with the reason.
    Unreadable(String),
}

impl Foreign {
    /// Returns the refusal to change the container.
    pub(crate) fn refused(&self, helper: &Helper, name: &ContainerName) -> Error {
        let conf = helper.paths.conf(name);
        let conf = conf.display();
        Error::Refused(match self {
            Self::Declared(why) => format!(
                "{conf} {why}: the container is declared in the host's NixOS configuration; choose another name"
            ),
            Self::OtherLeaf(leaf) => format!("{conf} was made by leaf {leaf}; choose another name"),
            Self::Unreadable(why) => {
                format!("{why}, so it is no container's; remove it, or choose another name")
            }
            Self::Person => format!(
                "{conf} was not made by leaf {}; choose another name, or adopt it",
                helper.leaf
            ),
        })
    }
}

impl Helper {
    /// Returns the owner of a container.
    pub(crate) fn owner(&self, confs: &Directory, name: &ContainerName) -> Result<Owner> {
        let file = conf_name(name);
        let conf = self.paths.conf(name);
        let text = match confs.read(&file) {
            Ok(None) => return Ok(Owner::None),
            Ok(Some(text)) => text,
            Err(Error::Refused(why)) => {
                return Ok(Owner::Foreign(if conf.is_symlink() {
                    Foreign::Declared("is a symbolic link".into())
                } else {
                    Foreign::Unreadable(why)
                }));
            }
            Err(e) => return Err(e),
        };
        let marker = conf_marker(&self.leaf);
        if text.lines().any(|line| line == marker) {
            return Ok(Owner::Leaf);
        }
        if let Some(other) = text.lines().find_map(|line| line.strip_prefix(CONF_MADE_BY)) {
            return Ok(Owner::Foreign(Foreign::OtherLeaf(other.to_owned())));
        }
        let stat = rustix::fs::statat(confs.as_fd(), &*file, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(Error::io(format!("read the metadata of {}", conf.display())))?;
        let writable = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && stat.st_mode & 0o200 != 0
            && rustix::fs::accessat(
                confs.as_fd(),
                &*file,
                rustix::fs::Access::WRITE_OK,
                AtFlags::empty(),
            )
            .is_ok();
        Ok(Owner::Foreign(if writable {
            Foreign::Person
        } else {
            Foreign::Declared("is not writable".into())
        }))
    }

    /// Returns whether `NAME.conf` exists and is this leaf's.
    ///
    /// # Errors
    /// [`Error::Refused`] when it belongs to another owner.
    pub(crate) fn owns(&self, confs: &Directory, name: &ContainerName) -> Result<bool> {
        match self.owner(confs, name)? {
            Owner::None => Ok(false),
            Owner::Leaf => Ok(true),
            Owner::Foreign(foreign) => Err(foreign.refused(self, name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use leaf_core::id::LeafName;
    use leaf_host::contract::HostPaths;

    use super::*;
    use crate::Settings;

    #[test]
    fn the_owner_of_a_container_is_named_in_its_conf() {
        let directory = tempfile::tempdir().expect("a directory");
        let leaf = LeafName::new("edge").expect("a leaf");
        let paths = HostPaths {
            confs: directory.path().to_owned(),
            ..HostPaths::new(&leaf)
        };
        let settings = Settings::sample();
        let helper = Helper::new(leaf.clone(), paths.clone(), settings);
        let confs = Directory::make_root(directory.path(), 0o755).expect("a directory");
        let name = ContainerName::new("web").expect("a name");
        let owner = || helper.owner(&confs, &name).expect("an owner");
        let file = paths.conf(&name);
        assert_eq!(owner(), Owner::None);
        std::fs::write(&file, format!("{}\nA=b\n", conf_marker(&leaf))).expect("a conf");
        assert_eq!(owner(), Owner::Leaf);
        std::fs::write(&file, "# cim-leaf: made by leaf other\n").expect("a conf");
        assert_eq!(owner(), Owner::Foreign(Foreign::OtherLeaf("other".into())));
        std::fs::write(&file, "SYSTEM_PATH=/nix/store/x\n").expect("a conf");
        assert_eq!(owner(), Owner::Foreign(Foreign::Person));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o444)).expect("a mode");
        assert!(matches!(owner(), Owner::Foreign(Foreign::Declared(_))));
        std::fs::remove_file(&file).expect("removed");
        std::os::unix::fs::symlink("/etc/static/web.conf", &file).expect("a link");
        assert!(matches!(owner(), Owner::Foreign(Foreign::Declared(_))));
        std::fs::remove_file(&file).expect("removed");
        let unreadable = || match owner() {
            Owner::Foreign(Foreign::Unreadable(why)) => why,
            other => panic!("{other:?}"),
        };
        std::fs::create_dir(&file).expect("a directory");
        assert!(unreadable().ends_with("is not a regular file"));
        std::fs::remove_dir(&file).expect("removed");
        std::fs::write(&file, vec![b'#'; (1 << 20) + 1]).expect("a huge file");
        assert!(unreadable().ends_with("has more than 1048576 bytes"));
        std::fs::write(&file, [0xff]).expect("bytes");
        assert!(unreadable().ends_with("is not text in UTF-8"));
        std::fs::remove_file(&file).expect("removed");
        let fifo = FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &file, fifo, rustix::fs::Mode::RUSR, 0).expect("a FIFO");
        assert!(unreadable().ends_with("is not a regular file"));
    }
}

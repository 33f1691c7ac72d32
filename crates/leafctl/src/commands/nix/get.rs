use clap::Args;
use leaf_core::id::StorePath;
use serde::Serialize;

use crate::download::{self, Adding, Scope};
use crate::error::Error;
use crate::leaf::Leaf;
use crate::local_nix::LocalNix;
use crate::output::{Output, size};
use crate::session::Session;

/// Bring store paths of a leaf, with all that they need, into the store of this machine.
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// The store paths.
    #[arg(required = true)]
    paths: Vec<String>,
    #[command(flatten)]
    unsigned: Unsigned,
}

/// Whether signatures count.
#[derive(Debug, Args)]
pub(super) struct Unsigned {
    /// Add what no key has signed that Nix on this machine trusts. Whoever runs the leaf then decides what is in this store.
    #[arg(long)]
    no_check_sigs: bool,
}

/// What was brought.
#[derive(Debug, Serialize)]
struct Brought {
    paths: Vec<StorePath>,
    added: Vec<StorePath>,
    bytes: u64,
}

impl Get {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let mut paths: Vec<StorePath> = Vec::new();
        for text in self.paths {
            let path = StorePath::new(text).map_err(|error| Error::Usage(error.to_string()))?;
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
        let leaf = session.leaf().await?;
        let got = self.unsigned.get(&leaf, &paths).await?;
        let brought = Brought {
            paths,
            added: got.added,
            bytes: got.bytes,
        };
        output.document(&brought, |brought| {
            let lines: Vec<&str> = brought.paths.iter().map(StorePath::as_str).collect();
            let added = match brought.added.len() {
                0 => "it was in this store already".to_owned(),
                1 => format!("1 path, {}", size(brought.bytes)),
                more => format!("{more} paths, {}", size(brought.bytes)),
            };
            format!("{}\nadded: {added}", lines.join("\n"))
        })
    }
}

impl Unsigned {
    pub(super) fn is_wanted(&self) -> bool {
        self.no_check_sigs
    }

    /// Brings paths into this machine's store.
    pub(super) async fn get(&self, leaf: &Leaf, paths: &[StorePath]) -> Result<download::Got, Error> {
        let nix = LocalNix::default();
        let adding = Adding {
            nix: &nix,
            checked: !self.no_check_sigs,
            wrap: None,
            within: &std::env::temp_dir(),
        };
        let got = Box::pin(download::bring(leaf, adding, paths, Scope::Closure)).await;
        got.map_err(|error| match error {
            Error::Refused(why) if why.contains("lacks a") && why.contains("signature") => {
                Error::Refused(format!(
                    "{why}\nNix on this machine trusts no key that has signed it (trusted-public-keys). Have leaf {} sign what it builds \
                     (nix.options.secret-key-files) and name its key there; or, if you trust the leaf, add --no-check-sigs",
                    leaf.name
                ))
            }
            error => error,
        })
    }
}

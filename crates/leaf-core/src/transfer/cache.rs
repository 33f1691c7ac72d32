//! A binary cache in a directory, from which Nix adds store paths: what its descriptions say.

use std::fmt::Write as _;

use super::SentPath;
use crate::id::StorePath;

/// The name of the file that makes a directory a binary cache.
pub const INFO_NAME: &str = "nix-cache-info";
/// The content of that file.
pub const INFO: &str = "StoreDir: /nix/store\n";

/// Returns the name of the file with the NAR of the path with this number.
#[must_use]
pub fn nar_name(number: usize) -> String {
    format!("{number}.nar")
}

/// Returns the name of the file with the description of a path.
#[must_use]
pub fn narinfo_name(path: &StorePath) -> String {
    let hash = base_name(path).split('-').next().unwrap_or_default();
    format!("{hash}.narinfo")
}

/// Returns the description of the path with this number. All texts in it are checked: none has a line feed.
#[must_use]
pub fn narinfo(number: usize, sent: &SentPath) -> String {
    let references: Vec<&str> = sent.references.iter().map(base_name).collect();
    let mut text = format!(
        "StorePath: {}\nURL: {}\nCompression: none\nNarHash: sha256:{}\nNarSize: {}\nReferences: {}\n",
        sent.path,
        nar_name(number),
        sent.nar_sha256().unwrap_or_default(),
        sent.nar_size,
        references.join(" ")
    );
    if let Some(deriver) = &sent.deriver {
        writeln!(text, "Deriver: {}", base_name(deriver)).expect("writing to a String can't fail");
    }
    if let Some(address) = &sent.content_address {
        writeln!(text, "CA: {address}").expect("writing to a String can't fail");
    }
    for signature in &sent.signatures {
        writeln!(text, "Sig: {signature}").expect("writing to a String can't fail");
    }
    text
}

fn base_name(path: &StorePath) -> &str {
    path.as_str().trim_start_matches("/nix/store/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_has_what_nix_compares() {
        let path = |name: &str| {
            StorePath::new(format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{name}")).expect("a path")
        };
        let mut sent = SentPath {
            path: path("a"),
            nar_hash: "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned(),
            nar_size: 120,
            references: vec![path("b"), path("c")],
            content_address: None,
            signatures: Vec::new(),
            deriver: None,
        };
        let zeros = "0".repeat(64);
        let bare = format!(
            "StorePath: /nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a\nURL: 3.nar\nCompression: none\nNarHash: sha256:{zeros}\n\
             NarSize: 120\nReferences: 00bgd045z0d4icpbc2yyz4gx48ak44la-b 00bgd045z0d4icpbc2yyz4gx48ak44la-c\n"
        );
        assert_eq!(narinfo(3, &sent), bare);
        sent.content_address = Some("text:sha256:x".to_owned());
        sent.signatures = vec!["k:1".to_owned(), "l:2".to_owned()];
        sent.deriver = Some(path("a.drv"));
        assert_eq!(
            narinfo(3, &sent),
            format!(
                "{bare}Deriver: 00bgd045z0d4icpbc2yyz4gx48ak44la-a.drv\nCA: text:sha256:x\nSig: k:1\nSig: l:2\n"
            )
        );
        assert_eq!(
            narinfo_name(&sent.path),
            "00bgd045z0d4icpbc2yyz4gx48ak44la.narinfo"
        );
    }
}

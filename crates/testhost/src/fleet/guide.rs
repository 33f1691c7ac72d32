//! The guide of `docs/fleet.md`, from nothing to a hub and leaves: its blocks of commands.

use std::fs;

use anyhow::{Context as _, Result};

use crate::command::workspace;

/// The guide's text.
#[derive(Debug)]
pub struct Guide(String);

impl Guide {
    /// Reads the guide of this checkout.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn read() -> Result<Self> {
        let file = workspace().join("docs/fleet.md");
        let text = fs::read_to_string(&file).with_context(|| format!("can't read {}", file.display()))?;
        Ok(Self(text))
    }

    /// Returns all of it.
    pub fn text(&self) -> &str {
        &self.0
    }

    fn blocks(&self) -> impl Iterator<Item = &str> {
        let fenced = self.0.split("\n```").skip(1).step_by(2);
        fenced.filter_map(|block| Some(block.split_once('\n')?.1))
    }

    /// Returns the block whose first line is `# TITLE`.
    ///
    /// # Errors
    /// If there is none.
    pub fn block(&self, title: &str) -> Result<&str> {
        let mut blocks = self.blocks();
        blocks
            .find(|block| block.lines().next() == Some(&format!("# {title}")))
            .with_context(|| format!("docs/fleet.md has no block that begins with \"# {title}\""))
    }

    /// Returns a block for a hub of this name with these leaves, in place of the guide's `hub.example` and `edge-1` to `edge-3`.
    ///
    /// # Errors
    /// If there is no such block.
    pub fn block_for(&self, title: &str, hub: &str, leaves: &[&str]) -> Result<String> {
        let mut text = String::new();
        for line in self.block(title)?.replace("hub.example", hub).lines() {
            if line.contains("edge-1") {
                for leaf in leaves {
                    text.push_str(&format!("{}\n", line.replace("edge-1", leaf)));
                }
            } else if !line.contains("edge-2") && !line.contains("edge-3") {
                text.push_str(&format!("{line}\n"));
            }
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_found_by_its_title_and_each_leaf_has_its_lines() {
        let guide = Guide(
            "text\n```\n# Hub\nname hub.example\n[leaves]\nedge-1 = a\nedge-2 = b\nedge-3 = c\n```\nmore\n```\n# Leaf\nedge-1 x\n```\n"
                .to_owned(),
        );
        let hub = guide
            .block_for("Hub", "hub", &["leaf-1", "leaf-2"])
            .expect("it is there");
        assert_eq!(hub, "# Hub\nname hub\n[leaves]\nleaf-1 = a\nleaf-2 = a\n");
        assert_eq!(guide.block("Leaf").expect("it is there"), "# Leaf\nedge-1 x");
        assert!(guide.block("Le").is_err());
        assert_eq!(guide.blocks().count(), 2);
    }
}

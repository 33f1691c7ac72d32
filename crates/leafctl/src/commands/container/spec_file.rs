//! Reads a container's spec from a file in TOML or JSON.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use leaf_core::error::chain;
use leaf_core::id::ContainerName;
use leaf_core::spec::ContainerSource;
use leaf_core::spec::ContainerSpec;
use serde_json::{Map, Value};

use crate::commands::nix::installables::flake_reference;
use crate::error::Error;

/// A file's content: the spec, and the container's name if the file contains it.
#[derive(Debug)]
pub(super) struct SpecFile {
    path: PathBuf,
    name: Option<ContainerName>,
    /// The validated spec.
    pub(super) spec: ContainerSpec,
}

impl SpecFile {
    /// Reads a file, or standard input for `-`. `*.json` is read as JSON and any other file as TOML; the format of
    /// standard input follows from its first character.
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        let stdin = path == Path::new("-");
        let text = if stdin {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        } else {
            std::fs::read_to_string(path)
        };
        let text = text.map_err(|e| Error::Usage(format!("can't read the spec {}: {e}", path.display())))?;
        let json = path.extension().is_some_and(|extension| extension == "json")
            || (stdin && text.trim_start().starts_with('{'));
        Self::parse(path, &text, json)
            .map_err(|why| Error::Usage(format!("invalid spec {}: {why}", path.display())))
    }

    fn parse(path: &Path, text: &str, json: bool) -> Result<Self, String> {
        let mut fields: Map<String, Value> = if json {
            serde_json::from_str(text).map_err(|e| e.to_string())?
        } else {
            toml::from_str(text).map_err(|e| e.to_string())?
        };
        let name: Option<ContainerName> = fields
            .remove("name")
            .map(serde_json::from_value)
            .transpose()
            .map_err(|e| e.to_string())?;
        let mut spec = ContainerSpec::try_from(fields).map_err(|e| e.to_string())?;
        let unnamed = ContainerName::new("unnamed").expect("it is a name");
        spec.options.check(name.as_ref().unwrap_or(&unnamed))?;
        if let ContainerSource::Flake { reference } = &mut spec.source {
            *reference = flake_reference(reference).map_err(|e| chain(&e))?;
        }
        Ok(Self {
            path: path.to_owned(),
            name,
            spec,
        })
    }

    /// Returns the name given on the command line, or else the file's.
    pub(super) fn name(&self, given: Option<ContainerName>) -> Result<ContainerName, Error> {
        match (given, &self.name) {
            (Some(given), Some(own)) if given != *own => Err(Error::Usage(format!(
                "the spec {} is for container {own}, not {given}",
                self.path.display()
            ))),
            (Some(name), _) => Ok(name),
            (None, Some(name)) => Ok(name.clone()),
            (None, None) => Err(Error::Usage(format!(
                "the container's name is missing: give it on the command line, or as `name` in the spec {}",
                self.path.display()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_in_toml_equals_the_same_in_json() {
        let toml = "name = 'web'\nrun = 'running'\nsource = { type = 'template', name = 'minimal' }\n\
                    [limits]\nmemory_bytes = '64 MiB'\n[[allow]]\ntype = 'ingress'\nhost_port = 8080\nport = 80\n";
        let json = r#"{"name":"web","run":"running","source":{"type":"template","name":"minimal"},
                       "limits":{"memory_bytes":67108864},"allow":[{"type":"ingress","host_port":8080,"port":80}]}"#;
        let toml = SpecFile::parse(Path::new("web.toml"), toml, false).expect("a spec");
        let json = SpecFile::parse(Path::new("web.json"), json, true).expect("a spec");
        assert_eq!(toml.spec, json.spec);
        assert_eq!(toml.name(None).expect("a name").as_str(), "web");
        let other = ContainerName::new("other").expect("a name");
        assert!(toml.name(Some(other)).is_err());
    }

    #[test]
    fn the_error_of_an_invalid_spec_names_the_cause() {
        for (text, says) in [
            (
                "name = 'a b'\nsource = { type = 'template', name = 'x' }",
                "container name",
            ),
            ("run = 'running'", "missing field `source`"),
            (
                "source = { type = 'template', name = 'x' }\nlimit = 1",
                "unknown field `limit`",
            ),
            (
                "source = { type = 'template', name = 'x' }\nlimits = { memory_bytes = 0 }",
                "limits.memory_bytes",
            ),
            ("source = ", "TOML"),
        ] {
            let error = SpecFile::parse(Path::new("x.toml"), text, false).expect_err(text);
            assert!(error.contains(says), "{text:?} gave {error:?}");
        }
    }
}

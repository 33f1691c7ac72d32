//! demo
use std::process::ExitCode;
/// Show
#[derive(clap::Args)]
pub(crate) struct Demo {}
impl Demo {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        Ok(ExitCode::SUCCESS)
    }
}

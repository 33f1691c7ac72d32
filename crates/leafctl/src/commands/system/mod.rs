//! The commands about the systems of leaves.

mod batches;
mod build;
mod diff;
mod follow;
mod generations;
mod rollback;
mod switch;
mod toplevel;
mod verify;

commands! {
    Build(build::Build),
    Diff(diff::Diff),
    Switch(switch::Switch),
    Test(switch::Test),
    Boot(switch::Boot),
    Rollback(rollback::Rollback),
    Generations(generations::Generations),
    Verify(verify::Verify),
}

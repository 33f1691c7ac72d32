//! The arguments of the programs of `cargo xtask bench`.

/// Returns the arguments of this program, without the flags that cargo adds.
pub(crate) fn arguments() -> Vec<String> {
    std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"))
        .collect()
}

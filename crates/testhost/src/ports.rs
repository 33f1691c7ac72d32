//! The ports of a machine on PCI Express, into which devices are plugged while it runs.

/// How many there are.
pub(crate) const COUNT: usize = 16;

/// QEMU's name for a port.
pub(crate) fn id(port: usize) -> String {
    format!("port{port}")
}

//! The closed network of a leaf's containers: one nftables table of its own, other tables are left alone.
//!
//! A container reaches the leaf's NATS port, at the leaf's address and at its own link's host end, and nothing else;
//! the host may open connections into a container. Rules match by the set of this leaf's links, so several leaves on
//! one machine don't meet. A link is in the sets before the container's first process runs.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;

use tokio::io::AsyncWriteExt as _;

use leaf_core::container::ContainerNetwork;
use leaf_core::id::{ContainerName, LeafName};

use crate::error::{Error, Result};
use crate::network::host_link;

fn table(leaf: &LeafName) -> String {
    format!("inet leaf_{leaf}")
}

/// Makes the rules, or sets them anew; links that are in the sets stay there.
pub(crate) async fn prepare(nft: &Path, leaf: &LeafName, address: Ipv4Addr, nats_port: u16) -> Result<()> {
    let table = table(leaf);
    // One transaction: at no moment are there no rules.
    let script = format!(
        "add table {table}
add set {table} links {{ type ifname; }}
add set {table} sources {{ type ifname . ipv4_addr; }}
add set {table} gateways {{ type ifname . ipv4_addr; }}
add chain {table} input {{ type filter hook input priority filter; policy accept; }}
add chain {table} forward {{ type filter hook forward priority filter; policy accept; }}
add chain {table} output {{ type filter hook output priority filter; policy accept; }}
flush chain {table} input
flush chain {table} forward
flush chain {table} output
add rule {table} input iifname != @links accept
add rule {table} input meta nfproto != ipv4 counter drop
add rule {table} input iifname . ip saddr != @sources counter drop
add rule {table} input ct state established,related accept
add rule {table} input ip daddr {address} tcp dport {nats_port} counter accept
add rule {table} input iifname . ip daddr @gateways tcp dport {nats_port} counter accept
add rule {table} input counter drop
add rule {table} forward iifname @links counter drop
add rule {table} forward oifname @links counter drop
add rule {table} output oifname @links meta nfproto ipv6 drop
"
    );
    run(nft, &script).await.map_err(Error::Failed)
}

/// Lets a container's link take part. Again is the same as once.
pub(crate) async fn admit(
    nft: &Path,
    leaf: &LeafName,
    name: &ContainerName,
    network: ContainerNetwork,
) -> Result<()> {
    let elements = elements("add", leaf, name, network);
    run(nft, &elements).await.map_err(|said| {
        Error::Failed(format!(
            "the rules of the closed network are not there (prepare the network first): {said}"
        ))
    })
}

/// Takes a container's link out again. It is no error if it is not in.
pub(crate) async fn expel(
    nft: &Path,
    leaf: &LeafName,
    name: &ContainerName,
    network: ContainerNetwork,
) -> Result<()> {
    if run(nft, &format!("list table {}\n", table(leaf))).await.is_err() {
        return Ok(());
    }
    // Only what is there can be deleted, and adding what is there is no error: so both, in one transaction.
    let mut script = elements("add", leaf, name, network);
    script.push_str(&elements("delete", leaf, name, network));
    run(nft, &script).await.map_err(Error::Failed)
}

fn elements(verb: &str, leaf: &LeafName, name: &ContainerName, network: ContainerNetwork) -> String {
    let (table, link) = (table(leaf), host_link(name));
    let ContainerNetwork {
        host_address,
        container_address,
        ..
    } = network;
    format!(
        "{verb} element {table} sources {{ \"{link}\" . {container_address} }}
{verb} element {table} gateways {{ \"{link}\" . {host_address} }}
{verb} element {table} links {{ \"{link}\" }}
"
    )
}

/// Runs one transaction; the error is what `nft` said.
async fn run(nft: &Path, script: &str) -> std::result::Result<(), String> {
    let failed = |e: std::io::Error| format!("run {}: {e}", nft.display());
    let mut child = tokio::process::Command::new(nft)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let mut stdin = child.stdin.take().expect("stdin is piped, as asked above");
    stdin.write_all(script.as_bytes()).await.map_err(failed)?;
    drop(stdin);
    let output = child.wait_with_output().await.map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "nft: {}",
        said.lines().take(3).collect::<Vec<_>>().join(" | ")
    ))
}

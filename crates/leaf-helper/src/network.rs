//! Addresses, links and routes of the host, by rtnetlink.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use futures::TryStreamExt as _;
use rtnetlink::{Error as NetlinkError, Handle, LinkUnspec, RouteMessageBuilder};

use leaf_core::container::ContainerNetwork;
use leaf_core::id::ContainerName;

use crate::error::{Error, Result};

/// The host's end of a container's veth, as systemd-nspawn names it.
pub(crate) fn host_link(name: &ContainerName) -> String {
    format!("ve-{name}")
}

/// Gives the host an address of its own on `lo`, if it has not got it.
pub(crate) async fn add_leaf_address(address: Ipv4Addr) -> Result<()> {
    connected(async |handle| {
        let what = || format!("add the leaf's address {address} to lo");
        let index = index_of(&handle, "lo")
            .await?
            .ok_or_else(|| Error::Unsupported("this host has no interface lo".into()))?;
        add_address(&handle, index, address)
            .await
            .map_err(netlink(what()))
    })
    .await
}

/// Brings the host's end of a veth up with its address, and a route to the container's.
pub(crate) async fn configure_host_link(name: &ContainerName, network: ContainerNetwork) -> Result<()> {
    let link = host_link(name);
    connected(async |handle| {
        let index = wait_for_link(&handle, &link).await?;
        handle
            .link()
            .change(LinkUnspec::new_with_index(index).up().build())
            .execute()
            .await
            .map_err(netlink(format!("bring {link} up")))?;
        add_address(&handle, index, network.host_address)
            .await
            .map_err(netlink(format!("add {} to {link}", network.host_address)))?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(network.container_address, 32)
            .output_interface(index)
            .scope(rtnetlink::packet_route::route::RouteScope::Link)
            .build();
        handle
            .route()
            .add(route)
            .replace()
            .execute()
            .await
            .map_err(netlink(format!(
                "set the route to {} by {link}",
                network.container_address
            )))
    })
    .await
}

/// Removes the host's end of a veth, and so the whole of it, if it is there.
pub(crate) async fn remove_host_link(name: &ContainerName) -> Result<()> {
    let link = host_link(name);
    connected(async |handle| {
        let Some(index) = index_of(&handle, &link).await? else {
            return Ok(());
        };
        match handle.link().del(index).execute().await {
            Err(e) if is(&e, rustix::io::Errno::NODEV) => Ok(()),
            other => other.map_err(netlink(format!("remove {link}"))),
        }
    })
    .await
}

/// Runs a request beside the connection that carries it.
async fn connected<T, F: Future<Output = Result<T>>>(work: impl FnOnce(Handle) -> F) -> Result<T> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::io("open a netlink socket"))?;
    tokio::select! {
        biased;
        done = work(handle) => done,
        () = connection => Err(Error::Failed("the netlink connection ended by itself".into())),
    }
}

async fn index_of(handle: &Handle, link: &str) -> Result<Option<u32>> {
    match handle.link().get().match_name(link).execute().try_next().await {
        Ok(found) => Ok(found.map(|message| message.header.index)),
        Err(e) if is(&e, rustix::io::Errno::NODEV) => Ok(None),
        Err(e) => Err(netlink(format!("look for the interface {link}"))(e)),
    }
}

/// systemd-nspawn says that the container runs when its link is there; an older one may say so a moment before.
async fn wait_for_link(handle: &Handle, link: &str) -> Result<u32> {
    for _ in 0..200 {
        if let Some(index) = index_of(handle, link).await? {
            return Ok(index);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err(Error::Failed(format!(
        "the interface {link} did not appear within 2 s"
    )))
}

async fn add_address(
    handle: &Handle,
    index: u32,
    address: Ipv4Addr,
) -> std::result::Result<(), NetlinkError> {
    match handle
        .address()
        .add(index, IpAddr::V4(address), 32)
        .execute()
        .await
    {
        Err(e) if is(&e, rustix::io::Errno::EXIST) => Ok(()),
        other => other,
    }
}

fn is(error: &NetlinkError, errno: rustix::io::Errno) -> bool {
    matches!(error, NetlinkError::NetlinkError(message) if message.raw_code() == -errno.raw_os_error())
}

fn netlink(what: String) -> impl FnOnce(NetlinkError) -> Error {
    move |source| Error::Netlink { what, source }
}

//! Configures the host's addresses, links and routes by rtnetlink.
//!
//! Each container has one veth to the host, and no bridge connects them: `ve-NAME` is the host's end, and `vp-NAME` the
//! other one until it is in the container, where `leaf-init` renames it to `eth0`. [`make_link`] configures it
//! completely before any process of the container runs: addresses, routes, neighbour entries. So the host neither asks
//! for nor accepts anything from the link: neighbour entries are permanent, the host's end has no IPv6 link-local
//! address and therefore no router discovery, and the routes are the leaf's own. The
//! [firewall](crate::network::firewall) decides what the container may send.

pub(crate) mod firewall;

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use futures::TryStreamExt as _;
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoVeth, LinkAttribute,
};
use rtnetlink::packet_route::route::{RouteMessage, RouteScope};
use rtnetlink::{Error as NetlinkError, Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};
use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType};
use sha2::{Digest as _, Sha256};

use leaf_core::container::ContainerNetwork;
use leaf_core::id::ContainerName;

use crate::error::{Error, Result};

/// The socket of udev, if it runs, and the directory of its notes on links.
const UDEV: &str = "/run/udev/control";
const UDEV_DATA: &str = "/run/udev/data";
/// The time limit for udev to handle a new link: during boot, it is busy.
const UDEV_PATIENCE: Duration = Duration::from_secs(60);

/// Returns the name of the host's end of a container's veth, as systemd-nspawn would name it.
pub(crate) fn host_link(name: &ContainerName) -> String {
    format!("ve-{name}")
}

/// Returns the name of the container's end of its veth while it is on the host.
pub(crate) fn peer_link(name: &ContainerName) -> String {
    format!("vp-{name}")
}

/// Returns whether a container's veth exists.
pub(crate) fn is_there(name: &ContainerName) -> Result<bool> {
    let failed = || Error::io(format!("look for the interface {}", host_link(name)));
    // Any socket will do for the ioctl.
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None).map_err(failed())?;
    match name_to_index(&socket, &host_link(name)) {
        Ok(_) => Ok(true),
        Err(Errno::NODEV) => Ok(false),
        Err(e) => Err(failed()(e)),
    }
}

/// Adds an address to `lo`, if it is missing. Returns whether it was.
pub(crate) async fn add_leaf_address(address: Ipv4Addr) -> Result<bool> {
    connected(async |handle| {
        let index = index_of(&handle, "lo")
            .await?
            .ok_or_else(|| Error::Unsupported("this host has no interface lo".into()))?;
        add_address(&handle, index, address.into())
            .await
            .map_err(netlink(format!("add the leaf's address {address} to lo")))
    })
    .await
}

/// Removes an address from `lo`, if it is there.
pub(crate) async fn remove_leaf_address(address: Ipv4Addr) -> Result<()> {
    connected(async |handle| {
        let failed = || netlink(format!("remove the leaf's address {address} from lo"));
        let Some(index) = index_of(&handle, "lo").await? else {
            return Ok(());
        };
        let there = handle.address().get().set_link_index_filter(index);
        let there: Vec<_> = there
            .set_address_filter(address.into())
            .execute()
            .try_collect()
            .await
            .map_err(failed())?;
        for message in there {
            match handle.address().del(message).execute().await {
                Err(e) if is(&e, Errno::ADDRNOTAVAIL) => {}
                other => other.map_err(failed())?,
            }
        }
        Ok(())
    })
    .await
}

/// Creates a container's veth, and returns the name of the end for the container. An earlier one is replaced.
///
/// If udev runs, it has finished with the new link by then: systemd-nspawn requires that (`--network-interface=`).
pub(crate) async fn make_link(name: &ContainerName, network: ContainerNetwork) -> Result<String> {
    let (link, peer) = (host_link(name), peer_link(name));
    connected(async |handle| {
        for old in [&link, &peer] {
            delete(&handle, old).await?;
        }
        add_pair(&handle, &link, &peer, name).await?;
        let index = require(&handle, &link).await?;
        // Before the link is brought up, when the kernel would add an address by itself.
        without_link_local(&handle, index)
            .await
            .map_err(netlink(format!("keep link-local addresses off {link}")))?;
        bring_up(&handle, index, name, network).await?;
        let theirs = require(&handle, &peer).await?;
        wait_for_udev(&peer, theirs).await
    })
    .await?;
    Ok(peer)
}

/// Takes the host's end of a container's veth down: neither side receives anything. It is not an error if there is none.
pub(crate) async fn take_down(name: &ContainerName) -> Result<()> {
    let link = host_link(name);
    connected(async |handle| {
        let Some(index) = index_of(&handle, &link).await? else {
            return Ok(());
        };
        let down = LinkUnspec::new_with_index(index).down().build();
        match handle.link().change(down).execute().await {
            Err(e) if is(&e, Errno::NODEV) => Ok(()),
            other => other.map_err(netlink(format!("take {link} down"))),
        }
    })
    .await
}

/// Brings the host's end of a container's veth up again, after [`take_down`]. It is not an error if there is none.
pub(crate) async fn bring_back(name: &ContainerName, network: ContainerNetwork) -> Result<()> {
    connected(async |handle| match index_of(&handle, &host_link(name)).await? {
        Some(index) => bring_up(&handle, index, name, network).await,
        None => Ok(()),
    })
    .await
}

/// Brings the host's end of a veth up, with its addresses, routes and neighbours, which a link that is down loses.
async fn bring_up(
    handle: &Handle,
    index: u32,
    name: &ContainerName,
    network: ContainerNetwork,
) -> Result<()> {
    let link = host_link(name);
    let up = LinkUnspec::new_with_index(index).up().build();
    let up = handle.link().change(up).execute().await;
    up.map_err(netlink(format!("bring {link} up")))?;
    let ends = (network.host_address.into(), network.container_address.into());
    connect(handle, index, &link, name, ends).await?;
    if let (Some(host), Some(container)) = (network.host_address6, network.container_address6)
        && has_ipv6(&link)
    {
        connect(handle, index, &link, name, (host.into(), container.into())).await?;
    }
    Ok(())
}

/// Moves the container's end of a veth into the container, if it was not moved by systemd-nspawn.
pub(crate) async fn hand_over(name: &ContainerName, leader_pid: u32) -> Result<()> {
    let peer = peer_link(name);
    connected(async |handle| {
        let index = require(&handle, &peer).await?;
        let moved = LinkUnspec::new_with_index(index).setns_by_pid(leader_pid).build();
        let moved = handle.link().change(moved).execute().await;
        moved.map_err(netlink(format!("move {peer} into the container")))
    })
    .await
}

/// Removes a container's veth, if it exists.
pub(crate) async fn remove_link(name: &ContainerName) -> Result<()> {
    connected(async |handle| {
        // Deleting either end deletes the other.
        delete(&handle, &host_link(name)).await?;
        delete(&handle, &peer_link(name)).await
    })
    .await
}

/// Runs requests concurrently with the connection that carries them.
async fn connected<T, F: Future<Output = Result<T>>>(work: impl FnOnce(Handle) -> F) -> Result<T> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::io("open a netlink socket"))?;
    tokio::select! {
        biased;
        done = work(handle) => done,
        () = connection => Err(Error::Failed("the netlink connection closed unexpectedly".into())),
    }
}

async fn index_of(handle: &Handle, link: &str) -> Result<Option<u32>> {
    match handle.link().get().match_name(link).execute().try_next().await {
        Ok(found) => Ok(found.map(|message| message.header.index)),
        Err(e) if is(&e, Errno::NODEV) => Ok(None),
        Err(e) => Err(netlink(format!("look for the interface {link}"))(e)),
    }
}

async fn require(handle: &Handle, link: &str) -> Result<u32> {
    index_of(handle, link).await?.ok_or_else(|| {
        Error::Failed(format!(
            "the interface {link} was removed while it was being set up"
        ))
    })
}

async fn delete(handle: &Handle, link: &str) -> Result<()> {
    let Some(index) = index_of(handle, link).await? else {
        return Ok(());
    };
    match handle.link().del(index).execute().await {
        Err(e) if is(&e, Errno::NODEV) => Ok(()),
        other => other.map_err(netlink(format!("remove {link}"))),
    }
}

async fn add_pair(handle: &Handle, link: &str, peer: &str, name: &ContainerName) -> Result<()> {
    let theirs = LinkUnspec::new_with_name(peer)
        .address(mac(name, End::Container).to_vec())
        .build();
    let pair = LinkVeth::new(link, peer)
        .address(mac(name, End::Host).to_vec())
        .set_info_data(InfoData::Veth(InfoVeth::Peer(theirs)))
        .build();
    match handle.link().add(pair).execute().await {
        Err(e) if is(&e, Errno::OPNOTSUPP) => Err(Error::Unsupported(
            "this kernel doesn't support veth links; load the module veth".into(),
        )),
        other => other.map_err(netlink(format!("create the veth {link}"))),
    }
}

/// Disables the kernel's link-local address; a link without IPv6 needs nothing.
async fn without_link_local(handle: &Handle, index: u32) -> std::result::Result<(), NetlinkError> {
    let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let change = LinkUnspec::new_with_index(index)
        .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]))
        .build();
    match handle.link().change(change).execute().await {
        Err(e) if is(&e, Errno::AFNOSUPPORT) || is(&e, Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}

/// Configures one family of a veth: the host's address, the route to the container's, and its neighbour entry.
async fn connect(
    handle: &Handle,
    index: u32,
    link: &str,
    name: &ContainerName,
    (own, theirs): (IpAddr, IpAddr),
) -> Result<()> {
    add_address(handle, index, own)
        .await
        .map_err(netlink(format!("add {own} to {link}")))?;
    let set = handle.route().add(route_to(theirs, own, index)).replace();
    set.execute()
        .await
        .map_err(netlink(format!("set the route to {theirs} via {link}")))?;
    let neighbour = handle
        .neighbours()
        .add(index, theirs)
        .link_layer_address(&mac(name, End::Container))
        .replace();
    neighbour
        .execute()
        .await
        .map_err(netlink(format!("set the neighbour entry of {theirs} on {link}")))
}

fn route_to(theirs: IpAddr, own: IpAddr, index: u32) -> RouteMessage {
    match (theirs, own) {
        (IpAddr::V6(theirs), _) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(theirs, 128)
            .output_interface(index)
            .build(),
        (IpAddr::V4(theirs), _) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(theirs, 32)
            .output_interface(index)
            .scope(RouteScope::Link)
            .build(),
    }
}

/// Adds an address to a link. Returns whether it was missing.
async fn add_address(
    handle: &Handle,
    index: u32,
    address: IpAddr,
) -> std::result::Result<bool, NetlinkError> {
    let prefix = if address.is_ipv4() { 32 } else { 128 };
    let mut request = handle.address().add(index, address, prefix);
    if address.is_ipv6() {
        // The address is unique, so duplicate address detection would only cost time.
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    }
    match request.execute().await {
        Err(e) if is(&e, Errno::EXIST) => Ok(false),
        other => other.map(|()| true),
    }
}

/// Returns whether a link can have IPv6. It is enabled for the link if it is off by default for new links.
fn has_ipv6(link: &str) -> bool {
    let setting = Path::new("/proc/sys/net/ipv6/conf")
        .join(link)
        .join("disable_ipv6");
    let off = match std::fs::read_to_string(&setting) {
        Ok(value) => value.trim() != "0",
        Err(_) => {
            tracing::debug!(link, "this host has no IPv6, so the link has none");
            return false;
        }
    };
    if off && let Err(e) = std::fs::write(&setting, "0") {
        tracing::warn!(
            link,
            error = %e,
            "IPv6 is off on this host (net.ipv6.conf.default.disable_ipv6), and can't be enabled for the link: the \
            container has only IPv4"
        );
        return false;
    }
    true
}

/// Waits until udev has finished with a link, if udev runs.
async fn wait_for_udev(link: &str, index: u32) -> Result<()> {
    let note = Path::new(UDEV_DATA).join(format!("n{index}"));
    let deadline = tokio::time::Instant::now() + UDEV_PATIENCE;
    while Path::new(UDEV).exists() && !std::fs::read_to_string(&note).is_ok_and(|note| is_done(&note)) {
        if tokio::time::Instant::now() >= deadline {
            return Err(Error::Failed(format!(
                "udev did not finish with the interface {link} within {} s",
                UDEV_PATIENCE.as_secs()
            )));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// Returns whether udev has finished with a device, according to its note: the time of initialization and, since
/// systemd 255, whether it is still processing. systemd-nspawn checks the same.
fn is_done(note: &str) -> bool {
    let has = |start| note.lines().any(|line: &str| line.starts_with(start));
    has("I:") && !has("E:ID_PROCESSING=1")
}

/// An end of a veth.
#[derive(Debug, Clone, Copy)]
enum End {
    Host,
    Container,
}

/// Returns the hardware address of an end, which depends only on the container's name.
fn mac(name: &ContainerName, end: End) -> [u8; 6] {
    let mut mac = [0; 6];
    mac.copy_from_slice(&Sha256::digest(format!("cim-leaf veth {name}"))[..6]);
    // Locally administered, unicast (IEEE 802, clause 8.2); the last bit distinguishes the ends.
    mac[0] = mac[0] & 0xfc | 0x02;
    mac[5] = match end {
        End::Host => mac[5] & 0xfe,
        End::Container => mac[5] | 0x01,
    };
    mac
}

fn is(error: &NetlinkError, errno: Errno) -> bool {
    matches!(error, NetlinkError::NetlinkError(message) if message.raw_code() == -errno.raw_os_error())
}

fn netlink(what: String) -> impl FnOnce(NetlinkError) -> Error {
    move |source| Error::Netlink { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn udev_has_finished_with_a_link_that_is_initialized_and_not_being_processed() {
        assert!(!is_done(""));
        assert!(!is_done(
            "I:55367478\nE:ID_NET_NAME=vp-x\nE:ID_PROCESSING=1\nG:systemd\nV:1\n"
        ));
        assert!(is_done("I:55367478\nE:ID_NET_NAME=vp-x\nG:systemd\nV:1\n"));
    }

    #[test]
    fn link_names_fit_and_hardware_addresses_are_stable_local_and_distinct() {
        let name = ContainerName::new("Longest-one").expect("a name of 11 characters");
        assert!(host_link(&name).len() < 16 && peer_link(&name).len() < 16);
        let (host, container) = (mac(&name, End::Host), mac(&name, End::Container));
        assert_eq!(host[0] & 0x03, 0x02);
        assert_ne!(host, container);
        assert_eq!(host[..5], container[..5]);
        assert_eq!(mac(&name, End::Host), host);
        let other = ContainerName::new("longest-one").expect("a name");
        assert_ne!(mac(&other, End::Host), host);
    }
}

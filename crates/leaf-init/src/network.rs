//! Configures the container's end of its veth: renames it to `eth0` and sets the addresses and default routes from the
//! environment (`LOCAL_ADDRESS`, `HOST_ADDRESS`, `LOCAL_ADDRESS6`, `HOST_ADDRESS6`; the contract of NixOS's
//! containers).
//!
//! The link is `vp-NAME` if leaf-helper made it, or `host0` if systemd-nspawn did, and may appear after this process
//! has started.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::{FutureExt as _, Stream, StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteMessage, RouteScope};
use rtnetlink::{Error, Handle, LinkUnspec, MulticastGroup, RouteMessageBuilder};
use rustix::io::Errno;

/// The link's name in the container.
const INTERFACE: &str = "eth0";
/// The name of a link that systemd-nspawn made.
const NSPAWN_LINK: &str = "host0";
/// The prefix of the name of a link that leaf-helper made.
const HELPER_LINK_PREFIX: &str = "vp-";
/// How many times the link is looked up.
const TRIES: u32 = 2000;
/// The pause between two look-ups of the link.
const RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// The addresses of one family at both ends of the link.
#[derive(Debug, Clone, Copy)]
struct Ends<T> {
    local: T,
    host: T,
}

/// Sets up the network if the environment has addresses. Idempotent.
pub(crate) async fn set_up() -> anyhow::Result<()> {
    let v4 = ends::<Ipv4Addr>("LOCAL_ADDRESS", "HOST_ADDRESS")?;
    let v6 = ends::<Ipv6Addr>("LOCAL_ADDRESS6", "HOST_ADDRESS6")?;
    if v4.is_none() && v6.is_none() {
        return Ok(());
    }
    let (connection, handle, _) = rtnetlink::new_connection().context("open a netlink socket")?;
    tokio::select! {
        biased;
        done = configure(&handle, v4, v6) => done,
        () = connection => bail!("the netlink connection ended unexpectedly"),
    }
}

/// Returns the changes of the container's links, as the kernel tells them while the stream is polled.
pub(crate) fn changes() -> anyhow::Result<impl Stream<Item = ()> + Unpin> {
    let (connection, _, mut messages) = rtnetlink::new_multicast_connection(&[MulticastGroup::Link])
        .context("watch the container's links")?;
    // It reads the socket, and passes the messages on.
    let mut connection = Box::pin(connection.fuse());
    Ok(futures::stream::poll_fn(move |context| {
        let _ = connection.poll_unpin(context);
        messages.poll_next_unpin(context).map(|message| message.map(drop))
    }))
}

fn ends<T: std::str::FromStr<Err = std::net::AddrParseError>>(
    local: &str,
    host: &str,
) -> anyhow::Result<Option<Ends<T>>> {
    let (Some(local), Some(host)) = (address(local)?, address(host)?) else {
        return Ok(None);
    };
    Ok(Some(Ends { local, host }))
}

fn address<T: std::str::FromStr<Err = std::net::AddrParseError>>(
    variable: &str,
) -> anyhow::Result<Option<T>> {
    let Some(text) = std::env::var_os(variable).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let text = text.to_string_lossy();
    // NixOS allows a prefix length in the value.
    let plain = text.split('/').next().unwrap_or_default();
    let address = plain
        .parse()
        .with_context(|| format!("{variable}={text} is not an address of that family"))?;
    Ok(Some(address))
}

async fn configure(
    handle: &Handle,
    v4: Option<Ends<Ipv4Addr>>,
    v6: Option<Ends<Ipv6Addr>>,
) -> anyhow::Result<()> {
    let links = links(handle).await?;
    if let Some((lo, _)) = links.iter().find(|(_, name)| name == "lo") {
        let up = LinkUnspec::new_with_index(*lo).up().build();
        handle.link().change(up).execute().await.context("bring lo up")?;
    }
    let link = wait_for_link(handle).await?;
    let up = LinkUnspec::new_with_index(link).up().build();
    handle
        .link()
        .change(up)
        .execute()
        .await
        .with_context(|| format!("bring {INTERFACE} up"))?;
    if let Some(Ends { local, host }) = v4 {
        add_address(handle, link, local.into()).await?;
        let to_host = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(host, 32)
            .output_interface(link)
            .scope(RouteScope::Link)
            .build();
        let via_host = RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(host)
            .output_interface(link)
            .build();
        add_routes(handle, host.into(), [to_host, via_host]).await?;
    }
    if let Some(Ends { local, host }) = v6 {
        // Without IPv6 on the host, the container has IPv4 only.
        if !std::path::Path::new("/proc/net/if_inet6").exists() {
            return Ok(());
        }
        add_address(handle, link, local.into()).await?;
        let to_host = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(host, 128)
            .output_interface(link)
            .build();
        let via_host = RouteMessageBuilder::<Ipv6Addr>::new()
            .gateway(host)
            .output_interface(link)
            .build();
        add_routes(handle, host.into(), [to_host, via_host]).await?;
    }
    Ok(())
}

/// Adds the routes to the host and through it.
async fn add_routes(handle: &Handle, host: IpAddr, routes: [RouteMessage; 2]) -> anyhow::Result<()> {
    for route in routes {
        let added = handle.route().add(route).replace().execute().await;
        added.with_context(|| format!("set the routes via {host}"))?;
    }
    Ok(())
}

async fn add_address(handle: &Handle, link: u32, address: IpAddr) -> anyhow::Result<()> {
    let prefix = if address.is_ipv4() { 32 } else { 128 };
    let mut request = handle.address().add(link, address, prefix);
    if address.is_ipv6() {
        // The address is unique on the link, so duplicate address detection would only delay it.
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    }
    let added = request.execute().await;
    added
        .or_else(ignore_existing)
        .with_context(|| format!("add {address} to {INTERFACE}"))
}

/// Waits for the link, renames it to `eth0`, and returns its index.
async fn wait_for_link(handle: &Handle) -> anyhow::Result<u32> {
    for _ in 0..TRIES {
        let links = links(handle).await?;
        if let Some((link, _)) = links.iter().find(|(_, name)| name == INTERFACE) {
            return Ok(*link);
        }
        let is_container_link = |name: &str| name == NSPAWN_LINK || name.starts_with(HELPER_LINK_PREFIX);
        if let Some((link, name)) = links.iter().find(|(_, name)| is_container_link(name)) {
            let named = LinkUnspec::new_with_index(*link).name(INTERFACE).build();
            handle
                .link()
                .change(named)
                .execute()
                .await
                .with_context(|| format!("rename {name} to {INTERFACE}"))?;
            return Ok(*link);
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
    bail!(
        "the container's link did not appear within {:?}",
        RETRY_INTERVAL * TRIES
    )
}

/// Returns the index and the name of each link.
async fn links(handle: &Handle) -> anyhow::Result<Vec<(u32, String)>> {
    let name_of = |message: LinkMessage| {
        let index = message.header.index;
        message
            .attributes
            .into_iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some((index, name)),
                _ => None,
            })
    };
    let messages: Vec<LinkMessage> = handle
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .context("list the container's links")?;
    Ok(messages.into_iter().filter_map(name_of).collect())
}

fn ignore_existing(error: Error) -> Result<(), Error> {
    if is(&error, Errno::EXIST) {
        Ok(())
    } else {
        Err(error)
    }
}

fn is(error: &Error, errno: Errno) -> bool {
    matches!(error, Error::NetlinkError(message) if message.raw_code() == -errno.raw_os_error())
}

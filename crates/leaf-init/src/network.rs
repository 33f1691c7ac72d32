//! The container's end of its one link: it becomes `eth0`, with the addresses and default routes that the environment
//! names (`LOCAL_ADDRESS`, `HOST_ADDRESS`, `LOCAL_ADDRESS6`, `HOST_ADDRESS6`; the contract of NixOS's containers).
//!
//! The link comes as `vp-NAME` from the leaf's helper, or as `host0` from systemd-nspawn, and may come a moment after
//! this process.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::TryStreamExt as _;
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Error, Handle, LinkUnspec, RouteMessageBuilder};
use rustix::io::Errno;

/// How the link is to be named.
const WANTED: &str = "eth0";
/// How systemd-nspawn names a link that it made, and how the names of those begin that the leaf's helper made.
const BY_NSPAWN: &str = "host0";
const BY_HELPER: &str = "vp-";
/// How often, and how far apart, the link is looked for.
const TRIES: u32 = 2000;
const BETWEEN: Duration = Duration::from_millis(5);

/// The addresses of one family at both ends of the link.
#[derive(Debug, Clone, Copy)]
struct Ends<T> {
    local: T,
    host: T,
}

/// Sets the network up, if the environment names addresses. Again is the same as once.
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
        () = connection => bail!("the netlink connection ended by itself"),
    }
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
    // NixOS allows a prefix length there.
    let plain = text.split('/').next().unwrap_or_default();
    let address = plain
        .parse()
        .with_context(|| format!("{variable}={text} is not an address of its family"))?;
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
        .with_context(|| format!("bring {WANTED} up"))?;
    if let Some(Ends { local, host }) = v4 {
        add_address(handle, link, local.into()).await?;
        let to_host = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(host, 32)
            .output_interface(link)
            .scope(RouteScope::Link)
            .build();
        let by_host = RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(host)
            .output_interface(link)
            .build();
        for route in [to_host, by_host] {
            let added = handle.route().add(route).replace().execute().await;
            added.with_context(|| format!("set the routes by {host}"))?;
        }
    }
    if let Some(Ends { local, host }) = v6 {
        // A host without IPv6 gives none to its containers, which is no reason not to start.
        if !std::path::Path::new("/proc/net/if_inet6").exists() {
            return Ok(());
        }
        add_address(handle, link, local.into()).await?;
        let to_host = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(host, 128)
            .output_interface(link)
            .build();
        let by_host = RouteMessageBuilder::<Ipv6Addr>::new()
            .gateway(host)
            .output_interface(link)
            .build();
        for route in [to_host, by_host] {
            let added = handle.route().add(route).replace().execute().await;
            added.with_context(|| format!("set the routes by {host}"))?;
        }
    }
    Ok(())
}

async fn add_address(handle: &Handle, link: u32, address: IpAddr) -> anyhow::Result<()> {
    let prefix = if address.is_ipv4() { 32 } else { 128 };
    let mut request = handle.address().add(link, address, prefix);
    if address.is_ipv6() {
        // Nobody else has it, and it is to be had at once.
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    }
    let added = request.execute().await;
    added
        .or_else(unless_there)
        .with_context(|| format!("add {address} to {WANTED}"))
}

/// Returns the link, named as it is wanted. It may come a moment after this process.
async fn wait_for_link(handle: &Handle) -> anyhow::Result<u32> {
    for _ in 0..TRIES {
        let links = links(handle).await?;
        if let Some((link, _)) = links.iter().find(|(_, name)| name == WANTED) {
            return Ok(*link);
        }
        let given = |name: &str| name == BY_NSPAWN || name.starts_with(BY_HELPER);
        if let Some((link, name)) = links.iter().find(|(_, name)| given(name)) {
            let named = LinkUnspec::new_with_index(*link).name(WANTED).build();
            handle
                .link()
                .change(named)
                .execute()
                .await
                .with_context(|| format!("rename {name} to {WANTED}"))?;
            return Ok(*link);
        }
        tokio::time::sleep(BETWEEN).await;
    }
    bail!("the container's link did not appear within {:?}", BETWEEN * TRIES)
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
        .context("look for the container's links")?;
    Ok(messages.into_iter().filter_map(name_of).collect())
}

fn unless_there(error: Error) -> Result<(), Error> {
    if is(&error, Errno::EXIST) {
        Ok(())
    } else {
        Err(error)
    }
}

fn is(error: &Error, errno: Errno) -> bool {
    matches!(error, Error::NetlinkError(message) if message.raw_code() == -errno.raw_os_error())
}

//! The container's end of its one link: `host0` becomes `eth0`, with the address and the default route that the
//! environment names (`LOCAL_ADDRESS`, `HOST_ADDRESS`; the contract of NixOS's containers).

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::TryStreamExt as _;
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Error, Handle, LinkUnspec, RouteMessageBuilder};
use rustix::io::Errno;

/// How systemd-nspawn names the link, and how it is to be named.
const GIVEN: &str = "host0";
const WANTED: &str = "eth0";
/// How often, and how far apart, the link is looked for.
const TRIES: u32 = 200;
const BETWEEN: Duration = Duration::from_millis(50);

/// Sets the network up, if the environment names addresses. Again is the same as once.
pub(crate) async fn set_up() -> anyhow::Result<()> {
    let (Some(local), Some(host)) = (address("LOCAL_ADDRESS")?, address("HOST_ADDRESS")?) else {
        return Ok(());
    };
    let (connection, handle, _) = rtnetlink::new_connection().context("open a netlink socket")?;
    tokio::select! {
        biased;
        done = configure(&handle, local, host) => done,
        () = connection => bail!("the netlink connection ended by itself"),
    }
}

fn address(variable: &str) -> anyhow::Result<Option<Ipv4Addr>> {
    let Some(text) = std::env::var_os(variable).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let text = text.to_string_lossy();
    // NixOS allows a prefix length there.
    let plain = text.split('/').next().unwrap_or_default();
    let address = plain
        .parse()
        .with_context(|| format!("{variable}={text} is not an IPv4 address"))?;
    Ok(Some(address))
}

async fn configure(handle: &Handle, local: Ipv4Addr, host: Ipv4Addr) -> anyhow::Result<()> {
    if let Some(lo) = find(handle, "lo").await? {
        let up = LinkUnspec::new_with_index(lo).up().build();
        handle.link().change(up).execute().await.context("bring lo up")?;
    }
    let link = wait_for_link(handle).await?;
    let up = LinkUnspec::new_with_index(link).up().build();
    handle
        .link()
        .change(up)
        .execute()
        .await
        .context("bring eth0 up")?;
    let added = handle.address().add(link, IpAddr::V4(local), 32).execute().await;
    added
        .or_else(unless_there)
        .with_context(|| format!("add {local} to {WANTED}"))?;
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
    Ok(())
}

/// Returns the link, named as it is wanted. It may come a moment after this process.
async fn wait_for_link(handle: &Handle) -> anyhow::Result<u32> {
    for _ in 0..TRIES {
        if let Some(link) = find(handle, WANTED).await? {
            return Ok(link);
        }
        if let Some(link) = find(handle, GIVEN).await? {
            let named = LinkUnspec::new_with_index(link).name(WANTED.to_owned()).build();
            handle
                .link()
                .change(named)
                .execute()
                .await
                .context("rename host0 to eth0")?;
            return Ok(link);
        }
        tokio::time::sleep(BETWEEN).await;
    }
    bail!("the link {GIVEN} did not appear within {:?}", BETWEEN * TRIES)
}

async fn find(handle: &Handle, name: &str) -> anyhow::Result<Option<u32>> {
    match handle.link().get().match_name(name).execute().try_next().await {
        Ok(found) => Ok(found.map(|message| message.header.index)),
        Err(e) if is(&e, Errno::NODEV) => Ok(None),
        Err(e) => Err(e).with_context(|| format!("look for the link {name}")),
    }
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

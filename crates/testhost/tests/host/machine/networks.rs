//! Several machines on one network.

use testhost::{Host, Network, Output};

use crate::{Outcome, Trials, ensure, until};

pub(crate) const TRIALS: Trials = &[(
    "two_leaves_and_a_hub_reach_each_other_until_a_link_is_cut",
    together,
)];

fn together() -> Outcome {
    let network = Network::new()?;
    let hub = Host::options()
        .name("hub")
        .on(&network, "192.168.7.1/24")
        .restore()?;
    let a = Host::options()
        .name("a")
        .on(&network, "192.168.7.2/24")
        .restore()?;
    let b = Host::options()
        .name("b")
        .on(&network, "192.168.7.3/24")
        .restore()?;
    for (host, others) in [(&hub, [2, 3]), (&a, [1, 3]), (&b, [1, 2])] {
        for other in others {
            let ping = format!("ping -c 1 -W 5 192.168.7.{other} >&2 && echo reached");
            until(host, &ping, |seen| seen == "reached\n")?;
        }
    }

    // As leaf nodes are connected: the hub's server takes both.
    let hub_settings = "http: 127.0.0.1:8222\nleafnodes { port: 7422 }\n";
    let leaf_settings =
        "ping_interval: 1s\nleafnodes { remotes: [ { url: \"nats-leaf://192.168.7.1:7422\" } ] }\n";
    for (host, settings) in [(&hub, hub_settings), (&a, leaf_settings), (&b, leaf_settings)] {
        host.put(
            format!("server_name: {}\n{settings}", host.name()).as_bytes(),
            "/etc/nats.conf",
            "0644",
        )?;
        host.ok("systemd-run --quiet --unit nats nats-server -c /etc/nats.conf")?;
    }
    let leaves = "busybox wget -qO- http://127.0.0.1:8222/leafz";
    let count = |wanted: usize| move |seen: &str| seen.matches("\"name\":").count() == wanted;
    until(&hub, leaves, count(2))?;
    b.link_in(&network, false)?;
    let alone: Output = b.run("ping -c 1 -W 1 192.168.7.1")?;
    ensure(alone.status != 0, format!("{alone:?}"))?;
    let still = a.run("ping -c 1 -W 5 192.168.7.1")?;
    ensure(still.status == 0, format!("the other is not cut off: {still:?}"))?;
    b.link_in(&network, true)?;
    until(&b, "ping -c 1 -W 5 192.168.7.1 >&2 && echo reached", |seen| {
        seen == "reached\n"
    })?;
    until(&hub, leaves, count(2))
}

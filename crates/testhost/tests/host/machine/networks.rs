//! Several machines on one network, whose links are cut, slow and lossy.

use std::time::Duration;

use anyhow::Context as _;
use testhost::fleet::Served;
use testhost::{Fleet, Host, LinkChange};

use crate::{Outcome, Trials, ensure, until};

pub(crate) const TRIALS: Trials = &[(
    "machines_on_a_network_reach_each_other_as_fast_as_their_links_are_and_not_where_these_are_cut",
    links,
)];

fn links() -> Outcome {
    let options = Host::options();
    let fleet = Fleet::restore(&options, &options, 2)?;
    let (network, hub, first, second) = (&fleet.network, &fleet.hub, fleet.leaf(1), fleet.leaf(2));

    let reaches = |from: &Host, to: &str| {
        until(
            from,
            &format!("ping -c 1 -W 5 {to} >&2 && echo reached"),
            |seen| seen == "reached\n",
        )
    };
    for (host, others) in [
        (hub, ["leaf-1", "leaf-2"]),
        (first, ["hub", "leaf-2"]),
        (second, ["hub", "leaf-1"]),
    ] {
        for other in others {
            reaches(host, other)?;
        }
    }

    // The card has a carrier: what runs on the machine has to notice by itself.
    network.cut("leaf-1")?;
    let alone = first.run("cat /sys/class/net/eth1/carrier; ping -c 1 -W 1 hub")?;
    ensure(
        alone.status == 1 && alone.stdout.starts_with("1\n"),
        format!("{alone:?}"),
    )?;
    reaches(second, "hub")?;
    network.mend("leaf-1")?;
    reaches(first, "hub")?;

    // What a ping takes on an idle link is far less.
    network.delay("leaf-1", Duration::from_millis(200))?;
    let slow = fastest(first, "-c 3 hub")?;
    ensure(slow >= 400.0, format!("{slow} ms on a slow link"))?;
    let other = fastest(second, "-c 3 hub")?;
    ensure(other < 200.0, format!("{other} ms on a link that is not slow"))?;
    network.mend("leaf-1")?;

    // 1,042 bytes take 42 ms at 200 kbit/s, in each direction.
    network.rate("leaf-1", 200_000)?;
    let limited = fastest(first, "-c 3 -s 1000 hub")?;
    ensure(limited >= 83.0, format!("{limited} ms on a link of 200 kbit/s"))?;
    network.mend("leaf-1")?;

    // A request and its reply both arrive in one of four cases; of 40, between 1 and 25 do with a probability that differs
    // from 1 by less than a hundred-thousandth.
    network.loss("leaf-1", 0.5)?;
    let lossy = first.run("ping -q -c 40 -i 0.1 -W 1 hub")?.stdout;
    let received = lossy
        .split(" received")
        .next()
        .and_then(|text| text.rsplit(' ').next());
    let received: u32 = received.context("ping counts")?.parse().context(lossy.clone())?;
    ensure((1..=25).contains(&received), &lossy)?;
    network.mend("leaf-1")?;
    reaches(first, "hub")?;
    from_outside(fleet)
}

/// The same fleet as a second terminal reaches it.
fn from_outside(fleet: Fleet) -> Outcome {
    let served = Served::new(fleet)?;
    let reached = served.reached();
    let limit = Duration::from_secs(60);
    let said = reached.run("leaf-2", "hostname; hostname -I >&2; exit 3", limit)?;
    ensure(
        said.status == 3 && said.stdout == "leaf-2\n" && said.stderr.contains("10.77.0.3"),
        format!("{said:?}"),
    )?;
    reached.link("leaf-2", LinkChange::Cut)?;
    let alone = reached.run("leaf-2", "ping -c 1 -W 1 hub", limit)?;
    ensure(alone.status == 1, format!("{alone:?}"))?;
    let error = reached.run("leaf-2", "sleep 600", Duration::from_secs(1));
    let error = error.err().context("it takes too long")?;
    ensure(
        format!("{error:#}").contains("did not end within 1.0 s"),
        format!("{error:#}"),
    )?;
    drop(served);
    let error = reached.run("hub", "true", limit);
    ensure(error.is_err(), "the fleet has ended")
}

/// Returns what the fastest of some pings took, in milliseconds.
fn fastest(host: &Host, arguments: &str) -> anyhow::Result<f64> {
    let said = host.ok(&format!("ping -q -i 0.2 {arguments}"))?;
    // rtt min/avg/max/mdev = 0.377/0.432/0.487/0.055 ms
    let numbers = said.rsplit(" = ").next().unwrap_or_default();
    let fastest = numbers.split('/').next().unwrap_or_default();
    fastest.parse().context(said.clone())
}

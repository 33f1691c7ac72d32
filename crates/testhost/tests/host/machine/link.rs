//! The way outside, and the cable in it.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use testhost::{Host, LIMIT};

use crate::{Outcome, Trials, ensure, until};

pub(crate) const TRIALS: Trials = &[
    (
        "a_cut_link_is_observed_by_the_host_and_passes_nothing_until_it_is_restored",
        cut,
    ),
    ("a_port_of_this_machine_is_forwarded_to_the_host", forward),
];

fn cut() -> Outcome {
    let host = Host::restore()?;
    let server = TcpListener::bind(("127.0.0.1", 0))?;
    let port = server.local_addr()?.port();
    let connect = format!("nc -z -w 1 10.0.2.2 {port} && echo reached");
    ensure(
        host.run(&connect)?.stdout == "reached\n",
        "this machine is reached",
    )?;
    host.link(false)?;
    until(&host, "cat /sys/class/net/eth0/carrier", |seen| seen == "0\n")?;
    let cut = host.run(&connect)?;
    ensure(cut.status != 0, format!("nothing passes a cut link: {cut:?}"))?;
    host.link(true)?;
    until(&host, "cat /sys/class/net/eth0/carrier", |seen| seen == "1\n")?;
    until(&host, &connect, |seen| seen == "reached\n")
}

fn forward() -> Outcome {
    let host = Host::restore()?;
    let answers = host.start("echo from inside | nc -l -N -p 4222")?;
    until(&host, "ss --listening --tcp --numeric", |seen| {
        seen.contains(":4222")
    })?;
    let port = host.forward(4222)?;
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"hello\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    ensure(text == "from inside\n", &text)?;
    drop(stream);
    let served = answers.wait()?;
    ensure(served.stdout == "hello\n", format!("{served:?}"))
}

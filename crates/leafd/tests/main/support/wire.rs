//! A TCP connection through the test: it can be cut without either end being told, delayed, and joined again.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How a wire is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    /// What is sent arrives after this time.
    Whole(Duration),
    /// Nothing arrives, and nobody is told.
    Cut,
}

/// A wire to an address. All connections through it end with it.
pub(crate) struct Wire {
    /// Where it begins.
    pub(crate) address: SocketAddr,
    condition: watch::Sender<Condition>,
    _connections: JoinSet<()>,
}

impl Wire {
    /// Opens a wire to this address on the loopback interface.
    pub(crate) async fn to(far: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (condition, watched) = watch::channel(Condition::Whole(Duration::ZERO));
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let watched = watched.clone();
                open.spawn(async move {
                    // A new connection through a cut wire hangs, as one to a host behind it does.
                    let mut whole = watched.clone();
                    let _ = whole.wait_for(|condition| *condition != Condition::Cut).await;
                    if let Ok(far) = TcpStream::connect(far).await {
                        join(near, far, watched).await;
                    }
                });
                while open.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            address,
            condition,
            _connections: connections,
        })
    }

    /// Cuts it. What was on its way arrives after it is whole again, if its connection still exists.
    pub(crate) fn cut(&self) {
        self.condition.send_replace(Condition::Cut);
    }

    /// Makes it whole, with this delay one way.
    pub(crate) fn mend(&self, delay: Duration) {
        self.condition.send_replace(Condition::Whole(delay));
    }
}

/// Passes on what either side sends, until one of them closes.
async fn join(near: TcpStream, far: TcpStream, watched: watch::Receiver<Condition>) {
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    tokio::select! {
        () = pass(near_read, far_write, watched.clone()) => {}
        () = pass(far_read, near_write, watched) => {}
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut watched: watch::Receiver<Condition>) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(length @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        let Ok(condition) = watched.wait_for(|condition| *condition != Condition::Cut).await else {
            return;
        };
        let Condition::Whole(delay) = *condition else { return };
        drop(condition);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

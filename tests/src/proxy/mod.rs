//! A TCP proxy in user space that behaves like a bad link: delay, jitter, bandwidth, cuts, black holes.
//!
//! Decides: when a byte that arrived on one side leaves on the other. Keeps: bytes of a connection stay in order and complete
//! until the connection is cut; nothing is ever altered. [`Weather`] can change at any time and acts on open connections too.
//! Threads, not tasks: a test has a handful of connections, and a slow test runtime must not change the link.

mod pump;
mod sky;
mod weather;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::dice::Dice;

use sky::Sky;
pub use weather::{Hole, Weather};

/// How often an idle accept loop looks for the end, and a connection for a cut.
const TICK: Duration = Duration::from_millis(100);

/// A running proxy; ends with its value.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    sky: Arc<Sky>,
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on `listen` (port 0: any) and forwards each connection to `target`. `seed` decides jitter and cuts.
    ///
    /// # Errors
    /// When `listen` is taken.
    pub fn start(listen: SocketAddr, target: SocketAddr, seed: u64) -> io::Result<Self> {
        let listener = TcpListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (sky, stop) = (Arc::new(Sky::new(Dice::new(seed))), Arc::new(AtomicBool::new(false)));
        let accepting = std::thread::spawn({
            let (sky, stop) = (Arc::clone(&sky), Arc::clone(&stop));
            move || accept(&listener, target, &sky, &stop)
        });
        Ok(Self { address, sky, stop, accepting: Some(accepting) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the weather from now on, for open connections too.
    pub fn set(&self, weather: Weather) {
        self.sky.set(weather);
    }

    /// The weather now.
    pub fn weather(&self) -> Weather {
        self.sky.weather()
    }

    /// Cuts every open connection now; new ones are taken.
    pub fn cut(&self) {
        self.sky.cut_all();
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.sky.connections()
    }

    /// Connections that were cut, by [`Proxy::cut`] or by chance.
    pub fn cuts(&self) -> u64 {
        self.sky.cuts()
    }

    /// Bytes forwarded in both directions.
    pub fn forwarded_bytes(&self) -> u64 {
        self.sky.forwarded_bytes()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.sky.end();
        if let Some(thread) = self.accepting.take() {
            // A panic in there was printed; a second one here would hide it.
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, target: SocketAddr, sky: &Arc<Sky>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((client, _)) => open(client, target, sky),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Joins a client with the target, or drops it when the weather or the target refuses.
fn open(client: TcpStream, target: SocketAddr, sky: &Arc<Sky>) {
    if sky.weather().refuse {
        return;
    }
    let sky = Arc::clone(sky);
    // Connecting may take its time; the next client must not wait for it.
    std::thread::spawn(move || {
        let Ok(server) = TcpStream::connect_timeout(&target, Duration::from_secs(5)) else { return };
        if let Err(error) = pump::join(client, server, &sky) {
            eprintln!("proxy: could not set up a connection: {error}");
        }
    });
}

#[cfg(test)]
mod tests;

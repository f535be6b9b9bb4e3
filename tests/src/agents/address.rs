//! Loopback addresses that no other test uses, and the proxied way between two of them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, bail};

use crate::proxy::{Proxy, Weather};

/// The control port of every site; data ports follow it.
const CONTROL_PORT: u16 = 7400;
/// Addresses that may be taken by others before this gives up.
const MAX_TRIES: u32 = 64;

/// Three addresses of this process alone: site A, site B, the link between them.
pub(super) fn three(shards: u16) -> Result<[SocketAddr; 3]> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..MAX_TRIES {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let addresses =
            [0, 1, 2].map(|place| SocketAddr::new(loopback(std::process::id(), number * 3 + place), CONTROL_PORT));
        if addresses.iter().all(|address| is_free(*address, shards)) {
            return Ok(addresses);
        }
    }
    bail!("found no free loopback addresses in {MAX_TRIES} tries")
}

/// 127.16.0.0 to 127.255.255.255, spread by process.
fn loopback(pid: u32, number: u32) -> IpAddr {
    let spread = pid.wrapping_mul(0x9e37_79b1).wrapping_add(number);
    let [_, second, third, fourth] = spread.to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, 16 + second % 240, third, fourth.clamp(1, 254)))
}

fn is_free(address: SocketAddr, shards: u16) -> bool {
    (0..=shards + 1).all(|i| TcpListener::bind((address.ip(), address.port() + i)).is_ok())
}

/// One proxy for each port of a site: control, and data of each shard.
#[derive(Debug)]
pub(super) struct Route {
    address: SocketAddr,
    proxies: Vec<Proxy>,
}

impl Route {
    pub fn new(address: SocketAddr, target: SocketAddr, shards: u16, seed: u64) -> Result<Self> {
        let at = |base: SocketAddr, i: u16| SocketAddr::new(base.ip(), base.port() + i);
        let proxy = |i| Proxy::start(at(address, i), at(target, i), seed.wrapping_add(u64::from(i)));
        Ok(Self { address, proxies: (0..=shards).map(proxy).collect::<Result<_, _>>()? })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn set(&self, weather: Weather) {
        self.proxies.iter().for_each(|proxy| proxy.set(weather));
    }

    pub fn cut(&self) {
        self.proxies.iter().for_each(Proxy::cut);
    }
}

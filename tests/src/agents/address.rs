//! Loopback addresses that no other test uses, and the proxied way between two of them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, bail};

use crate::netns::Place;
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

/// In a network of their own: site A, site B, and what no link uses.
pub(super) fn of_places() -> [SocketAddr; 3] {
    Place::ALL.map(|place| SocketAddr::new(place.ip(), CONTROL_PORT))
}

/// Networks of 256 addresses from 127.16.0.0 to 127.255.255.255.
const NETWORKS: u64 = 240 * 256;
/// The first and the last address of a network are left out.
const HOSTS: u64 = 254;

/// Another address for each number, in an order that starts elsewhere in each process.
fn loopback(pid: u32, number: u32) -> IpAddr {
    let place = (u64::from(pid) * 0x9e37_79b1 + u64::from(number)) % (NETWORKS * HOSTS);
    let (network, host) = (place / HOSTS, place % HOSTS + 1);
    let octet = |value: u64| value as u8;
    IpAddr::V4(Ipv4Addr::new(127, octet(16 + network / 256), octet(network % 256), octet(host)))
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

    pub fn cuts(&self) -> u64 {
        self.proxies.iter().map(Proxy::cuts).sum()
    }

    pub fn cut(&self) {
        self.proxies.iter().for_each(Proxy::cut);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_numbers_of_a_process_have_the_same_address() {
        for pid in [1, 4_711, 4_194_303] {
            let addresses: BTreeSet<_> = (0..2_000).map(|number| loopback(pid, number)).collect();
            assert_eq!(addresses.len(), 2_000);
            let range = Ipv4Addr::new(127, 16, 0, 1)..=Ipv4Addr::new(127, 255, 255, 254);
            assert!(addresses.iter().all(|address| matches!(address, IpAddr::V4(v4) if range.contains(v4))));
        }
    }
}

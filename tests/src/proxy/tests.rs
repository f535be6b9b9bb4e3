use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::*;

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A server that sends back what it gets.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind(ANY).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut from = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut from, &mut stream);
            });
        }
    });
    address
}

fn through(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.address()).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn round_trip(stream: &mut TcpStream) -> std::io::Result<Duration> {
    let start = Instant::now();
    stream.write_all(b"tide")?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    assert_eq!(&answer, b"tide");
    Ok(start.elapsed())
}

#[test]
fn bytes_pass_unchanged_and_in_order_under_jitter() {
    let proxy = Proxy::start(ANY, echo(), 1).unwrap();
    proxy.set(Weather { jitter: Duration::from_millis(3), ..Weather::default() });
    let mut stream = through(&proxy);
    let sent: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 251) as u8).collect();
    let mut back = stream.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; 1_000_000];
        back.read_exact(&mut got).map(|()| got)
    });
    stream.write_all(&sent).unwrap();
    assert!(reader.join().unwrap().unwrap() == sent, "the bytes came back altered");
    assert_eq!(proxy.forwarded_bytes(), 2_000_000);
}

#[test]
fn delay_acts_on_an_open_connection_both_ways() {
    let proxy = Proxy::start(ANY, echo(), 1).unwrap();
    let mut stream = through(&proxy);
    round_trip(&mut stream).unwrap();
    proxy.set(Weather::slow(Duration::from_millis(40)));
    assert!(round_trip(&mut stream).unwrap() >= Duration::from_millis(80));
}

#[test]
fn a_black_hole_holds_bytes_until_the_link_is_back() {
    let proxy = Proxy::start(ANY, echo(), 1).unwrap();
    let mut stream = through(&proxy);
    round_trip(&mut stream).unwrap();
    proxy.set(Weather::black_hole());
    stream.write_all(b"tide").unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
    assert!(stream.read(&mut [0; 4]).is_err(), "a byte came through the hole");
    proxy.set(Weather::default());
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
}

#[test]
fn a_cut_ends_open_connections_and_takes_new_ones() {
    let proxy = Proxy::start(ANY, echo(), 1).unwrap();
    let mut stream = through(&proxy);
    round_trip(&mut stream).unwrap();
    proxy.cut();
    assert!(round_trip(&mut stream).is_err());
    assert_eq!((proxy.connections(), proxy.cuts()), (0, 1));
    round_trip(&mut through(&proxy)).unwrap();
}

#[test]
fn a_breaking_link_cuts_by_chance() {
    let proxy = Proxy::start(ANY, echo(), 1).unwrap();
    proxy.set(Weather::breaking(1.0));
    let mut stream = through(&proxy);
    while round_trip(&mut stream).is_ok() {}
    assert_eq!(proxy.cuts(), 1);
}

#[test]
fn a_link_that_is_down_refuses() {
    let proxy = Proxy::start(ANY, echo(), 1).unwrap();
    proxy.set(Weather::down());
    assert!(round_trip(&mut through(&proxy)).is_err());
}

#[test]
fn bandwidth_bounds_what_passes() {
    let proxy = Proxy::start(ANY, echo(), 1).unwrap();
    proxy.set(Weather { bandwidth: Some(1_000_000), ..Weather::default() });
    let mut stream = through(&proxy);
    let start = Instant::now();
    stream.write_all(&vec![1; 300_000]).unwrap();
    stream.read_exact(&mut vec![0; 300_000]).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(290), "300 kB passed 1 MB/s in {:?}", start.elapsed());
}

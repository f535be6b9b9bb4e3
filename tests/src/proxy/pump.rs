//! One connection: for each way a thread that reads and stamps, and a thread that waits for the stamp and writes.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use super::TICK;
use super::sky::{Sky, Way};

/// Bytes of one read.
const CHUNK_BYTES: usize = 32 << 10;
/// Reads under way in one direction: 32 MiB, enough for 1 Gbit/s at a quarter of a second.
const MAX_IN_FLIGHT: usize = 1024;

struct Parcel {
    due: Instant,
    bytes: Vec<u8>,
}

/// Connects both streams until one of them ends or the weather cuts them.
pub(super) fn join(client: TcpStream, server: TcpStream, sky: &Arc<Sky>) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let Some(id) = sky.register(client.try_clone()?, server.try_clone()?) else { return Ok(()) };
    one_way(client.try_clone()?, server.try_clone()?, sky, id, Way::Forward);
    one_way(server, client, sky, id, Way::Backward);
    while sky.is_open(id) {
        std::thread::sleep(TICK);
        sky.maybe_cut(id);
    }
    Ok(())
}

fn one_way(from: TcpStream, to: TcpStream, sky: &Arc<Sky>, id: u64, way: Way) {
    let (sender, receiver) = sync_channel(MAX_IN_FLIGHT);
    let (reading, writing) = (Arc::clone(sky), Arc::clone(sky));
    std::thread::spawn(move || read(from, &sender, &reading));
    std::thread::spawn(move || {
        write(to, &receiver, &writing, id, way);
        writing.close(id);
    });
}

/// Takes bytes in and stamps them; ends when the stream or the writer does.
fn read(mut from: TcpStream, sender: &SyncSender<Parcel>, sky: &Sky) {
    let mut line_free = Instant::now();
    let mut last_due = line_free;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let bytes = match from.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(count) => chunk[..count].to_vec(),
        };
        let now = Instant::now();
        line_free = line_free.max(now) + transmission(bytes.len(), sky.weather().bandwidth);
        // Jitter must not let a later byte overtake an earlier one.
        last_due = last_due.max(line_free + sky.delay());
        if sender.send(Parcel { due: last_due, bytes }).is_err() {
            return;
        }
    }
}

fn transmission(bytes: usize, bandwidth: Option<u64>) -> Duration {
    bandwidth.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64))
}

/// Lets bytes out when their time has come.
fn write(mut to: TcpStream, receiver: &Receiver<Parcel>, sky: &Sky, id: u64, way: Way) {
    while let Ok(parcel) = receiver.recv() {
        std::thread::sleep(parcel.due.saturating_duration_since(Instant::now()));
        if !sky.wait_for_passage(id, way) || to.write_all(&parcel.bytes).is_err() {
            return;
        }
        sky.count(parcel.bytes.len());
    }
}

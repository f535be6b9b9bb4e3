//! The network between the two sites: one stream at a time in good times, several overlapping ones in bad.
//!
//! A stream delivers in order and loses only a suffix, when it breaks; each end learns of the end at its own time, so that one
//! end may already have a new stream while the other still hears the old one.

use tidemark_core::event::ConnId;

use crate::sim::faults::{Fault, Fired};
use crate::sim::rng::Rng;

const MS: u64 = 1_000_000;
/// How long a silent stream lives before its ends give it up.
pub const KEEPALIVE_MS: u64 = 5_000;

/// One stream. Index 0 and 1 are the two sites as *receivers*.
#[derive(Debug)]
pub struct Conn {
    /// Its name at both ends.
    pub id: ConnId,
    /// Process instances at the ends.
    pub instance: [u32; 2],
    /// The end has been told that it is up.
    pub up: [bool; 2],
    /// The end has been told that it is down, closed it itself, or died.
    pub gone: [bool; 2],
    /// An end that closed it is still handed what arrives before: its shell had read that already.
    read_until: [u64; 2],
    /// Arrival of the newest message under way.
    last: [u64; 2],
    /// Messages that arrive from then on are lost.
    dead_from: [u64; 2],
    /// Nothing arrives before.
    hold_until: [u64; 2],
    broken: bool,
}

/// What happens to a message that arrives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrival {
    /// Hand it over.
    Now,
    /// Look again then.
    Later(u64),
    /// Lost with its stream.
    Lost,
}

/// When each end learns that a stream broke.
pub type Notices = [Option<u64>; 2];

/// The network.
#[derive(Debug, Default)]
pub struct Net {
    conns: Vec<Conn>,
    /// No new stream before.
    pub cut_until: u64,
    /// A dial is scheduled.
    pub dialing: bool,
    next: u64,
}

impl Net {
    /// The stream of that name.
    pub fn conn(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.conns.iter_mut().rev().find(|c| c.id == id)
    }

    /// A new stream; its ends are told at the given times.
    pub fn open(&mut self, instance: [u32; 2], up_at: [u64; 2]) -> ConnId {
        self.next += 1;
        let id = ConnId(self.next);
        self.conns.retain(|c| c.gone != [true, true]);
        self.conns.push(Conn {
            id,
            instance,
            up: [false; 2],
            gone: [false; 2],
            read_until: [0; 2],
            last: up_at,
            dead_from: [u64::MAX; 2],
            hold_until: [0; 2],
            broken: false,
        });
        id
    }

    /// True while this end believes in a stream.
    pub fn believes(&self, site: usize) -> bool {
        self.conns.iter().any(|c| !c.gone[site])
    }

    /// True when a whole stream exists.
    pub fn is_connected(&self) -> bool {
        self.conns.iter().any(|c| !c.broken && c.gone == [false, false])
    }

    /// True when an end has heard of a newer stream than `id`.
    pub fn is_replaced(&self, id: ConnId, site: usize) -> bool {
        self.conns.iter().any(|c| c.id > id && c.up[site])
    }

    /// Names of the streams that are whole.
    pub fn whole(&self) -> Vec<ConnId> {
        self.conns.iter().filter(|c| !c.broken).map(|c| c.id).collect()
    }
}

impl Conn {
    /// When a message that is sent now arrives at `to`; `None`: never.
    pub fn arrival(&mut self, to: usize, now: u64, delay: u64) -> Option<u64> {
        if self.gone[1 - to] {
            return None;
        }
        let at = (now + delay).max(self.last[to] + 1).max(self.hold_until[to]);
        self.last[to] = at;
        (at < self.dead_from[to]).then_some(at)
    }

    /// A message arrives at `to`.
    pub fn arrive(&self, to: usize, now: u64) -> Arrival {
        match () {
            () if self.gone[to] && now >= self.read_until[to] || now >= self.dead_from[to] => Arrival::Lost,
            () if now < self.hold_until[to] => Arrival::Later(self.hold_until[to]),
            () => Arrival::Now,
        }
    }

    /// Nothing flows to `to` until then. What is under way arrives just then, what is sent from now on comes after that.
    pub fn stall(&mut self, to: usize, until: u64) {
        self.hold_until[to] = self.hold_until[to].max(until);
        self.last[to] = self.last[to].max(self.hold_until[to]);
    }

    /// The stream breaks. Answers when each end learns of it.
    pub fn break_up(&mut self, now: u64, slow: bool, rng: &mut Rng, fired: &mut Fired) -> Notices {
        if self.broken {
            return [None; 2];
        }
        self.broken = true;
        let mut notices = [None; 2];
        for (side, notice) in notices.iter_mut().enumerate() {
            if self.gone[side] {
                continue;
            }
            let mut at = now + rng.log_between(10_000, 20 * MS);
            self.dead_from[side] = at;
            if rng.percent(25) {
                // What is under way arrives late, perhaps after the next stream is up.
                at = now + rng.log_between(5 * MS, 3_000 * MS);
                self.stall(side, at);
                self.dead_from[side] = self.hold_until[side] + 1;
            }
            if slow || rng.percent(20) {
                fired.hit(Fault::HalfOpen);
                at += rng.between(100, KEEPALIVE_MS) * MS;
            }
            *notice = Some(at.max(self.dead_from[side]));
        }
        if self.last.iter().zip(&self.dead_from).any(|(last, dead)| last >= dead && *last > now) {
            fired.hit(Fault::Drop);
        }
        notices
    }

    /// One end closes it in order: what it sent arrives first. Answers when the other end learns of it.
    pub fn close(&mut self, side: usize, now: u64, delay: u64) -> Option<u64> {
        self.gone[side] = true;
        self.read_until[side] = (now + delay).max(self.hold_until[side] + 1);
        if self.broken {
            return None;
        }
        self.broken = true;
        let other = 1 - side;
        let at = (now + delay).max(self.last[other] + 1);
        self.dead_from[other] = at;
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_while_a_stream_stalls_arrives_after_what_was_under_way() {
        let mut net = Net::default();
        let id = net.open([1, 1], [0, 0]);
        let conn = net.conn(id).unwrap();
        let under_way = conn.arrival(1, 10, 20).unwrap();
        conn.stall(1, 100);
        let sent_then = conn.arrival(1, 15, 20).unwrap();
        let Arrival::Later(put_off) = conn.arrive(1, under_way) else { panic!("it is stalled") };
        assert!(put_off < sent_then, "whichever of the two was put into the queue first");
    }
}

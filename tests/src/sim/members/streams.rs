//! The four streams: member to member between the sites, and leader to member at each site.

use tidemark_core::event::{ConnId, Input};
use tidemark_core::ship::Message;
use tidemark_core::site::SiteMessage;

use super::party::{MEMBERS, name, party, site_id};
use super::world::{Ev, World, note};
use crate::sim::faults::Fault;
use crate::sim::net::{Arrival, Net};
use crate::sim::world::MS;

/// What travels.
#[derive(Debug)]
pub enum Letter {
    /// Between the sites.
    Peer(Message),
    /// Within one.
    Site(SiteMessage),
}

/// A way between two parties, on which at most one good stream is.
#[derive(Debug)]
pub struct Way {
    /// Its ends.
    pub ends: [usize; 2],
    /// Within a site.
    pub is_site: bool,
    /// Its streams.
    pub net: Net,
}

/// All four: first those between the sites, by member, then those within them, by site.
pub fn ways() -> Vec<Way> {
    let pair = |member| [party(0, member), party(1, member)];
    let site = |site| [party(site, 0), party(site, 1)];
    let way = |ends, is_site| Way { ends, is_site, net: Net::default() };
    let between = (0..MEMBERS).map(|member| way(pair(member), false));
    between.chain((0..2).map(|number| way(site(number), true))).collect()
}

/// The way between the sites of a party.
pub fn between(party: usize) -> usize {
    party % MEMBERS
}

/// The way within the site of a party.
pub fn within(party: usize) -> usize {
    MEMBERS + party / MEMBERS
}

impl World {
    fn side_of(&self, way: usize, party: usize) -> usize {
        usize::from(self.ways[way].ends[1] == party)
    }

    /// Schedules a dial unless the dialling end believes in a stream or one is scheduled.
    pub(super) fn want_dial(&mut self, way: usize, within: u64) {
        let net = &mut self.ways[way].net;
        if !net.dialing && !net.believes(0) {
            net.dialing = true;
            let after = self.rng.log_between(100_000, within.max(200_000));
            self.after(after, Ev::Dial(way));
        }
    }

    pub(super) fn dial(&mut self, way: usize) {
        self.ways[way].net.dialing = false;
        let ends = self.ways[way].ends;
        let both = ends.iter().all(|p| self.parties[*p].node.is_some());
        if self.ways[way].net.believes(0) || !both {
            return;
        }
        if self.now < self.ways[way].net.cut_until {
            return self.want_dial(way, 300 * MS);
        }
        let (low, high) = self.delays(way);
        let up_at: [u64; 2] = std::array::from_fn(|_| self.now + self.rng.log_between(low, high));
        let conn = self.ways[way].net.open(ends.map(|p| self.parties[p].instance), up_at);
        self.at(up_at[0], Ev::Up(way, conn, 0));
        self.at(up_at[1], Ev::Up(way, conn, 1));
    }

    /// A site's own network is quicker.
    fn delays(&self, way: usize) -> (u64, u64) {
        let (low, high) = self.net_ns;
        if self.ways[way].is_site { (low / 4, high / 4) } else { (low, high) }
    }

    pub(super) fn up(&mut self, way: usize, conn: ConnId, side: usize) {
        let ends = self.ways[way].ends;
        let (here, there) = (ends[side], ends[1 - side]);
        let instance = self.parties[here].instance;
        let Some(c) = self.ways[way].net.conn(conn) else { return };
        if c.gone[side] || c.instance[side] != instance {
            return;
        }
        c.up[side] = true;
        note!(self, [13, way, side, conn.0], "{} stream {} to {} is up", name(here), conn.0, name(there));
        let input = match self.ways[way].is_site {
            true => Input::SiteUp { conn, member: self.parties[there].member },
            false => Input::PeerUp { conn, site: site_id(self.parties[there].site) },
        };
        self.tell(here, input);
    }

    pub(super) fn down(&mut self, way: usize, conn: ConnId, side: usize) {
        let here = self.ways[way].ends[side];
        let instance = self.parties[here].instance;
        let Some(c) = self.ways[way].net.conn(conn) else { return };
        if c.gone[side] {
            return;
        }
        c.gone[side] = true;
        let known = c.up[side] && c.instance[side] == instance;
        if known {
            note!(self, [14, way, side, conn.0], "{} stream {} is down", name(here), conn.0);
            let is_site = self.ways[way].is_site;
            self.tell(here, if is_site { Input::SiteDown(conn) } else { Input::PeerDown(conn) });
        }
        self.want_dial(way, 500 * MS);
    }

    pub(super) fn send(&mut self, way: usize, from: usize, conn: ConnId, letter: Letter) {
        let to = 1 - self.side_of(way, from);
        let (low, high) = self.delays(way);
        let mut delay = self.rng.log_between(low, high);
        if self.rng.ppm(self.slow_message) {
            self.fired.hit(Fault::SlowMessage);
            delay += self.rng.log_between(10 * MS, 2_000 * MS);
        }
        note!(
            self,
            [15, way, from, conn.0],
            "{} sends to {}: {}",
            name(from),
            name(self.ways[way].ends[to]),
            gist(&letter)
        );
        let now = self.now;
        if let Some(at) = self.ways[way].net.conn(conn).and_then(|c| c.arrival(to, now, delay)) {
            self.at(at, Ev::Arrive(way, conn, to, Box::new(letter)));
        }
    }

    pub(super) fn arrive(&mut self, way: usize, conn: ConnId, to: usize, letter: Box<Letter>) {
        let here = self.ways[way].ends[to];
        let (now, instance) = (self.now, self.parties[here].instance);
        let Some(c) = self.ways[way].net.conn(conn) else { return };
        if c.instance[to] != instance {
            return;
        }
        match c.arrive(to, now) {
            Arrival::Lost => {}
            Arrival::Later(at) => self.at(at, Ev::Arrive(way, conn, to, letter)),
            Arrival::Now => self.tell(
                here,
                match *letter {
                    Letter::Peer(message) => Input::PeerMessage(conn, message),
                    Letter::Site(message) => Input::SiteMessage(conn, message),
                },
            ),
        }
    }

    /// The core closes a stream to its peer.
    pub(super) fn close(&mut self, here: usize, conn: ConnId, reason: &str) {
        let way = between(here);
        let side = self.side_of(way, here);
        note!(self, [16, here, conn.0], "{} closes {}: {reason}", name(here), conn.0);
        let (low, high) = self.delays(way);
        let delay = self.rng.log_between(low, high);
        let now = self.now;
        if let Some(at) = self.ways[way].net.conn(conn).and_then(|c| c.close(side, now, delay)) {
            self.at(at, Ev::Down(way, conn, 1 - side));
        }
        self.want_dial(way, 1_000 * MS);
    }

    /// Every stream of a way breaks; with `slow` its ends take long to notice.
    pub(super) fn break_way(&mut self, way: usize, slow: bool, dead: Option<usize>) {
        for id in self.ways[way].net.whole() {
            let side = dead.map(|party| self.side_of(way, party));
            let (now, mut rng) = (self.now, self.rng.fork());
            let Some(c) = self.ways[way].net.conn(id) else { continue };
            if let Some(side) = side {
                c.gone[side] = true;
            }
            let notices = c.break_up(now, slow, &mut rng, &mut self.fired);
            for (side, notice) in notices.into_iter().enumerate() {
                if let Some(at) = notice {
                    self.at(at, Ev::Down(way, id, side));
                }
            }
        }
        self.want_dial(way, 500 * MS);
    }

    /// Nothing flows in one direction for a while.
    pub(super) fn stall_way(&mut self, way: usize, to: usize, lasts: u64) {
        self.fired.hit(Fault::OneWay);
        let until = self.now + lasts;
        for id in self.ways[way].net.whole() {
            if let Some(c) = self.ways[way].net.conn(id) {
                c.stall(to, until);
            }
        }
    }
}

fn gist(letter: &Letter) -> String {
    match letter {
        Letter::Peer(message) => crate::sim::world::gist(message),
        Letter::Site(SiteMessage::Order(order)) => {
            format!("Order {} wanted {:?}", crate::sim::world::k(&order.k), order.wanted)
        }
        Letter::Site(SiteMessage::Report(r)) => format!(
            "Report {} sound {} close {} alone {} seeds {} serves {} ready {:?} equal {}",
            crate::sim::world::k(&r.k),
            r.is_sound,
            r.is_close,
            r.is_alone,
            r.seeds,
            r.serves,
            r.ready,
            r.is_equal
        ),
        Letter::Site(other) => format!("{other:?}"),
    }
}

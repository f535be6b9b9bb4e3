//! A client a volume: it writes numbered blocks, flushes, and remembers what it was promised.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use tidemark_core::event::{Input, ReplyData, Request, RequestError, RequestId};
use tidemark_core::types::{ByteRange, Epoch};

use super::party::{Line, name, party};
use super::world::{Ev, World, note};
use crate::sim::world::MS;

/// Bytes of a block, and of each write.
const BLOCK: u64 = 4096;
/// Blocks of a volume.
pub const BLOCKS: u64 = 24;

/// A request under way.
#[derive(Clone, Debug)]
enum Op {
    Write {
        id: u64,
    },
    Flush {
        upto: usize,
    },
    Read {
        block: u64,
        from: usize,
    },
    Audit {
        block: u64,
    },
    /// Of a copy that may have been replaced: under which epoch the other site had opened when it was asked.
    Probe {
        party: usize,
        against: Epoch,
    },
}

/// What is asked of a copy that has just opened.
#[derive(Debug, Default)]
struct Audit {
    found: BTreeMap<u64, u64>,
}

/// See the module.
#[derive(Debug)]
pub struct Client {
    /// Requests issued.
    pub issued: u64,
    /// Writes to come.
    pub remaining: u64,
    /// The site and the line that it speaks to.
    target: Option<(usize, Line)>,
    /// What was written, in order: number and block.
    history: Vec<(u64, u64)>,
    /// Where a number is in the history.
    places: HashMap<u64, usize>,
    next_number: u64,
    /// So many of the first ones are answered.
    answered: usize,
    /// So many of the first ones are promised.
    promised: usize,
    open: BTreeMap<RequestId, Op>,
    next_id: u64,
    audit: Option<Audit>,
}

impl Client {
    /// Which writes that often.
    pub fn new(writes: u64) -> Self {
        Self {
            issued: 0,
            remaining: writes,
            target: None,
            history: Vec::new(),
            places: HashMap::new(),
            next_number: 0,
            answered: 0,
            promised: 0,
            open: BTreeMap::new(),
            next_id: 0,
            audit: None,
        }
    }

    /// It knows that opening.
    pub fn speaks_to(&self, site: usize, line: Line) -> bool {
        self.target == Some((site, line))
    }

    /// Nothing is left to do or to hear.
    pub fn is_done(&self) -> bool {
        self.remaining == 0 && self.audit.is_none()
    }

    fn forget(&mut self) {
        self.open.retain(|_, op| matches!(op, Op::Probe { .. }));
        self.audit = None;
    }

    fn newest_in(&self, block: u64, upto: usize) -> usize {
        self.history[..upto].iter().rposition(|(_, b)| *b == block).map_or(0, |at| at + 1)
    }
}

fn payload(number: u64) -> Bytes {
    number.to_le_bytes().repeat(BLOCK as usize / 8).into()
}

fn number_of(data: &ReplyData) -> Option<u64> {
    let all: Vec<u8> = data.iter().flat_map(|piece| piece.iter().copied()).collect();
    let number = u64::from_le_bytes(all.get(..8)?.try_into().ok()?);
    (all.len() as u64 == BLOCK && payload(number) == all).then_some(number)
}

impl World {
    /// A member serves under a line that was not seen before: the client looks what is there.
    pub(super) fn opened(&mut self, p: usize, line: Line) {
        let (site, member) = (self.parties[p].site, self.parties[p].member);
        let client = &mut self.clients[member];
        client.forget();
        client.target = Some((site, line));
        client.audit = Some(Audit::default());
        for block in 0..BLOCKS {
            self.ask(p, Op::Audit { block }, Request::Read { range: ByteRange::new(block * BLOCK, BLOCK) });
        }
        let elsewhere: Vec<usize> = (0..2).map(|m| party(1 - site, m)).collect();
        for q in elsewhere {
            self.probe(q);
        }
    }

    /// Asks a copy that should not serve for something.
    pub(super) fn probe(&mut self, p: usize) {
        if self.parties[p].node.is_some() {
            let against = self.opened_under[1 - self.parties[p].site];
            self.ask(p, Op::Probe { party: p, against }, Request::Read { range: ByteRange::new(0, BLOCK) });
        }
    }

    fn ask(&mut self, p: usize, op: Op, request: Request) {
        let client = &mut self.clients[self.parties[p].member];
        client.next_id += 1;
        client.issued += 1;
        let id = RequestId(client.next_id);
        client.open.insert(id, op);
        self.tell(p, Input::Request(id, request));
    }

    /// What was asked of a process that is gone is never answered.
    pub(super) fn forget_requests(&mut self, p: usize) {
        let (site, member) = (self.parties[p].site, self.parties[p].member);
        let client = &mut self.clients[member];
        client.open.retain(|_, op| !matches!(op, Op::Probe { party, .. } if *party == p));
        if client.target.is_some_and(|(at, _)| at == site) {
            client.forget();
            client.target = None;
        }
    }

    pub(super) fn client_turn(&mut self, member: usize) {
        let rests = self.rng.percent(30);
        let busy = if rests { self.rng.log_between(100 * MS, 3_000 * MS) } else { self.rng.log_between(MS, 60 * MS) };
        self.after(busy, Ev::Client(member));
        let client = &self.clients[member];
        let Some((site, line)) = client.target.filter(|_| client.audit.is_none()) else { return };
        let p = party(site, member);
        if self.parties[p].serves != Some(line) || client.open.len() >= 6 {
            return;
        }
        let block = self.rng.below(BLOCKS);
        let range = ByteRange::new(block * BLOCK, BLOCK);
        match self.rng.below(10) {
            0..=5 if client.remaining > 0 => {
                let client = &mut self.clients[member];
                client.remaining -= 1;
                client.next_number += 1;
                let number = client.next_number;
                client.places.insert(number, client.history.len());
                client.history.push((number, block));
                self.ask(p, Op::Write { id: number }, Request::Write { range, data: payload(number), fua: false });
            }
            6..=8 => {
                let upto = client.answered;
                self.ask(p, Op::Flush { upto }, Request::Flush);
            }
            _ => {
                let from = client.newest_in(block, client.answered);
                self.ask(p, Op::Read { block, from }, Request::Read { range });
            }
        }
    }

    pub(super) fn replied(&mut self, p: usize, id: RequestId, result: Result<ReplyData, RequestError>) {
        let member = self.parties[p].member;
        let Some(op) = self.clients[member].open.remove(&id) else { return };
        let client = &mut self.clients[member];
        match (op, result) {
            (Op::Write { id }, Ok(_)) => {
                let place = client.places[&id] + 1;
                client.answered = client.answered.max(place);
            }
            (Op::Flush { upto }, Ok(_)) => client.promised = client.promised.max(upto),
            (Op::Read { block, from }, Ok(data)) => self.judge_read(member, block, from, &data),
            (Op::Audit { block }, Ok(data)) => self.audited(p, block, &data),
            (Op::Probe { against, .. }, Ok(_)) => self.judge_probe(p, against),
            // What failed may have been done.
            (_, Err(_)) => {}
        }
    }

    fn judge_read(&mut self, member: usize, block: u64, from: usize, data: &ReplyData) {
        let client = &self.clients[member];
        let Some(number) = number_of(data) else {
            return self.fail(format!("block {block} of volume {member} is torn"));
        };
        let place = match number {
            0 => 0,
            number => match client.places.get(&number).filter(|at| client.history[**at].1 == block) {
                Some(at) => at + 1,
                None => {
                    return self.fail(format!("block {block} of volume {member} holds {number}, which is not there"));
                }
            },
        };
        if place < from {
            self.fail(format!("a read of block {block} of volume {member} shows write {place}, {from} was answered"));
        }
    }

    fn audited(&mut self, p: usize, block: u64, data: &ReplyData) {
        let member = self.parties[p].member;
        let Some(number) = number_of(data) else {
            return self.fail(format!("block {block} of volume {member} is torn after an opening"));
        };
        let Some(audit) = &mut self.clients[member].audit else { return };
        audit.found.insert(block, number);
        if audit.found.len() as u64 == BLOCKS {
            self.conclude(p);
        }
    }

    /// I7: what opened is a prefix of what was written, with all that was promised.
    fn conclude(&mut self, p: usize) {
        let member = self.parties[p].member;
        let client = &mut self.clients[member];
        let Some(Audit { found }) = client.audit.take() else { return };
        let mut end = 0;
        for number in found.values().filter(|number| **number > 0) {
            match client.places.get(number) {
                Some(at) => end = end.max(at + 1),
                None => return self.fail(format!("volume {member} opened with write {number}, which was gone")),
            }
        }
        for (block, number) in &found {
            let expected = match client.newest_in(*block, end) {
                0 => 0,
                at => client.history[at - 1].0,
            };
            if *number != expected {
                let what = format!(
                    "volume {member} is no prefix: block {block} holds {number}, up to {end} it would be {expected}"
                );
                return self.fail(what);
            }
        }
        let promised = client.promised;
        if end < promised {
            return self.fail(format!("LOST volume {member} opened with {end} writes, {promised} were promised"));
        }
        for (number, _) in client.history.drain(end..) {
            client.places.remove(&number);
        }
        (client.answered, client.promised) = (end, end);
        note!(self, [20, p, end], "{} opened with {end} writes, {promised} were promised", name(p));
    }
}

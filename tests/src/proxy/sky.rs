//! What all connections of one proxy share: the weather, the dice, the list of open connections, the counts.

use std::collections::BTreeMap;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::dice::Dice;

use super::weather::{Hole, Weather};

/// Which way a byte travels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// From the dialing to the accepting side.
    Forward,
    /// Back.
    Backward,
}

#[derive(Debug)]
struct State {
    weather: Weather,
    dice: Dice,
    open: BTreeMap<u64, [TcpStream; 2]>,
    next: u64,
    ended: bool,
}

#[derive(Debug)]
pub(super) struct Sky {
    state: Mutex<State>,
    changed: Condvar,
    cuts: AtomicU64,
    forwarded: AtomicU64,
}

impl Sky {
    pub fn new(dice: Dice) -> Self {
        let state = State { weather: Weather::default(), dice, open: BTreeMap::new(), next: 0, ended: false };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            cuts: AtomicU64::new(0),
            forwarded: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn weather(&self) -> Weather {
        self.lock().weather
    }

    pub fn set(&self, weather: Weather) {
        self.lock().weather = weather;
        self.changed.notify_all();
    }

    pub fn connections(&self) -> usize {
        self.lock().open.len()
    }

    pub fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Relaxed)
    }

    pub fn forwarded_bytes(&self) -> u64 {
        self.forwarded.load(Ordering::Relaxed)
    }

    pub fn count(&self, bytes: usize) {
        self.forwarded.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Keeps a handle on a connection so that it can be cut; `None` when the proxy has ended.
    pub fn register(&self, client: TcpStream, server: TcpStream) -> Option<u64> {
        let mut state = self.lock();
        if state.ended {
            return None;
        }
        let id = state.next;
        state.next += 1;
        state.open.insert(id, [client, server]);
        Some(id)
    }

    /// Ends one connection.
    pub fn close(&self, id: u64) {
        let closed = self.lock().open.remove(&id);
        closed.iter().flatten().for_each(shut);
        self.changed.notify_all();
    }

    pub fn cut_all(&self) {
        let open = std::mem::take(&mut self.lock().open);
        self.cuts.fetch_add(open.len() as u64, Ordering::Relaxed);
        open.values().flatten().for_each(shut);
        self.changed.notify_all();
    }

    /// No connection from now on.
    pub fn end(&self) {
        self.lock().ended = true;
        self.cut_all();
    }

    pub fn is_open(&self, id: u64) -> bool {
        self.lock().open.contains_key(&id)
    }

    /// Throws the dice for one tick of one connection.
    pub fn maybe_cut(&self, id: u64) {
        let mut state = self.lock();
        let chance = state.weather.cut_chance;
        if chance > 0.0 && state.open.contains_key(&id) && state.dice.happens(chance) {
            drop(state);
            // Counted before anybody can see that the connection is gone.
            self.cuts.fetch_add(1, Ordering::Relaxed);
            self.close(id);
        }
    }

    /// Waits while this way is a black hole; false when the connection ended meanwhile.
    pub fn wait_for_passage(&self, id: u64, way: Way) -> bool {
        let mut state = self.lock();
        while swallows(state.weather.hole, way) && state.open.contains_key(&id) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.open.contains_key(&id)
    }

    /// Delay of one read, jitter included.
    pub fn delay(&self) -> Duration {
        let mut state = self.lock();
        let Weather { delay, jitter, .. } = state.weather;
        delay + state.dice.between(Duration::ZERO, jitter)
    }
}

fn swallows(hole: Hole, way: Way) -> bool {
    matches!((hole, way), (Hole::Both, _) | (Hole::Forward, Way::Forward) | (Hole::Backward, Way::Backward))
}

fn shut(stream: &TcpStream) {
    // Not connected any more is what is wanted.
    let _ = stream.shutdown(Shutdown::Both);
}

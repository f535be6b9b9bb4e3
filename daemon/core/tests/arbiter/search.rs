//! Breadth first through every state, each once.

use std::collections::HashSet;

use crate::world::{Broken, Seen, Step, World};

/// What a search found.
pub struct Found {
    /// The first broken promise, and the shortest way there.
    pub broken: Option<(Broken, Vec<Step>)>,
    pub states: usize,
    pub depth: usize,
    /// What happened on the way.
    pub seen: Seen,
}

/// Where a state came from: its predecessor's number, and the step.
type Origin = Option<(usize, Step)>;

pub fn search(start: World, seconds: u64) -> Found {
    let (mut known, mut origins, mut seen) = (HashSet::new(), vec![None::<(usize, Step)>], Seen::default());
    known.insert(fingerprint(&start));
    let mut level = vec![(0, start)];
    let mut depth = 0;
    while !level.is_empty() {
        let mut next = Vec::new();
        for (number, world) in level {
            seen.note(&world);
            if let Some(broken) = world.broken() {
                let steps = way(&origins, number);
                return found(Some((broken, steps)), known.len(), depth, seen);
            }
            for step in world.steps(seconds) {
                let mut after = world.clone();
                after.play(step);
                if known.insert(fingerprint(&after)) {
                    origins.push(Some((number, step)));
                    next.push((origins.len() - 1, after));
                }
            }
        }
        (level, depth) = (next, depth + 1);
    }
    found(None, known.len(), depth, seen)
}

fn found(broken: Option<(Broken, Vec<Step>)>, states: usize, depth: usize, seen: Seen) -> Found {
    Found { broken, states, depth, seen }
}

fn way(origins: &[Origin], mut number: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    while let Some((from, step)) = origins[number] {
        steps.push(step);
        number = from;
    }
    steps.reverse();
    steps
}

/// 128 bits of a state: two states that share them are taken for one, which is as good as impossible.
fn fingerprint(world: &World) -> u128 {
    let mut digest = Digest(0);
    std::hash::Hash::hash(world, &mut digest);
    digest.0
}

/// A fast hash of 128 bits; nobody chooses the states to make it collide.
struct Digest(u128);

impl std::hash::Hasher for Digest {
    fn write(&mut self, bytes: &[u8]) {
        const PRIME: u128 = 0x0123_4567_89ab_cdef_0fed_cba9_8765_4321_u128 | 1;
        for piece in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..piece.len()].copy_from_slice(piece);
            let mixed = (self.0 ^ u128::from(u64::from_le_bytes(word))).wrapping_mul(PRIME);
            self.0 = mixed.rotate_left(47) ^ piece.len() as u128;
        }
    }

    fn finish(&self) -> u64 {
        self.0 as u64
    }
}

//! What happened, as a hash always and as text when asked.

use std::collections::VecDeque;

/// The record of one run.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    steps: u64,
    text: Option<VecDeque<String>>,
    limit: usize,
    print: bool,
}

impl Trace {
    /// Keeps the last `keep` lines; prints each when `print`.
    pub fn new(keep: usize, print: bool) -> Self {
        let text = (keep > 0 || print).then(VecDeque::new);
        Self { hash: 0xcbf2_9ce4_8422_2325, steps: 0, text, limit: keep, print }
    }

    /// Adds numbers to the hash.
    pub fn fold(&mut self, values: &[u64]) {
        self.steps += 1;
        for v in values {
            self.hash = (self.hash ^ v).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
    }

    /// True when text is kept.
    pub fn is_on(&self) -> bool {
        self.text.is_some()
    }

    /// Adds a line.
    pub fn line(&mut self, text: String) {
        if self.print {
            println!("{text}");
        }
        if let Some(lines) = &mut self.text {
            if lines.len() >= self.limit.max(1) {
                lines.pop_front();
            }
            lines.push_back(text);
        }
    }

    /// The hash of everything so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many things were recorded.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The kept lines.
    pub fn tail(&self) -> Vec<String> {
        self.text.iter().flatten().cloned().collect()
    }
}

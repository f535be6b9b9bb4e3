//! What a link does to its bytes.

use std::time::Duration;

/// Which direction of a link swallows bytes. They are held, not lost: TCP would send them again when the link is back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Hole {
    /// None.
    #[default]
    None,
    /// What the dialing side sends.
    Forward,
    /// What the accepting side sends.
    Backward,
    /// Both.
    Both,
}

/// The state of a link.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Weather {
    /// One-way delay of every byte.
    pub delay: Duration,
    /// Added to the delay, anew for each read, from zero to this. Order is kept.
    pub jitter: Duration,
    /// Bytes per second and direction; `None` is unlimited.
    pub bandwidth: Option<u64>,
    /// Probability that an open connection is cut in each tenth of a second.
    pub cut_chance: f64,
    /// What is swallowed.
    pub hole: Hole,
    /// New connections are closed at once.
    pub refuse: bool,
}

impl Weather {
    /// A link that only takes time: `delay` each way.
    pub fn slow(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }

    /// A link whose connections break with probability `cut_chance` in each tenth of a second.
    pub fn breaking(cut_chance: f64) -> Self {
        Self { cut_chance, ..Self::default() }
    }

    /// A link that swallows everything and tells nobody.
    pub fn black_hole() -> Self {
        Self { hole: Hole::Both, ..Self::default() }
    }

    /// A link that is down: open connections have to be cut with [`super::Proxy::cut`].
    pub fn down() -> Self {
        Self { refuse: true, ..Self::default() }
    }
}

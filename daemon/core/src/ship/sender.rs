//! The sending side of a stream: what was sent, what was acknowledged, how much may be outstanding.
//!
//! Invariants: acked_durable <= acked_appended < next, and agreed < next; outstanding bytes are the bytes of frames sent and not yet
//! acknowledged as appended.

use std::collections::VecDeque;

use crate::ship::Ack;
use crate::types::{BootId, Epoch, Lsn};

/// Bytes that may be outstanding: covers 1 GB/s at 30 ms.
pub const WINDOW_BYTES: u64 = 32 << 20;

/// Where the sender takes its frames from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// Histories are compared; nothing flows.
    Probe,
    /// Old frames, from segments.
    CatchUp,
    /// Frames as they are built.
    Stream,
}

/// The sending side of a stream.
#[derive(Debug)]
pub struct Sender {
    /// Where frames come from.
    pub source: Source,
    /// Next record to send.
    pub next: Lsn,
    /// The newest K that the receiver confirmed: the envelope's epoch.
    pub confirmed: Epoch,
    /// A configuration change is on its way: nothing is sent until it is answered, so that no append carries a stale epoch.
    pub paused: bool,
    /// The receiver's log holds all up to here, written or on its way to its disk.
    agreed: Lsn,
    acked_appended: Lsn,
    acked_durable: Lsn,
    acked_floor: Lsn,
    boot: BootId,
    outstanding: VecDeque<(Lsn, u64)>,
    outstanding_bytes: u64,
    sync_asked: Lsn,
}

impl Sender {
    /// A sender that has compared nothing yet.
    pub fn new(confirmed: Epoch) -> Self {
        Self {
            source: Source::Probe,
            next: Lsn(1),
            confirmed,
            paused: false,
            agreed: Lsn::ZERO,
            acked_appended: Lsn::ZERO,
            acked_durable: Lsn::ZERO,
            acked_floor: Lsn::ZERO,
            boot: BootId::NIL,
            outstanding: VecDeque::new(),
            outstanding_bytes: 0,
            sync_asked: Lsn::ZERO,
        }
    }

    /// Histories agree up to `from`: frames after it follow. What the receiver has written of those before it, and what it has
    /// synced, it says itself: it greets with the end of its log, which may still be on its way to its disk.
    pub fn start(&mut self, from: Lsn) {
        self.source = Source::CatchUp;
        self.next = from.next();
        self.agreed = from;
        self.acked_appended = Lsn::ZERO;
        self.acked_durable = Lsn::ZERO;
        self.sync_asked = Lsn::ZERO;
        self.outstanding.clear();
        self.outstanding_bytes = 0;
    }

    /// True when another frame may leave.
    pub fn may_send(&self) -> bool {
        self.source != Source::Probe && !self.paused && self.outstanding_bytes < WINDOW_BYTES
    }

    /// A frame left.
    pub fn on_sent(&mut self, last: Lsn, bytes: u64) {
        self.next = last.next();
        self.outstanding.push_back((last, bytes));
        self.outstanding_bytes += bytes;
    }

    /// An acknowledgement arrived. Returns false when it claims more than was sent: a broken peer.
    pub fn on_ack(&mut self, ack: &Ack) -> bool {
        if ack.appended >= self.next || ack.durable > ack.appended {
            return false;
        }
        while self.outstanding.front().is_some_and(|(last, _)| *last <= ack.appended) {
            if let Some((_, bytes)) = self.outstanding.pop_front() {
                self.outstanding_bytes -= bytes;
            }
        }
        self.acked_appended = self.acked_appended.max(ack.appended);
        self.acked_durable = self.acked_durable.max(ack.durable);
        self.acked_floor = ack.floor;
        self.boot = ack.boot;
        true
    }

    /// True when the receiver should be asked to make `lsn` durable, now: it was sent, and nobody asked yet.
    pub fn ask_sync(&mut self, lsn: Lsn) -> bool {
        let ask = lsn > self.sync_asked && lsn > self.acked_durable && lsn < self.next && !self.paused;
        if ask {
            self.sync_asked = lsn;
        }
        ask
    }

    /// The frame that just left asks for itself to be made durable.
    pub fn sync_asked_with(&mut self, last: Lsn) {
        self.sync_asked = self.sync_asked.max(last);
    }

    /// Records after this one must stay in the log for this receiver; unknown before the histories are compared.
    pub fn kept_from(&self) -> Lsn {
        match self.source {
            Source::Probe => Lsn::ZERO,
            _ => self.acked_durable.min(self.next.prev()),
        }
    }

    /// The receiver's log is known to reach to here; it may not be written yet.
    pub fn taken(&self) -> Lsn {
        self.agreed.max(self.acked_appended)
    }

    /// Written at the receiver, as it said on this stream.
    pub fn appended(&self) -> Lsn {
        self.acked_appended
    }

    /// Synced at the receiver.
    pub fn durable(&self) -> Lsn {
        self.acked_durable
    }

    /// The receiver's floor.
    pub fn floor(&self) -> Lsn {
        self.acked_floor
    }

    /// The receiver's boot, as of its last acknowledgement.
    pub fn boot(&self) -> BootId {
        self.boot
    }

    /// Bytes sent and not acknowledged as written.
    pub fn outstanding_bytes(&self) -> u64 {
        self.outstanding_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{GenId, Incarnation};

    fn ack(appended: u64, durable: u64) -> Ack {
        Ack {
            epoch: Epoch::default(),
            generation: GenId::NIL,
            incarnation: Incarnation(1),
            appended: Lsn(appended),
            durable: Lsn(durable),
            floor: Lsn::ZERO,
            boot: BootId::NIL,
        }
    }

    #[test]
    fn the_window_opens_with_appended_acknowledgements() {
        let mut s = Sender::new(Epoch::default());
        assert!(!s.may_send(), "nothing flows before the histories are compared");
        s.start(Lsn(10));
        s.on_sent(Lsn(12), WINDOW_BYTES);
        assert!(!s.may_send());
        assert!(s.on_ack(&ack(12, 11)));
        assert!(s.may_send());
        assert_eq!((s.appended(), s.durable(), s.next), (Lsn(12), Lsn(11), Lsn(13)));
    }

    #[test]
    fn what_the_receiver_has_taken_counts_as_written_only_when_it_says_so() {
        let mut s = Sender::new(Epoch::default());
        s.start(Lsn(10));
        assert_eq!((s.taken(), s.appended()), (Lsn(10), Lsn::ZERO));
        assert!(s.on_ack(&ack(8, 7)));
        assert_eq!((s.taken(), s.appended()), (Lsn(10), Lsn(8)));
    }

    #[test]
    fn an_acknowledgement_of_what_was_never_sent_is_a_broken_peer() {
        let mut s = Sender::new(Epoch::default());
        s.start(Lsn(10));
        assert!(!s.on_ack(&ack(11, 0)));
        assert!(!s.on_ack(&ack(10, 11)));
    }

    #[test]
    fn a_sync_is_asked_for_once_and_only_of_what_was_sent() {
        let mut s = Sender::new(Epoch::default());
        s.start(Lsn(0));
        assert!(!s.ask_sync(Lsn(1)));
        s.on_sent(Lsn(3), 1);
        assert!(s.ask_sync(Lsn(3)));
        assert!(!s.ask_sync(Lsn(3)));
        assert!(!s.ask_sync(Lsn(2)));
    }
}

//! A negotiated connection on its way from the thread that accepted it to the volume's thread.

use tokio::sync::OwnedSemaphorePermit;

use super::handshake::Negotiated;
use super::wire::Parked;

/// Everything a shard needs to serve a connection that was accepted elsewhere. `Send`.
#[derive(Debug)]
pub struct HandOver {
    pub(super) stream: Parked,
    pub(super) negotiated: Negotiated,
    pub(super) leftover: Vec<u8>,
    /// The connection's place among those its listener allows; given back when it ends.
    pub(super) permit: OwnedSemaphorePermit,
}

impl HandOver {
    /// The canonical name of the export that was chosen.
    pub fn export(&self) -> &str {
        &self.negotiated.export
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_over_can_change_threads() {
        fn is_send<T: Send>() {}
        is_send::<HandOver>();
    }
}

//! Buffers for the data of WRITEs: aligned in memory for the disk behind, filled once from the socket, then shared.

use bytes::{Buf as _, Bytes, BytesMut};

/// Alignment of a payload in memory, bytes: that of O_DIRECT.
pub const PAYLOAD_ALIGN: usize = 4096;

/// Where payload buffers come from.
#[derive(Clone, Debug, Default)]
pub struct Payloads;

impl Payloads {
    /// A buffer of exactly `len` initialised bytes that starts on a multiple of [`PAYLOAD_ALIGN`].
    pub fn take(&self, len: usize) -> Payload {
        let mut bytes = BytesMut::zeroed(len + PAYLOAD_ALIGN);
        let start = bytes.as_ptr().align_offset(PAYLOAD_ALIGN);
        bytes.advance(start.min(PAYLOAD_ALIGN));
        bytes.truncate(len);
        Payload { bytes, filled: 0 }
    }
}

/// A payload on its way in.
#[derive(Debug)]
pub struct Payload {
    bytes: BytesMut,
    filled: usize,
}

impl Payload {
    /// The part that has not arrived.
    pub fn rest_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.filled..).unwrap_or_default()
    }

    /// Bytes that have not arrived.
    pub fn missing(&self) -> usize {
        self.bytes.len() - self.filled
    }

    /// `len` bytes have been written to the front of [`Payload::rest_mut`].
    pub fn advance(&mut self, len: usize) {
        assert!(len <= self.missing(), "more payload than asked for");
        self.filled += len;
    }

    /// Copies from the front of `input` what is missing; says how much it took.
    pub fn copy_from(&mut self, input: &[u8]) -> usize {
        let len = self.missing().min(input.len());
        self.rest_mut()[..len].copy_from_slice(&input[..len]);
        self.advance(len);
        len
    }

    /// The whole payload, shared from now on.
    pub fn freeze(self) -> Bytes {
        assert_eq!(self.missing(), 0, "payload is complete");
        self.bytes.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_aligned_and_exact() {
        for len in [1, 512, 4096, 100_000] {
            let mut payload = Payloads.take(len);
            assert_eq!(payload.copy_from(&vec![7; len + 3]), len);
            let bytes = payload.freeze();
            assert_eq!(bytes, vec![7; len]);
            assert_eq!(bytes.as_ptr() as usize % PAYLOAD_ALIGN, 0);
        }
    }
}

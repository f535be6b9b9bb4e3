//! The data of a WRITE on its way in: an aligned buffer, filled once from the socket, then shared.

use bytes::Bytes;

use crate::disk::AlignedBuf;

/// A payload that is arriving. Old content of a recycled buffer never gets out: it is shared only when all of it has arrived.
#[derive(Debug)]
pub struct Payload {
    buf: AlignedBuf,
    filled: usize,
}

impl Payload {
    /// Expects as many bytes as `buf` has.
    pub fn new(buf: AlignedBuf) -> Self {
        Self { buf, filled: 0 }
    }

    /// The part that has not arrived.
    pub fn rest_mut(&mut self) -> &mut [u8] {
        &mut self.buf[self.filled..]
    }

    /// Bytes that have not arrived.
    pub fn missing(&self) -> usize {
        self.buf.len() - self.filled
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
        self.buf.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Pool;

    #[test]
    fn a_payload_takes_what_it_lacks_and_no_more() {
        let mut payload = Payload::new(Pool::new().take(1000));
        assert_eq!(payload.copy_from(&[7; 400]), 400);
        payload.rest_mut()[..100].fill(7);
        payload.advance(100);
        assert_eq!(payload.copy_from(&[7; 4096]), 500);
        assert_eq!(payload.freeze(), vec![7; 1000]);
    }

    #[test]
    #[should_panic(expected = "payload is complete")]
    fn an_unfinished_payload_is_never_shared() {
        Payload::new(Pool::new().take(512)).freeze();
    }
}

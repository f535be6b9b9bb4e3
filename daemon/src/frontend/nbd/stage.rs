//! The buffer that requests arrive in: one read brings many headers and small payloads.

/// Bytes of a connection's buffer.
pub const STAGE_BYTES: usize = 256 * 1024;
/// Bytes read ahead while payloads are large: room for a few headers, so that the payload itself is read in place.
const SMALL_WINDOW_BYTES: usize = 1024;
/// Payloads from this size on are worth a read in place.
const LARGE_PAYLOAD_BYTES: usize = 32 * 1024;

/// Bytes that arrived and were not taken yet.
#[derive(Debug)]
pub struct Stage {
    buf: Vec<u8>,
    start: usize,
    end: usize,
    window: usize,
}

impl Stage {
    /// Starts with what arrived behind the handshake.
    pub fn new(leftover: &[u8]) -> Self {
        let mut buf = vec![0; STAGE_BYTES.max(leftover.len())];
        buf[..leftover.len()].copy_from_slice(leftover);
        Self { buf, start: 0, end: leftover.len(), window: STAGE_BYTES }
    }

    /// What was not taken yet.
    pub fn unread(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    /// Takes `len` bytes off the front.
    pub fn take(&mut self, len: usize) {
        self.start += len;
        assert!(self.start <= self.end, "more taken than arrived");
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// A WRITE of so many bytes came: the next one is likely of the same size.
    pub fn expect_payload(&mut self, len: usize) {
        self.window = if len >= LARGE_PAYLOAD_BYTES { SMALL_WINDOW_BYTES } else { STAGE_BYTES };
    }

    /// Where to read into; never empty while less than a header is unread.
    pub fn space_mut(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let until = self.buf.len().min(self.end + self.window);
        &mut self.buf[self.end..until]
    }

    /// So many bytes were read into the front of [`Stage::space_mut`].
    pub fn filled(&mut self, len: usize) {
        self.end += len;
        assert!(self.end <= self.buf.len(), "more read than fits");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unread_bytes_move_to_the_front_before_the_next_read() {
        let mut stage = Stage::new(b"abcdef");
        stage.take(4);
        assert_eq!(stage.space_mut().len(), STAGE_BYTES - 2);
        stage.space_mut()[..2].copy_from_slice(b"gh");
        stage.filled(2);
        assert_eq!(stage.unread(), b"efgh");
    }

    #[test]
    fn large_payloads_keep_the_read_ahead_small() {
        let mut stage = Stage::new(b"");
        stage.expect_payload(128 * 1024);
        assert_eq!(stage.space_mut().len(), SMALL_WINDOW_BYTES);
        stage.expect_payload(4096);
        assert_eq!(stage.space_mut().len(), STAGE_BYTES);
    }
}

//! Generic netlink messages as bytes: requests are put together, answers are taken apart. No IO.
//!
//! Layout, all integers in the host's order, everything padded to four bytes:
//!
//! | bytes | of a message |
//! |---|---|
//! | 0..4 | length of the whole, without padding behind it |
//! | 4..6 | kind: the family, or a control message of netlink itself |
//! | 6..8 | flags |
//! | 8..12 | sequence number: that of the request in its answers |
//! | 12..16 | port: 0 is the kernel |
//! | 16..20 | command (1), version (1), reserved (2); in an acknowledgement the error number (4) |
//! | 20.. | attributes: length with this header (2), kind (2), value |
//!
//! Invariant: no length of an answer is believed before it was compared with what is there.

/// Bytes of the netlink header.
const HEADER_BYTES: usize = 16;
/// Bytes of the header behind it.
const GENERIC_BYTES: usize = 4;
/// Bytes before an attribute's value.
const ATTRIBUTE_BYTES: usize = 4;
/// The high bits of an attribute's kind are flags: nested, network byte order.
const KIND_MASK: u16 = 0x3fff;
const NESTED: u16 = 0x8000;

/// The answer to a request: done, or failed.
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;

/// An answer that is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a netlink message with lengths that do not fit")]
pub struct Malformed;

/// A request under construction.
#[derive(Clone, Debug)]
pub struct Request(Vec<u8>);

impl Request {
    /// A request to `family`.
    pub fn new(family: u16, command: u8, version: u8) -> Self {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&family.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        bytes.extend_from_slice(&[command, version, 0, 0]);
        Self(bytes)
    }

    /// Adds a number.
    pub fn with_u32(self, kind: u16, value: u32) -> Self {
        self.with(kind, &value.to_ne_bytes())
    }

    /// Adds a number.
    pub fn with_u64(self, kind: u16, value: u64) -> Self {
        self.with(kind, &value.to_ne_bytes())
    }

    /// Adds a text, ended by a zero.
    ///
    /// # Panics
    /// Over 64 KiB.
    pub fn with_text(self, kind: u16, text: &str) -> Self {
        self.with(kind, &[text.as_bytes(), &[0]].concat())
    }

    /// Adds what `fill` adds, as the value of one attribute.
    ///
    /// # Panics
    /// Over 64 KiB.
    pub fn with_nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; ATTRIBUTE_BYTES]);
        self = fill(self);
        let len = attribute_len(self.0.len() - start);
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.0[start + 2..start + 4].copy_from_slice(&(kind | NESTED).to_ne_bytes());
        self
    }

    fn with(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend_from_slice(&attribute_len(ATTRIBUTE_BYTES + value.len()).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// The bytes to send.
    pub fn sealed(mut self, sequence: u32) -> Vec<u8> {
        let len = self.0.len() as u32;
        self.0[0..4].copy_from_slice(&len.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

fn attribute_len(len: usize) -> u16 {
    u16::try_from(len).expect("our requests are a few hundred bytes")
}

/// One message of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer<'a> {
    /// The end of request `sequence`: zero, or an error number as the system calls have it.
    End {
        /// Which request.
        sequence: u32,
        /// Zero or positive.
        errno: i32,
    },
    /// What request `sequence` asked for.
    Content {
        /// Which request.
        sequence: u32,
        /// Its parts.
        attributes: Attributes<'a>,
    },
}

/// Takes the first message off a datagram; `None` at its end. Messages of netlink itself that are no answer are passed over.
///
/// # Errors
/// [`Malformed`]; the rest of the datagram is worthless.
pub fn next_answer<'a>(datagram: &mut &'a [u8]) -> Result<Option<Answer<'a>>, Malformed> {
    while !datagram.is_empty() {
        let len = u32_at(datagram, 0)? as usize;
        if len < HEADER_BYTES || len > datagram.len() {
            return Err(Malformed);
        }
        let (message, kind, sequence) = (&datagram[..len], u16_at(datagram, 4)?, u32_at(datagram, 8)?);
        *datagram = &datagram[len.next_multiple_of(4).min(datagram.len())..];
        if kind == NLMSG_ERROR {
            let errno = (u32_at(message, HEADER_BYTES)? as i32).saturating_neg();
            return Ok(Some(Answer::End { sequence, errno }));
        }
        // Kinds below 16 are netlink's own.
        if kind >= 16 {
            let attributes = Attributes(message.get(HEADER_BYTES + GENERIC_BYTES..).ok_or(Malformed)?);
            return Ok(Some(Answer::Content { sequence, attributes }));
        }
    }
    Ok(None)
}

/// Attributes one behind the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// The value of the first attribute of this kind.
    ///
    /// # Errors
    /// [`Malformed`] before it was found.
    pub fn find(self, wanted: u16) -> Result<Option<&'a [u8]>, Malformed> {
        let mut rest = self.0;
        while !rest.is_empty() {
            let (len, kind) = (usize::from(u16_at(rest, 0)?), u16_at(rest, 2)? & KIND_MASK);
            let value = rest.get(ATTRIBUTE_BYTES..len).ok_or(Malformed)?;
            if kind == wanted {
                return Ok(Some(value));
            }
            rest = &rest[len.next_multiple_of(4).min(rest.len())..];
        }
        Ok(None)
    }

    /// The number in the first attribute of this kind.
    ///
    /// # Errors
    /// [`Malformed`], also when the value is too short.
    pub fn find_u16(self, wanted: u16) -> Result<Option<u16>, Malformed> {
        self.find(wanted)?.map(|value| u16_at(value, 0)).transpose()
    }

    /// The number in the first attribute of this kind.
    ///
    /// # Errors
    /// [`Malformed`], also when the value is too short.
    pub fn find_u32(self, wanted: u16) -> Result<Option<u32>, Malformed> {
        self.find(wanted)?.map(|value| u32_at(value, 0)).transpose()
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Malformed> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk::<2>());
    found.map(|bytes| u16::from_ne_bytes(*bytes)).ok_or(Malformed)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Malformed> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
    found.map(|bytes| u32::from_ne_bytes(*bytes)).ok_or(Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A request looks like the content of an answer.
    fn content(bytes: &[u8]) -> Attributes<'_> {
        let mut rest = bytes;
        match next_answer(&mut rest) {
            Ok(Some(Answer::Content { sequence: 7, attributes })) if rest.is_empty() => attributes,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_has_its_length_its_number_and_padded_attributes() {
        let bytes = Request::new(0x1f, 3, 1).with_u32(1, 5).with_text(10, "abcd").sealed(7);
        assert_eq!(bytes.len(), 16 + 4 + 8 + 12);
        assert_eq!(&bytes[..4], &40u32.to_ne_bytes());
        assert_eq!(&bytes[4..8], &[0x1f, 0, 5, 0]);
        assert_eq!(&bytes[16..20], &[3, 1, 0, 0]);
        assert_eq!(&bytes[28..], &[9, 0, 10, 0, b'a', b'b', b'c', b'd', 0, 0, 0, 0]);
    }

    #[test]
    fn what_was_put_in_is_found_again() {
        let request = Request::new(16, 1, 1).with_u64(2, 1 << 40).with_nested(7, |sockets| {
            sockets.with_nested(1, |item| item.with_u32(1, 9)).with_nested(1, |item| item.with_u32(1, 10))
        });
        let bytes = request.with_u32(1, 3).sealed(7);
        let attributes = content(&bytes);
        assert_eq!(attributes.find_u32(1), Ok(Some(3)));
        assert_eq!(attributes.find(2), Ok(Some((1u64 << 40).to_ne_bytes().as_slice())));
        let sockets = Attributes(attributes.find(7).unwrap().unwrap());
        assert_eq!(Attributes(sockets.find(1).unwrap().unwrap()).find_u32(1), Ok(Some(9)));
        assert_eq!(attributes.find(9), Ok(None));
    }

    #[test]
    fn an_end_carries_the_error_number() {
        let mut bytes = vec![0; 36];
        bytes[0..4].copy_from_slice(&36u32.to_ne_bytes());
        bytes[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        bytes[8..12].copy_from_slice(&4u32.to_ne_bytes());
        bytes[16..20].copy_from_slice(&(-libc::EPERM).to_ne_bytes());
        let mut rest = bytes.as_slice();
        assert_eq!(next_answer(&mut rest), Ok(Some(Answer::End { sequence: 4, errno: libc::EPERM })));
        assert_eq!(next_answer(&mut rest), Ok(None));
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let bytes = Request::new(16, 1, 1).with_u32(1, 3).sealed(7);
        for len in [0u32, 15, 29, u32::MAX] {
            let mut lying = bytes.clone();
            lying[0..4].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(next_answer(&mut lying.as_slice()), Err(Malformed), "{len}");
        }
        for len in [0u16, 3, 9, u16::MAX] {
            let mut lying = bytes.clone();
            lying[20..22].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(content(&lying).find(1), Err(Malformed), "{len}");
        }
        assert_eq!(content(&Request::new(16, 1, 1).with(1, &[1]).sealed(7)).find_u32(1), Err(Malformed));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_run_for_ever(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind: u16) {
            let mut rest = bytes.as_slice();
            let mut answers = 0;
            while let Ok(Some(answer)) = next_answer(&mut rest) {
                answers += 1;
                if let Answer::Content { attributes, .. } = answer {
                    let _ = (attributes.find(kind), attributes.find_u32(kind), attributes.find_u16(kind));
                }
            }
            prop_assert!(answers <= bytes.len() / HEADER_BYTES);
        }

        #[test]
        fn a_damaged_answer_does_no_more(at in 0usize..64, value: u8, kind in 0u16..12) {
            let mut bytes = Request::new(16, 1, 1).with_u32(1, 3).with_text(10, "0123456789").with_u64(2, 4).sealed(7);
            let at = at % bytes.len();
            bytes[at] = value;
            let mut rest = bytes.as_slice();
            while let Ok(Some(answer)) = next_answer(&mut rest) {
                if let Answer::Content { attributes, .. } = answer {
                    let _ = attributes.find(kind);
                }
            }
        }
    }
}

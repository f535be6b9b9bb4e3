//! As much of an NBD client as the verifier needs: fixed newstyle, simple replies, one request at a time, every answer within
//! a time.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const GREETING: &[u8; 16] = b"NBDMAGICIHAVEOPT";
/// Fixed newstyle, and no zeros behind the export's data.
const CLIENT_FLAGS: u32 = 3;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const FUA: u16 = 1;

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Reads.
    Read = 0,
    /// Writes.
    Write = 1,
    /// Flushes.
    Flush = 3,
    /// Discards.
    Trim = 4,
    /// Writes zeros.
    WriteZeroes = 6,
}

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// The server said no; the connection goes on.
    #[error("the server answered with error {0}")]
    Refused(u32),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Stuck(Duration),
    /// The connection ended.
    #[error("the connection ended: {0}")]
    Ended(io::Error),
    /// The server said something that the protocol does not know.
    #[error("the server broke the protocol: {0}")]
    Protocol(&'static str),
}

/// One connection.
#[derive(Debug)]
pub struct Nbd {
    stream: UnixStream,
    patience: Duration,
    cookie: u64,
}

impl Nbd {
    /// Connects to `export` behind `socket`; any answer later than `patience` is an error.
    ///
    /// # Errors
    /// When nobody listens, or the server has no such export.
    pub fn connect(socket: &Path, export: &str, patience: Duration) -> Result<Self, NbdError> {
        let stream = UnixStream::connect(socket).map_err(NbdError::Ended)?;
        let times = stream.set_read_timeout(Some(patience)).and_then(|()| stream.set_write_timeout(Some(patience)));
        times.map_err(NbdError::Ended)?;
        let mut nbd = Self { stream, patience, cookie: 0 };
        nbd.negotiate(export)?;
        Ok(nbd)
    }

    fn negotiate(&mut self, export: &str) -> Result<(), NbdError> {
        let greeting: [u8; 18] = self.take()?;
        if greeting[..16] != GREETING[..] {
            return Err(NbdError::Protocol("no greeting"));
        }
        let name = export.as_bytes();
        let mut message = CLIENT_FLAGS.to_be_bytes().to_vec();
        message.extend_from_slice(b"IHAVEOPT");
        message.extend_from_slice(&OPTION_GO.to_be_bytes());
        message.extend_from_slice(&(name.len() as u32 + 6).to_be_bytes());
        message.extend_from_slice(&(name.len() as u32).to_be_bytes());
        message.extend_from_slice(name);
        message.extend_from_slice(&[0, 0]);
        self.send(&message)?;
        loop {
            let head: [u8; 20] = self.take()?;
            let (kind, len) = (be32(&head[12..16]), be32(&head[16..20]));
            let mut data = vec![0; len as usize];
            self.fill(&mut data)?;
            match kind {
                REPLY_ACK => return Ok(()),
                REPLY_INFO => {}
                refusal => return Err(NbdError::Refused(refusal)),
            }
        }
    }

    /// Reads into `data`.
    ///
    /// # Errors
    /// [`NbdError`].
    pub fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), NbdError> {
        self.request(Command::Read, 0, offset, data.len() as u64, &[])?;
        self.fill(data)
    }

    /// Writes `data`; with `fua` it is durable when this returns.
    ///
    /// # Errors
    /// [`NbdError`].
    pub fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> Result<(), NbdError> {
        self.request(Command::Write, if fua { FUA } else { 0 }, offset, data.len() as u64, data)
    }

    /// A command without data: flush, trim, zeros.
    ///
    /// # Errors
    /// [`NbdError`].
    pub fn plain(&mut self, command: Command, offset: u64, len: u64) -> Result<(), NbdError> {
        self.request(command, 0, offset, len, &[])
    }

    fn request(&mut self, command: Command, flags: u16, offset: u64, len: u64, data: &[u8]) -> Result<(), NbdError> {
        self.cookie += 1;
        let mut message = Vec::with_capacity(28 + data.len());
        message.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        message.extend_from_slice(&flags.to_be_bytes());
        message.extend_from_slice(&(command as u16).to_be_bytes());
        message.extend_from_slice(&self.cookie.to_be_bytes());
        message.extend_from_slice(&offset.to_be_bytes());
        message.extend_from_slice(&(len as u32).to_be_bytes());
        message.extend_from_slice(data);
        self.send(&message)?;
        let reply: [u8; 16] = self.take()?;
        if be32(&reply[..4]) != REPLY_MAGIC || reply[8..] != self.cookie.to_be_bytes() {
            return Err(NbdError::Protocol("a reply to another request"));
        }
        match be32(&reply[4..8]) {
            0 => Ok(()),
            error => Err(NbdError::Refused(error)),
        }
    }

    fn send(&mut self, message: &[u8]) -> Result<(), NbdError> {
        self.stream.write_all(message).map_err(|error| self.ended(error))
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], NbdError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), NbdError> {
        self.stream.read_exact(bytes).map_err(|error| self.ended(error))
    }

    fn ended(&self, error: io::Error) -> NbdError {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => NbdError::Stuck(self.patience),
            _ => NbdError::Ended(error),
        }
    }
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

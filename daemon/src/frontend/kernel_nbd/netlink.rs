//! A generic netlink socket: one request at a time, each waited for.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, setsockopt, socket,
};
use nix::sys::time::TimeVal;

use super::message::{Answer, Attributes, Malformed, Request, next_answer};

/// The family that knows the others; its number is fixed.
const CONTROL: u16 = 16;
const CONTROL_VERSION: u8 = 2;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// Larger than any answer to what is asked here.
const DATAGRAM_BYTES: usize = 32 * 1024;
/// The kernel carries a request out before the call that sends it returns: an answer that is not there then comes never.
const ANSWER_SECONDS: i64 = 5;

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused, or the socket failed.
    #[error(transparent)]
    System(#[from] io::Error),
    /// The answer cannot be understood.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl From<nix::Error> for NetlinkError {
    fn from(errno: nix::Error) -> Self {
        Self::System(errno.into())
    }
}

/// A connection to the kernel.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens one.
    ///
    /// # Errors
    /// The kernel has no generic netlink, or this process may not use it.
    pub fn open() -> Result<Self, NetlinkError> {
        let protocol = SockProtocol::NetlinkGeneric;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS, 0))?;
        // Only the kernel's messages are received then.
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The number of the family `name`; `None` when the kernel does not know it (now).
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn family(&mut self, name: &str) -> Result<Option<u16>, NetlinkError> {
        let request = Request::new(CONTROL, CTRL_CMD_GETFAMILY, CONTROL_VERSION).with_text(CTRL_ATTR_FAMILY_NAME, name);
        let mut family = None;
        let asked = self.call(request, |attributes| {
            family = attributes.find_u16(CTRL_ATTR_FAMILY_ID)?;
            Ok(())
        });
        match asked {
            Err(NetlinkError::System(error)) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            other => other.map(|()| family),
        }
    }

    /// Sends `request` and waits for its end; `content` sees what comes before that.
    ///
    /// # Errors
    /// [`NetlinkError`]; with the kernel's error number when it refused.
    pub fn call(
        &mut self,
        request: Request,
        mut content: impl FnMut(Attributes<'_>) -> Result<(), Malformed>,
    ) -> Result<(), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        send(self.socket.as_raw_fd(), &request.sealed(self.sequence), MsgFlags::empty())?;
        let mut buffer = vec![0; DATAGRAM_BYTES];
        loop {
            let len = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut datagram = &buffer[..len];
            while let Some(answer) = next_answer(&mut datagram)? {
                match answer {
                    Answer::Content { sequence, attributes } if sequence == self.sequence => content(attributes)?,
                    Answer::End { sequence, errno: 0 } if sequence == self.sequence => return Ok(()),
                    Answer::End { sequence, errno } if sequence == self.sequence => {
                        return Err(io::Error::from_raw_os_error(errno).into());
                    }
                    // Of a request that was given up.
                    _ => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_names_its_families() {
        let Ok(mut netlink) = Netlink::open() else { return };
        assert_eq!(netlink.family("nlctrl").unwrap(), Some(CONTROL));
        assert_eq!(netlink.family("tidemark").unwrap(), None);
    }
}

//! A unix socket that is watched for what it has to read, and for room to write only while there is none.
//!
//! A unix socket reports room to write each time its peer takes something out. Watched all the time, as the runtime's own type
//! does, every answered request costs a second wake-up for nothing.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A connected, non-blocking unix socket on the runtime of this thread.
#[derive(Debug)]
pub struct UnixSocket {
    stream: AsyncFd<UnixStream>,
    /// The same socket, watched for room while a write waits for it.
    room: Option<AsyncFd<UnixStream>>,
}

impl UnixSocket {
    /// Registers a non-blocking socket with the runtime of this thread.
    ///
    /// # Errors
    /// The runtime does not take it.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        Ok(Self { stream: watched(stream, Interest::READABLE)?, room: None })
    }

    /// Takes the socket off its runtime.
    pub fn into_inner(self) -> UnixStream {
        self.stream.into_inner()
    }

    /// Reads into `bufs`; zero bytes mean the end of the stream.
    pub fn poll_read(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>]) -> Poll<io::Result<usize>> {
        let wanted: usize = bufs.iter().map(|buf| buf.len()).sum();
        loop {
            let mut ready = ready!(self.stream.poll_read_ready(cx))?;
            let Ok(read) = ready.try_io(|stream| stream.get_ref().read_vectored(bufs)) else { continue };
            // Less than asked for: the socket is empty, and what comes next is an event of its own.
            if read.as_ref().is_ok_and(|len| (1..wanted).contains(len)) {
                ready.clear_ready();
            }
            return Poll::Ready(read);
        }
    }

    /// Writes some of `bufs`.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            match self.stream.get_ref().write_vectored(bufs) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(self.poll_room(cx))?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => {
                    self.room = None;
                    return Poll::Ready(done);
                }
            }
        }
    }

    /// Waits for room after a write that found none.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let room = match &mut self.room {
            Some(room) => room,
            None => {
                let twin = self.stream.get_ref().try_clone()?;
                self.room.insert(watched(twin, Interest::WRITABLE)?)
            }
        };
        ready!(room.poll_write_ready(cx))?.clear_ready();
        Poll::Ready(Ok(()))
    }

    /// Closes the sending side.
    pub fn shutdown(&self) -> io::Result<()> {
        self.stream.get_ref().shutdown(Shutdown::Write)
    }
}

/// Waits until the other end of a socket is closed or shut down, however much it left to be read.
///
/// # Errors
/// The runtime does not take the socket.
pub async fn hung_up(stream: UnixStream) -> io::Result<()> {
    // A unix socket has no priority data: what this interest reports is the end.
    let twin = watched(stream, Interest::PRIORITY)?;
    loop {
        let mut ready = twin.ready(Interest::PRIORITY).await?;
        if ready.ready().is_read_closed() {
            return Ok(());
        }
        ready.clear_ready();
    }
}

#[expect(deprecated, reason = "unsound only for types that change their descriptor, which a standard stream does not")]
fn watched(stream: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    AsyncFd::with_interest(stream, interest)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn pair() -> (UnixSocket, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (UnixSocket::new(ours).unwrap(), theirs)
    }

    #[tokio::test]
    async fn a_full_socket_is_written_on_as_soon_as_it_has_room() {
        let (mut ours, mut theirs) = pair();
        let total = 4 << 20;
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; total];
            theirs.read_exact(&mut got).map(|()| got)
        });
        let data: Vec<u8> = (0..total).map(|i| (i % 251) as u8).collect();
        let mut sent = 0;
        while sent < total {
            sent += poll_fn(|cx| ours.poll_write(cx, &[IoSlice::new(&data[sent..])])).await.unwrap();
        }
        assert_eq!(reader.join().unwrap().unwrap(), data);
        assert!(ours.room.is_none(), "room is watched for only while there is none");
    }

    #[tokio::test]
    async fn the_end_of_a_socket_is_noticed_before_what_it_left_is_read() {
        for way in [Shutdown::Both, Shutdown::Write] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let end = tokio::spawn(hung_up(ours.try_clone().unwrap()));
            theirs.write_all(b"requests").unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            assert!(!end.is_finished(), "there is something to read, and that is no end");
            match way {
                Shutdown::Both => theirs.shutdown(way).unwrap(),
                _ => drop(theirs),
            }
            end.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn what_comes_after_a_short_read_is_read_too() {
        let (ours, mut theirs) = pair();
        for text in [b"abc".as_slice(), b"defg"] {
            theirs.write_all(text).unwrap();
            let (mut first, mut second) = ([0; 2], [0; 8]);
            let len =
                poll_fn(|cx| ours.poll_read(cx, &mut [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)]));
            assert_eq!(len.await.unwrap(), text.len());
            assert_eq!((&first[..], &second[..text.len() - 2]), (&text[..2], &text[2..]));
        }
        drop(theirs);
        assert_eq!(poll_fn(|cx| ours.poll_read(cx, &mut [IoSliceMut::new(&mut [0; 8])])).await.unwrap(), 0);
    }
}

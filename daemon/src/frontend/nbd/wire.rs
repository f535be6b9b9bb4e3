//! The stream of a connection: a unix socket, TCP, or TLS over TCP, with vectored reads and writes and without locks.
//!
//! A stream can be parked: taken off the runtime it was accepted on, sent to another thread, and resumed on the runtime
//! there. A TLS session moves with its socket, because the TLS layer only sees a [`Socket`].

use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::unix::UnixSocket;

/// A TCP socket that can change its runtime.
#[derive(Debug)]
pub enum Socket {
    /// Registered with the runtime of this thread.
    Live(TcpStream),
    /// Between runtimes: every read and write fails.
    Parked(Option<std::net::TcpStream>),
}

impl Socket {
    /// Takes the socket off its runtime.
    fn park(&mut self) -> io::Result<()> {
        if let Self::Live(stream) = std::mem::replace(self, Self::Parked(None)) {
            *self = Self::Parked(Some(stream.into_std()?));
        }
        Ok(())
    }

    /// Registers the socket with the runtime of this thread.
    fn resume(&mut self) -> io::Result<()> {
        if let Self::Parked(stream) = self {
            let stream = stream.take().ok_or(io::ErrorKind::NotConnected)?;
            *self = Self::Live(TcpStream::from_std(stream)?);
        }
        Ok(())
    }

    fn live(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        match self {
            Self::Live(stream) => Ok(Pin::new(stream)),
            Self::Parked(_) => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.live()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.live()?.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.live()?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.live()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.live()?.poll_shutdown(cx)
    }
}

/// A connection's stream.
#[derive(Debug)]
pub enum Wire {
    /// A unix socket.
    Unix(UnixSocket),
    /// Plain TCP.
    Tcp(Socket),
    /// TLS over TCP.
    Tls(Box<TlsStream<Socket>>),
}

impl Wire {
    /// Reads into `buf`; zero bytes mean the end of the stream.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(buf);
        ready!(match self {
            Self::Unix(socket) => return socket.poll_read(cx, &mut [IoSliceMut::new(buf.initialize_unfilled())]),
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, &mut buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, &mut buf),
        })?;
        Poll::Ready(Ok(buf.filled().len()))
    }

    /// Reads into `first`, then into `second`, with one system call where the stream allows it. Zero bytes mean the end.
    pub fn poll_read_two(
        &mut self,
        cx: &mut Context<'_>,
        first: &mut [u8],
        second: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let bufs = &mut [IoSliceMut::new(first), IoSliceMut::new(second)];
        match self {
            Self::Unix(socket) => socket.poll_read(cx, bufs),
            Self::Tcp(socket) => loop {
                let stream = socket.live()?;
                ready!(stream.poll_read_ready(cx))?;
                if let Some(done) = unless_would_block(stream.try_read_vectored(bufs)) {
                    return Poll::Ready(done);
                }
            },
            Self::Tls(_) => self.poll_read(cx, first),
        }
    }

    /// Writes some of `bufs`.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self {
            Self::Unix(socket) => socket.poll_write(cx, bufs),
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, bufs),
        }
    }

    /// Pushes out what TLS holds back; nothing to do for a plain socket.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Unix(_) | Self::Tcp(_) => Poll::Ready(Ok(())),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    /// Closes the sending side.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Unix(socket) => Poll::Ready(socket.shutdown()),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }

    /// Takes the stream off its runtime, so that it can be sent to another thread.
    ///
    /// # Errors
    /// The runtime does not let go of the socket.
    pub fn park(self) -> io::Result<Parked> {
        match self {
            Self::Unix(socket) => Ok(Parked::Unix(socket.into_inner())),
            Self::Tcp(mut socket) => socket.park().map(|()| Parked::Tcp(socket)),
            Self::Tls(mut stream) => stream.get_mut().0.park().map(|()| Parked::Tls(stream)),
        }
    }
}

/// A stream between two runtimes.
#[derive(Debug)]
pub enum Parked {
    /// A unix socket.
    Unix(std::os::unix::net::UnixStream),
    /// Plain TCP.
    Tcp(Socket),
    /// TLS over TCP.
    Tls(Box<TlsStream<Socket>>),
}

impl Parked {
    /// Goes on with the stream on the runtime of this thread.
    ///
    /// # Errors
    /// The runtime does not take the socket.
    pub fn resume(self) -> io::Result<Wire> {
        Ok(match self {
            Self::Unix(stream) => Wire::Unix(UnixSocket::new(stream)?),
            Self::Tcp(mut socket) => {
                socket.resume()?;
                Wire::Tcp(socket)
            }
            Self::Tls(mut stream) => {
                stream.get_mut().0.resume()?;
                Wire::Tls(stream)
            }
        })
    }
}

fn unless_would_block(result: io::Result<usize>) -> Option<io::Result<usize>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        done => Some(done),
    }
}

//! An NBD client that sends what a test wants, and reads what comes.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Any stream.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;

pub const STARTTLS: u32 = 5;
pub const GO: u32 = 7;

pub const ACK: u32 = 1;

/// A client behind the server's greeting.
pub struct Client<S> {
    pub stream: S,
}

impl<S: Stream> Client<S> {
    /// Reads the greeting and answers it.
    pub async fn greet(mut stream: S) -> Self {
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).await.expect("greeting");
        assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
        stream.write_all(&[0, 0, 0, 3]).await.expect("client flags");
        Self { stream }
    }

    /// Greets and chooses an export.
    pub async fn start(stream: S, export: &str) -> Self {
        let mut client = Self::greet(stream).await;
        assert_eq!(client.go(export).await, ACK);
        client
    }

    /// Chooses an export; the kind of the last reply.
    pub async fn go(&mut self, export: &str) -> u32 {
        let mut data = (export.len() as u32).to_be_bytes().to_vec();
        data.extend(export.as_bytes());
        data.extend([0, 0]);
        self.option(GO, &data).await
    }

    /// Sends an option and reads its replies; the kind of the last.
    pub async fn option(&mut self, option: u32, data: &[u8]) -> u32 {
        let mut message = b"IHAVEOPT".to_vec();
        message.extend(option.to_be_bytes());
        message.extend((data.len() as u32).to_be_bytes());
        message.extend(data);
        self.stream.write_all(&message).await.expect("option");
        loop {
            let mut head = [0; 20];
            self.stream.read_exact(&mut head).await.expect("reply to an option");
            let kind = u32::from_be_bytes(head[12..16].try_into().expect("four bytes"));
            let len = u32::from_be_bytes(head[16..].try_into().expect("four bytes"));
            self.stream.read_exact(&mut vec![0; len as usize]).await.expect("data of the reply");
            if kind == ACK || kind & 1 << 31 != 0 {
                return kind;
            }
        }
    }

    pub async fn request(&mut self, command: u16, cookie: u64, offset: u64, len: u32, payload: &[u8]) {
        let mut message = 0x2560_9513u32.to_be_bytes().to_vec();
        message.extend(0u16.to_be_bytes());
        message.extend(command.to_be_bytes());
        message.extend(cookie.to_be_bytes());
        message.extend(offset.to_be_bytes());
        message.extend(len.to_be_bytes());
        message.extend(payload);
        self.stream.write_all(&message).await.expect("request");
    }

    pub async fn write(&mut self, cookie: u64, offset: u64, payload: &[u8]) {
        self.request(WRITE, cookie, offset, payload.len() as u32, payload).await;
    }

    pub async fn flush(&mut self, cookie: u64) {
        self.request(FLUSH, cookie, 0, 0, &[]).await;
    }

    /// Reads a simple reply: cookie and error.
    pub async fn reply(&mut self) -> (u64, u32) {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head).await.expect("reply");
        assert_eq!(head[..4], 0x6744_6698u32.to_be_bytes());
        let error = u32::from_be_bytes(head[4..8].try_into().expect("four bytes"));
        (u64::from_be_bytes(head[8..].try_into().expect("eight bytes")), error)
    }

    /// Reads data of a READ.
    pub async fn data(&mut self, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.stream.read_exact(&mut data).await.expect("data");
        data
    }

    /// Waits for the server to close.
    pub async fn closed(&mut self) {
        let mut rest = Vec::new();
        // A reset is as good as an end.
        let _ = self.stream.read_to_end(&mut rest).await;
        assert_eq!(rest, b"", "nothing was sent before the end");
    }
}

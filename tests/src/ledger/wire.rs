//! As much of PostgreSQL's frontend protocol as the ledger needs: trust authentication over a unix socket, simple queries.
//!
//! Written out here because a driver would bring forty packages for one message in each direction.

use std::io::{self, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Version 3.0 of the protocol.
const PROTOCOL: u32 = 3 << 16;
/// No message of a ledger is larger; a larger length means that the stream is out of step.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// A row of text columns; `None` is NULL.
pub type Row = Vec<Option<String>>;

/// Why a statement has no result.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// The server said no; the connection can be used again.
    #[error("{code}: {message}")]
    Server {
        /// SQLSTATE.
        code: String,
        /// The server's text.
        message: String,
    },
    /// The connection ended or does not answer.
    #[error("connection to PostgreSQL: {0}")]
    Connection(#[from] io::Error),
    /// The server sent something else than expected.
    #[error("PostgreSQL's answer makes no sense: {0}")]
    Protocol(String),
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<UnixStream>,
}

impl Connection {
    /// Connects as `user` to `database` through the socket of `port` in `directory`. Every read gives up after `patience`.
    ///
    /// # Errors
    /// When nobody listens, or the server refuses (as it does while it recovers).
    pub fn open(directory: &Path, port: u16, user: &str, database: &str, patience: Duration) -> Result<Self, SqlError> {
        let stream = UnixStream::connect(directory.join(format!(".s.PGSQL.{port}")))?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let mut connection = Self { stream: BufReader::new(stream) };
        let mut body = PROTOCOL.to_be_bytes().to_vec();
        for text in ["user", user, "database", database, "application_name", "ledger", ""] {
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
        connection.send(None, &body)?;
        connection.finish()?;
        Ok(connection)
    }

    /// Runs `sql`, which may hold several statements (then they are one transaction), and returns all rows.
    ///
    /// # Errors
    /// The server's refusal, or the end of the connection: then nobody knows whether a commit happened.
    pub fn query(&mut self, sql: &str) -> Result<Vec<Row>, SqlError> {
        let mut body = sql.as_bytes().to_vec();
        body.push(0);
        self.send(Some(b'Q'), &body)?;
        self.finish()
    }

    fn send(&mut self, kind: Option<u8>, body: &[u8]) -> io::Result<()> {
        let mut message: Vec<u8> = kind.into_iter().collect();
        message.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        message.extend_from_slice(body);
        self.stream.get_mut().write_all(&message)
    }

    /// Reads messages up to ReadyForQuery, or to an error after which the server closes.
    fn finish(&mut self) -> Result<Vec<Row>, SqlError> {
        let (mut rows, mut failure) = (Vec::new(), None);
        loop {
            let (kind, body) = self.receive()?;
            match kind {
                b'D' => rows.push(data_row(&body).ok_or_else(|| SqlError::Protocol("a cut-off row".to_owned()))?),
                b'E' if is_fatal(&body) => return Err(server_error(&body)),
                b'E' => failure = Some(server_error(&body)),
                b'R' if body != [0, 0, 0, 0] => return Err(SqlError::Protocol("it wants a password".to_owned())),
                b'Z' => return failure.map_or(Ok(rows), Err),
                _ => {}
            }
        }
    }

    fn receive(&mut self) -> Result<(u8, Vec<u8>), SqlError> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if !(4..=MAX_MESSAGE_BYTES).contains(&length) {
            return Err(SqlError::Protocol(format!("a message of {length} bytes")));
        }
        let mut body = vec![0; length - 4];
        self.stream.read_exact(&mut body)?;
        Ok((head[0], body))
    }
}

/// The server closes the connection after these, without ReadyForQuery.
fn is_fatal(body: &[u8]) -> bool {
    matches!(field(body, b'V').as_str(), "FATAL" | "PANIC")
}

fn data_row(body: &[u8]) -> Option<Row> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut row = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let length = i32::from_be_bytes(*length);
        let (value, tail) = if length < 0 { (None, tail) } else { column(tail, length as usize)? };
        row.push(value);
        rest = tail;
    }
    Some(row)
}

fn column(bytes: &[u8], length: usize) -> Option<(Option<String>, &[u8])> {
    let (value, tail) = bytes.split_at_checked(length)?;
    Some((Some(String::from_utf8_lossy(value).into_owned()), tail))
}

fn server_error(body: &[u8]) -> SqlError {
    SqlError::Server { code: field(body, b'C'), message: field(body, b'M') }
}

/// One field of an error message; empty when it is not there.
fn field(body: &[u8], kind: u8) -> String {
    let text = body.split(|&byte| byte == 0).find(|field| field.first() == Some(&kind));
    text.map(|field| String::from_utf8_lossy(&field[1..]).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_keeps_null_apart_from_empty() {
        let body = [0, 3, 0, 0, 0, 2, b'o', b'k', 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
        assert_eq!(data_row(&body).unwrap(), [Some("ok".to_owned()), None, Some(String::new())]);
    }

    #[test]
    fn a_row_that_is_cut_off_is_no_row() {
        assert_eq!(data_row(&[0, 1, 0, 0, 0, 9, b'x']), None);
    }

    #[test]
    fn an_error_names_code_and_text() {
        let body = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0";
        assert_eq!(server_error(body).to_string(), "57P03: the database system is starting up");
        assert!(is_fatal(body) && !is_fatal(b"SERROR\0VERROR\0C22012\0\0"));
    }
}

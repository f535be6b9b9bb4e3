//! The NBD frontend on real sockets: against a client that does what it likes, over TLS, across threads, and against the tools
//! that people use.

mod client;
mod requests;
mod server;
mod threads;
mod tls;
mod tools;

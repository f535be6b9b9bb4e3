//! The network between two agents.
//!
//! Translates gRPC into messages of the core and back, and decides only who may speak: every connection is authenticated by
//! a certificate that names site and node, and what a message claims must equal it. What is said is the core's.
//!
//! Two listeners (docs/protocol.md): the *control* listener of the agent carries liveness and short calls on a thread of its
//! own, the *data* listener of a shard carries one stream per volume on that shard's runtime, so that no frame crosses a thread.

pub mod convert;

//! The wire of Tidemark: the code generated from `proto/**/*.proto`, kept in git and compared with a fresh run by a test.
//!
//! Nothing is decided here. `hack/gen-proto` regenerates after a change of a `.proto` file.
#![forbid(unsafe_code)]

pub mod codec;

/// What two agents say to each other: the data stream of a volume and the control calls.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
pub mod peer {
    include!("gen/tidemark.peer.v1.rs");
}

/// What people and the CLI ask of an agent.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
pub mod admin {
    include!("gen/tidemark.admin.v1.rs");
}

/// The part of etcd's v3 API that a witness needs.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
pub mod etcd {
    include!("gen/etcdserverpb.rs");
}

/// The descriptors of the project's own services, encoded, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/descriptors.bin");

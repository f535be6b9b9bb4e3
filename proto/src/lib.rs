//! The wire of Tidemark.

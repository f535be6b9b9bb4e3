//! Harness of the tests of Tidemark as a whole.

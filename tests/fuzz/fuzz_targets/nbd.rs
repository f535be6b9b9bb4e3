//! Whatever an NBD client sends: no crash, no hang, bounded memory. What is checked is described at `exercise`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidemark_agent::frontend::nbd::exercise::exercise;

fuzz_target!(|input: &[u8]| {
    exercise(input);
});

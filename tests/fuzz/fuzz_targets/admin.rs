//! Whatever is asked of the admin API: no crash, bounded memory, and nothing is let through that the engine may not get. What
//! is checked is described at `exercise`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidemark_agent::control::exercise::exercise;

fuzz_target!(|input: &[u8]| {
    exercise(input);
});

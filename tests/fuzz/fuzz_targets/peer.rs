//! Whatever a peer sends, beside whatever else happens to the copy: no crash, no hang, bounded memory, no broken invariant.
//! What is checked is described at `exercise`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidemark_agent::peer::exercise::exercise;

fuzz_target!(|input: &[u8]| {
    exercise(input);
});

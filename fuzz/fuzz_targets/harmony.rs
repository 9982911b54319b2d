//! The parser of what a model generates. The property is that of harmony's example `fuzz_harmony`.
#![no_main]

#[expect(dead_code, reason = "the example makes streams of its own")]
#[path = "../../harmony/examples/fuzz_harmony/property.rs"]
mod property;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    property::check(data);
});

//! Parses the input as a stream of generated tokens. The property to check is shared with harmony's example `fuzz_harmony`.
#![no_main]

#[expect(dead_code, reason = "used only by the example, which generates streams")]
#[path = "../../harmony/examples/fuzz_harmony/property.rs"]
mod property;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    property::check(data);
});

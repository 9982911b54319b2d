//! Phase 1's gate: the golden models decode to what the `gguf` package decodes.

use gates::loading;
use gptoss_reference::Case;

#[test]
fn weights_equal_the_goldens() {
    for case in Case::committed() {
        let checks = loading::run(&case).expect("the gate runs");
        assert!(!checks.is_empty());
        let failed: Vec<_> = checks.iter().filter(|check| !check.passed()).collect();
        assert!(failed.is_empty(), "{failed:#?}");
    }
}

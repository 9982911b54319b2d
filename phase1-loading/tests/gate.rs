//! Phase 1's gate: the golden models decode to what the `gguf` package decodes.

use gptoss_reference::Case;
use phase1_loading::{Checkpoint, gate};

#[test]
fn weights_equal_the_goldens() {
    for case in Case::committed() {
        let checks = gate::run(&case).expect("the gate runs");
        assert!(!checks.is_empty());
        let failed: Vec<_> = checks.iter().filter(|check| !check.passed()).collect();
        assert!(failed.is_empty(), "{failed:#?}");
    }
}

#[test]
fn tensor_tables() {
    for case in Case::committed() {
        let checkpoint = Checkpoint::open(&case.model()).expect("opens");
        let table: Vec<String> = (checkpoint.tensors.iter())
            .map(|(name, tensor)| format!("{name:36} {:6} {:?}", tensor.format.name(), tensor.shape))
            .collect();
        insta::assert_snapshot!(case.name.clone(), format!("{:#?}\n{}", checkpoint.config, table.join("\n")));
    }
}

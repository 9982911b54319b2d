//! The contents of the golden models: configuration, and every tensor's format and shape.

use gptoss_reference::Case;
use phase1_loading::Checkpoint;

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

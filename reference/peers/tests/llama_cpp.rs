//! Compares llama.cpp, run through its worker, with MLX's golden outputs for the truncated YaRN ramp.

mod real;

use gates::engine;
use gptoss_reference::{Case, Folder, Limit};
use peers::{Options, Peer, PeerEngine};
use phase1_loading::{Checkpoint, YarnRamp};
use phase2_forward::{Engine, EngineError};

use real::{assert_passed, launch, start};

/// llama.cpp rounds activations to 8 bits before a product with packed weights, on the CPU.
const ROUNDED: Limit = Limit { rms: 5e-2, max: 5e-1 };

#[test]
fn llama_cpp_is_close_to_the_goldens() {
    let Some(launch) = launch(Peer::LlamaCpp, "llama_cpp_is_close_to_the_goldens") else { return };
    for case in Case::committed() {
        let (mut llama, checkpoint) = start(&launch, &case.model(), YarnRamp::Truncated);
        let checks = engine::run(&case, YarnRamp::Truncated, &mut llama, &checkpoint, ROUNDED);
        assert_passed(&checks.expect("it runs"));
        // A fork gives the same logits as the sequence that it was copied from.
        let tokens = [5, 6, 7, 8];
        let alone = llama.last_logits(0, &tokens).expect("logits");
        llama.fork(0, 1, tokens.len()).expect("a fork");
        assert_eq!(llama.length(1), tokens.len());
        let [first, second] = [0, 1].map(|sequence| llama.last_logits(sequence, &[9]).expect("logits"));
        assert_eq!(first.len(), alone.len());
        assert_passed(&[gates::Check::values(&case.name, "logits of a fork", &first, &second, ROUNDED)]);
    }
}

#[test]
fn llama_cpp_refuses_unsupported_requests() {
    let Some(launch) = launch(Peer::LlamaCpp, "llama_cpp_refuses_unsupported_requests") else { return };
    let options = Options { device: "cpu", ..Options::default() };
    let (case, folder) = (Case::committed().remove(0), Folder::committed().remove(0));
    for (model, ramp, expected) in
        [(&case.model(), YarnRamp::Exact, "--rope truncated"), (&folder.path, YarnRamp::Truncated, "gptoss convert")]
    {
        let mut checkpoint = Checkpoint::open(model).expect("opens");
        checkpoint.config.rope.ramp = ramp;
        match PeerEngine::start(&launch, &checkpoint, model, &options) {
            Err(EngineError::Unsupported(sentence)) => assert!(sentence.contains(expected), "{sentence}"),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("{} was accepted", model.display()),
        }
    }
}

//! Synthetic models can be opened, and are determined by their description and seed.

use phase1_loading::{Checkpoint, DenseFormat, Format, check_values, convert, verify};
use synthetic::{SyntheticModel, VocabularyKind};

fn nano() -> SyntheticModel {
    SyntheticModel::preset("nano").expect("a preset")
}

fn written(model: &SyntheticModel, seed: u64) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("model.gguf");
    let mut last = (0, 0);
    model.write(&path, seed, &mut |done, total| last = (done, total)).expect("written");
    assert_eq!(last.0, last.1, "progress ends at the total");
    std::fs::read(path).expect("readable")
}

#[test]
fn same_seed_gives_the_same_bytes() {
    let model = written(&nano(), 7);
    assert!(model == written(&nano(), 7));
    assert!(model != written(&nano(), 8));
}

/// [`SyntheticModel::tensors`] predicts the tensors of the file, with either vocabulary.
#[test]
fn predicted_tensors_equal_the_files() {
    for vocabulary in [VocabularyKind::Small, VocabularyKind::O200k] {
        let model = SyntheticModel { layers: 1, vocabulary, ..nano() };
        let checkpoint = Checkpoint::from_bytes("nano", written(&model, 1).into()).expect("opens");
        let (config, tensors) = model.tensors();
        assert_eq!(config, checkpoint.config);
        assert_eq!(tensors.len(), checkpoint.tensors.len());
        for planned in tensors {
            let tensor = checkpoint.tensor(&planned.name);
            assert_eq!((planned.format, &planned.shape), (tensor.format, &tensor.shape), "{}", planned.name);
        }
    }
}

#[test]
fn every_dense_format_opens_with_sane_weights() {
    for rest in DenseFormat::ALL {
        let file = written(&SyntheticModel { rest, ..nano() }, 1);
        let checkpoint = Checkpoint::from_bytes("nano", file.into()).expect("opens");
        assert_eq!(checkpoint.tensor("output.weight").format, rest.format());
        assert_eq!(checkpoint.tensor("blk.1.ffn_up_exps.weight").format, Format::Mxfp4);
        assert_eq!(checkpoint.tensor("blk.1.ffn_gate_inp.weight").format, Format::F32);
        for (name, tensor) in &checkpoint.tensors {
            check_values(&checkpoint.path, name, tensor).expect("finite");
        }
        // A projection roughly preserves the variance of its input.
        let gate = checkpoint.tensor("blk.0.ffn_gate_exps.weight").to_f32();
        let gain = gate.iter().map(|w| w * w).sum::<f32>() / gate.len() as f32 * 64.0;
        assert!((0.2..2.0).contains(&gain), "{rest:?}: {gain}");
    }
}

#[test]
fn a_synthetic_folder_opens() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    nano().write_folder(directory.path(), 5, &mut |_, _| ()).expect("written");
    let folder = Checkpoint::open(directory.path()).expect("opens");
    let tokens = folder.tokenizer().expect("builds").encode("the quick brown fox");
    let path = directory.path().join("model.gguf");
    convert(&folder, &path, Some(DenseFormat::Q8_0), &mut |_, _| ()).expect("converted");
    let file = Checkpoint::open(&path).expect("opens");
    assert_eq!(file.tokenizer().expect("builds").encode("the quick brown fox"), tokens);
    assert!(verify(&folder, &file, &mut |_, _| ()).expect("comparable").same());
    // A projection roughly preserves the variance of its input.
    let gate = folder.tensor("blk.0.ffn_gate_exps.weight").to_f32();
    let gain = gate.iter().map(|w| w * w).sum::<f32>() / gate.len() as f32 * 64.0;
    assert!((0.2..2.0).contains(&gain), "{gain}");
}

#[test]
fn description_round_trips_through_json() {
    for name in SyntheticModel::PRESETS {
        let model = SyntheticModel::preset(name).expect("a preset");
        let json = serde_json::to_string(&model).expect("serializes");
        assert_eq!(serde_json::from_str::<SyntheticModel>(&json).expect("parses"), model);
    }
    assert_eq!(SyntheticModel::preset("huge"), None);
}

#[test]
fn impossible_dimensions_are_refused_by_name() {
    let refusals: Vec<String> = [
        SyntheticModel { hidden: 65, ..nano() },
        SyntheticModel { layers: 0, ..nano() },
        SyntheticModel { kv_heads: 3, ..nano() },
        SyntheticModel { head_dim: 33, ..nano() },
        SyntheticModel { experts_per_token: 9, ..nano() },
        SyntheticModel { expert_width: usize::MAX, ..nano() },
    ]
    .iter()
    .map(|model| model.validate().expect_err("refused"))
    .collect();
    insta::assert_snapshot!(refusals.join("\n"));
    assert!(SyntheticModel { vocabulary: VocabularyKind::O200k, ..nano() }.validate().is_ok());
}

/// The built-in vocabulary, which is used for model files without one, is that of gpt-oss.
#[test]
fn built_in_vocabulary_equals_gpt_oss() {
    let lists = synthetic::o200k_harmony();
    assert_eq!((lists.tokens.len(), lists.kinds.len()), (201_088, 201_088));
    let named = |id: Option<u32>| lists.tokens[id.expect("named") as usize].as_str();
    let special = synthetic::O200K_SPECIAL;
    assert_eq!(
        [named(special.bos), named(special.eos), named(special.padding)],
        ["<|startoftext|>", "<|return|>", "<|endoftext|>"]
    );
}

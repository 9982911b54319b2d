//! Conversion to GGUF, and comparison of two models.

use crate::folders::{all_identical, compare, open, stored, storing};
use crate::made::files;
use gptoss_reference::Case;
use phase1_loading::{Checkpoint, DenseFormat, Format, Verdict, check_scales, convert};

#[test]
fn conversion_keeps_all_tensors_and_tokens() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("converted.gguf");
    for name in ["hf", "mlx-mxfp4", "mlx-q8", "mlx-q4"] {
        let from = open(name);
        let mut last = (0, 0);
        convert(&from, &path, None, &mut |done, total| last = (done, total)).expect("converted");
        assert_eq!(last.0, last.1, "progress ends at the total");
        let to = Checkpoint::open(&path).expect("opens");
        assert!(all_identical(&compare(&from, &to)), "{name}");
        for (name, tensor) in &to.tensors {
            let vector = !name.ends_with("weight") || name.contains("norm") || name.contains("gate_inp");
            assert!(!vector || tensor.format == Format::F32, "{name}");
        }
    }
    for rest in DenseFormat::ALL {
        let from = open("mlx-q8");
        convert(&from, &path, Some(rest), &mut |_, _| ()).expect("converted");
        let to = Checkpoint::open(&path).expect("opens");
        assert_eq!(to.tensor("token_embd.weight").format, rest.format());
        assert_eq!(to.tensor("blk.2.ffn_down_exps.weight").format, Format::Mxfp4);
        assert!(compare(&from, &to).same(), "{rest:?}");
    }
    let left: Vec<_> = std::fs::read_dir(directory.path()).expect("readable").collect();
    assert_eq!(left.len(), 1, "no unfinished file is left");
}

#[test]
fn different_models_compare_as_different() {
    let (a, b) = (open("hf"), Checkpoint::open(&Case::committed()[0].model()).expect("opens"));
    let comparison = compare(&a, &b);
    assert!(!comparison.same());
    assert!(comparison.differences.iter().any(|difference| difference.starts_with("query heads: 4 and 8")));

    // Changes one bit of one attention weight.
    let mut files = files("hf");
    let name = "model-00001-of-00002.safetensors";
    let mut shard = files[name].to_vec();
    let last = shard.len() - 1000;
    shard[last] ^= 0x10;
    files.insert(name.into(), shard.into());
    let changed = Checkpoint::from_folder_bytes("changed", &files).expect("opens");
    assert!(!compare(&a, &changed).same());

    // A light fine-tune: one matrix changed by half a percent, which is as small as bf16's rounding error.
    let mut tensors = stored("hf");
    let (_, _, data) = tensors.get_mut("model.layers.0.self_attn.q_proj.weight").expect("there");
    let mut values = vec![0.0; data.len() / 2];
    Format::BF16.decode(data, &mut values);
    values.iter_mut().for_each(|value| *value *= 1.005);
    *data = Format::BF16.encode(&values);
    let tuned = Checkpoint::from_folder_bytes("tuned", &storing("hf", &tensors)).expect("opens");
    let comparison = compare(&a, &tuned);
    let different: Vec<_> = comparison.tensors.iter().filter(|tensor| tensor.verdict == Verdict::Different).collect();
    assert_eq!(different.iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>(), ["blk.0.attn_q.weight"]);
    assert!(!comparison.same());
}

/// In Hugging Face's folders, scales are a separate tensor.
#[test]
fn scale_of_255_is_refused() {
    let clean = open("hf");
    let name = "blk.1.ffn_up_exps.weight";
    let packed = clean.tensor(name).packed();
    // The scales of gate and up are interleaved by row; a row has two blocks.
    let mut damaged = files("hf");
    let shard = "model-00002-of-00002.safetensors";
    let mut bytes = damaged[shard].to_vec();
    let gate = clean.tensor("blk.1.ffn_gate_exps.weight").packed();
    let scales: Vec<u8> =
        (0..4).flat_map(|row| [&gate, &packed].map(|p| [p[row * 34], p[row * 34 + 17]])).flatten().collect();
    let at = bytes.windows(scales.len()).position(|window| window == scales).expect("interleaved in the shard");
    // Row 1 of up, second block: after gate's row 0, up's row 0 and gate's row 1.
    bytes[at + 7] = 255;
    damaged.insert(shard.into(), bytes.into());
    let damaged = Checkpoint::from_folder_bytes("damaged", &damaged).expect("opening reads no weights");
    let error = check_scales(&damaged.path, name, damaged.tensor(name)).expect_err("refused").to_string();
    assert!(error.contains(name) && error.contains("block 3"), "{error}");

    let directory = tempfile::tempdir().expect("a temporary directory");
    let error = convert(&damaged, &directory.path().join("out.gguf"), None, &mut |_, _| ()).expect_err("refused");
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(cause.contains(name), "{cause}");
    assert_eq!(std::fs::read_dir(directory.path()).expect("readable").count(), 0, "no file is left");
}

#[test]
fn unrepresentable_values_are_refused() {
    let mut tensors = stored("hf");
    let (_, _, data) = tensors.get_mut("lm_head.weight").expect("there");
    data[..2].copy_from_slice(&Format::BF16.encode(&[1e7]));
    let large = Checkpoint::from_folder_bytes("large", &storing("hf", &tensors)).expect("opens");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("out.gguf");
    for (rest, name) in [(DenseFormat::Q8_0, "Q8_0"), (DenseFormat::F16, "F16")] {
        let error = convert(&large, &path, Some(rest), &mut |_, _| ()).expect_err("refused");
        let cause = std::error::Error::source(&error).expect("a cause").to_string();
        assert_eq!(cause, format!("tensor `output.weight` has values that {name} cannot hold"));
    }
    for rest in [DenseFormat::BF16, DenseFormat::F32] {
        convert(&large, &path, Some(rest), &mut |_, _| ()).expect("converted");
    }
}

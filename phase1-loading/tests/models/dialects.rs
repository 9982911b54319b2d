//! The same model in GGUF files of other programs.

use crate::made::{GoldenParts, Stored};
use bytes::Bytes;
use phase1_loading::write::MetadataValue;
use phase1_loading::{Checkpoint, Verdict, verify};

const LAYERS: usize = 4;

fn golden() -> GoldenParts {
    GoldenParts::of("even", |_, _| ())
}

/// The golden model with Ollama's keys and names, and without the keys that Ollama does not write.
fn ollama() -> GoldenParts {
    let mut made = golden();
    made.remove("gpt-oss.expert_feed_forward_length");
    made.remove("gpt-oss.rope.scaling.type");
    for (key, _) in &mut made.metadata {
        *key = key.replace("gpt-oss.", "gptoss.");
    }
    made.set("general.architecture", MetadataValue::Text("gptoss".into()));
    made.set("tokenizer.ggml.pre", MetadataValue::Text("default".into()));
    for tensor in &mut made.tensors {
        tensor.name = tensor
            .name
            .replace(".attn_output", ".attn_out")
            .replace(".attn_sinks.weight", ".attn_sinks")
            .replace("post_attention_norm", "ffn_norm");
    }
    made
}

/// Joins q, k and v into one matrix.
fn fuse_qkv(made: &mut GoldenParts) {
    for layer in 0..LAYERS {
        for kind in ["weight", "bias"] {
            let parts = ["q", "k", "v"].map(|part| made.take(&format!("blk.{layer}.attn_{part}.{kind}")));
            let mut shape = parts[0].shape.clone();
            shape[0] = parts.iter().map(|part| part.shape[0]).sum();
            let data: Vec<u8> = parts.iter().flat_map(|part| part.data.to_vec()).collect();
            let name = format!("blk.{layer}.attn_qkv.{kind}");
            made.tensors.push(Stored { name, format: parts[0].format, shape, data: data.into() });
        }
    }
}

/// Joins gate and up in one matrix: with their rows in turn, or first all rows of gate and then those of up.
fn fuse_gate_up(made: &mut GoldenParts, in_turn: bool) {
    for layer in 0..LAYERS {
        for kind in ["weight", "bias"] {
            let parts = ["gate", "up"].map(|part| made.take(&format!("blk.{layer}.ffn_{part}_exps.{kind}")));
            let [experts, width] = parts[0].shape[..2] else { panic!("experts are stacked") };
            let row = parts[0].data.len() / (experts * width);
            let rows = |part: &Stored, expert: usize| -> Vec<Vec<u8>> {
                part.data[expert * width * row..][..width * row].chunks(row).map(<[u8]>::to_vec).collect()
            };
            let mut data = Vec::new();
            for expert in 0..experts {
                let (gate, up) = (rows(&parts[0], expert), rows(&parts[1], expert));
                match in_turn {
                    true => data.extend(gate.into_iter().zip(up).flat_map(|(gate, up)| [gate, up]).flatten()),
                    false => data.extend(gate.into_iter().chain(up).flatten()),
                }
            }
            let mut shape = parts[0].shape.clone();
            shape[1] *= 2;
            let name = format!("blk.{layer}.ffn_gate_up_exps.{kind}");
            made.tensors.push(Stored { name, format: parts[0].format, shape, data: data.into() });
        }
    }
}

/// The file with every MXFP4 tensor in Ollama's first form: type number 4, and two neighbouring codes in each byte.
fn in_pairs(mut made: GoldenParts) -> Vec<u8> {
    let mut names = Vec::new();
    for tensor in made.tensors.iter_mut().filter(|tensor| tensor.format.name() == "MXFP4") {
        let mut data = tensor.data.to_vec();
        for block in data.chunks_exact_mut(17) {
            let codes: Vec<u8> =
                block[1..].iter().map(|byte| byte & 15).chain(block[1..].iter().map(|byte| byte >> 4)).collect();
            block[1..].iter_mut().zip(codes.chunks(2)).for_each(|(byte, pair)| *byte = pair[0] | pair[1] << 4);
        }
        tensor.data = data.into();
        names.push(tensor.name.clone());
    }
    let mut file = made.bytes();
    for name in names {
        let needle = [&(name.len() as u64).to_le_bytes()[..], name.as_bytes()].concat();
        let at =
            file.windows(needle.len()).position(|window| window == needle).expect("the header describes the tensor")
                + needle.len();
        // The number of dimensions, three dimensions, and then the type.
        file[at + 4 + 3 * 8..][..4].copy_from_slice(&4u32.to_le_bytes());
    }
    file
}

fn assert_is_golden(found: &Checkpoint, what: &str) {
    let expected = golden().open().expect("opens");
    assert_eq!(found.config, expected.config, "{what}");
    let comparison = verify(&expected, found, &mut |_, _| ()).expect("comparable");
    assert!(comparison.differences.is_empty(), "{what}: {:?}", comparison.differences);
    for tensor in &comparison.tensors {
        assert_eq!(tensor.verdict, Verdict::Identical, "{what}: {}", tensor.name);
    }
    for name in ["blk.1.ffn_up_exps.weight", "blk.1.ffn_gate_exps.weight", "blk.1.attn_k.weight", "blk.1.attn_v.bias"] {
        let (found, expected) = (found.tensor(name), expected.tensor(name));
        assert_eq!(found.packed(), expected.packed(), "{what}: {name}");
        let rows = found.rows() / 2..found.rows() / 2 + 1;
        assert_eq!(
            found.packed_as(found.format, rows.clone()),
            expected.packed_as(found.format, rows),
            "{what}: {name}"
        );
    }
}

#[test]
fn every_dialect_is_the_same_model() {
    assert_is_golden(&ollama().open().expect("opens"), "Ollama's");
    let mut first = ollama();
    fuse_qkv(&mut first);
    fuse_gate_up(&mut first, true);
    assert_is_golden(&first.open().expect("opens"), "Ollama's with fused matrices");
    let file = Bytes::from(in_pairs(first));
    assert_is_golden(&Checkpoint::from_bytes("first.gguf", file).expect("opens"), "Ollama's first");

    let mut fused = golden();
    fuse_qkv(&mut fused);
    fuse_gate_up(&mut fused, false);
    assert_is_golden(&fused.open().expect("opens"), "llama.cpp's with fused matrices");
    for (canonical, other) in [
        ("attn_sinks.weight", "attn_sinks"),
        ("post_attention_norm", "ffn_norm"),
        ("post_attention_norm", "attn_post_norm"),
    ] {
        let mut renamed = golden();
        renamed.tensors.iter_mut().for_each(|tensor| tensor.name = tensor.name.replace(canonical, other));
        assert_is_golden(&renamed.open().expect("opens"), other);
    }
}

#[test]
fn unknown_gguf_dialects_are_refused() {
    // Ollama's type number in another program's file: its meaning is unknown.
    let error = Checkpoint::from_bytes("made.gguf", in_pairs(golden()).into()).err().expect("refused").to_string();
    assert!(error.starts_with("made.gguf: tensor `blk.0.ffn_down_exps.weight`: expected one of F32"), "{error}");
    assert!(error.ends_with("found type number 4 of the ggml tensor types"), "{error}");

    let mut short = golden();
    fuse_qkv(&mut short);
    short.tensor("blk.2.attn_qkv.bias").shape[0] /= 2;
    let half = short.tensor("blk.2.attn_qkv.bias").data.len() / 2;
    short.tensor("blk.2.attn_qkv.bias").data.truncate(half);
    let refused = short.refusal();
    assert!(refused.starts_with("made.gguf: tensor `blk.2.attn_qkv.bias`: expected shape [384]"), "{refused}");

    // Both names in one file.
    let mut twice = golden();
    let norm =
        Stored { name: "blk.0.ffn_norm.weight".into(), ..twice.tensor("blk.0.post_attention_norm.weight").clone() };
    twice.tensors.push(norm);
    assert!(twice.refusal().contains("tensor `blk.0.ffn_norm.weight`: expected no tensor of this name"));

    // Only Ollama's files may lack these keys.
    for key in ["gpt-oss.rope.scaling.type", "gpt-oss.expert_feed_forward_length"] {
        let mut without = golden();
        without.remove(key);
        assert!(without.refusal().contains(key), "{key}");
    }
    let mut default = golden();
    default.set("tokenizer.ggml.pre", MetadataValue::Text("default".into()));
    assert!(default.refusal().contains("`tokenizer.ggml.pre`: expected `gpt-4o`, found `default`"));
}

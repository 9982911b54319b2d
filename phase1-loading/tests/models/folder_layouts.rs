//! The same model in folders of different programs.

use std::collections::BTreeMap;

use crate::folders::{all_identical, compare, open, stored, storing};
use crate::made::golden_vocabulary;
use bytes::Bytes;
use gptoss_reference::{Case, Folder};
use phase1_loading::{AttentionKind, Checkpoint, Format, convert};
use serde_json::json;

#[test]
fn every_folder_layout_opens_as_the_same_model() {
    let hf = open("hf");
    assert_eq!(hf.config.attention, [AttentionKind::Sliding, AttentionKind::Full, AttentionKind::Sliding]);
    assert_eq!(hf.tensor("blk.1.ffn_up_exps.weight").format, Format::Mxfp4);
    assert_eq!(hf.tensor("output.weight").format, Format::BF16);
    assert!(all_identical(&compare(&hf, &open("mlx-mxfp4"))));
    for (name, format) in [("mlx-q8", "MLX8/64"), ("mlx-q4", "MLX4/32")] {
        let quantized = open(name);
        assert_eq!(quantized.tensor("blk.0.attn_q.weight").format.name(), format);
        // mlx-lm stores routers in 8 bits with groups of 64, independent of the other matrices.
        assert_eq!(quantized.tensor("blk.0.ffn_gate_inp.weight").format.name(), "MLX8/64");
        let comparison = compare(&hf, &quantized);
        assert!(comparison.same() && !all_identical(&comparison));
    }
}

#[test]
fn folder_tokenizers_equal_the_goldens() {
    let case = Case::committed().remove(0);
    let expected = Checkpoint::open(&case.model()).expect("opens").tokenizer().expect("builds");
    for folder in Folder::committed() {
        let found = Checkpoint::open(&folder.path).expect("opens").tokenizer().expect("builds");
        let text = "<|start|>user<|message|>Hello and the world of 12345, é\n\n<|end|>";
        assert_eq!(found.encode_with_control(text), expected.encode_with_control(text), "{}", folder.name);
        assert_eq!((found.vocab(), found.stops()), (expected.vocab(), expected.stops()));
    }
}

/// Names and types that other programs write.
#[test]
fn variants_of_folders_open() {
    let hf = open("hf");
    let renamed =
        stored("hf").into_iter().map(|(name, tensor)| (name.replace("mlp.router.", "mlp.router.linear."), tensor));
    let typed = stored("hf").into_iter().map(|(name, (dtype, shape, data))| {
        let dtype = if name.ends_with("_scales") { safetensors::Dtype::F8_E8M0 } else { dtype };
        (name, (dtype, shape, data))
    });
    for tensors in [renamed.collect::<BTreeMap<_, _>>(), typed.collect()] {
        let found = Checkpoint::from_folder_bytes("variant", &storing("hf", &tensors)).expect("opens");
        assert!(all_identical(&compare(&hf, &found)));
    }
}

/// Hugging Face's experts before quantization: transposed, with the columns of gate and up interleaved. MXFP4's values are exact in bf16.
#[test]
fn plain_experts_open() {
    let hf = open("hf");
    let (experts, width, hidden) = (hf.config.experts, hf.config.expert_width, hf.config.hidden);
    for (dtype, format) in [
        (safetensors::Dtype::BF16, Format::BF16),
        (safetensors::Dtype::F16, Format::F16),
        (safetensors::Dtype::F32, Format::F32),
    ] {
        let mut tensors = stored("hf");
        tensors.retain(|name, _| !name.ends_with("_blocks") && !name.ends_with("_scales"));
        for layer in 0..3 {
            let values = |part: &str| hf.tensor(&format!("blk.{layer}.ffn_{part}_exps.weight")).to_f32();
            let (gate, up, down) = (values("gate"), values("up"), values("down"));
            let mut gate_up = Vec::new();
            let mut transposed_down = Vec::new();
            for expert in 0..experts {
                for input in 0..hidden {
                    let at = |row: usize| (expert * width + row) * hidden + input;
                    gate_up.extend((0..width).flat_map(|row| [gate[at(row)], up[at(row)]]));
                }
                let at = |input: usize, row: usize| (expert * hidden + row) * width + input;
                transposed_down.extend((0..width).flat_map(|input| (0..hidden).map(move |row| at(input, row))));
            }
            let down: Vec<f32> = transposed_down.into_iter().map(|at| down[at]).collect();
            let stem = format!("model.layers.{layer}.mlp.experts");
            let mut add = |name: &str, shape: [usize; 3], values: &[f32]| {
                tensors.insert(format!("{stem}.{name}"), (dtype, shape.into(), format.encode(values)));
            };
            add("gate_up_proj", [experts, hidden, 2 * width], &gate_up);
            add("down_proj", [experts, width, hidden], &down);
        }
        let plain = Checkpoint::from_folder_bytes("plain", &storing("hf", &tensors)).expect("opens");
        let name = "blk.1.ffn_up_exps.weight";
        assert_eq!(plain.tensor(name).format, format);
        // Reads single rows, several rows at once, and rows in another format.
        assert_eq!(plain.tensor(name).to_f32(), hf.tensor(name).to_f32());
        let rows = width - 1..width + 2;
        let expected: Vec<f32> = hf.tensor(name).to_f32()[rows.start * hidden..rows.end * hidden].to_vec();
        assert_eq!(&plain.tensor(name).packed_as(format, rows.clone())[..], &format.encode(&expected)[..]);
        assert_eq!(&plain.tensor(name).packed_as(Format::F32, rows)[..], &Format::F32.encode(&expected)[..]);
        let comparison = compare(&hf, &plain);
        assert!(all_identical(&comparison), "{format:?}");

        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("plain.gguf");
        convert(&plain, &path, None, &mut |_, _| ()).expect("converted");
        let converted = Checkpoint::open(&path).expect("opens");
        assert_eq!(converted.tensor(name).format, format);
        assert!(all_identical(&compare(&hf, &converted)), "{format:?}");

        let matrix = "model.layers.1.mlp.experts.gate_up_proj";
        tensors.get_mut(matrix).expect("there").1 = vec![experts, 2 * width, hidden];
        let refused = Checkpoint::from_folder_bytes("plain", &storing("hf", &tensors)).err().expect("refused");
        assert!(refused.to_string().contains(matrix), "{refused}");
    }
}

/// The same model in the layout of OpenAI's own folder.
fn original() -> BTreeMap<String, Bytes> {
    let mut tensors = stored("hf");
    let mut renamed = BTreeMap::new();
    for layer in 0..3 {
        for kind in ["weight", "bias"] {
            let parts = ["q_proj", "k_proj", "v_proj"].map(|projection| {
                tensors.remove(&format!("model.layers.{layer}.self_attn.{projection}.{kind}")).expect("there")
            });
            let mut shape = parts[0].1.clone();
            shape[0] = parts.iter().map(|part| part.1[0]).sum();
            let data = parts.iter().flat_map(|part| part.2.clone()).collect();
            renamed.insert(format!("block.{layer}.attn.qkv.{kind}"), (parts[0].0, shape, data));
        }
    }
    for (name, tensor) in tensors {
        let name = name
            .replace("model.layers.", "block.")
            .replace("model.embed_tokens", "embedding")
            .replace("model.norm.weight", "norm.scale")
            .replace("lm_head", "unembedding")
            .replace("input_layernorm.weight", "attn.norm.scale")
            .replace("post_attention_layernorm.weight", "mlp.norm.scale")
            .replace("self_attn.o_proj", "attn.out")
            .replace("self_attn", "attn")
            .replace("mlp.router", "mlp.gate")
            .replace("mlp.experts.gate_up_proj_bias", "mlp.mlp1_bias")
            .replace("mlp.experts.down_proj_bias", "mlp.mlp2_bias")
            .replace("mlp.experts.gate_up_proj_", "mlp.mlp1_weight.")
            .replace("mlp.experts.down_proj_", "mlp.mlp2_weight.");
        renamed.insert(name, tensor);
    }
    let mut files = storing("hf", &renamed);
    let tokenizer = files.remove("tokenizer.json").expect("there");
    files.insert("../tokenizer.json".into(), tokenizer);
    let of_hugging_face = files.remove("config.json").expect("there");
    files.insert("../config.json".into(), of_hugging_face);
    let config = json!({
        "num_hidden_layers": 3, "num_experts": 4, "experts_per_token": 2, "vocab_size": 299, "hidden_size": 64,
        "intermediate_size": 64, "swiglu_limit": 7.0, "head_dim": 32, "num_attention_heads": 4,
        "num_key_value_heads": 2, "sliding_window": 8, "initial_context_length": 4096, "rope_theta": 150000,
        "rope_scaling_factor": 32.0, "rope_ntk_alpha": 1, "rope_ntk_beta": 32,
    });
    files.insert("config.json".into(), config.to_string().into_bytes().into());
    files
}

#[test]
fn the_original_layout_opens() {
    let (hf, found) = (open("hf"), Checkpoint::from_folder_bytes("original", &original()).expect("opens"));
    assert_eq!(found.config, hf.config);
    assert!(all_identical(&compare(&hf, &found)));
    // Without Hugging Face's configuration in the parent folder, stop tokens are known by their names.
    let mut alone = original();
    alone.remove("../config.json");
    let found = Checkpoint::from_folder_bytes("alone", &alone).expect("opens");
    let text = "<|start|>user<|message|>the world<|end|>";
    let [a, b] = [&hf, &found].map(|model| model.tokenizer().expect("builds"));
    assert_eq!((a.encode_with_control(text), a.stops()), (b.encode_with_control(text), b.stops()));

    // Without a vocabulary, a built-in one can be used if it has the same size.
    alone.remove("../tokenizer.json");
    let mut found = Checkpoint::from_folder_bytes("alone", &alone).expect("opens");
    assert!(found.lacks_vocabulary() && !hf.lacks_vocabulary());
    assert_eq!(
        found.tokenizer().err().expect("missing").to_string(),
        "alone: tokenizer.json: expected the vocabulary of 299 tokens, found no such file"
    );
    found.use_vocabulary(|| golden_vocabulary().0, golden_vocabulary().1);
    let built_in = found.tokenizer().expect("builds");
    assert_eq!((built_in.encode_with_control(text), built_in.stops()), (a.encode_with_control(text), a.stops()));
    let mut other = Checkpoint::from_folder_bytes("alone", &alone).expect("opens");
    let short = || {
        let mut lists = golden_vocabulary().0;
        lists.tokens.pop();
        lists.kinds.pop();
        lists
    };
    other.use_vocabulary(short, golden_vocabulary().1);
    assert_eq!(
        other.tokenizer().err().expect("refused").to_string(),
        "alone: built-in vocabulary: tokens: expected 299 tokens, found 298 of them"
    );

    let refusal = |change: &dyn Fn(&mut BTreeMap<String, Bytes>)| {
        let mut files = original();
        change(&mut files);
        Checkpoint::from_folder_bytes("original", &files).err().expect("refused").to_string()
    };
    let config = |from: &str, to: &str| {
        refusal(&|files| {
            let text = String::from_utf8(files["config.json"].to_vec()).expect("UTF-8");
            files.insert("config.json".into(), text.replace(from, to).into_bytes().into());
        })
    };
    let refusals = [
        config("experts_per_token", "experts_a_token"),
        config("\"rope_ntk_beta\":32", "\"rope_ntk_beta\":16"),
        config("\"initial_context_length\":4096", "\"initial_context_length\":\"long\""),
        config("\"initial_context_length\":4096", "\"initial_context_length\":1e300"),
        config("\"num_key_value_heads\":2", "\"num_key_value_heads\":4"),
        refusal(&|files| _ = files.insert("../config.json".into(), Bytes::from_static(b"{\"eos_token_id\": -1}"))),
    ];
    insta::assert_snapshot!(refusals.join("\n"));
}

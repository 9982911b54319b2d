//! Folders of safetensors files, conversion, comparison and split GGUF files.

mod made;

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use gptoss_reference::{Case, Folder};
use made::{files, with_json};
use phase1_loading::{
    AttentionKind, Checkpoint, Comparison, DenseFormat, Format, SavedSession, SessionHeader, Verdict, YarnRamp,
    check_scales, convert, verify,
};
use serde_json::{Value, json};

fn folder(name: &str) -> Folder {
    Folder::committed().into_iter().find(|folder| folder.name == name).expect("a folder")
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&folder(name).path).expect("opens")
}

fn compare(a: &Checkpoint, b: &Checkpoint) -> Comparison {
    verify(a, b, &mut |_, _| ()).expect("comparable")
}

fn all_identical(comparison: &Comparison) -> bool {
    comparison.same() && comparison.tensors.iter().all(|tensor| tensor.verdict == Verdict::Identical)
}

#[test]
fn one_model_in_every_shape() {
    let hf = open("hf");
    assert_eq!(hf.config.attention, [AttentionKind::Sliding, AttentionKind::Full, AttentionKind::Sliding]);
    assert_eq!(hf.tensor("blk.1.ffn_up_exps.weight").format, Format::Mxfp4);
    assert_eq!(hf.tensor("output.weight").format, Format::BF16);
    assert!(all_identical(&compare(&hf, &open("mlx-mxfp4"))));
    for (name, format) in [("mlx-q8", "MLX8/64"), ("mlx-q4", "MLX4/32")] {
        let quantized = open(name);
        assert_eq!(quantized.tensor("blk.0.attn_q.weight").format.name(), format);
        // mlx-lm keeps routers at 8 bits in groups of 64, whatever the rest is.
        assert_eq!(quantized.tensor("blk.0.ffn_gate_inp.weight").format.name(), "MLX8/64");
        let comparison = compare(&hf, &quantized);
        assert!(comparison.same() && !all_identical(&comparison));
    }
}

#[test]
fn folders_have_the_goldens_tokenizer() {
    let case = Case::committed().remove(0);
    let expected = Checkpoint::open(&case.model()).expect("opens").tokenizer().expect("builds");
    for folder in Folder::committed() {
        let found = Checkpoint::open(&folder.path).expect("opens").tokenizer().expect("builds");
        let text = "<|start|>user<|message|>Hello and the world of 12345, é\n\n<|end|>";
        assert_eq!(found.encode_with_control(text), expected.encode_with_control(text), "{}", folder.name);
        assert_eq!((found.vocab(), found.stops()), (expected.vocab(), expected.stops()));
    }
}

#[test]
fn conversion_keeps_what_it_says() {
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
fn another_model_is_another_model() {
    let (a, b) = (open("hf"), Checkpoint::open(&Case::committed()[0].model()).expect("opens"));
    let comparison = compare(&a, &b);
    assert!(!comparison.same());
    assert!(comparison.differences.iter().any(|difference| difference.starts_with("query heads: 4 and 8")));

    // One code of one expert.
    let mut files = files("hf");
    let name = "model-00001-of-00002.safetensors";
    let mut shard = files[name].to_vec();
    let last = shard.len() - 1000;
    shard[last] ^= 0x10;
    files.insert(name.into(), shard.into());
    let changed = Checkpoint::from_folder_bytes("changed", &files).expect("opens");
    assert!(!compare(&a, &changed).same());

    // A light fine-tune: half a percent in one matrix, as much as bf16 rounds away.
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

/// In HF's folders scales are a tensor of their own.
#[test]
fn a_scale_of_255_is_named() {
    let clean = open("hf");
    let name = "blk.1.ffn_up_exps.weight";
    let packed = clean.tensor(name).packed();
    // Two blocks' scales of neighbouring rows of up, with gate's between them.
    let mut damaged = files("hf");
    let shard = "model-00002-of-00002.safetensors";
    let mut bytes = damaged[shard].to_vec();
    let gate = clean.tensor("blk.1.ffn_gate_exps.weight").packed();
    let scales: Vec<u8> =
        (0..4).flat_map(|row| [&gate, &packed].map(|p| [p[row * 34], p[row * 34 + 17]])).flatten().collect();
    let at = bytes.windows(scales.len()).position(|window| window == scales).expect("interleaved in the shard");
    // Row 1 of up, its second block: behind gate's row 0, up's row 0 and gate's row 1.
    bytes[at + 7] = 255;
    damaged.insert(shard.into(), bytes.into());
    let damaged = Checkpoint::from_folder_bytes("damaged", &damaged).expect("opening reads no weights");
    let error = check_scales(&damaged.path, name, damaged.tensor(name)).expect_err("refused").to_string();
    assert!(error.contains(name) && error.contains("block 3"), "{error}");

    let directory = tempfile::tempdir().expect("a temporary directory");
    let error = convert(&damaged, &directory.path().join("out.gguf"), None, &mut |_, _| ()).expect_err("refused");
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(cause.contains(name), "{cause}");
    assert_eq!(std::fs::read_dir(directory.path()).expect("readable").count(), 0, "nothing is left behind");
}

/// The folder with its configuration changed.
fn configured(name: &str, change: impl FnOnce(&mut Value)) -> BTreeMap<String, Bytes> {
    with_json(name, "config.json", change)
}

#[test]
fn the_ramp_of_yarn_is_read() {
    let with = |truncate| {
        let files = configured("hf", |config| config["rope_scaling"]["truncate"] = truncate);
        Checkpoint::from_folder_bytes("ramp", &files)
    };
    for (truncate, ramp) in
        [(json!(true), YarnRamp::Truncated), (json!(false), YarnRamp::Exact), (Value::Null, YarnRamp::Exact)]
    {
        assert_eq!(with(truncate).expect("opens").config.rope.ramp, ramp);
    }
    let error = with(json!("yes")).err().expect("refused").to_string();
    assert_eq!(error, "ramp: config.json: `rope_scaling.truncate`: expected a boolean, found `yes`");
    let (exact, truncated) = (with(json!(false)).expect("opens"), with(json!(true)).expect("opens"));
    assert_ne!(exact.fingerprint(), truncated.fingerprint());
    let differences = compare(&exact, &truncated).differences;
    assert!(differences.len() == 1 && differences[0].starts_with("rope: "), "{differences:?}");
}

#[test]
fn a_configuration_of_transformers_5_is_read() {
    let files = configured("hf", |config| {
        let mut parameters = config["rope_scaling"].take();
        parameters["rope_theta"] = config["rope_theta"].take();
        let object = config.as_object_mut().expect("an object");
        object.remove("rope_scaling");
        object.remove("rope_theta");
        object.insert("rope_parameters".into(), parameters);
    });
    let found = Checkpoint::from_folder_bytes("five", &files).expect("opens");
    assert_eq!(found.config, open("hf").config);
}

#[test]
fn layer_types_are_honoured() {
    let files = configured("hf", |config| {
        config["layer_types"] = json!(["full_attention", "full_attention", "sliding_attention"]);
    });
    let found = Checkpoint::from_folder_bytes("layers", &files).expect("opens");
    assert_eq!(found.config.attention, [AttentionKind::Full, AttentionKind::Full, AttentionKind::Sliding]);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("layers.gguf");
    convert(&found, &path, None, &mut |_, _| ()).expect("converted");
    assert_eq!(Checkpoint::open(&path).expect("opens").config, found.config);
}

/// A tensor of a folder: type, shape, bytes.
type Stored = (safetensors::Dtype, Vec<usize>, Vec<u8>);

fn stored(name: &str) -> BTreeMap<String, Stored> {
    let mut tensors = BTreeMap::new();
    for (_, file) in files(name).iter().filter(|(name, _)| name.starts_with("model-")) {
        for (name, view) in safetensors::SafeTensors::deserialize(file).expect("reads").tensors() {
            tensors.insert(name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
        }
    }
    tensors
}

/// The folder with these tensors in one file.
fn storing(name: &str, tensors: &BTreeMap<String, Stored>) -> BTreeMap<String, Bytes> {
    let mut files = files(name);
    files.retain(|name, _| !name.starts_with("model"));
    let view = |(dtype, shape, data): &'_ Stored| (*dtype, shape.clone(), data.clone());
    let views = tensors.iter().map(|(name, tensor)| (name, view(tensor))).collect::<Vec<_>>();
    let views = views.iter().map(|(name, (dtype, shape, data))| {
        (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).expect("a tensor"))
    });
    let file = safetensors::serialize(views, None).expect("serializes");
    files.insert("model.safetensors".into(), file.into());
    files
}

/// Whatever stands in a field, the error says which field it is, what was expected and what was found.
#[test]
fn fields_of_a_configuration_are_named_and_quoted() {
    let refusal = |files: &BTreeMap<String, Bytes>| {
        Checkpoint::from_folder_bytes("odd", files).err().expect("refused").to_string()
    };
    let set = |key: &str, value: Value| refusal(&configured("hf", |config| config[key] = value));
    let size = "an integer from 1 to 16777216";
    for (value, found) in [
        (Value::Null, "null"),
        (json!(true), "a boolean"),
        (json!([32]), "an array"),
        (json!({ "size": 32 }), "an object"),
        (json!(32.5), "32.5"),
        (json!(0), "0"),
        (json!("x".repeat(50)), &format!("`{}`", "x".repeat(40))),
    ] {
        assert_eq!(set("head_dim", value), format!("odd: config.json: `head_dim`: expected {size}, found {found}"));
    }
    for (value, found) in [(json!(-1.5), "-1.5"), (json!(0), "0"), (json!(1e300), "1e+300"), (json!("1"), "`1`")] {
        let expected = format!("odd: config.json: `rope_theta`: expected a positive finite number, found {found}");
        assert_eq!(set("rope_theta", value), expected);
    }
    assert_eq!(
        refusal(&configured("hf", |config| _ = config.as_object_mut().expect("an object").remove("hidden_size"))),
        format!("odd: config.json: `hidden_size`: expected {size}, found no such key")
    );
    let mut list = files("hf");
    list.insert("config.json".into(), Bytes::from_static(b"[\"gpt_oss\", 3]"));
    assert_eq!(refusal(&list), "odd: config.json: `model_type`: expected `gpt_oss`, found no such key");
    let whole = configured("hf", |config| (config["head_dim"], config["rope_theta"]) = (json!(32.0), json!(150_000)));
    assert_eq!(Checkpoint::from_folder_bytes("odd", &whole).expect("opens").config, open("hf").config);
}

/// Hugging Face's experts before quantization: transposed, gate's and up's columns in turn. MXFP4's values fit a bf16.
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
        // Row by row, some rows together, and in another format.
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

/// The same model as OpenAI's own folder has it.
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
    // Without Hugging Face's configuration above it, the ends are known by their names.
    let mut alone = original();
    alone.remove("../config.json");
    let found = Checkpoint::from_folder_bytes("alone", &alone).expect("opens");
    let text = "<|start|>user<|message|>the world<|end|>";
    let [a, b] = [&hf, &found].map(|model| model.tokenizer().expect("builds"));
    assert_eq!((a.encode_with_control(text), a.stops()), (b.encode_with_control(text), b.stops()));

    // Without a vocabulary a program's own can be used, if it is as large.
    alone.remove("../tokenizer.json");
    let mut found = Checkpoint::from_folder_bytes("alone", &alone).expect("opens");
    assert!(found.lacks_vocabulary() && !hf.lacks_vocabulary());
    assert_eq!(
        found.tokenizer().err().expect("missing").to_string(),
        "alone: tokenizer.json: expected the vocabulary of 299 tokens, found no such file"
    );
    found.use_vocabulary(|| made::golden_vocabulary().0, made::golden_vocabulary().1);
    let built_in = found.tokenizer().expect("builds");
    assert_eq!((built_in.encode_with_control(text), built_in.stops()), (a.encode_with_control(text), a.stops()));
    let mut other = Checkpoint::from_folder_bytes("alone", &alone).expect("opens");
    let short = || {
        let mut lists = made::golden_vocabulary().0;
        lists.tokens.pop();
        lists.kinds.pop();
        lists
    };
    other.use_vocabulary(short, made::golden_vocabulary().1);
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

/// A safetensors file of one tensor, whose header says this.
fn shard(tensor: &str, entry: Value, data: usize) -> BTreeMap<String, Bytes> {
    let mut files = files("mlx-mxfp4");
    files.remove("model.safetensors.index.json");
    let header = json!({ tensor: entry }).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.resize(file.len() + data, 0);
    files.insert("model.safetensors".into(), file.into());
    files
}

#[test]
fn each_lie_of_a_folder_is_named() {
    let refusal = |files: &BTreeMap<String, Bytes>| match Checkpoint::from_folder_bytes("lying", files) {
        Ok(_) => panic!("the folder was accepted"),
        Err(error) => error.to_string(),
    };
    let config = |change: fn(&mut Value)| configured("mlx-q8", change);
    let with = |name: &str, bytes: &'static [u8]| {
        let mut files = files("mlx-q8");
        files.insert(name.into(), Bytes::from_static(bytes));
        files
    };
    let without = |name: &str| {
        let mut files = files("mlx-q8");
        files.remove(name);
        files
    };
    let entry = |shape: Value, offsets: [u64; 2]| json!({ "dtype": "U8", "shape": shape, "data_offsets": offsets });
    // Found by `mutations.rs`: the matrix is there and its bias is not.
    let no_bias = {
        let mut files = files("hf");
        let name = "model-00001-of-00002.safetensors";
        let mut shard = files[name].to_vec();
        let at = shard.windows(14).position(|window| window == b"down_proj_bias").expect("named");
        shard[at + 13] = b'z';
        files.insert(name.into(), shard.into());
        files
    };
    // Sixteen tensors that end at the last byte that an integer can count.
    let overflow = {
        let mut files = shard("a", entry(json!([1]), [0, 1]), 1);
        let size = 1u64 << 60;
        let end = |i: u64| i.wrapping_mul(size).wrapping_sub(u64::from(i == 16));
        let header: serde_json::Map<String, Value> =
            (0..16).map(|i| (format!("t{i}"), entry(json!([end(i + 1) - end(i)]), [end(i), end(i + 1)]))).collect();
        let header = Value::from(header).to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.bytes());
        files.insert("model.safetensors".into(), file.into());
        files
    };
    let lies = [
        ("no config", without("config.json")),
        ("no tokenizer", without("tokenizer.json")),
        ("no weights", without("model.safetensors")),
        ("config is no JSON", with("config.json", b"{")),
        ("nested too deep", with("config.json", &[b'['; 100_000])),
        ("another model", config(|c| c["model_type"] = json!("llama"))),
        ("no rope", config(|c| c["rope_scaling"] = json!(null))),
        ("another rope", config(|c| c["rope_scaling"]["rope_type"] = json!("linear"))),
        ("other betas", config(|c| c["rope_scaling"]["beta_fast"] = json!(16))),
        ("negative size", config(|c| c["hidden_size"] = json!(-64))),
        ("absurd size", config(|c| c["vocab_size"] = json!(u64::MAX))),
        ("size as text", config(|c| c["head_dim"] = json!("32"))),
        ("too many layers", config(|c| c["num_hidden_layers"] = json!(100_000))),
        (
            "fewer layers",
            config(|c| {
                c["num_hidden_layers"] = json!(2);
                c["layer_types"] = json!(null);
            }),
        ),
        ("unknown layer type", config(|c| c["layer_types"][1] = json!("chunked_attention"))),
        ("too few layer types", config(|c| c["layer_types"] = json!(["full_attention"]))),
        ("heads do not divide", config(|c| c["num_key_value_heads"] = json!(3))),
        ("other shape", config(|c| c["intermediate_size"] = json!(96))),
        ("other quantization", config(|c| c["quantization"]["lm_head"]["bits"] = json!(4))),
        ("end of sequence", config(|c| c["eos_token_id"] = json!([1_000_000]))),
        ("weights elsewhere", with("model.safetensors.index.json", br#"{"weight_map": {"a": "../../secret"}}"#)),
        ("weights anywhere", with("model.safetensors.index.json", br#"{"weight_map": {"a": "/etc/passwd"}}"#)),
        ("long header", with("model.safetensors", &[255; 100])),
        ("short file", with("model.safetensors", &[0; 5])),
        ("zero dimension", shard("a", entry(json!([0]), [0, 0]), 0)),
        ("overlap", shard("a", entry(json!([4]), [2, 6]), 6)),
        ("past the end", shard("a", entry(json!([1000]), [0, 1000]), 10)),
        ("overflowing shape", shard("a", entry(json!([u64::MAX, 2]), [0, 10]), 10)),
        ("data that nothing describes", shard("a", entry(json!([4]), [0, 4]), 10)),
        ("overflowing sum", overflow),
        ("no bias", no_bias),
        (
            "token outside the vocabulary",
            with("tokenizer.json", br#"{"model": {"vocab": {"a": 4000000000}, "merges": []}}"#),
        ),
        ("another tokenizer", with("tokenizer.json", br#"{"model": {"type": "Unigram", "vocab": {}, "merges": []}}"#)),
    ];
    let messages: Vec<String> = (lies.iter())
        .map(|(lie, files)| {
            let message = match Checkpoint::from_folder_bytes("lying", files).map(|model| model.tokenizer()) {
                Ok(Err(error)) => error.to_string(),
                _ => refusal(files),
            };
            format!("{lie}: {message}")
        })
        .collect();
    insta::assert_snapshot!(messages.join("\n"));
}

fn small_session() -> SavedSession {
    let header = SessionHeader {
        model: "m".into(),
        rope: "exact".into(),
        cache: "f32".into(),
        form: "phase 3".into(),
        tokens: vec![1, 2, 3],
        length: 2,
    };
    SavedSession { header, items: vec![Bytes::from_static(b"keys"), Bytes::from_static(b"values")] }
}

/// Whoever lists files reads their headers alone.
#[test]
fn a_session_header_is_checked_without_the_items() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("session");
    let saved = small_session();
    saved.write(&path).expect("written");
    let file = std::fs::read(&path).expect("readable");
    assert_eq!(saved.file_bytes(), file.len() as u64);
    assert_eq!(SessionHeader::open(&path).expect("opens"), saved.header);

    // The items are 10 bytes before the last checksum, the checksum of the header is before them.
    let items = file.len() - 8 - 10;
    for at in 0..items {
        let mut damaged = file.clone();
        damaged[at] ^= 1;
        std::fs::write(&path, damaged).expect("written");
        assert!(SessionHeader::open(&path).is_err(), "byte {at}");
    }
    for harmed in [file[..file.len() - 1].to_vec(), file[..items].to_vec(), [&file[..], b"x"].concat()] {
        std::fs::write(&path, &harmed).expect("written");
        assert!(SessionHeader::open(&path).is_err(), "{} bytes", harmed.len());
    }
    let mut damaged = file;
    damaged[items] ^= 1;
    std::fs::write(&path, damaged).expect("written");
    assert_eq!(SessionHeader::open(&path).expect("opens"), saved.header);
    assert!(SavedSession::open(&path).is_err());
}

#[test]
fn each_lie_of_a_session_is_named() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("session");
    let saved = small_session();
    saved.write(&path).expect("written");
    let file = std::fs::read(&path).expect("readable");
    let patched = |at: usize, bytes: &[u8]| {
        let mut file = file.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    // The magic 8, version 4, texts 5, 9, 7 and 11, then the count of tokens.
    let count = 8 + 4 + 5 + 9 + 7 + 11;
    let lies = [
        ("magic", patched(0, b"GGUF")),
        ("later version", patched(8, &[9])),
        ("earlier version", patched(8, &[3])),
        ("long text", patched(12, &u32::MAX.to_le_bytes())),
        ("many tokens", patched(count, &u64::MAX.to_le_bytes())),
        ("more cached than there are", patched(count + 8 + 12, &4u64.to_le_bytes())),
        ("many items", patched(count + 8 + 12 + 8, &u32::MAX.to_le_bytes())),
        ("long item", patched(count + 8 + 12 + 8 + 4, &(1u64 << 60).to_le_bytes())),
        ("flipped bit", patched(file.len() - 10, &[0])),
        ("truncated", file[..file.len() - 1].to_vec()),
        ("longer", [&file[..], b"x"].concat()),
        ("empty", Vec::new()),
    ];
    let refusal =
        |file: Vec<u8>| SavedSession::from_bytes(Path::new("lying"), file.into()).expect_err("refused").to_string();
    let messages: Vec<String> = lies.into_iter().map(|(lie, file)| format!("{lie}: {}", refusal(file))).collect();
    insta::assert_snapshot!(messages.join("\n"));
}

/// A GGUF file cut into parts as `llama-gguf-split` does: tensors shared out, metadata in the first.
mod split {
    use super::*;

    /// Writes a file of these tensors, and of the whole's metadata if it is the first.
    fn write(path: &Path, whole: &[u8], number: u16, count: u16) {
        // The whole file is version 3 with counts at 8 and 16; its metadata are copied as they are.
        let checkpoint = Checkpoint::from_bytes("whole", Bytes::copy_from_slice(whole)).expect("opens");
        let names: Vec<&String> = checkpoint.tensors.keys().skip(number.into()).step_by(count.into()).collect();
        let first_tensor = "token_embd.weight";
        let mut needle = (first_tensor.len() as u64).to_le_bytes().to_vec();
        needle.extend(first_tensor.bytes());
        let descriptions = whole.windows(needle.len()).position(|window| window == needle).expect("described first");
        let entries = u64::from_le_bytes(whole[16..24].try_into().expect("eight bytes"));
        let (metadata, entries) = if number == 0 { (&whole[24..descriptions], entries) } else { (&[][..], 0) };
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend((names.len() as u64).to_le_bytes());
        file.extend((entries + 3).to_le_bytes());
        file.extend(metadata);
        let tensors = checkpoint.tensors.len() as u16;
        for (key, value) in [("split.no", number), ("split.count", count), ("split.tensors.count", tensors)] {
            file.extend((key.len() as u64).to_le_bytes());
            file.extend(key.bytes());
            file.extend(2u32.to_le_bytes());
            file.extend(value.to_le_bytes());
        }
        let mut offset = 0u64;
        for name in &names {
            let tensor = checkpoint.tensor(name);
            file.extend((name.len() as u64).to_le_bytes());
            file.extend(name.bytes());
            file.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|&dim| file.extend((dim as u64).to_le_bytes()));
            file.extend(tensor.format.ggml_type().expect("of GGUF").to_le_bytes());
            file.extend(offset.to_le_bytes());
            offset += (tensor.bytes() as u64).next_multiple_of(32);
        }
        for name in &names {
            file.resize(file.len().next_multiple_of(32), 0);
            file.extend(&checkpoint.tensor(name).packed()[..]);
        }
        std::fs::write(path, file).expect("written");
    }

    #[test]
    fn parts_are_one_model() {
        let whole = std::fs::read(Case::committed()[0].model()).expect("readable");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = |number: u16| directory.path().join(format!("model-{:05}-of-00003.gguf", number + 1));
        (0..3).for_each(|number| write(&path(number), &whole, number, 3));
        let found = Checkpoint::open(&path(0)).expect("opens");
        let expected = Checkpoint::from_bytes("whole", whole.clone().into()).expect("opens");
        assert!(all_identical(&compare(&expected, &found)));

        // Whichever of them is named.
        for number in 1..3 {
            let found = Checkpoint::open(&path(number)).expect("opens");
            assert!(all_identical(&compare(&expected, &found)));
            assert_eq!(found.path, path(0));
        }

        let refusal = |path: &Path| Checkpoint::open(path).err().expect("refused").to_string();
        let first = std::fs::read(path(0)).expect("readable");
        let mut needle = b"split.tensors.count".to_vec();
        needle.extend(2u32.to_le_bytes());
        let at = first.windows(needle.len()).position(|window| window == needle).expect("counted") + needle.len();
        let mut other = first.clone();
        other[at..at + 2].copy_from_slice(&999u16.to_le_bytes());
        std::fs::write(path(0), other).expect("written");
        let message = refusal(&path(2));
        assert!(
            message.contains("`split.tensors.count`: expected the ") && message.ends_with("found 999"),
            "{message}"
        );
        std::fs::write(path(0), first).expect("written");
        std::fs::copy(path(1), path(2)).expect("copied");
        assert!(refusal(&path(0)).contains("`split.no`"), "{}", refusal(&path(0)));
        std::fs::remove_file(path(2)).expect("removed");
        assert!(refusal(&path(0)).contains("model-00003-of-00003.gguf cannot be read"), "{}", refusal(&path(0)));
        let renamed = directory.path().join("model.gguf");
        std::fs::rename(path(0), &renamed).expect("renamed");
        assert!(refusal(&renamed).contains("-00001-of-00003.gguf"), "{}", refusal(&renamed));
        assert!(refusal(&path(1)).contains("model-00001-of-00003.gguf cannot be read"), "{}", refusal(&path(1)));
    }
}

/// What stands in for a file is named for what it is, with what to do.
#[test]
fn stand_ins_are_named() {
    const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 12109566560\n";
    const PAGE: &[u8] = b"\n<!DOCTYPE html><html><head><title>404</title></head></html>";
    let gguf = |file: &'static [u8]| {
        Checkpoint::from_bytes("m.gguf", Bytes::from_static(file)).err().expect("refused").to_string()
    };
    let expected = "m.gguf: header: expected the magic bytes `GGUF`, found ";
    let cases: [(&'static [u8], &str); 6] = [
        (POINTER, "a Git LFS pointer to a file of 12109566560 bytes; `git lfs pull` fetches it"),
        (PAGE, "an HTML page, left by a failed download; download the file again"),
        (b"{\"model_type\": \"gpt_oss\"}", "JSON; name the folder that holds it, with the weights"),
        (b"\x40\0\0\0\0\0\0\0{\"a\": 1}", "a safetensors file; name the folder that holds it and its config.json"),
        (b"\x1f\x8b\x08\0", "a gzip archive"),
        (&[0; 100], "only zeros, left by a download that was interrupted; download the file again"),
    ];
    for (file, found) in cases {
        assert_eq!(gguf(file), format!("{expected}{found}"));
    }
    let folder = |name: &str, file: &'static [u8]| {
        let mut files = files("hf");
        files.insert(name.into(), Bytes::from_static(file));
        Checkpoint::from_folder_bytes("folder", &files).err().expect("refused").to_string()
    };
    for name in ["config.json", "tokenizer.json", "model-00002-of-00002.safetensors"] {
        let refused = folder(name, POINTER);
        assert!(
            refused.starts_with(&format!("folder/{name}: file: expected the file itself, found a Git LFS")),
            "{refused}"
        );
        assert!(folder(name, PAGE).contains("an HTML page"), "{name}");
    }
    // Shards that nothing lists.
    let mut unlisted = files("hf");
    unlisted.remove("model.safetensors.index.json");
    let refused = Checkpoint::from_folder_bytes("folder", &unlisted).err().expect("refused").to_string();
    assert!(refused.contains("the index `model.safetensors.index.json`"), "{refused}");
    // A configuration that begins with a byte order mark.
    let mut marked = files("hf");
    let config = [&b"\xef\xbb\xbf"[..], &marked["config.json"][..]].concat();
    marked.insert("config.json".into(), config.into());
    assert_eq!(Checkpoint::from_folder_bytes("folder", &marked).expect("opens").config, open("hf").config);
}

#[test]
fn values_that_a_format_cannot_hold_are_named() {
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

/// Names and types of other writers.
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

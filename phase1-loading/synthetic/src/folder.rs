//! Synthetic models in Hugging Face's layout of gpt-oss: shards, an index, `config.json` and `tokenizer.json`.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use phase1_loading::write::{SpecialTokens, TensorPlan};
use phase1_loading::{AttentionKind, Format, GptOssConfig, YarnRamp, write_whole};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

use crate::SyntheticModel;
use crate::vocabulary::Vocabulary;
use crate::weights::{write_pieces, write_random};

/// The most bytes of tensors in one file, unless a single tensor is larger.
const SHARD: u64 = 4 << 30;

/// A tensor of the folder.
struct Item {
    name: String,
    shape: Vec<usize>,
    content: Content,
}

enum Content {
    /// bf16 values with the distribution of the canonical tensor of that name.
    Like(&'static str),
    /// E2M1 codes.
    Codes,
    /// E8M0 scale bytes: this byte, or the one below it.
    Scales(u8),
}

impl Item {
    fn bytes(&self) -> u64 {
        let values: usize = self.shape.iter().product();
        (values * if matches!(self.content, Content::Like(_)) { 2 } else { 1 }) as u64
    }

    fn dtype(&self) -> &'static str {
        if matches!(self.content, Content::Like(_)) { "BF16" } else { "U8" }
    }
}

impl SyntheticModel {
    /// Writes the model as a folder: MXFP4 experts, everything else bf16. The same `seed` gives the same bytes, but not the same weights as
    /// [`SyntheticModel::write`]. `progress` is called with (bytes written, total bytes).
    ///
    /// # Errors
    /// As [`SyntheticModel::write`]; or a folder that cannot be created.
    pub fn write_folder(&self, folder: &Path, seed: u64, progress: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        self.validate().map_err(|sentence| io::Error::new(io::ErrorKind::InvalidInput, sentence))?;
        let vocabulary = self.vocabulary.build();
        let config = self.config(vocabulary.tokens.len());
        std::fs::create_dir_all(folder)?;
        let items = items(&config);
        let total = items.iter().map(Item::bytes).sum();
        let shards = shards(items);
        let count = shards.len();
        let file = |number: usize| format!("model-{:05}-of-{count:05}.safetensors", number + 1);
        let (mut written, mut stream) = (0, 0);
        let mut weight_map = Map::new();
        for (number, items) in shards.iter().enumerate() {
            weight_map.extend(items.iter().map(|item| (item.name.clone(), file(number).into())));
            write_whole(&folder.join(file(number)), |out| {
                write_header(out, items)?;
                for item in items {
                    write_item(out, item, (seed, stream), &mut |bytes| {
                        written += bytes;
                        progress(written, total);
                    })?;
                    stream += 1;
                }
                Ok(())
            })?;
        }
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        write_json(&folder.join("model.safetensors.index.json"), &index)?;
        write_json(&folder.join("config.json"), &config_json(&config, vocabulary.special()))?;
        write_json(&folder.join("tokenizer.json"), &tokenizer_json(vocabulary))
    }
}

/// Every tensor, with Hugging Face's names and shapes.
fn items(config: &GptOssConfig) -> Vec<Item> {
    let (hidden, width, experts) = (config.hidden, config.expert_width, config.experts);
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let mut items = Vec::new();
    let mut add = |name: String, shape: &[usize], content| items.push(Item { name, shape: shape.to_vec(), content });
    add("model.embed_tokens.weight".into(), &[config.vocab, hidden], Content::Like("token_embd.weight"));
    for layer in 0..config.layers() {
        let mut add = |name: &str, shape: &[usize], content| {
            add(format!("model.layers.{layer}.{name}"), shape, content);
        };
        add("input_layernorm.weight", &[hidden], Content::Like("norm.weight"));
        for (projection, rows) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
            add(&format!("self_attn.{projection}.weight"), &[rows, hidden], Content::Like("attn_q.weight"));
            add(&format!("self_attn.{projection}.bias"), &[rows], Content::Like("bias"));
        }
        add("self_attn.o_proj.weight", &[hidden, q], Content::Like("attn_output.weight"));
        add("self_attn.o_proj.bias", &[hidden], Content::Like("bias"));
        add("self_attn.sinks", &[config.heads], Content::Like("sinks.weight"));
        add("post_attention_layernorm.weight", &[hidden], Content::Like("norm.weight"));
        add("mlp.router.weight", &[experts, hidden], Content::Like("ffn_gate_inp.weight"));
        add("mlp.router.bias", &[experts], Content::Like("bias"));
        for (projection, rows, columns) in [("gate_up_proj", 2 * width, hidden), ("down_proj", hidden, width)] {
            let blocks = columns / 32;
            // The values of random codes have a standard deviation of about 3. A projection should preserve the standard deviation of its
            // input.
            let scale = 127 - (3.0 * (columns as f32).sqrt()).log2().round() as u8;
            add(&format!("mlp.experts.{projection}_blocks"), &[experts, rows, blocks, 16], Content::Codes);
            add(&format!("mlp.experts.{projection}_scales"), &[experts, rows, blocks], Content::Scales(scale));
            add(&format!("mlp.experts.{projection}_bias"), &[experts, rows], Content::Like("bias"));
        }
    }
    add("model.norm.weight".into(), &[hidden], Content::Like("norm.weight"));
    add("lm_head.weight".into(), &[config.vocab, hidden], Content::Like("output.weight"));
    items
}

/// Splits the list into files.
fn shards(items: Vec<Item>) -> Vec<Vec<Item>> {
    let mut shards: Vec<Vec<Item>> = vec![Vec::new()];
    let mut size = 0;
    for item in items {
        if size > 0 && size + item.bytes() > SHARD {
            shards.push(Vec::new());
            size = 0;
        }
        size += item.bytes();
        shards.last_mut().expect("at least one").push(item);
    }
    shards
}

fn write_header(out: &mut impl Write, items: &[Item]) -> io::Result<()> {
    let mut header = Map::new();
    let mut offset = 0;
    for item in items {
        let end = offset + item.bytes();
        let entry = json!({ "dtype": item.dtype(), "shape": item.shape, "data_offsets": [offset, end] });
        header.insert(item.name.clone(), entry);
        offset = end;
    }
    let mut text = Value::from(header).to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(text.as_bytes())
}

fn write_item(
    out: &mut BufWriter<std::fs::File>,
    item: &Item,
    stream: (u64, u64),
    wrote: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let base = match item.content {
        Content::Like(name) => {
            let plan = TensorPlan { name: name.into(), format: Format::BF16, shape: item.shape.clone() };
            return write_random(out, &plan, stream, 0, wrote);
        }
        Content::Codes => None,
        Content::Scales(base) => Some(base),
    };
    let fill = |random: &mut ChaCha8Rng, bytes: &mut [u8]| {
        random.fill_bytes(bytes);
        if let Some(base) = base {
            // Uses two different scales, so that a test detects a reader that ignores the scales.
            bytes.iter_mut().for_each(|scale| *scale = base - (*scale & 1));
        }
    };
    write_pieces(out, item.bytes() as usize, 1, stream, fill, wrote)
}

fn write_json(path: &Path, value: &Value) -> io::Result<()> {
    write_whole(path, |out| out.write_all((format!("{value:#}\n")).as_bytes()))
}

fn config_json(config: &GptOssConfig, special: SpecialTokens) -> Value {
    let kind = |kind: &AttentionKind| match kind {
        AttentionKind::Sliding => "sliding_attention",
        AttentionKind::Full => "full_attention",
    };
    json!({
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "num_hidden_layers": config.layers(),
        "hidden_size": config.hidden,
        "intermediate_size": config.expert_width,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "num_local_experts": config.experts,
        "num_experts_per_tok": config.experts_per_token,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": 1e-5,
        "sliding_window": config.sliding_window,
        "layer_types": config.attention.iter().map(kind).collect::<Vec<_>>(),
        "rope_theta": config.rope.theta,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": config.rope.factor,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": config.rope.ramp == YarnRamp::Truncated,
            "original_max_position_embeddings": config.rope.original_context,
        },
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
        "bos_token_id": special.bos,
        "eos_token_id": special.eos,
        "pad_token_id": special.padding,
        "quantization_config": { "quant_method": "mxfp4" },
    })
}

fn tokenizer_json(vocabulary: Vocabulary) -> Value {
    let (ordinary, control) = vocabulary.tokens.split_at(vocabulary.first_control);
    let vocab: Map<String, Value> = ordinary.iter().cloned().zip((0..).map(Value::from)).collect();
    let added: Vec<Value> = (control.iter().enumerate())
        .map(|(i, text)| json!({ "id": ordinary.len() + i, "content": text, "special": true }))
        .collect();
    json!({
        "version": "1.0",
        "added_tokens": added,
        "model": { "type": "BPE", "ignore_merges": true, "vocab": vocab, "merges": vocabulary.merges },
    })
}

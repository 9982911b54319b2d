//! Maps a GGUF file's tensors to canonical ones. Ollama uses other names, and its first files keep q, k and v in one matrix and interleave
//! the rows of gate and up. Forks of llama.cpp keep gate and up in one matrix, first all rows of gate, then those of up.

use std::collections::BTreeMap;

use crate::config::GptOssConfig;
use crate::dialect::Dialect;
use crate::error::Defect;
use crate::gguf::ollama_only_type;
use crate::tensor::HostTensor;

type Tensors = BTreeMap<String, HostTensor>;

/// Other names of a layer's tensors, with the canonical ones.
const NAMES: [(&str, &str); 5] = [
    ("attn_out.weight", "attn_output.weight"),
    ("attn_out.bias", "attn_output.bias"),
    ("attn_sinks", "attn_sinks.weight"),
    ("ffn_norm.weight", "post_attention_norm.weight"),
    ("attn_post_norm.weight", "post_attention_norm.weight"),
];

/// The tensors under their canonical names. Joined tensors are split into their parts; any other tensor without an entry in [`NAMES`] keeps
/// its name.
///
/// # Errors
/// A joined tensor that does not have the shape of its parts together, a joined bias that is quantized, or, in a file that is not Ollama's,
/// a type that only Ollama's files use.
pub(crate) fn canonical(mut tensors: Tensors, dialect: Dialect, config: &GptOssConfig) -> Result<Tensors, Defect> {
    if let Some((name, _)) = tensors.iter().find(|(_, tensor)| tensor.is_in_pairs())
        && dialect != Dialect::Ollama
    {
        return Err(ollama_only_type(name));
    }
    for layer in 0..config.layers() {
        let name = |part: &str| format!("blk.{layer}.{part}");
        for (theirs, ours) in NAMES {
            if !tensors.contains_key(&name(ours))
                && let Some(tensor) = tensors.remove(&name(theirs))
            {
                tensors.insert(name(ours), tensor);
            }
        }
        split_qkv(&mut tensors, &name, config)?;
        split_gate_up(&mut tensors, &name, dialect, config)?;
    }
    Ok(tensors)
}

fn split_qkv(tensors: &mut Tensors, name: &dyn Fn(&str) -> String, config: &GptOssConfig) -> Result<(), Defect> {
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let parts = [("attn_q", 0, q), ("attn_k", q, kv), ("attn_v", q + kv, kv)];
    if let Some(tensor) = take(tensors, &name("attn_qkv.weight"), &[q + 2 * kv, config.hidden])? {
        for (part, first, rows) in parts {
            tensors.insert(name(&format!("{part}.weight")), tensor.select_rows(vec![rows, config.hidden], first, 1));
        }
    }
    if let Some(tensor) = take(tensors, &name("attn_qkv.bias"), &[q + 2 * kv])? {
        for (part, first, count) in parts {
            tensors.insert(name(&format!("{part}.bias")), elements(&tensor, vec![count], first, 1));
        }
    }
    Ok(())
}

fn split_gate_up(
    tensors: &mut Tensors,
    name: &dyn Fn(&str) -> String,
    dialect: Dialect,
    config: &GptOssConfig,
) -> Result<(), Defect> {
    let (experts, width, hidden) = (config.experts, config.expert_width, config.hidden);
    let (up, step) = match dialect {
        Dialect::LlamaCpp => (width, 1),
        Dialect::Ollama => (1, 2),
    };
    let parts = [("ffn_gate_exps", 0), ("ffn_up_exps", up)];
    if let Some(tensor) = take(tensors, &name("ffn_gate_up_exps.weight"), &[experts, 2 * width, hidden])? {
        for (part, first) in parts {
            let rows = tensor.select_rows(vec![experts, width, hidden], first, step);
            tensors.insert(name(&format!("{part}.weight")), rows);
        }
    }
    if let Some(tensor) = take(tensors, &name("ffn_gate_up_exps.bias"), &[experts, 2 * width])? {
        for (part, first) in parts {
            tensors.insert(name(&format!("{part}.bias")), elements(&tensor, vec![experts, width], first, step));
        }
    }
    Ok(())
}

/// Removes and returns a tensor, if it exists. It must have that shape, and a bias must not be quantized.
fn take(tensors: &mut Tensors, name: &str, shape: &[usize]) -> Result<Option<HostTensor>, Defect> {
    let Some(tensor) = tensors.remove(name) else { return Ok(None) };
    let part = || format!("tensor `{name}`");
    if tensor.shape != shape {
        return Err(Defect::new(part(), format!("shape {shape:?}"), format!("shape {:?}", tensor.shape)));
    }
    if name.ends_with("bias") && tensor.format.block_len() > 1 {
        return Err(Defect::new(part(), "a vector of F32, F16 or BF16", tensor.format.name()));
    }
    Ok(Some(tensor))
}

/// Copies elements `first`, `first + step`, … of every row, as many as a row of `shape` has.
fn elements(tensor: &HostTensor, shape: Vec<usize>, first: usize, step: usize) -> HostTensor {
    let (size, count) = (tensor.format.block_bytes(), shape.last().copied().unwrap_or(0));
    let packed = tensor.packed();
    let rows = packed.chunks_exact(tensor.row_len() * size);
    let chosen = rows.flat_map(|row| row.chunks_exact(size).skip(first).step_by(step).take(count));
    let data: Vec<u8> = chosen.flatten().copied().collect();
    HostTensor::packed_rows(tensor.format, shape, data.into())
}

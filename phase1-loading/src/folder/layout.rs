//! Maps a folder's tensors to canonical ones: names, the order of gate and up rows, and quantized layouts.
//!
//! Hugging Face keeps gate and up in one matrix, with gate in the even rows and up in the odd ones. MXFP4 codes are in `_blocks` and scales
//! in `_scales`; experts that are not quantized are stored transposed, so that gate and up are columns. mlx-lm keeps gate and up in two
//! tensors, and any matrix may be `weight` codes with `scales` and, if affine, `biases`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use safetensors::Dtype;
use serde_json::Value;

use crate::codec::{Bits, Format, Group};
use crate::config::GptOssConfig;
use crate::error::Defect;
use crate::safetensors_file::{Part, Parts};
use crate::specs::{TensorRole, TensorSpec, tensor_specs};
use crate::tensor::{Columns, HostTensor, Planes};

/// The stems of tensor names: the canonical one, and the one in folders of Hugging Face and mlx-lm. Hugging Face joins the experts' gate
/// and up projections in one tensor, `gate_up_proj`.
const STEMS: [(&str, &str); 14] = [
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_sinks", "self_attn.sinks"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_gate_inp", "mlp.router"),
    ("ffn_gate_exps", "mlp.experts.gate_proj"),
    ("ffn_up_exps", "mlp.experts.up_proj"),
    ("ffn_down_exps", "mlp.experts.down_proj"),
];

/// A folder's tensors, from which canonical ones are built.
pub(super) struct Layout<'a> {
    parts: Parts,
    /// `config.json`, for its entries under `quantization`.
    config: &'a Value,
    used: BTreeSet<String>,
}

impl<'a> Layout<'a> {
    pub fn new(parts: Parts, config: &'a Value) -> Layout<'a> {
        // Unsloth's fine-tunes have a module `linear` inside the router.
        let plain = |(name, part): (String, Part)| (name.replace(".mlp.router.linear.", ".mlp.router."), part);
        Layout { parts: parts.into_iter().map(plain).collect(), config, used: BTreeSet::new() }
    }

    /// Every tensor that the configuration requires, by its canonical name.
    pub fn tensors(mut self, config: &GptOssConfig) -> Result<BTreeMap<String, HostTensor>, Defect> {
        let mut tensors = BTreeMap::new();
        for spec in tensor_specs(config) {
            let tensor = self.tensor(&spec)?;
            tensors.insert(spec.name, tensor);
        }
        match self.parts.keys().find(|name| !self.used.contains(*name)) {
            None => Ok(tensors),
            Some(name) => {
                let expected = format!("no tensor of this name in a {}-layer GPT-OSS model", config.layers());
                Err(Defect::new(format!("tensor `{name}`"), expected, "one"))
            }
        }
    }

    fn tensor(&mut self, spec: &TensorSpec) -> Result<HostTensor, Defect> {
        let (stem, kind) = folder_name(&spec.name);
        let Some(kind) = kind else { return self.plain(&stem, spec) };
        let whole = format!("{stem}.{kind}");
        if self.parts.contains_key(&whole) {
            return match spec.role == TensorRole::Vector || !self.parts.contains_key(&format!("{stem}.scales")) {
                true => self.plain(&whole, spec),
                false => self.quantized(&stem, spec),
            };
        }
        // Experts as Hugging Face stores them.
        let (matrix, first, step) = match stem.rsplit_once('.') {
            Some((experts, "gate_proj")) => (format!("{experts}.gate_up_proj"), 0, 2),
            Some((experts, "up_proj")) => (format!("{experts}.gate_up_proj"), 1, 2),
            _ => (stem, 0, 1),
        };
        if spec.role == TensorRole::Vector && self.parts.contains_key(&format!("{matrix}_bias")) {
            return self.every_nth(&format!("{matrix}_bias"), spec, first, step);
        }
        if spec.role == TensorRole::Experts && self.parts.contains_key(&format!("{matrix}_blocks")) {
            return self.blocks(&matrix, spec, first, step);
        }
        if spec.role == TensorRole::Experts && self.parts.contains_key(&matrix) {
            return self.columns(&matrix, spec, first, step);
        }
        Err(Defect::new(format!("tensor `{whole}`"), format!("shape {:?}", spec.shape), "no such tensor"))
    }

    /// The part of that name, which must have that shape. Marks the part as used.
    fn part(&mut self, name: &str, shape: &[usize]) -> Result<&Part, Defect> {
        let part = format!("tensor `{name}`");
        let expected = format!("shape {shape:?}");
        let Some(found) = self.parts.get(name) else { return Err(Defect::new(part, expected, "no such tensor")) };
        if found.shape != shape {
            return Err(Defect::new(part, expected, format!("shape {:?}", found.shape)));
        }
        self.used.insert(name.to_owned());
        Ok(found)
    }

    /// The data of a part with this shape and type: codes, as bytes or in mlx-lm's little-endian 32-bit words, scales or biases.
    fn codes(&mut self, name: &str, shape: &[usize], dtype: Dtype) -> Result<Bytes, Defect> {
        let part = self.part(name, shape)?;
        // E8M0 scales have the type F8_E8M0 or, from older writers, U8.
        match part.dtype == dtype || (part.dtype, dtype) == (Dtype::F8_E8M0, Dtype::U8) {
            true => Ok(part.data.clone()),
            false => Err(Defect::new(format!("tensor `{name}`"), format!("{dtype:?}"), format!("{:?}", part.dtype))),
        }
    }

    fn plain(&mut self, name: &str, spec: &TensorSpec) -> Result<HostTensor, Defect> {
        let part = self.part(name, &spec.shape)?;
        let format = float_format(name, part.dtype)?;
        Ok(HostTensor::packed_rows(format, spec.shape.clone(), part.data.clone()))
    }

    /// Elements `first`, `first + step`, … of every row.
    fn every_nth(&mut self, name: &str, spec: &TensorSpec, first: usize, step: usize) -> Result<HostTensor, Defect> {
        let part = self.part(name, &widened(&spec.shape, spec.shape.len() - 1, step))?;
        let format = float_format(name, part.dtype)?;
        let elements = part.data.chunks_exact(format.block_bytes()).skip(first).step_by(step);
        let data: Vec<u8> = elements.flatten().copied().collect();
        Ok(HostTensor::packed_rows(format, spec.shape.clone(), data.into()))
    }

    /// MXFP4 as Hugging Face stores it: blocks `[experts, rows, columns / 32, 16]`, scales `[experts, rows, columns / 32]`.
    fn blocks(&mut self, matrix: &str, spec: &TensorSpec, first: usize, step: usize) -> Result<HostTensor, Defect> {
        let mut shape = widened(&spec.shape, 1, step);
        whole_blocks(matrix, spec, 32)?;
        shape[2] /= 32;
        let scales = self.codes(&format!("{matrix}_scales"), &shape, Dtype::U8)?;
        shape.push(16);
        let codes = self.codes(&format!("{matrix}_blocks"), &shape, Dtype::U8)?;
        let planes = Planes { codes, scales, biases: Bytes::new(), scale_format: Format::F32, first, step };
        Ok(HostTensor::from_planes(Format::Mxfp4, spec.shape.clone(), planes))
    }

    /// Unquantized experts as Hugging Face stores them, `[experts, columns, rows]`.
    fn columns(&mut self, matrix: &str, spec: &TensorSpec, first: usize, step: usize) -> Result<HostTensor, Defect> {
        let [experts, rows, row_len] = spec.shape[..] else { unreachable!("experts are stacked") };
        let width = rows * step;
        let part = self.part(matrix, &[experts, row_len, width])?;
        let format = float_format(matrix, part.dtype)?;
        let columns = Columns { data: part.data.clone(), width, first, step };
        Ok(HostTensor::from_columns(format, spec.shape.clone(), columns))
    }

    /// Quantized matrices as mlx-lm stores them: weight words `[…, rows, columns · bits / 32]`, scales `[…, rows, columns / group]`.
    fn quantized(&mut self, stem: &str, spec: &TensorSpec) -> Result<HostTensor, Defect> {
        let part = |name: &str| format!("tensor `{stem}.{name}`");
        let scales = self.parts.get(&format!("{stem}.scales")).expect("looked up before");
        let row_len = *spec.shape.last().expect("a matrix");
        let (scale_dtype, groups) = (scales.dtype, scales.shape.last().copied().unwrap_or(0));
        let words = self.parts[&format!("{stem}.weight")].shape.last().copied().unwrap_or(0);
        let group = row_len.checked_div(groups).filter(|group| group * groups == row_len).unwrap_or(0);
        let bits = words.checked_mul(32).filter(|bits| bits % row_len == 0).map_or(0, |bits| bits / row_len);

        let outer = &spec.shape[..spec.shape.len() - 1];
        let of_width = |width: usize| [outer, &[width]].concat();
        let weight_shape = of_width(words);
        if matches!(scale_dtype, Dtype::U8 | Dtype::F8_E8M0) {
            if (bits, group) != (4, 32) {
                let found = format!("{bits} bits in groups of {group}, with one byte per scale");
                return Err(Defect::new(part("scales"), "MXFP4: 4 bits in groups of 32", found));
            }
            self.check_settings(stem, bits, group, "mxfp4")?;
            let scales = self.codes(&format!("{stem}.scales"), &of_width(groups), Dtype::U8)?;
            let codes = self.codes(&format!("{stem}.weight"), &weight_shape, Dtype::U32)?;
            let planes = Planes { codes, scales, biases: Bytes::new(), scale_format: Format::F32, first: 0, step: 1 };
            return Ok(HostTensor::from_planes(Format::Mxfp4, spec.shape.clone(), planes));
        }
        let format = match (bits, group) {
            (4, 32) => Format::Affine { bits: Bits::Four, group: Group::Of32 },
            (4, 64) => Format::Affine { bits: Bits::Four, group: Group::Of64 },
            (8, 32) => Format::Affine { bits: Bits::Eight, group: Group::Of32 },
            (8, 64) => Format::Affine { bits: Bits::Eight, group: Group::Of64 },
            _ => {
                let found = format!("{bits} bits in groups of {group}");
                return Err(Defect::new(part("weight"), "affine groups of 32 or 64, 4 or 8 bits a value", found));
            }
        };
        self.check_settings(stem, bits, group, "affine")?;
        let scale_format = float_format(&format!("{stem}.scales"), scale_dtype)?;
        let scales = self.codes(&format!("{stem}.scales"), &of_width(groups), scale_dtype)?;
        let biases = self.codes(&format!("{stem}.biases"), &of_width(groups), scale_dtype)?;
        let codes = self.codes(&format!("{stem}.weight"), &weight_shape, Dtype::U32)?;
        let planes = Planes { codes, scales, biases, scale_format, first: 0, step: 1 };
        Ok(HostTensor::from_planes(format, spec.shape.clone(), planes))
    }

    /// Refuses a tensor whose format, by its shape and the type of its scales, contradicts the entry for its path under `quantization` in
    /// the configuration. Nothing is compared without an entry.
    fn check_settings(&self, path: &str, bits: usize, group: usize, mode: &str) -> Result<(), Defect> {
        let Some(settings) = self.config.get("quantization").and_then(|q| q.get(path)).filter(|s| s.is_object()) else {
            return Ok(());
        };
        let number = |key: &str| settings.get(key).and_then(Value::as_u64);
        let configured = settings.get("mode").and_then(Value::as_str).unwrap_or("affine");
        if number("bits") == Some(bits as u64) && number("group_size") == Some(group as u64) && configured == mode {
            return Ok(());
        }
        let expected = format!("the tensor's own format: {mode}, {bits} bits in groups of {group}");
        let found = settings.to_string().chars().take(100).collect::<String>();
        Err(Defect::new(format!("config.json: `quantization.{path}`"), expected, found))
    }
}

/// Translates `blk.0.attn_q.weight` to `model.layers.0.self_attn.q_proj` and `weight`. In folders, the name of the sinks has no second part,
/// and `None` is returned for it.
fn folder_name(canonical: &str) -> (String, Option<&str>) {
    let (stem, kind) = canonical.rsplit_once('.').expect("canonical names have a dot");
    let (prefix, stem) = match stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((layer, stem)) => (format!("model.layers.{layer}."), stem),
        None => (String::new(), stem),
    };
    let (_, theirs) = STEMS.iter().find(|(ours, _)| *ours == stem).expect("every canonical stem is listed");
    (prefix + theirs, (stem != "attn_sinks").then_some(kind))
}

/// The shape with one dimension multiplied by `factor`.
fn widened(shape: &[usize], dimension: usize, factor: usize) -> Vec<usize> {
    let mut shape = shape.to_vec();
    shape[dimension] *= factor;
    shape
}

fn whole_blocks(matrix: &str, spec: &TensorSpec, block: usize) -> Result<(), Defect> {
    match spec.shape.last().is_some_and(|columns| columns % block == 0) {
        true => Ok(()),
        false => {
            let found = format!("shape {:?}", spec.shape);
            Err(Defect::new(format!("tensor `{matrix}_blocks`"), format!("rows of whole blocks of {block}"), found))
        }
    }
}

fn float_format(name: &str, dtype: Dtype) -> Result<Format, Defect> {
    match dtype {
        Dtype::F32 => Ok(Format::F32),
        Dtype::F16 => Ok(Format::F16),
        Dtype::BF16 => Ok(Format::BF16),
        _ => Err(Defect::new(format!("tensor `{name}`"), "F32, F16 or BF16", format!("{dtype:?}"))),
    }
}

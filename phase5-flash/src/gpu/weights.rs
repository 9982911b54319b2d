//! From a checkpoint to device memory.

use std::sync::atomic::{AtomicBool, Ordering};

use formats::Storage;
use gpu_kernels::attention::{MAX_GROUP, MAX_HEAD_DIM};
use gpu_kernels::{Buffer, Device, Error, Experts, Matrix};
use phase1_loading::{AttentionKind, Checkpoint, Format, GptOssConfig, HostTensor, check_scales};
use phase2_forward::Rope;

use super::error::GpuError;

/// A model on a GPU.
pub(crate) struct Weights {
    pub embedding: Matrix,
    pub layers: Vec<Layer>,
    pub final_norm: Buffer,
    pub head: Matrix,
    pub rope: Rope,
}

pub(crate) struct Layer {
    pub attention: AttentionKind,
    pub attention_norm: Buffer,
    /// Query, key and value projections, concatenated along the output dimension.
    pub qkv: Matrix,
    pub qkv_bias: Buffer,
    pub sinks: Buffer,
    pub o: Matrix,
    pub o_bias: Buffer,
    pub mlp_norm: Buffer,
    /// `[experts, hidden]` in f32.
    pub router: Buffer,
    pub router_bias: Buffer,
    pub gate: Experts,
    pub up: Experts,
    pub down: Experts,
}

impl Weights {
    /// Uploads tensor by tensor, so that host memory holds at most one of them twice; `progress` is called with (bytes so
    /// far, bytes in all).
    ///
    /// # Errors
    /// An MXFP4 scale byte of 255, or shapes that the kernels or the device do not take.
    pub fn load(
        device: &Device,
        checkpoint: &Checkpoint,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Weights, GpuError> {
        let config = &checkpoint.config;
        device.expect_memory("the model", checkpoint.weight_bytes())?;
        let mut loader = Loader { device, checkpoint, done: 0, progress };
        let embedding = loader.matrix(&["token_embd.weight"])?;
        let mut layers = Vec::new();
        for (number, &attention) in config.attention.iter().enumerate() {
            let name = |part: &str| format!("blk.{number}.{part}");
            let [q, k, v] = ["attn_q", "attn_k", "attn_v"].map(name);
            layers.push(Layer {
                attention,
                attention_norm: loader.vectors(&[&name("attn_norm.weight")]),
                qkv: loader.matrix(&[&format!("{q}.weight"), &format!("{k}.weight"), &format!("{v}.weight")])?,
                qkv_bias: loader.vectors(&[&format!("{q}.bias"), &format!("{k}.bias"), &format!("{v}.bias")]),
                sinks: loader.vectors(&[&name("attn_sinks.weight")]),
                o: loader.matrix(&[&name("attn_output.weight")])?,
                o_bias: loader.vectors(&[&name("attn_output.bias")]),
                mlp_norm: loader.vectors(&[&name("post_attention_norm.weight")]),
                router: loader.vectors(&[&name("ffn_gate_inp.weight")]),
                router_bias: loader.vectors(&[&name("ffn_gate_inp.bias")]),
                gate: loader.experts(&name("ffn_gate_exps"))?,
                up: loader.experts(&name("ffn_up_exps"))?,
                down: loader.experts(&name("ffn_down_exps"))?,
            });
        }
        Ok(Weights {
            embedding,
            layers,
            final_norm: loader.vectors(&["output_norm.weight"]),
            head: loader.matrix(&["output.weight"])?,
            rope: Rope::new(&config.rope, config.head_dim),
        })
    }
}

/// # Errors
/// Heads that no attention kernel takes, however they are cached.
pub(super) fn check_shape(config: &GptOssConfig) -> Result<(), GpuError> {
    if !config.head_dim.is_multiple_of(4) {
        let sentence = format!("heads of {} values; the kernels take multiples of 4", config.head_dim);
        return Err(Error::Shape(sentence).into());
    }
    let group = config.heads / config.kv_heads * config.head_dim;
    for (what, found, most) in
        [("heads", config.head_dim, MAX_HEAD_DIM), ("query heads that share keys", group, MAX_GROUP)]
    {
        if found > most {
            let sentence = format!("{what} of {found} values; the attention kernel takes at most {most}");
            return Err(Error::Shape(sentence).into());
        }
    }
    Ok(())
}

/// Moves tensors from a checkpoint to a device.
struct Loader<'a> {
    device: &'a Device,
    checkpoint: &'a Checkpoint,
    done: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl Loader<'_> {
    /// Uploads tensors of any format as f32, concatenated.
    fn vectors(&mut self, names: &[&str]) -> Buffer {
        let values: Vec<f32> = names.iter().flat_map(|name| self.checkpoint.tensor(name).to_f32()).collect();
        names.iter().for_each(|name| self.advance(name));
        let words = values.into_iter().map(f32::to_bits).collect();
        self.device.upload_weights(words)
    }

    fn matrix(&mut self, names: &[&str]) -> Result<Matrix, GpuError> {
        let tensors: Vec<&HostTensor> = names.iter().map(|name| self.checkpoint.tensor(name)).collect();
        let (matrix, damaged) = upload(self.device, names[0], &tensors)?;
        if damaged {
            let mut named = names.iter().zip(&tensors);
            named.try_for_each(|(name, tensor)| check_scales(&self.checkpoint.path, name, tensor))?;
        }
        // What is still on its way to the device lies in host memory a second time.
        self.device.sync()?;
        names.iter().for_each(|name| self.advance(name));
        Ok(matrix)
    }

    fn experts(&mut self, name: &str) -> Result<Experts, GpuError> {
        let bias = self.vectors(&[&format!("{name}.bias")]);
        Ok(Experts { weight: self.matrix(&[&format!("{name}.weight")])?, bias })
    }

    fn advance(&mut self, name: &str) {
        self.done += self.checkpoint.tensor(name).bytes() as u64;
        (self.progress)(self.done, self.checkpoint.weight_bytes());
    }
}

/// Uploads matrices as one, concatenated along the output dimension, or a three-dimensional tensor as a stack. Tensors of different
/// formats, or of a format that the kernels do not take, become F32. Also returns whether a row has an MXFP4 scale byte of 255, which is checked
/// here because every row is read anyway.
fn upload(device: &Device, name: &str, tensors: &[&HostTensor]) -> Result<(Matrix, bool), Error> {
    let common = tensors.iter().all(|tensor| tensor.format == tensors[0].format);
    let format = tensors[0].format;
    let (format, storage) = match format.storage().filter(|_| common) {
        Some(storage) => (format, storage),
        None => (Format::F32, Storage::F32),
    };
    let (stack, rows) = match tensors[0].shape[..] {
        [stack, rows, _] => (stack, rows),
        _ => (1, tensors.iter().map(|tensor| tensor.rows()).sum()),
    };
    let damaged = AtomicBool::new(false);
    let row = |mut row: usize| {
        let mut tensors = tensors.iter();
        let tensor = tensors.find(|tensor| {
            let is_here = row < tensor.rows();
            row -= if is_here { 0 } else { tensor.rows() };
            is_here
        });
        let tensor = tensor.expect("a row of one of them");
        if tensor.bad_scale_of(row).is_some() {
            damaged.store(true, Ordering::Relaxed);
        }
        tensor.packed_as(format, row..row + 1)
    };
    let matrix = Matrix::upload(device, name, storage, [stack, rows, tensors[0].row_len()], row)?;
    Ok((matrix, damaged.into_inner()))
}

//! Uploads a checkpoint's weights to device memory.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use formats::Storage;
use gpu_kernels::attention::{MAX_GROUP, MAX_HEAD_DIM};
use gpu_kernels::{Buffer, Device, Error, Experts, Matrix, Unfilled, Upload, UploadTimes};
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

/// The matrices of a model whose memory is allocated, but whose values have not been written.
pub(crate) struct Filling<'a> {
    checkpoint: &'a Checkpoint,
    matrices: Vec<Pending<'a>>,
    /// Bytes of the tensors that have already been uploaded: norms, biases, sinks and routers.
    done: u64,
}

/// A matrix, and the tensors that it consists of: several to concatenate along the output dimension, or one that is a stack of matrices.
struct Pending<'a> {
    unfilled: Unfilled,
    tensors: Vec<(String, &'a HostTensor)>,
    /// The format of its rows on the device.
    format: Format,
}

impl Weights {
    /// Allocates memory for a model and uploads norms, biases, sinks and routers. Matrices are undefined until [`Filling::run`] has
    /// written them; no kernel may read them earlier.
    ///
    /// # Errors
    /// The kernels or the device do not support a shape, or memory is too small.
    pub fn allocate<'a>(device: &Device, checkpoint: &'a Checkpoint) -> Result<(Weights, Filling<'a>), GpuError> {
        let config = &checkpoint.config;
        device.expect_memory("the model", checkpoint.weight_bytes())?;
        let mut loader = Loader { device, filling: Filling { checkpoint, matrices: Vec::new(), done: 0 } };
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
        let final_norm = loader.vectors(&["output_norm.weight"]);
        let head = loader.matrix(&["output.weight"])?;
        let rope = Rope::new(&config.rope, config.head_dim);
        Ok((Weights { embedding, layers, final_norm, head, rope }, loader.filling))
    }
}

impl Filling<'_> {
    /// Writes all matrices; `progress` is called with (bytes so far, bytes in all). Threads pack some rows while others are copied, so that
    /// the host needs only the memory of an [`Upload`] besides the mapped file.
    ///
    /// # Errors
    /// An MXFP4 scale byte of 255, or a device that fails.
    pub fn run(self, device: &Device, progress: &mut dyn FnMut(u64, u64)) -> Result<UploadTimes, GpuError> {
        let all = self.checkpoint.weight_bytes();
        let mut done = self.done;
        progress(done, all);
        let mut upload = Upload::new(device);
        for Pending { unfilled, tensors, format } in &self.matrices {
            let damaged = AtomicBool::new(false);
            unfilled.fill(&mut upload, |rows| packed_rows(tensors, *format, rows, &damaged))?;
            if damaged.into_inner() {
                tensors.iter().try_for_each(|(name, tensor)| check_scales(&self.checkpoint.path, name, tensor))?;
            }
            done += tensors.iter().map(|(_, tensor)| tensor.bytes() as u64).sum::<u64>();
            progress(done, all);
        }
        Ok(upload.finish()?)
    }
}

/// The tensors that become matrices, in the order in which loading reads them.
pub fn in_order_of_upload(checkpoint: &Checkpoint) -> Vec<&HostTensor> {
    let parts = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"];
    let layers = 0..checkpoint.config.layers();
    let layers = layers.flat_map(|number| parts.map(|part| format!("blk.{number}.{part}.weight")));
    let [embedding, head] = ["token_embd.weight", "output.weight"].map(String::from);
    let names = [embedding].into_iter().chain(layers).chain([head]);
    names.map(|name| checkpoint.tensor(&name)).collect()
}

/// # Errors
/// No attention kernel supports the heads, with any format of the cache.
pub(super) fn check_shape(config: &GptOssConfig) -> Result<(), GpuError> {
    if !config.head_dim.is_multiple_of(4) {
        let sentence = format!("heads have {} values, but the kernels need a multiple of 4", config.head_dim);
        return Err(Error::Shape(sentence).into());
    }
    let group = config.heads / config.kv_heads * config.head_dim;
    for (what, found, most) in
        [("heads", config.head_dim, MAX_HEAD_DIM), ("query heads that share keys", group, MAX_GROUP)]
    {
        if found > most {
            let sentence = format!("{what} have {found} values, but the attention kernel supports at most {most}");
            return Err(Error::Shape(sentence).into());
        }
    }
    Ok(())
}

/// Allocates and uploads tensors.
struct Loader<'d, 'a> {
    device: &'d Device,
    filling: Filling<'a>,
}

impl Loader<'_, '_> {
    /// Uploads tensors of any format as f32, concatenated.
    fn vectors(&mut self, names: &[&str]) -> Buffer {
        let checkpoint = self.filling.checkpoint;
        let tensors = names.iter().map(|&name| checkpoint.tensor(name));
        self.filling.done += tensors.clone().map(|tensor| tensor.bytes() as u64).sum::<u64>();
        self.device.upload_weights(tensors.flat_map(HostTensor::to_f32).map(f32::to_bits).collect())
    }

    /// Allocates matrices as one, concatenated along the output dimension, or a three-dimensional tensor as a stack. Tensors of different
    /// formats, or of a format that the kernels do not take, become F32.
    fn matrix(&mut self, names: &[&str]) -> Result<Matrix, GpuError> {
        let checkpoint = self.filling.checkpoint;
        let tensors: Vec<_> = names.iter().map(|&name| (name.to_owned(), checkpoint.tensor(name))).collect();
        let first = tensors[0].1;
        let common = tensors.iter().all(|(_, tensor)| tensor.format == first.format);
        let (format, storage) = match first.format.storage().filter(|_| common) {
            Some(storage) => (first.format, storage),
            None => (Format::F32, Storage::F32),
        };
        let (stack, rows) = match first.shape[..] {
            [stack, rows, _] => (stack, rows),
            _ => (1, tensors.iter().map(|(_, tensor)| tensor.rows()).sum()),
        };
        let matrix = Matrix::empty(self.device, names[0], storage, [stack, rows, first.row_len()])?;
        let unfilled = Unfilled::new(self.device, &matrix)?;
        self.filling.matrices.push(Pending { unfilled, tensors, format });
        Ok(matrix)
    }

    fn experts(&mut self, name: &str) -> Result<Experts, GpuError> {
        let bias = self.vectors(&[&format!("{name}.bias")]);
        Ok(Experts { weight: self.matrix(&[&format!("{name}.weight")])?, bias })
    }
}

/// Rows of tensors that are one matrix, packed in `format`. Sets `damaged` if one of them has an MXFP4 scale byte of 255, which is looked
/// for here because every row is read anyway.
fn packed_rows(tensors: &[(String, &HostTensor)], format: Format, rows: Range<usize>, damaged: &AtomicBool) -> Bytes {
    let mut pieces = Vec::new();
    let mut first = 0;
    for (_, tensor) in tensors {
        let end = first + tensor.rows();
        let here = rows.start.max(first)..rows.end.min(end);
        if !here.is_empty() {
            let here = here.start - first..here.end - first;
            if here.clone().any(|row| tensor.bad_scale_of(row).is_some()) {
                damaged.store(true, Ordering::Relaxed);
            }
            pieces.push(tensor.packed_as(format, here));
        }
        first = end;
    }
    match pieces.len() {
        1 => pieces.swap_remove(0),
        _ => pieces.concat::<u8>().into(),
    }
}

#[cfg(test)]
mod tests {
    use std::ptr;

    use synthetic::SyntheticModel;

    use super::*;
    use crate::gpu::captured::tests::alone;

    #[test]
    fn matrices_are_filled_in_the_order_of_upload() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("model.gguf");
        let model = SyntheticModel::preset("nano").expect("a preset");
        model.write(&path, 1, &mut |_, _| ()).expect("written");
        let checkpoint = Checkpoint::open(&path).expect("opens");
        let (_own, engine) = alone(1);
        let device = &engine.runner.forward.gpu.device;
        let (_weights, filling) = Weights::allocate(device, &checkpoint).expect("there is room");
        let tensors = filling.matrices.iter().flat_map(|pending| &pending.tensors);
        let filled: Vec<*const HostTensor> = tensors.map(|(_, tensor)| ptr::from_ref(*tensor)).collect();
        let expected: Vec<*const HostTensor> = in_order_of_upload(&checkpoint).into_iter().map(ptr::from_ref).collect();
        assert_eq!(filled, expected);
    }
}

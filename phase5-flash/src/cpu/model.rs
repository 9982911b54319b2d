//! Weights in the form that the kernels read: matrices as views of the mapped file, or as copies in memory if the file has another form;
//! small vectors decoded to f32.

use std::path::PathBuf;

use bytes::Bytes;
use cpu_kernels::{PackedRows, Storage};
use phase1_loading::{AttentionKind, Checkpoint, Format, HostTensor, LoadError};

/// Why a checkpoint cannot be loaded by the CPU engine.
#[derive(Debug, thiserror::Error)]
pub enum CpuLoadError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("{}: rows of tensor `{name}` have {columns} values, not a multiple of 32; use --phase 3", path.display())]
    Columns { path: PathBuf, name: String, columns: usize },
    #[error("{}: heads have {head_dim} values, but with a {kv} cache the kernels need a multiple of {unit}; use --phase 3", path.display())]
    HeadDim { path: PathBuf, head_dim: usize, unit: usize, kv: &'static str },
    #[error("{}: a KV cache of {bytes} bytes cannot be allocated; use a smaller --kv-memory", path.display())]
    Cache { path: PathBuf, bytes: u64, source: std::io::Error },
}

pub(super) struct Model {
    pub embedding: HostTensor,
    pub layers: Vec<Layer>,
    pub final_norm: Vec<f32>,
    pub head: Matrix,
}

pub(super) struct Layer {
    pub attention: AttentionKind,
    pub attention_norm: Vec<f32>,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub sinks: Vec<f32>,
    pub o: Linear,
    pub mlp_norm: Vec<f32>,
    pub router: Linear,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

/// `W x + b`, or one such layer per expert.
pub(super) struct Linear {
    pub weight: Matrix,
    /// `[out]`, or `[experts, out]`.
    pub bias: Vec<f32>,
}

/// A packed matrix `[out, in]`, or a stack `[experts, out, in]`.
pub(super) struct Matrix {
    data: Bytes,
    pub storage: Storage,
    /// Number of rows of one matrix.
    pub rows: usize,
    pub columns: usize,
}

impl Matrix {
    /// Up to `count` rows of matrix `number` of the stack, from row `first` on; fewer at the end of the matrix.
    pub fn rows_of(&self, number: usize, first: usize, count: usize) -> PackedRows<'_> {
        let count = count.min(self.rows - first);
        let row_bytes = self.columns / 32 * self.storage.block_bytes();
        let start = (number * self.rows + first) * row_bytes;
        PackedRows::new(&self.data[start..start + count * row_bytes], self.storage, self.columns)
    }
}

impl Model {
    pub fn load(checkpoint: &Checkpoint) -> Result<Model, CpuLoadError> {
        let vector = |name: &str| checkpoint.tensor(name).to_f32();
        let linear = |name: &str| -> Result<Linear, CpuLoadError> {
            let weight = matrix(checkpoint, &format!("{name}.weight"))?;
            Ok(Linear { weight, bias: vector(&format!("{name}.bias")) })
        };
        let layer = |(number, &attention): (usize, &AttentionKind)| -> Result<Layer, CpuLoadError> {
            let name = |part: &str| format!("blk.{number}.{part}");
            Ok(Layer {
                attention,
                attention_norm: vector(&name("attn_norm.weight")),
                q: linear(&name("attn_q"))?,
                k: linear(&name("attn_k"))?,
                v: linear(&name("attn_v"))?,
                sinks: vector(&name("attn_sinks.weight")),
                o: linear(&name("attn_output"))?,
                mlp_norm: vector(&name("post_attention_norm.weight")),
                router: linear(&name("ffn_gate_inp"))?,
                gate: linear(&name("ffn_gate_exps"))?,
                up: linear(&name("ffn_up_exps"))?,
                down: linear(&name("ffn_down_exps"))?,
            })
        };
        Ok(Model {
            embedding: checkpoint.tensor("token_embd.weight").clone(),
            layers: checkpoint.config.attention.iter().enumerate().map(layer).collect::<Result<_, _>>()?,
            final_norm: vector("output_norm.weight"),
            head: matrix(checkpoint, "output.weight")?,
        })
    }
}

/// The matrices with their names: first those that every token reads, then those of the experts. The list is for `WeightCheck`, which
/// checks scales and maps pages. The embedding, of which a token reads one row, is included only if it is stored in MXFP4.
pub(super) fn in_order_of_use(checkpoint: &Checkpoint) -> Vec<(String, HostTensor)> {
    let of_layers = |parts: &[&str]| -> Vec<String> {
        let layers = 0..checkpoint.config.layers();
        layers.flat_map(move |number| parts.iter().map(move |part| format!("blk.{number}.{part}.weight"))).collect()
    };
    let embedding = String::from("token_embd.weight");
    let embedding = (checkpoint.tensor(&embedding).format == Format::Mxfp4).then_some(embedding);
    let shared = of_layers(&["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_inp"]);
    let experts = of_layers(&["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"]);
    let names = embedding.into_iter().chain(shared).chain([String::from("output.weight")]).chain(experts);
    let named = |name: String| {
        let tensor = checkpoint.tensor(&name).clone();
        (name, tensor)
    };
    names.map(named).collect()
}

fn matrix(checkpoint: &Checkpoint, name: &str) -> Result<Matrix, CpuLoadError> {
    let tensor = checkpoint.tensor(name);
    let columns = tensor.row_len();
    if !columns.is_multiple_of(32) {
        return Err(CpuLoadError::Columns { path: checkpoint.path.clone(), name: name.into(), columns });
    }
    let (format, storage) = match tensor.format.storage() {
        Some(storage) => (tensor.format, storage),
        // Other formats are unpacked to f32 in memory. This is exact, and takes 4 bytes per value.
        None => (Format::F32, Storage::F32),
    };
    // A view of the mapped file, unless the file stores the rows in another format or as planes.
    let data = tensor.packed_as(format, 0..tensor.rows());
    Ok(Matrix { data, storage, rows: tensor.shape[tensor.shape.len() - 2], columns })
}

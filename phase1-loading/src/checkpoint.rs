//! A checkpoint: a configuration and every tensor it calls for, checked against each other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::config::GptOssConfig;
use crate::error::{Defect, LoadError};
use crate::folder;
use crate::gguf::Gguf;
use crate::saved::Fnv;
use crate::tensor::HostTensor;
use crate::tokenizer::{Tokenizer, Vocabulary};

/// An opened model. Weights are views of the mapping.
pub struct Checkpoint {
    pub path: PathBuf,
    pub config: GptOssConfig,
    /// By canonical name, which is GGUF's (`blk.0.attn_q.weight`). Exactly the tensors that the configuration calls for.
    pub tensors: BTreeMap<String, HostTensor>,
    pub(crate) vocabulary: Vocabulary,
}

impl Checkpoint {
    /// Opens a GGUF file, the first of several, or a folder of safetensors files, and reads the headers; weights are paged
    /// in when they are first used.
    ///
    /// # Errors
    /// Files that cannot be read, are not a GPT-OSS model, or contradict themselves.
    pub fn open(path: &Path) -> Result<Checkpoint, LoadError> {
        match path.is_dir() {
            true => folder::open(path),
            false => Self::from_gguf(Gguf::open(path)?),
        }
    }

    /// As [`Checkpoint::open`], for a GGUF file that is in memory; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_bytes(name: &str, file: Bytes) -> Result<Checkpoint, LoadError> {
        Self::from_gguf(Gguf::from_bytes(Path::new(name), file)?)
    }

    /// As [`Checkpoint::open`], for a folder whose files are in memory, by name.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_folder_bytes(name: &str, files: &BTreeMap<String, Bytes>) -> Result<Checkpoint, LoadError> {
        folder::read(Path::new(name), &|file| Ok(files.get(file).cloned()))
    }

    fn from_gguf(gguf: Gguf) -> Result<Checkpoint, LoadError> {
        let in_file = |defect: Defect| defect.in_file(&gguf.path);
        let config = GptOssConfig::from_gguf(&gguf).map_err(in_file)?;
        let vocabulary = Vocabulary::from_gguf(&gguf, config.vocab).map_err(in_file)?;
        Self::assemble(gguf.path, config, vocabulary, gguf.tensors)
    }

    /// Puts together what was read, if every tensor that the configuration calls for is there and no other.
    pub(crate) fn assemble(
        path: PathBuf,
        config: GptOssConfig,
        vocabulary: Vocabulary,
        mut found: BTreeMap<String, HostTensor>,
    ) -> Result<Checkpoint, LoadError> {
        let in_file = |defect: Defect| defect.in_file(&path);
        let mut tensors = BTreeMap::new();
        for spec in tensor_specs(&config) {
            let tensor = check_tensor(&spec, found.remove(&spec.name)).map_err(in_file)?;
            tensors.insert(spec.name, tensor);
        }
        if let Some(name) = found.keys().next() {
            let expected = format!("no tensor of this name in a {}-layer GPT-OSS model", config.layers());
            return Err(in_file(Defect::new(format!("tensor `{name}`"), expected, "one")));
        }
        Ok(Checkpoint { path, config, tensors, vocabulary })
    }

    /// The tensor of that canonical name.
    ///
    /// # Panics
    /// If the configuration does not call for such a tensor.
    pub fn tensor(&self, name: &str) -> &HostTensor {
        (self.tensors.get(name)).unwrap_or_else(|| panic!("no GPT-OSS tensor is called `{name}`"))
    }

    /// Builds the tokenizer, which takes a while for 200,000 tokens and is therefore not part of opening.
    ///
    /// # Errors
    /// A vocabulary that is not a byte-level BPE.
    pub fn tokenizer(&self) -> Result<Tokenizer, LoadError> {
        Tokenizer::new(&self.vocabulary).map_err(|defect| defect.in_file(&self.path))
    }

    /// Tells this model's file from others: a hash of the configuration, of every tensor's name, format and shape, and of the
    /// first and last row of each.
    pub fn fingerprint(&self) -> String {
        let mut hash = Fnv::default();
        hash.add(format!("{:?}", self.config).as_bytes());
        for (name, tensor) in &self.tensors {
            hash.add(format!("{name} {} {:?}", tensor.format.name(), tensor.shape).as_bytes());
            let last = tensor.rows() - 1;
            for row in [0, last] {
                hash.add(&tensor.packed_as(tensor.format, row..row + 1));
            }
        }
        format!("{:016x}", hash.0)
    }

    /// Bytes of packed weights.
    pub fn weight_bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.bytes() as u64).sum()
    }
}

/// What a tensor is for, which decides how it may be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorRole {
    /// A matrix of one expert stack, `[experts, out, in]`.
    Experts,
    /// Any other matrix, `[out, in]`.
    Matrix,
    /// The router's matrix, `[experts, hidden]`.
    Router,
    /// A norm's weight, a bias or the sinks: a vector, or `[experts, out]` for the experts' biases.
    Vector,
}

/// A tensor that a configuration calls for.
pub struct TensorSpec {
    pub name: String,
    /// Row-major, as [`HostTensor::shape`].
    pub shape: Vec<usize>,
    pub role: TensorRole,
}

/// Every tensor of a model of this configuration, in the order in which files list them.
pub fn tensor_specs(config: &GptOssConfig) -> Vec<TensorSpec> {
    let (hidden, width, experts) = (config.hidden, config.expert_width, config.experts);
    let q = config.heads * config.head_dim;
    let kv = config.kv_heads * config.head_dim;
    let mut specs = Vec::new();
    let mut add = |name: String, shape: &[usize], role| {
        let shape = shape.to_vec();
        specs.push(TensorSpec { name, shape, role });
    };
    add("token_embd.weight".into(), &[config.vocab, hidden], TensorRole::Matrix);
    for layer in 0..config.layers() {
        let mut add = |name: &str, shape: &[usize], role| add(format!("blk.{layer}.{name}"), shape, role);
        add("attn_norm.weight", &[hidden], TensorRole::Vector);
        for (projection, rows) in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)] {
            add(&format!("{projection}.weight"), &[rows, hidden], TensorRole::Matrix);
            add(&format!("{projection}.bias"), &[rows], TensorRole::Vector);
        }
        add("attn_output.weight", &[hidden, q], TensorRole::Matrix);
        add("attn_output.bias", &[hidden], TensorRole::Vector);
        add("attn_sinks.weight", &[config.heads], TensorRole::Vector);
        add("post_attention_norm.weight", &[hidden], TensorRole::Vector);
        add("ffn_gate_inp.weight", &[experts, hidden], TensorRole::Router);
        add("ffn_gate_inp.bias", &[experts], TensorRole::Vector);
        for (projection, rows, columns) in
            [("ffn_gate_exps", width, hidden), ("ffn_up_exps", width, hidden), ("ffn_down_exps", hidden, width)]
        {
            add(&format!("{projection}.weight"), &[experts, rows, columns], TensorRole::Experts);
            add(&format!("{projection}.bias"), &[experts, rows], TensorRole::Vector);
        }
    }
    add("output_norm.weight".into(), &[hidden], TensorRole::Vector);
    add("output.weight".into(), &[config.vocab, hidden], TensorRole::Matrix);
    specs
}

fn check_tensor(spec: &TensorSpec, found: Option<HostTensor>) -> Result<HostTensor, Defect> {
    let part = format!("tensor `{}`", spec.name);
    let shape = format!("shape {:?}", spec.shape);
    let Some(tensor) = found else {
        return Err(Defect::new(part, shape, "no such tensor"));
    };
    if tensor.shape != spec.shape {
        return Err(Defect::new(part, shape, format!("shape {:?}", tensor.shape)));
    }
    if spec.role == TensorRole::Vector && tensor.format.block_len() > 1 {
        let found = tensor.format.name();
        return Err(Defect::new(part, "a vector of F32, F16 or BF16", found));
    }
    Ok(tensor)
}

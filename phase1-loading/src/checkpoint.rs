//! A checkpoint: a configuration and every tensor that it requires, checked against each other.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::path::PathBuf;

use twox_hash::XxHash3_64;

use crate::config::GptOssConfig;
use crate::error::{Defect, LoadError};
use crate::specs::{check_tensor, tensor_specs};
use crate::tensor::HostTensor;
use crate::tokenizer::{SpecialTokens, Tokenizer, Vocabulary, VocabularyLists};

/// An opened model. Its weights are slices of the memory-mapped files.
pub struct Checkpoint {
    pub path: PathBuf,
    pub config: GptOssConfig,
    /// By canonical name, which is GGUF's (`blk.0.attn_q.weight`). Holds exactly the tensors that the configuration requires.
    pub tensors: BTreeMap<String, HostTensor>,
    pub(crate) vocabulary: Vocabulary,
}

impl Checkpoint {
    /// Builds a checkpoint from the tensors that were read. These must be exactly the tensors that the configuration requires.
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

    /// The tensor with that canonical name.
    ///
    /// # Panics
    /// If the configuration requires no tensor of that name.
    pub fn tensor(&self, name: &str) -> &HostTensor {
        (self.tensors.get(name)).unwrap_or_else(|| panic!("no GPT-OSS tensor is called `{name}`"))
    }

    /// Builds the tokenizer. This takes a while for 200,000 tokens, so opening a checkpoint does not do it.
    ///
    /// # Errors
    /// The vocabulary is missing, has another number of tokens than the model, or is not a byte-level BPE.
    pub fn tokenizer(&self) -> Result<Tokenizer, LoadError> {
        Tokenizer::new(&self.vocabulary).map_err(|defect| defect.in_file(&self.path))
    }

    /// Whether the files have no vocabulary, like OpenAI's `original` folder on its own. [`Checkpoint::tokenizer`] then fails.
    pub fn lacks_vocabulary(&self) -> bool {
        self.vocabulary.is_missing()
    }

    /// If the files have no vocabulary, uses one that is built into the program. `lists` is called only when the vocabulary is needed.
    pub fn use_vocabulary(&mut self, lists: fn() -> VocabularyLists, special: SpecialTokens) {
        if self.vocabulary.is_missing() {
            self.vocabulary.build_in(lists, special);
        }
    }

    /// Identifies the model: an XXH3 hash of the configuration, of the name, format and shape of every tensor, and of each tensor's first
    /// and last row. Changes in other rows are not detected, so it does not protect against deliberate changes.
    pub fn fingerprint(&self) -> String {
        let mut hash = XxHash3_64::new();
        hash.write(format!("{:?}", self.config).as_bytes());
        for (name, tensor) in &self.tensors {
            hash.write(format!("{name} {} {:?}", tensor.format.name(), tensor.shape).as_bytes());
            let last = tensor.rows() - 1;
            for row in [0, last] {
                hash.write(&tensor.packed_as(tensor.format, row..row + 1));
            }
        }
        format!("{:016x}", hash.finish())
    }

    /// Bytes of packed weights.
    pub fn weight_bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.bytes() as u64).sum()
    }
}

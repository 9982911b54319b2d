//! A checkpoint: a configuration and every tensor it calls for, checked against each other.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::path::PathBuf;

use twox_hash::XxHash3_64;

use crate::config::GptOssConfig;
use crate::error::{Defect, LoadError};
use crate::specs::{check_tensor, tensor_specs};
use crate::tensor::HostTensor;
use crate::tokenizer::{SpecialTokens, Tokenizer, Vocabulary, VocabularyLists};

/// An opened model. Weights are views of the mapping.
pub struct Checkpoint {
    pub path: PathBuf,
    pub config: GptOssConfig,
    /// By canonical name, which is GGUF's (`blk.0.attn_q.weight`). Exactly the tensors that the configuration calls for.
    pub tensors: BTreeMap<String, HostTensor>,
    pub(crate) vocabulary: Vocabulary,
}

impl Checkpoint {
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

    /// Whether the files have no vocabulary, as OpenAI's own folder by itself. [`Checkpoint::tokenizer`] then fails.
    pub fn lacks_vocabulary(&self) -> bool {
        self.vocabulary.is_missing()
    }

    /// Uses a program's own vocabulary, if the files have none. It is built when it is needed.
    pub fn use_vocabulary(&mut self, lists: fn() -> VocabularyLists, special: SpecialTokens) {
        if self.vocabulary.is_missing() {
            self.vocabulary.build_in(lists, special);
        }
    }

    /// Tells this model's file from others: XXH3 of the configuration, of every tensor's name, format and shape, and of the
    /// first and last row of each. It is no defence against malice.
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

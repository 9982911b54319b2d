//! Opens a model in any supported form.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;

use crate::checkpoint::Checkpoint;
use crate::config::GptOssConfig;
use crate::dialect::Dialect;
use crate::error::{Defect, LoadError};
use crate::folder;
use crate::gguf::{self, Gguf};
use crate::locate::locate;
use crate::tokenizer::Vocabulary;
use crate::translation;

impl Checkpoint {
    /// Opens the model that `path` names (see [`locate`]): a GGUF file, a split GGUF model, or a folder of safetensors files. Of files
    /// with weights, reads only the headers; weights are paged in at their first use.
    ///
    /// # Errors
    /// As [`locate`]; or files that cannot be read, are not a GPT-OSS model, or are inconsistent.
    pub fn open(path: &Path) -> Result<Checkpoint, LoadError> {
        let path = locate(path)?;
        match path.is_dir() {
            true => folder::open(&path),
            false => Self::from_gguf(gguf::open(&path)?),
        }
    }

    /// As [`Checkpoint::open`], for a GGUF file in memory; errors call it `name`.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_bytes(name: &str, file: Bytes) -> Result<Checkpoint, LoadError> {
        Self::from_gguf(Gguf::from_bytes(Path::new(name), file)?)
    }

    /// As [`Checkpoint::open`], for a folder whose files are in memory, by name; errors call it `name`.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_folder_bytes(name: &str, files: &BTreeMap<String, Bytes>) -> Result<Checkpoint, LoadError> {
        folder::read(Path::new(name), &|file| Ok(files.get(file).cloned()))
    }

    fn from_gguf(gguf: Gguf) -> Result<Checkpoint, LoadError> {
        let in_file = |defect: Defect| defect.in_file(&gguf.path);
        let dialect = Dialect::of(&gguf).map_err(in_file)?;
        let config = GptOssConfig::from_gguf(&gguf, dialect).map_err(in_file)?;
        let vocabulary = Vocabulary::from_gguf(&gguf, config.vocab, dialect.pre_tokenizers()).map_err(in_file)?;
        let tensors =
            translation::canonical(gguf.tensors, dialect, &config).map_err(|defect| defect.in_file(&gguf.path))?;
        Self::assemble(gguf.path, config, vocabulary, tensors)
    }
}

//! Models that are made from a golden one by a change: GGUF files in memory, and the files of a folder.

use std::collections::BTreeMap;

use bytes::Bytes;
use gptoss_reference::{Case, Folder};
use phase1_loading::write::{MetadataValue, SpecialTokens, TensorPlan, VocabularyLists, tensor_specs, write_header};
use phase1_loading::{Checkpoint, Format, LoadError};
use serde_json::Value;

/// A golden model in parts.
pub struct GoldenParts {
    pub metadata: Vec<(String, MetadataValue)>,
    pub tensors: Vec<Stored>,
}

/// A tensor of a GGUF file.
#[derive(Clone)]
pub struct Stored {
    pub name: String,
    pub format: Format,
    /// Row-major.
    pub shape: Vec<usize>,
    pub data: Bytes,
}

impl GoldenParts {
    /// The golden model `case`, with the vocabulary of the goldens after `vocabulary` has changed it.
    pub fn of(case: &str, vocabulary: impl FnOnce(&mut VocabularyLists, &mut SpecialTokens)) -> GoldenParts {
        let case = Case::committed().into_iter().find(|committed| committed.name == case).expect("a committed case");
        let checkpoint = Checkpoint::open(&case.model()).expect("opens");
        let (mut lists, mut special) = golden_vocabulary();
        vocabulary(&mut lists, &mut special);
        let metadata = checkpoint.config.to_gguf("made").into_iter().chain(lists.into_gguf(special, None)).collect();
        let stored = |name: &str| {
            let tensor = checkpoint.tensor(name);
            Stored { name: name.into(), format: tensor.format, shape: tensor.shape.clone(), data: tensor.packed() }
        };
        let tensors = tensor_specs(&checkpoint.config).iter().map(|spec| stored(&spec.name)).collect();
        GoldenParts { metadata, tensors }
    }

    /// Sets or replaces a key.
    pub fn set(&mut self, key: &str, value: MetadataValue) {
        self.remove(key);
        self.metadata.push((key.into(), value));
    }

    pub fn remove(&mut self, key: &str) {
        self.metadata.retain(|(name, _)| name != key);
    }

    pub fn tensor(&mut self, name: &str) -> &mut Stored {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).expect("a tensor of that name")
    }

    pub fn take(&mut self, name: &str) -> Stored {
        let at = self.tensors.iter().position(|tensor| tensor.name == name).expect("a tensor of that name");
        self.tensors.remove(at)
    }

    pub fn bytes(&self) -> Vec<u8> {
        let plan = |tensor: &Stored| TensorPlan {
            name: tensor.name.clone(),
            format: tensor.format,
            shape: tensor.shape.clone(),
        };
        let plans: Vec<TensorPlan> = self.tensors.iter().map(plan).collect();
        let mut file = Vec::new();
        write_header(&mut file, &self.metadata, &plans).expect("writing to memory does not fail");
        for (tensor, plan) in self.tensors.iter().zip(&plans) {
            file.extend_from_slice(&tensor.data);
            file.resize(file.len() + plan.padding() as usize, 0);
        }
        file
    }

    pub fn open(&self) -> Result<Checkpoint, LoadError> {
        Checkpoint::from_bytes("made.gguf", self.bytes().into())
    }

    /// The message of the refusal.
    pub fn refusal(&self) -> String {
        self.open().err().expect("refused").to_string()
    }
}

/// The vocabulary that all goldens have.
pub fn golden_vocabulary() -> (VocabularyLists, SpecialTokens) {
    let file: Value = serde_json::from_slice(&files("hf")["tokenizer.json"]).expect("JSON");
    let added = file["added_tokens"].as_array().expect("a list");
    let ordinary = file["model"]["vocab"].as_object().expect("an object");
    let mut tokens = vec![String::new(); ordinary.len() + added.len()];
    let mut kinds = vec![phase1_loading::write::NORMAL; tokens.len()];
    for (text, id) in ordinary {
        tokens[id.as_u64().expect("an id") as usize] = text.clone();
    }
    for token in added {
        let id = token["id"].as_u64().expect("an id") as usize;
        tokens[id] = token["content"].as_str().expect("text").into();
        kinds[id] = phase1_loading::write::CONTROL;
    }
    let id = |name: &str| tokens.iter().position(|token| token == name).map(|id| id as u32);
    let special = SpecialTokens { bos: id("<|startoftext|>"), eos: id("<|return|>"), padding: id("<|endoftext|>") };
    let merges = file["model"]["merges"].as_array().expect("a list");
    let merges = merges.iter().map(|merge| merge.as_str().expect("two tokens in one text").to_owned()).collect();
    (VocabularyLists { tokens, merges, kinds }, special)
}

/// The files of a golden folder.
pub fn files(name: &str) -> BTreeMap<String, Bytes> {
    let folder = Folder::committed().into_iter().find(|folder| folder.name == name).expect("a folder");
    let entries = std::fs::read_dir(folder.path).expect("readable").map(|entry| {
        let path = entry.expect("readable").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        (name, std::fs::read(&path).expect("readable").into())
    });
    entries.collect()
}

/// The files of a golden folder with a change to one JSON file.
pub fn with_json(name: &str, file: &str, change: impl FnOnce(&mut Value)) -> BTreeMap<String, Bytes> {
    let mut files = files(name);
    let mut json: Value = serde_json::from_slice(&files[file]).expect("JSON");
    change(&mut json);
    files.insert(file.into(), json.to_string().into_bytes().into());
    files
}

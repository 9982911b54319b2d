//! The golden folders, unchanged or with a change.

use std::collections::BTreeMap;

use crate::made::{files, with_json};
use bytes::Bytes;
use gptoss_reference::Folder;
use phase1_loading::{Checkpoint, ModelComparison, Verdict, verify};
use serde_json::Value;

fn folder(name: &str) -> Folder {
    Folder::committed().into_iter().find(|folder| folder.name == name).expect("a folder")
}

pub fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&folder(name).path).expect("opens")
}

pub fn compare(a: &Checkpoint, b: &Checkpoint) -> ModelComparison {
    verify(a, b, &mut |_, _| ()).expect("comparable")
}

pub fn all_identical(comparison: &ModelComparison) -> bool {
    comparison.same() && comparison.tensors.iter().all(|tensor| tensor.verdict == Verdict::Identical)
}

/// The folder with its configuration changed.
pub fn configured(name: &str, change: impl FnOnce(&mut Value)) -> BTreeMap<String, Bytes> {
    with_json(name, "config.json", change)
}

/// A tensor of a folder: type, shape, bytes.
pub type Stored = (safetensors::Dtype, Vec<usize>, Vec<u8>);

/// The tensors of a sharded folder, whose weights files are named `model-…`, by name.
pub fn stored(name: &str) -> BTreeMap<String, Stored> {
    let mut tensors = BTreeMap::new();
    for (_, file) in files(name).iter().filter(|(name, _)| name.starts_with("model-")) {
        for (name, view) in safetensors::SafeTensors::deserialize(file).expect("reads").tensors() {
            tensors.insert(name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
        }
    }
    tensors
}

/// The folder with these tensors in one file.
pub fn storing(name: &str, tensors: &BTreeMap<String, Stored>) -> BTreeMap<String, Bytes> {
    let mut files = files(name);
    files.retain(|name, _| !name.starts_with("model"));
    let view = |(dtype, shape, data): &'_ Stored| (*dtype, shape.clone(), data.clone());
    let views = tensors.iter().map(|(name, tensor)| (name, view(tensor))).collect::<Vec<_>>();
    let views = views.iter().map(|(name, (dtype, shape, data))| {
        (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).expect("a tensor"))
    });
    let file = safetensors::serialize(views, None).expect("serializes");
    files.insert("model.safetensors".into(), file.into());
    files
}

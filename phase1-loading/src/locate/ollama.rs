//! Ollama's store: manifests by host, namespace, model and tag, and blobs by digest.

use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::error::{Defect, LoadError};

/// Defaults for a name without a host, namespace or tag.
const HOST: &str = "registry.ollama.ai";
const NAMESPACE: &str = "library";
const TAG: &str = "latest";
/// The media type of the layer that is the model's GGUF file.
const MODEL: &str = "application/vnd.ollama.image.model";

#[derive(Deserialize)]
struct Manifest {
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: String,
}

/// The blob of a model, `[[HOST/]NAMESPACE/]MODEL[:TAG]`. Errors call it `name`.
///
/// # Errors
/// The name is invalid, no store has the model, its manifest is invalid or has no model layer, or the blob is missing.
pub(super) fn blob(name: &Path, model: &str, stores: &[PathBuf]) -> Result<PathBuf, LoadError> {
    let Some(relative) = manifest_path(model) else {
        let found = format!("`{model}`");
        return Err(Defect::new("model", "a name such as ollama:gpt-oss:20b", found).in_file(name));
    };
    let mut manifests = stores.iter().filter_map(|store| {
        let path = store.join("manifests").join(&relative);
        path.is_file().then_some((store, path))
    });
    let Some((store, path)) = manifests.next() else {
        let names: Vec<String> = stores.iter().flat_map(|store| names(store)).collect();
        let remedy = match names.is_empty() {
            true => format!("fetch it first: ollama pull {model}"),
            false => format!("it has {}; to fetch this one: ollama pull {model}", names.join(", ")),
        };
        return Err(LoadError::not_downloaded(name, "Ollama's store", stores, remedy));
    };
    let in_manifest = |defect: Defect| defect.in_file(&path);
    let text = fs::read(&path).map_err(|source| LoadError::Io { path: path.clone(), source })?;
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|error| in_manifest(Defect::new("manifest", "the layers of a model", error.to_string())))?;
    let Some(layer) = manifest.layers.iter().find(|layer| layer.media_type == MODEL) else {
        return Err(in_manifest(Defect::new("manifest", "the layer of a model", "none")));
    };
    let digits =
        layer.digest.strip_prefix("sha256:").filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let Some(digits) = digits else {
        return Err(in_manifest(Defect::new("manifest", "a digest by SHA-256", layer.digest.clone())));
    };
    let blob = store.join("blobs").join(format!("sha256-{digits}"));
    match blob.is_file() {
        true => Ok(blob),
        false => Err(LoadError::Io { path: blob, source: std::io::ErrorKind::NotFound.into() }),
    }
}

/// Relative path of a model's manifest; `None` for an invalid name.
fn manifest_path(model: &str) -> Option<PathBuf> {
    let tag_at = model.rfind(':').filter(|&at| !model[at..].contains('/'));
    let (model, tag) = tag_at.map_or((model, TAG), |at| (&model[..at], &model[at + 1..]));
    let parts: Vec<&str> = model.split('/').collect();
    let path: PathBuf = match parts[..] {
        [model] => [HOST, NAMESPACE, model, tag].iter().collect(),
        [namespace, model] => [HOST, namespace, model, tag].iter().collect(),
        [host, namespace, model] => [host, namespace, model, tag].iter().collect(),
        _ => return None,
    };
    // Four plain components, so that the path stays below the folder of manifests.
    let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    (is_plain && path.components().count() == 4).then_some(path)
}

/// The models of a store, under the names that `ollama run` accepts.
fn names(store: &Path) -> Vec<String> {
    let manifests = store.join("manifests");
    let mut names = Vec::new();
    for host in folders(&manifests) {
        for namespace in folders(&manifests.join(&host)) {
            for model in folders(&manifests.join(&host).join(&namespace)) {
                for tag in folders(&manifests.join(&host).join(&namespace).join(&model)) {
                    names.push(match (host.as_str(), namespace.as_str()) {
                        (HOST, NAMESPACE) => format!("{model}:{tag}"),
                        (HOST, _) => format!("{namespace}/{model}:{tag}"),
                        _ => format!("{host}/{namespace}/{model}:{tag}"),
                    });
                }
            }
        }
    }
    names
}

/// Sorted names of a folder's entries; empty if it cannot be read.
fn folders(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

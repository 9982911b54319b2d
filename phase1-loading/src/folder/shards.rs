//! The safetensors files of a folder, as one collection of tensors.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use super::files::{Files, needed, parse_json};
use crate::error::{Defect, LoadError};
use crate::safetensors_file::{self, Part, Parts, title};

/// Maps the folder's safetensors files: those named by the index, or the only one.
pub(super) fn open(folder: &Path, files: Files) -> Result<Parts, LoadError> {
    const INDEX: &str = "model.safetensors.index.json";
    const ONLY: &str = "model.safetensors";
    let names = match files(INDEX)? {
        Some(index) => {
            let names = parse_json(&index).and_then(|index| indexed_files(&index));
            names.map_err(|defect| defect.in_file(&folder.join(INDEX)))?
        }
        None if files(ONLY)?.is_none() => {
            // Several files without an index are refused: their names do not tell whether any are missing.
            let expected = format!("one, or the index `{INDEX}` of several files");
            return Err(Defect::new(format!("file `{ONLY}`"), expected, "neither").in_file(folder));
        }
        None => BTreeSet::from([ONLY.to_owned()]),
    };
    let mut parts = Parts::new();
    for name in names {
        let path = folder.join(&name);
        let file = needed(folder, files, &name)?;
        let (_, found) = safetensors_file::read(&file).map_err(|defect| defect.in_file(&path))?;
        for (name, part) in found {
            check_shape(&name, &part).map_err(|defect| defect.in_file(&path))?;
            if parts.contains_key(&name) {
                let found = "it in an earlier file too";
                return Err(Defect::new(title(&name), "each tensor in one file", found).in_file(&path));
            }
            parts.insert(name, part);
        }
    }
    Ok(parts)
}

/// The files in `weight_map`, each of which must be in the folder itself.
fn indexed_files(index: &serde_json::Value) -> Result<BTreeSet<String>, Defect> {
    let part = "`weight_map`";
    let map = index.get("weight_map").and_then(serde_json::Value::as_object);
    let map = map.ok_or_else(|| Defect::new(part, "an object from tensors to files", "none"))?;
    map.values()
        .map(|file| match file.as_str() {
            Some(file) if Path::new(file).components().eq([Component::Normal(file.as_ref())]) => Ok(file.to_owned()),
            _ => Err(Defect::new(part, "names of files in the folder", format!("{file}"))),
        })
        .collect()
}

/// Refuses tensors that have no dimension or a dimension of 0.
fn check_shape(name: &str, part: &Part) -> Result<(), Defect> {
    match part.shape.is_empty() || part.shape.contains(&0) {
        false => Ok(()),
        true => {
            let found = format!("shape {:?}", part.shape);
            Err(Defect::new(title(name), "dimensions that are not zero", found))
        }
    }
}

//! Reads golden files.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

/// One golden case: a directory with a model and MLX's dumps of it.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    directory: PathBuf,
}

/// A random checkpoint in one of the published layouts, and MLX's logits for it: see `reference/folders.py`.
#[derive(Clone, Debug)]
pub struct Folder {
    /// `hf`, or the name of one of mlx-lm's conversions.
    pub name: String,
    /// The model folder.
    pub path: PathBuf,
}

impl Folder {
    /// The folders under `goldens/folders`, sorted by name; empty if the directory does not exist.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn all(goldens: &Path) -> Result<Vec<Folder>, GoldenError> {
        let directory = goldens.join("folders");
        if !directory.exists() {
            return Ok(Vec::new());
        }
        let io = |source| GoldenError::Io { path: directory.clone(), source };
        let mut folders = Vec::new();
        for entry in std::fs::read_dir(&directory).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            folders.push(Folder { name, path });
        }
        folders.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(folders)
    }

    /// The folders committed with this source tree, for tests.
    ///
    /// # Panics
    /// If `reference/goldens` is missing, or they cannot be read; without a directory `folders` in it, the list is empty.
    pub fn committed() -> Vec<Folder> {
        Folder::all(&goldens()).expect("goldens are committed")
    }

    /// `tokens`, and MLX's `logits.exact` and `logits.truncated` for them.
    ///
    /// # Errors
    /// If the file is missing or is not a golden.
    pub fn golden(&self) -> Result<Golden, GoldenError> {
        Golden::open(self.path.join("golden.safetensors"))
    }
}

/// Why a golden file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    #[error("{} cannot be read; run from the repository, or name its goldens with --goldens", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: {found}; create the goldens again as reference/README.md describes", path.display())]
    Malformed { path: PathBuf, found: String },
}

impl Case {
    /// The cases under `goldens`, sorted by name.
    ///
    /// # Errors
    /// If the directory cannot be read or holds no case.
    pub fn all(goldens: &Path) -> Result<Vec<Case>, GoldenError> {
        let io = |source| GoldenError::Io { path: goldens.to_owned(), source };
        let mut cases = Vec::new();
        for entry in std::fs::read_dir(goldens).map_err(io)? {
            let directory = entry.map_err(io)?.path();
            if let Some(name) = directory.file_name().filter(|_| directory.join("model.gguf").is_file()) {
                let name = name.to_string_lossy().into_owned();
                cases.push(Case { name, directory });
            }
        }
        if cases.is_empty() {
            return Err(GoldenError::Malformed { path: goldens.to_owned(), found: "no golden case here".into() });
        }
        cases.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(cases)
    }

    /// The cases committed with the source tree in which a test runs.
    ///
    /// # Panics
    /// If they are missing.
    pub fn committed() -> Vec<Case> {
        Case::all(&goldens()).expect("goldens are committed")
    }

    pub fn model(&self) -> PathBuf {
        self.directory.join("model.gguf")
    }

    /// MLX's results with YaRN's ramp `exact` or `truncated`.
    ///
    /// # Errors
    /// If the file is missing or is not a golden.
    pub fn golden(&self, ramp: &str) -> Result<Golden, GoldenError> {
        Golden::open(self.directory.join(format!("{ramp}.safetensors")))
    }

    /// Samples and sums of every decoded weight.
    ///
    /// # Errors
    /// As [`Case::golden`].
    pub fn weights(&self) -> Result<Golden, GoldenError> {
        Golden::open(self.directory.join("weights.safetensors"))
    }
}

/// A safetensors file of expected values.
pub struct Golden {
    path: PathBuf,
    map: Mmap,
    metadata: HashMap<String, String>,
}

impl Golden {
    /// A golden file outside of any case, for tests.
    ///
    /// # Panics
    /// If it is missing or is not a golden.
    pub fn committed(file: &str) -> Golden {
        Golden::open(goldens().join(file)).expect("goldens are committed")
    }

    fn open(path: PathBuf) -> Result<Golden, GoldenError> {
        let io = |source| GoldenError::Io { path: path.clone(), source };
        let file = File::open(&path).map_err(io)?;
        // SAFETY: the mapping is read-only, and goldens are not rewritten while tests read them.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let malformed = |error: safetensors::SafeTensorError| GoldenError::Malformed {
            path: path.clone(),
            found: error.to_string(),
        };
        let (_, header) = SafeTensors::read_metadata(&map).map_err(malformed)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        SafeTensors::deserialize(&map).map_err(malformed)?;
        Ok(Golden { path, map, metadata })
    }

    fn malformed(&self, found: String) -> GoldenError {
        GoldenError::Malformed { path: self.path.clone(), found }
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.map).expect("checked when opened")
    }

    /// The names of its tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.tensors().names().into_iter().map(String::from).collect();
        names.sort();
        names
    }

    fn values<const N: usize, T>(
        &self,
        name: &str,
        dtype: Dtype,
        read: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, GoldenError> {
        let tensors = self.tensors();
        let tensor = tensors.tensor(name).map_err(|error| self.malformed(error.to_string()))?;
        if tensor.dtype() != dtype {
            return Err(self.malformed(format!("tensor `{name}` is {:?}, not {dtype:?}", tensor.dtype())));
        }
        Ok(tensor.data().as_chunks::<N>().0.iter().map(|&bytes| read(bytes)).collect())
    }

    /// The values of an f32 tensor in row-major order.
    ///
    /// # Errors
    /// If no tensor of that name has that type; the other readers fail in the same way.
    pub fn f32s(&self, name: &str) -> Result<Vec<f32>, GoldenError> {
        self.values(name, Dtype::F32, f32::from_le_bytes)
    }

    /// The values of an f64 tensor.
    pub fn f64s(&self, name: &str) -> Result<Vec<f64>, GoldenError> {
        self.values(name, Dtype::F64, f64::from_le_bytes)
    }

    /// The values of an i32 tensor, none of which may be negative; this is not checked.
    pub fn u32s(&self, name: &str) -> Result<Vec<u32>, GoldenError> {
        self.values(name, Dtype::I32, |bytes| i32::from_le_bytes(bytes) as u32)
    }

    /// The bytes of a u8 tensor.
    pub fn u8s(&self, name: &str) -> Result<Vec<u8>, GoldenError> {
        self.values(name, Dtype::U8, |[byte]| byte)
    }

    /// A number from the file's metadata.
    pub fn number(&self, key: &str) -> Result<usize, GoldenError> {
        (self.metadata.get(key).and_then(|text| text.parse().ok()))
            .ok_or_else(|| self.malformed(format!("no number `{key}` in the metadata")))
    }
}

/// The committed goldens, located at run time, because several checkouts may share compiled files.
fn goldens() -> PathBuf {
    let here = std::env::current_dir().expect("a test runs in its crate's folder");
    let mut folders = here.ancestors().map(|folder| folder.join("reference/goldens"));
    folders.find(|goldens| goldens.is_dir()).expect("a folder above has reference/goldens")
}

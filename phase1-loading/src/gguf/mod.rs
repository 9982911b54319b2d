//! GGUF version 3: a header of typed metadata and tensor descriptions, then aligned tensor data.
//!
//! Opening maps the file and reads only the header. Strings, arrays and tensors are views of the file. Every length is checked against the
//! size of the file, and no allocation takes its size from an unchecked number of the header.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod file;
mod reader;
mod split;
mod value;
mod writer;

pub use file::Gguf;
pub(crate) use reader::ollama_only_type;
pub use split::open;
pub use value::{Array, Value};
pub use writer::{MetadataValue, TensorPlan, write_header};

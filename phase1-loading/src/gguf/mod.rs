//! GGUF version 3: a header of typed metadata and tensor descriptions, then aligned tensor data.
//!
//! Opening maps the file and reads the header only. Strings, arrays and tensors stay where they lie in the file;
//! nothing is allocated because a header says so, and every length is checked against the bytes that are there.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod file;
mod reader;
mod split;
mod value;
mod writer;

pub use file::Gguf;
pub(crate) use reader::pairs_elsewhere;
pub use split::open;
pub use value::{Array, Value};
pub use writer::{MetadataValue, TensorPlan, write_header};

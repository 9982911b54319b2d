//! The model inside this program.

/// As a person names it.
pub const EMBEDDED: &str = "embedded";
/// What stands for its path.
pub const EMBEDDED_PATH: &str = "embedded model";
/// A GGUF file.
pub static EMBEDDED_MODEL: &[u8] = include_bytes!("../assets/gptoss-tiny.gguf");

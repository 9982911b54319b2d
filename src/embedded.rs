//! The model inside this program.

/// Its name on the command line.
pub const EMBEDDED: &str = "embedded";
/// Its name for users and for clients of the server.
pub const EMBEDDED_NAME: &str = "gptoss-tiny";
/// The text that stands for its path in messages and in `Checkpoint::path`.
pub const EMBEDDED_PATH: &str = "embedded model";
/// The contents of a GGUF file.
pub static EMBEDDED_MODEL: &[u8] = include_bytes!("../assets/gptoss-tiny.gguf");

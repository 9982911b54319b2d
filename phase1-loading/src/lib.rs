//! Phase 1: loads named, typed tensors, a configuration and a tokenizer from a model file or folder.
//!
//! [`Checkpoint::open`] maps a GGUF file or a folder of safetensors files and checks the headers against what a GPT-OSS model needs. This
//! crate contains nothing about devices, arithmetic or Burn: a [`HostTensor`] is packed bytes in the mapped file, and [`Format`] describes
//! how to read them.

mod checkpoint;
mod codec;
mod config;
mod convert;
mod cursor;
mod dialect;
mod error;
mod folder;
mod gguf;
mod locate;
mod mapping;
mod mistaken;
mod open;
mod read_ahead;
mod safetensors_file;
mod saved;
mod soundness;
mod specs;
mod stop_strings;
mod tensor;
mod tokenizer;
mod translation;
mod verify;

pub use checkpoint::Checkpoint;
pub use codec::{Bits, DenseFormat, Format, Group, repack_mxfp4_from_hf};
pub use config::{AttentionKind, GptOssConfig, RopeConfig, YarnRamp, constants};
pub use convert::convert;
pub use error::LoadError;
pub use formats::mxfp4::{E2M1, e8m0};
pub use locate::{is_foreign_name, locate};
pub use mapping::write_whole;
pub use read_ahead::{ReadAhead, map_pages};
pub use saved::{SavedSession, SessionHeader};
pub use soundness::{check_scales, check_values};
pub use stop_strings::StopStrings;
pub use tensor::HostTensor;
pub use tokenizer::{TextStream, Tokenizer};
pub use verify::{ModelComparison, TensorComparison, Verdict, verify};

/// The parts used to write a GGUF file, for programs that create models.
pub mod write {
    pub use crate::gguf::{MetadataValue, TensorPlan, write_header};
    pub use crate::specs::{TensorRole, TensorSpec, tensor_specs};
    pub use crate::tokenizer::{CONTROL, NORMAL, SpecialTokens, VocabularyLists, byte_characters};
}

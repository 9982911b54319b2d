//! Synthetic models: GPT-OSS files of any size with random weights, for tests and `gptoss make-model`.
//!
//! They have the real architecture and metadata and, except with [`VocabularyKind::Small`], the real vocabulary, so that every loader
//! accepts them and speed measured on them is realistic. The text that they generate is noise.

mod folder;
mod vocabulary;
mod weights;

use std::io;
use std::path::Path;

use phase1_loading::write::{TensorPlan, TensorRole, TensorSpec, tensor_specs, write_header};
use phase1_loading::{AttentionKind, DenseFormat, Format, GptOssConfig, RopeConfig, YarnRamp, write_whole};
use serde::{Deserialize, Serialize};

pub use vocabulary::{O200K_SPECIAL, VocabularyKind, o200k_harmony};

/// Dimensions of a synthetic model, and the fields of its JSON description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyntheticModel {
    pub layers: usize,
    pub hidden: usize,
    pub expert_width: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub experts: usize,
    pub experts_per_token: usize,
    pub sliding_window: usize,
    pub vocabulary: VocabularyKind,
    /// Storage format of every matrix except experts and the router.
    #[serde(default)]
    pub rest: DenseFormat,
}

impl SyntheticModel {
    /// The names of the presets.
    pub const PRESETS: [&str; 4] = ["nano", "tiny", "20b", "120b"];

    /// `nano` is small enough for tests, `tiny` is the smallest with the real vocabulary, `20b` and `120b` have the shapes of gpt-oss-20b
    /// and gpt-oss-120b.
    pub fn preset(name: &str) -> Option<SyntheticModel> {
        let nano = SyntheticModel {
            layers: 4,
            hidden: 64,
            expert_width: 64,
            heads: 4,
            kv_heads: 2,
            head_dim: 32,
            experts: 8,
            experts_per_token: 4,
            sliding_window: 32,
            vocabulary: VocabularyKind::Small,
            rest: DenseFormat::Q8_0,
        };
        let of_20b = SyntheticModel {
            layers: 24,
            hidden: 2880,
            expert_width: 2880,
            heads: 64,
            kv_heads: 8,
            head_dim: 64,
            experts: 32,
            experts_per_token: 4,
            sliding_window: 128,
            vocabulary: VocabularyKind::O200k,
            rest: DenseFormat::Q8_0,
        };
        match name {
            "nano" => Some(nano),
            "tiny" => Some(SyntheticModel {
                hidden: 256,
                expert_width: 256,
                heads: 8,
                head_dim: 64,
                sliding_window: 128,
                vocabulary: VocabularyKind::O200k,
                // With F32, an engine that rounds activations for quantized products differs from the others only in the experts.
                rest: DenseFormat::F32,
                ..nano
            }),
            "20b" => Some(of_20b),
            "120b" => Some(SyntheticModel { layers: 36, experts: 128, ..of_20b }),
            _ => None,
        }
    }

    /// Checks that the dimensions form a valid model.
    ///
    /// # Errors
    /// A sentence that names the wrong dimension.
    pub fn validate(&self) -> Result<(), String> {
        let sizes = [
            ("layers", self.layers, 1, 1024),
            ("hidden", self.hidden, 32, 1 << 16),
            ("expert_width", self.expert_width, 32, 1 << 16),
            ("heads", self.heads, 1, 1024),
            ("kv_heads", self.kv_heads, 1, self.heads),
            ("head_dim", self.head_dim, 2, 1024),
            ("experts", self.experts, 1, 1024),
            ("experts_per_token", self.experts_per_token, 1, self.experts),
            ("sliding_window", self.sliding_window, 1, 1 << 20),
        ];
        for (name, value, least, most) in sizes {
            if !(least..=most).contains(&value) {
                return Err(format!("`{name}` must be from {least} to {most}, not {value}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!("`kv_heads` ({}) must divide `heads` ({})", self.kv_heads, self.heads));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("`head_dim` must be even, not {}", self.head_dim));
        }
        let block = Format::Mxfp4.block_len();
        for (name, value) in [
            ("hidden", self.hidden),
            ("expert_width", self.expert_width),
            ("heads × head_dim", self.heads * self.head_dim),
        ] {
            if value % block != 0 {
                return Err(format!("`{name}` must be a multiple of {block}, not {value}"));
            }
        }
        Ok(())
    }

    /// The configuration, and the tensors in file order. Writes nothing.
    pub fn tensors(&self) -> (GptOssConfig, Vec<TensorPlan>) {
        let config = self.config(self.vocabulary.tokens());
        let plans = self.plans(&config);
        (config, plans)
    }

    fn plans(&self, config: &GptOssConfig) -> Vec<TensorPlan> {
        let plan = |spec: TensorSpec| TensorPlan { format: self.format(spec.role), name: spec.name, shape: spec.shape };
        tensor_specs(config).into_iter().map(plan).collect()
    }

    fn config(&self, vocab: usize) -> GptOssConfig {
        GptOssConfig {
            hidden: self.hidden,
            expert_width: self.expert_width,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            experts: self.experts,
            experts_per_token: self.experts_per_token,
            vocab,
            context_length: 131_072,
            rms_eps: 1e-5,
            sliding_window: self.sliding_window,
            attention: AttentionKind::alternating(self.layers),
            rope: RopeConfig { theta: 150_000.0, factor: 32.0, original_context: 4096, ramp: YarnRamp::Exact },
        }
    }

    fn format(&self, role: TensorRole) -> Format {
        match role {
            TensorRole::Experts => Format::Mxfp4,
            TensorRole::Matrix => self.rest.format(),
            TensorRole::Router | TensorRole::Vector => Format::F32,
        }
    }

    /// Writes the model to `path`, under a temporary name until it is complete. The same `seed` gives the same bytes
    /// on every machine. `progress` is called with (bytes written, total bytes) after every piece.
    ///
    /// # Errors
    /// Invalid dimensions (as [`io::ErrorKind::InvalidInput`]), or a file that cannot be written.
    pub fn write(&self, path: &Path, seed: u64, progress: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        self.validate().map_err(|sentence| io::Error::new(io::ErrorKind::InvalidInput, sentence))?;
        let vocabulary = self.vocabulary.build();
        let config = self.config(vocabulary.tokens.len());
        let plans = self.plans(&config);
        let mut metadata = config.to_gguf("synthetic GPT-OSS, random weights");
        metadata.extend(vocabulary.into_gguf());

        let total = plans.iter().map(TensorPlan::padded_bytes).sum();
        let mut written = 0;
        write_whole(path, |out| {
            write_header(out, &metadata, &plans)?;
            for (index, plan) in plans.iter().enumerate() {
                weights::write_random(out, plan, (seed, index as u64), plan.padding(), &mut |bytes| {
                    written += bytes;
                    progress(written, total);
                })?;
            }
            Ok(())
        })
    }
}

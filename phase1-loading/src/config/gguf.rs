//! Reads and writes the configuration as GGUF metadata.

use super::metadata::Metadata;
use super::{AttentionKind, GptOssConfig, Names, gguf_fixed};
use crate::dialect::Dialect;
use crate::error::Defect;
use crate::gguf::{Gguf, MetadataValue};

const NAMES: Names = Names {
    kv_heads: "attention.head_count_kv",
    head_dim: "attention.key_length",
    experts_per_token: "expert_used_count",
};

impl GptOssConfig {
    /// Reads the configuration; `vocab` comes from the embedding's shape.
    pub(crate) fn from_gguf(gguf: &Gguf, dialect: Dialect) -> Result<GptOssConfig, Defect> {
        let metadata = Metadata::new(gguf, dialect);
        let layers = metadata.size("block_count")?;
        if layers > gguf.tensors.len() {
            let expected = format!("at most the file's {} tensors", gguf.tensors.len());
            return Err(metadata.defect("block_count", expected, layers.to_string()));
        }
        // Ollama has one key for the width of dense and expert feed-forward layers.
        let expert_width = match dialect {
            Dialect::LlamaCpp => "expert_feed_forward_length",
            Dialect::Ollama => "feed_forward_length",
        };
        let config = GptOssConfig {
            attention: metadata.attention_kinds(layers)?,
            vocab: metadata.vocab()?,
            rope: metadata.rope()?,
            hidden: metadata.size("embedding_length")?,
            expert_width: metadata.size(expert_width)?,
            heads: metadata.size("attention.head_count")?,
            kv_heads: metadata.size(NAMES.kv_heads)?,
            head_dim: metadata.size(NAMES.head_dim)?,
            experts: metadata.size("expert_count")?,
            experts_per_token: metadata.size(NAMES.experts_per_token)?,
            context_length: metadata.size("context_length")?,
            rms_eps: metadata.float("attention.layer_norm_rms_epsilon")?,
            sliding_window: metadata.size("attention.sliding_window")?,
        };
        config.check(&NAMES, |name, expected, found| metadata.defect(name, expected, found))?;
        metadata.size("attention.value_length")?;
        gguf_fixed::check(&metadata, &config)?;
        Ok(config)
    }
}

impl GptOssConfig {
    /// The configuration as GGUF metadata, with the further keys that other programs expect.
    pub fn to_gguf(&self, name: &str) -> Vec<(String, MetadataValue)> {
        use MetadataValue::{F32, Text, U32};
        const ARCHITECTURE: &str = Dialect::LlamaCpp.architecture();
        let size = |value: usize| U32(value as u32);
        let general = [
            ("general.architecture".into(), Text(ARCHITECTURE.into())),
            ("general.name".into(), Text(name.into())),
            ("general.file_type".into(), U32(38)),
            ("general.quantization_version".into(), U32(2)),
        ];
        let model = [
            ("block_count", size(self.layers())),
            ("context_length", size(self.context_length)),
            ("embedding_length", size(self.hidden)),
            ("feed_forward_length", size(self.expert_width)),
            ("expert_feed_forward_length", size(self.expert_width)),
            ("expert_count", size(self.experts)),
            ("expert_used_count", size(self.experts_per_token)),
            ("attention.head_count", size(self.heads)),
            ("attention.head_count_kv", size(self.kv_heads)),
            ("attention.key_length", size(self.head_dim)),
            ("attention.value_length", size(self.head_dim)),
            ("attention.sliding_window", size(self.sliding_window)),
            ("attention.layer_norm_rms_epsilon", F32(self.rms_eps)),
            ("rope.freq_base", F32(self.rope.theta)),
            ("rope.scaling.type", Text("yarn".into())),
            ("rope.scaling.factor", F32(self.rope.factor)),
            ("rope.scaling.original_context_length", size(self.rope.original_context)),
        ];
        let model = model.map(|(key, value)| (format!("{ARCHITECTURE}.{key}"), value));
        let slides: Vec<bool> = self.attention.iter().map(|&kind| kind == AttentionKind::Sliding).collect();
        // Readers assume the alternating pattern by default, so it is not written.
        let pattern = (self.attention != AttentionKind::alternating(self.layers()))
            .then(|| (format!("{ARCHITECTURE}.attention.sliding_window_pattern"), MetadataValue::Bools(slides)));
        general.into_iter().chain(model).chain(pattern).collect()
    }
}

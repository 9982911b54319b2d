//! Calculates the size of a sequence's cache.

use formats::CacheFormat;
use phase1_loading::{AttentionKind, GptOssConfig};

/// Slots of a new buffer. The number doubles when they are full; in a ring it is limited to the window.
const FIRST_CAPACITY: usize = 256;

/// The parameters that determine the size of a sequence's cache. A slot holds one position in one layer: keys and values of all heads.
#[derive(Clone, Debug)]
pub struct CacheLayout {
    pub(crate) kind: CacheFormat,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Positions that a sliding layer keeps.
    pub(crate) window: usize,
    /// One entry per layer.
    pub(crate) attention: Vec<AttentionKind>,
}

impl CacheLayout {
    pub fn new(config: &GptOssConfig, kind: CacheFormat) -> CacheLayout {
        CacheLayout {
            kind,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            window: config.sliding_window,
            attention: config.attention.clone(),
        }
    }

    /// Slots that a sequence of `length` tokens occupies in a layer.
    pub fn occupied(&self, attention: AttentionKind, length: usize) -> usize {
        match attention {
            AttentionKind::Full => length,
            AttentionKind::Sliding => length.min(self.window),
        }
    }

    /// Allocated slots of a layer's buffers after `length` tokens of a sequence were cached.
    pub fn reserved(&self, attention: AttentionKind, length: usize) -> usize {
        self.occupied(attention, FIRST_CAPACITY.max(length.next_power_of_two()))
    }

    /// Bytes of the keys in `slots` slots of one layer; the values take the same.
    pub fn key_bytes(&self, slots: usize) -> usize {
        slots * self.kv_heads * self.kind.row_bytes(self.head_dim)
    }

    /// Bytes that a sequence of `length` tokens occupies in all layers.
    pub fn occupied_bytes(&self, length: usize) -> u64 {
        self.attention.iter().map(|&attention| self.slot_bytes(self.occupied(attention, length))).sum()
    }

    /// Allocated bytes of all layers of one kind of attention after `length` tokens of a sequence were cached.
    pub fn reserved_bytes(&self, attention: AttentionKind, length: usize) -> u64 {
        let layers = self.attention.iter().filter(|&&of| of == attention).count() as u64;
        layers * self.slot_bytes(self.reserved(attention, length))
    }

    /// Bytes of keys and values in `slots` slots of one layer.
    fn slot_bytes(&self, slots: usize) -> u64 {
        2 * self.key_bytes(slots) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_layers_grow_and_rings_stop_at_their_window() {
        use AttentionKind::{Full, Sliding};
        let layout = |window| CacheLayout {
            kind: CacheFormat::F16,
            kv_heads: 2,
            head_dim: 32,
            window,
            attention: vec![Sliding, Full, Sliding],
        };
        let (narrow, wide) = (layout(128), layout(300));
        let slots = |length| [&narrow, &wide].map(|of| [of.occupied(Sliding, length), of.reserved(Sliding, length)]);
        assert_eq!(slots(0), [[0, 128], [0, 256]]);
        assert_eq!(slots(100), [[100, 128], [100, 256]]);
        assert_eq!(slots(257), [[128, 128], [257, 300]]);
        assert_eq!([0, 256, 257, 700].map(|length| narrow.reserved(Full, length)), [256, 256, 512, 1024]);
        let slot = 2 * 2 * 32 * 2;
        assert_eq!(narrow.occupied_bytes(700), (700 + 2 * 128) * slot);
        assert_eq!(narrow.reserved_bytes(Full, 700), 1024 * slot);
        assert_eq!(narrow.reserved_bytes(Sliding, 700), 2 * 128 * slot);
    }
}

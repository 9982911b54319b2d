//! Keys and values of one sequence, in blocks of 64 positions.
//!
//! A full layer's blocks only grow in number. A sliding layer is the same with its oldest blocks taken away once no query will
//! see them again; they serve other sequences, so that decoding allocates once in 64 tokens at most. A snapshot is the blocks as
//! they lie.

use std::collections::VecDeque;

use bytes::Bytes;
use cpu_kernels::{CacheFormat, KeyBlock, POSITIONS};
use phase1_loading::{AttentionKind, GptOssConfig};

/// A block's bytes: `[kv_heads]` times [`KeyBlock::bytes`].
type Block = Box<[u8]>;

/// How every cache of an engine is laid out, and blocks that nobody uses.
pub(super) struct Blocks {
    pub format: CacheFormat,
    pub head_dim: usize,
    kv_heads: usize,
    window: usize,
    spare: Vec<Block>,
}

pub(super) struct SequenceCache {
    pub length: usize,
    pub layers: Vec<LayerCache>,
}

pub(super) struct LayerCache {
    pub attention: AttentionKind,
    /// Blocks before the first of `blocks` that are gone.
    gone: usize,
    blocks: VecDeque<Block>,
}

impl Blocks {
    pub fn new(config: &GptOssConfig, format: CacheFormat) -> Blocks {
        let GptOssConfig { head_dim, kv_heads, sliding_window: window, .. } = *config;
        Blocks { format, head_dim, kv_heads, window, spare: Vec::new() }
    }

    fn head_bytes(&self) -> usize {
        KeyBlock::bytes(self.format, self.head_dim)
    }

    /// Positions that a query of such a layer sees.
    pub fn reach(&self, attention: AttentionKind) -> usize {
        match attention {
            AttentionKind::Sliding => self.window,
            AttentionKind::Full => usize::MAX,
        }
    }

    /// Makes room for the positions up to `length` in every layer.
    pub fn extend(&mut self, cache: &mut SequenceCache, length: usize) {
        let bytes = self.kv_heads * self.head_bytes();
        for layer in &mut cache.layers {
            while (layer.gone + layer.blocks.len()) * POSITIONS < length {
                let mut block = self.spare.pop().unwrap_or_else(|| vec![0; bytes].into());
                // A snapshot shows nothing of the sequence that had it before.
                block.fill(0);
                layer.blocks.push_back(block);
            }
        }
    }

    /// Counts the new positions, and takes back the blocks before the last positions within reach.
    pub fn advance(&mut self, cache: &mut SequenceCache, new: usize) {
        cache.length += new;
        for layer in &mut cache.layers {
            let gone = self.gone(layer.attention, cache.length);
            while layer.gone < gone {
                self.spare.extend(layer.blocks.pop_front());
                layer.gone += 1;
            }
        }
    }

    /// Blocks that such a layer has given back at `length` positions.
    fn gone(&self, attention: AttentionKind, length: usize) -> usize {
        length.saturating_sub(self.reach(attention)) / POSITIONS
    }

    /// The blocks of every layer, one after another.
    pub fn save(&self, cache: &SequenceCache) -> Vec<Bytes> {
        cache.layers.iter().map(|layer| layer.blocks.iter().flat_map(|block| block.iter().copied()).collect()).collect()
    }

    /// Bytes of each item that [`Blocks::save`] gives at `length` positions.
    pub fn saved_bytes(&self, layers: &[AttentionKind], length: usize) -> Vec<usize> {
        let blocks = |&attention| length.div_ceil(POSITIONS) - self.gone(attention, length);
        layers.iter().map(|attention| blocks(attention) * self.kv_heads * self.head_bytes()).collect()
    }

    /// What [`Blocks::save`] gave for `length` positions as a cache again. The lengths must have been checked.
    pub fn restore(&mut self, layers: &[AttentionKind], length: usize, items: &[Bytes]) -> SequenceCache {
        let bytes = self.kv_heads * self.head_bytes();
        let layer = |(&attention, item): (&AttentionKind, &Bytes)| LayerCache {
            attention,
            gone: self.gone(attention, length),
            blocks: item.chunks_exact(bytes).map(Block::from).collect(),
        };
        SequenceCache { length, layers: layers.iter().zip(items).map(layer).collect() }
    }

    pub fn release(&mut self, cache: SequenceCache) {
        self.spare.extend(cache.layers.into_iter().flat_map(|layer| layer.blocks));
        // What one long sequence needed is not kept for ever.
        self.spare.truncate(64);
    }
}

impl SequenceCache {
    pub fn new(config: &GptOssConfig) -> SequenceCache {
        let layer = |&attention| LayerCache { attention, gone: 0, blocks: VecDeque::new() };
        SequenceCache { length: 0, layers: config.attention.iter().map(layer).collect() }
    }
}

impl LayerCache {
    /// The position at which the first block begins.
    pub fn start(&self) -> usize {
        self.gone * POSITIONS
    }

    pub fn count(&self) -> usize {
        self.blocks.len()
    }

    /// Head `head`'s part of block `number`, counted from the first that is left.
    pub fn block(&self, blocks: &Blocks, number: usize, head: usize) -> KeyBlock<'_> {
        let bytes = blocks.head_bytes();
        let data = &self.blocks[number][head * bytes..(head + 1) * bytes];
        KeyBlock { format: blocks.format, head_dim: blocks.head_dim, data }
    }

    /// The blocks' starts, for tasks that write different heads.
    pub fn pointers(&mut self, into: &mut Vec<*mut u8>) {
        into.extend(self.blocks.iter_mut().map(|block| block.as_mut_ptr()));
    }

    /// What is stored and visible to a next query, oldest first: positions, and keys and values `[kv_heads, positions, head_dim]`.
    pub fn contents(&self, blocks: &Blocks, length: usize) -> (Vec<usize>, Vec<f32>, Vec<f32>) {
        let oldest = length.saturating_sub(blocks.reach(self.attention));
        let positions: Vec<usize> = (oldest..length).collect();
        let dim = blocks.head_dim;
        let mut keys = vec![0.0; blocks.kv_heads * positions.len() * dim];
        let mut values = keys.clone();
        for head in 0..blocks.kv_heads {
            for (i, position) in positions.iter().enumerate() {
                let at = (head * positions.len() + i) * dim;
                let block = self.block(blocks, position / POSITIONS - self.gone, head);
                block.read(position % POSITIONS, &mut keys[at..at + dim], &mut values[at..at + dim]);
            }
        }
        (positions, keys, values)
    }
}

#[cfg(test)]
mod tests {
    use phase3_kvcache::block;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        /// The kernels' blocks of q8_0 are phase 3's, of every size that a scale reaches and some that none does.
        #[test]
        fn q8_0_blocks_are_phase_3s(
            shares in prop::collection::vec(prop_oneof![9 => -1.0f32..1.0, 1 => Just(0.0), 1 => Just(f32::NAN)], 4 * block::BLOCK),
            sizes in prop::array::uniform4(-45i32..128),
            slot in 0..POSITIONS,
        ) {
            let sized = shares.iter().enumerate().map(|(i, share)| share * 2f32.powi(sizes[i / block::BLOCK]));
            let values: Vec<f32> = sized.collect();
            let head_dim = 2 * block::BLOCK;
            let (key, value) = values.split_at(head_dim);
            let mut data = vec![0xff; KeyBlock::bytes(CacheFormat::Q8_0, head_dim)];
            KeyBlock::write(&mut data, CacheFormat::Q8_0, slot, key, value);
            let (keys, stored_values) = data.split_at(data.len() / 2);
            let mut found: Vec<i8> = keys.iter().skip(slot).step_by(POSITIONS).map(|&code| code as i8).collect();
            found.extend(stored_values[slot * head_dim..][..head_dim].iter().map(|&code| code as i8));
            let expected: Vec<i8> = values.as_chunks().0.iter().flat_map(block::encode).collect();
            prop_assert_eq!(&found, &expected);
            let mut read = vec![f32::NAN; 2 * head_dim];
            let (key, value) = read.split_at_mut(head_dim);
            KeyBlock { format: CacheFormat::Q8_0, head_dim, data: &data }.read(slot, key, value);
            let expected: Vec<f32> = expected.as_chunks().0.iter().flat_map(block::decode).collect();
            prop_assert_eq!(read, expected);
        }
    }
}

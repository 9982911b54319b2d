//! Packing on the CPU.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::TensorData;
use half::f16;

use super::{CachePacking, LARGEST};
use crate::cache_type::{BLOCK, CacheType};

impl CachePacking for Flex {
    fn pack_rows(x: FlexTensor, kind: CacheType) -> FlexTensor {
        let x = x.to_contiguous();
        let [heads, n, dim] = x.layout().shape().dims();
        let row_words = kind.row_bytes(dim) / 4;
        let mut words = vec![0u32; heads * n * row_words];
        for (row, words) in x.storage::<f32>().chunks_exact(dim).zip(words.chunks_exact_mut(row_words)) {
            match kind {
                CacheType::F32 => unreachable!("f32 is not packed"),
                CacheType::F16 => {
                    for (pair, word) in row.as_chunks::<2>().0.iter().zip(words) {
                        *word = two(pair.map(half));
                    }
                }
                CacheType::Q8_0 => pack_q8_0(row, words),
            }
        }
        FlexTensor::from_data(TensorData::new(words, [heads, n, row_words]))
    }

    fn unpack_rows(words: FlexTensor, kind: CacheType, head_dim: usize) -> FlexTensor {
        let words = words.to_contiguous();
        let [heads, n, row_words] = words.layout().shape().dims();
        let mut values = vec![0.0f32; heads * n * head_dim];
        for (words, row) in words.storage::<u32>().chunks_exact(row_words).zip(values.chunks_exact_mut(head_dim)) {
            match kind {
                CacheType::F32 => unreachable!("f32 is not packed"),
                CacheType::F16 => {
                    for (pair, &word) in row.as_chunks_mut::<2>().0.iter_mut().zip(words) {
                        *pair = halves(word);
                    }
                }
                CacheType::Q8_0 => unpack_q8_0(words, row),
            }
        }
        FlexTensor::from_data(TensorData::new(values, [heads, n, head_dim]))
    }
}

fn half(value: f32) -> f16 {
    f16::from_f32(value.clamp(-LARGEST, LARGEST))
}

fn two([low, high]: [f16; 2]) -> u32 {
    u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16
}

fn halves(word: u32) -> [f32; 2] {
    [f16::from_bits(word as u16).to_f32(), f16::from_bits((word >> 16) as u16).to_f32()]
}

fn pack_q8_0(row: &[f32], words: &mut [u32]) {
    let (codes, scales) = words.split_at_mut(row.len() / 4);
    for (index, (block, codes)) in row.chunks_exact(BLOCK).zip(codes.chunks_exact_mut(BLOCK / 4)).enumerate() {
        let largest = block.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        let scale = half(largest / 127.0);
        let inverse = if scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
        let code = |value: f32| ((value * inverse).clamp(-127.0, 127.0) + 128.5).floor() as u32;
        for (word, four) in codes.iter_mut().zip(block.as_chunks::<4>().0) {
            *word = four.iter().rev().fold(0, |word, &value| word << 8 | code(value));
        }
        scales[index / 2] |= u32::from(scale.to_bits()) << (index % 2 * 16);
    }
}

fn unpack_q8_0(words: &[u32], row: &mut [f32]) {
    let (codes, scales) = words.split_at(row.len() / 4);
    for (index, (block, codes)) in row.chunks_exact_mut(BLOCK).zip(codes.chunks_exact(BLOCK / 4)).enumerate() {
        let scale = halves(scales[index / 2])[index % 2];
        for (four, word) in block.as_chunks_mut::<4>().0.iter_mut().zip(codes) {
            *four = word.to_le_bytes().map(|code| scale * (f32::from(code) - 128.0));
        }
    }
}

//! Packs and unpacks the rows of cached keys and values on the CPU.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::TensorData;
use formats::cache_block::{decode, encode};
use formats::{BLOCK, CacheFormat};
use half::f16;

use super::{CachePacking, LARGEST};

impl CachePacking for Flex {
    fn pack_rows(x: FlexTensor, kind: CacheFormat) -> FlexTensor {
        let x = x.to_contiguous();
        let [heads, n, dim] = x.layout().shape().dims();
        let row_words = kind.row_bytes(dim) / 4;
        let mut words = vec![0u32; heads * n * row_words];
        for (row, words) in x.storage::<f32>().chunks_exact(dim).zip(words.chunks_exact_mut(row_words)) {
            match kind {
                CacheFormat::F32 => unreachable!("f32 is not packed"),
                CacheFormat::F16 => {
                    for (pair, word) in row.as_chunks::<2>().0.iter().zip(words) {
                        *word = two(pair.map(half));
                    }
                }
                CacheFormat::Q8_0 => pack_q8_0(row, words),
            }
        }
        FlexTensor::from_data(TensorData::new(words, [heads, n, row_words]))
    }

    fn unpack_rows(words: FlexTensor, kind: CacheFormat, head_dim: usize) -> FlexTensor {
        let words = words.to_contiguous();
        let [heads, n, row_words] = words.layout().shape().dims();
        let mut values = vec![0.0f32; heads * n * head_dim];
        for (words, row) in words.storage::<u32>().chunks_exact(row_words).zip(values.chunks_exact_mut(head_dim)) {
            match kind {
                CacheFormat::F32 => unreachable!("f32 is not packed"),
                CacheFormat::F16 => {
                    for (pair, &word) in row.as_chunks_mut::<2>().0.iter_mut().zip(words) {
                        *pair = halves(word);
                    }
                }
                CacheFormat::Q8_0 => unpack_q8_0(words, row),
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
    for (block, words) in row.as_chunks().0.iter().zip(words.as_chunks_mut::<{ BLOCK / 4 }>().0) {
        let codes = encode(block).map(|code| code as u8);
        *words = std::array::from_fn(|word| u32::from_le_bytes(codes.as_chunks().0[word]));
    }
}

fn unpack_q8_0(words: &[u32], row: &mut [f32]) {
    for (block, words) in row.as_chunks_mut().0.iter_mut().zip(words.as_chunks::<{ BLOCK / 4 }>().0) {
        *block = decode(&std::array::from_fn(|i| words[i / 4].to_le_bytes()[i % 4] as i8));
    }
}

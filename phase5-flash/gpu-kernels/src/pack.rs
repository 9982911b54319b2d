//! Packs the codes and scales of a row in the layout of a matrix on the device.

use formats::mxfp4::{BLOCK_BYTES, E2M1_MAX, e8m0};
use formats::{BLOCK, Storage};
use half::{bf16, f16};

/// Packs one row. Overwrites all of `codes`. The words of `scales` belong to a group of four rows, of which this is row `row`; the bits of
/// this row must be zero before. Returns an upper bound of the row's magnitudes, which is infinite if the row contains NaN; for F16, which
/// always fits 16-bit floats, always 1.
pub(crate) fn pack_row(storage: Storage, packed: &[u8], codes: &mut [u32], row: usize, scales: &mut [u32]) -> f32 {
    match storage {
        Storage::F32 => pack_plain(packed, codes, 4 * BLOCK, |bytes| f32::from_le_bytes(*bytes).abs()),
        // The bound shows whether a matrix fits 16-bit floats. F16 values always do, so 1 stands for every bound that fits.
        Storage::F16 => pack_plain(packed, codes, 2 * BLOCK, |_| 1.0),
        Storage::BF16 => pack_plain(packed, codes, 2 * BLOCK, |[a, b, c, d]| {
            let [low, high] = [[*a, *b], [*c, *d]].map(|bytes| bound(bf16::from_le_bytes(bytes).to_f32().abs()));
            low.max(high)
        }),
        Storage::Q8_0 => pack_q8_0(packed, codes, row, scales),
        Storage::Mxfp4 => pack_mxfp4(packed, codes, row, scales),
    }
}

/// Packs a row of consecutive words, in blocks of `block_bytes`. `magnitude` is an upper bound for the values of a word.
fn pack_plain(packed: &[u8], codes: &mut [u32], block_bytes: usize, magnitude: impl Fn(&[u8; 4]) -> f32) -> f32 {
    let blocks = packed.len() / block_bytes;
    let mut largest = 0.0f32;
    for (b, block) in packed.chunks_exact(block_bytes).enumerate() {
        for (word, bytes) in block.as_chunks().0.iter().enumerate() {
            largest = largest.max(bound(magnitude(bytes)));
            codes[((word / 4) * blocks + b) * 4 + word % 4] = u32::from_le_bytes(*bytes);
        }
    }
    largest
}

fn pack_q8_0(packed: &[u8], codes: &mut [u32], row: usize, scales: &mut [u32]) -> f32 {
    let blocks = packed.len() / Storage::Q8_0.block_bytes();
    let mut largest = 0.0f32;
    for (b, block) in packed.chunks_exact(Storage::Q8_0.block_bytes()).enumerate() {
        let scale = [block[0], block[1]];
        for (vector, bytes) in block[2..].as_chunks::<16>().0.iter().enumerate() {
            let words = bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
            let to = &mut codes[(vector * blocks + b) * 4..][..4];
            to.iter_mut().zip(words).for_each(|(to, word)| *to = word);
        }
        scales[b * 2 + row / 2] |= u32::from(u16::from_le_bytes(scale)) << (row % 2 * 16);
        largest = largest.max(bound(128.0 * f16::from_le_bytes(scale).to_f32().abs()));
    }
    largest
}

fn pack_mxfp4(packed: &[u8], codes: &mut [u32], row: usize, scales: &mut [u32]) -> f32 {
    let mut largest = 0;
    let blocks = packed.as_chunks::<BLOCK_BYTES>().0.iter();
    for ((block, codes), scale) in blocks.zip(codes.as_chunks_mut::<4>().0).zip(scales) {
        let [exponent, bytes @ ..] = *block;
        *codes = code_words(u128::from_le_bytes(bytes));
        *scale |= u32::from(exponent) << (row * 8);
        largest = largest.max(exponent);
    }
    bound(E2M1_MAX * e8m0(largest))
}

/// The codes of a block in order, eight per word: the low nibbles of all bytes, then the high nibbles.
#[cfg(target_arch = "x86_64")]
fn code_words(bytes: u128) -> [u32; 4] {
    // SAFETY: every x86-64 processor has SSE2.
    unsafe { code_words_sse2(bytes) }
}

#[cfg(not(target_arch = "x86_64"))]
fn code_words(bytes: u128) -> [u32; 4] {
    portable_code_words(bytes)
}

/// As `portable_code_words`, with about a third of its instructions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse2")]
fn code_words_sse2(bytes: u128) -> [u32; 4] {
    use std::arch::x86_64::{
        _mm_and_si128, _mm_cvtsi128_si64, _mm_or_si128, _mm_packus_epi16, _mm_set_epi64x, _mm_set1_epi16,
        _mm_srli_epi16, _mm_unpackhi_epi64,
    };
    // Eight pairs of bytes, the first of each in the low half: two low nibbles become a byte, and so do two high nibbles.
    let pairs = _mm_set_epi64x((bytes >> 64) as i64, bytes as i64);
    let (first, second) = (_mm_set1_epi16(0x0f), _mm_set1_epi16(0xf0));
    let (by_4, by_8) = (_mm_srli_epi16::<4>(pairs), _mm_srli_epi16::<8>(pairs));
    let low = _mm_or_si128(_mm_and_si128(pairs, first), _mm_and_si128(by_4, second));
    let high = _mm_or_si128(_mm_and_si128(by_4, first), _mm_and_si128(by_8, second));
    let words = _mm_packus_epi16(low, high);
    let (low, high) = (_mm_cvtsi128_si64(words) as u64, _mm_cvtsi128_si64(_mm_unpackhi_epi64(words, words)) as u64);
    [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32]
}

#[cfg(any(test, not(target_arch = "x86_64")))]
fn portable_code_words(bytes: u128) -> [u32; 4] {
    let [first, second] = [bytes as u64, (bytes >> 64) as u64];
    [nibbles(first), nibbles(second), nibbles(first >> 4), nibbles(second >> 4)]
}

/// The low nibbles of eight bytes, packed into a word in order.
#[cfg(any(test, not(target_arch = "x86_64")))]
fn nibbles(bytes: u64) -> u32 {
    let x = bytes & 0x0f0f_0f0f_0f0f_0f0f;
    let x = (x | x >> 4) & 0x00ff_00ff_00ff_00ff;
    let x = (x | x >> 8) & 0x0000_ffff_0000_ffff;
    (x | x >> 16) as u32
}

/// Infinite for NaN, which `f32::max` would ignore.
fn bound(magnitude: f32) -> f32 {
    if magnitude.is_nan() { f32::INFINITY } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nibbles_keep_their_order() {
        assert_eq!(nibbles(0xf8f7_f6f5_f4f3_f2f1), 0x8765_4321);
        assert_eq!(nibbles(0xf8e7_d6c5_b4a3_9281 >> 4), 0xfedc_ba98);
    }

    #[test]
    fn words_have_the_low_nibbles_first() {
        let bytes = 0xe0f1_c2d3_a4b5_8697_6879_4a5b_2c3d_0e1f;
        let expected = [0x89ab_cdef, 0x0123_4567, 0x6745_2301, 0xefcd_ab89];
        assert_eq!((code_words(bytes), portable_code_words(bytes)), (expected, expected));
    }

    #[test]
    fn every_code_keeps_its_place() {
        for code in 0..32u32 {
            for value in 0..16u128 {
                // Code i is the low nibble of byte i, or the high nibble of byte i - 16.
                let bytes = value << (8 * (code % 16) + 4 * (code / 16));
                let mut expected = [0; 4];
                expected[code as usize / 8] = (value as u32) << (4 * (code % 8));
                assert_eq!(code_words(bytes), expected, "code {code}, value {value}");
            }
        }
    }
}

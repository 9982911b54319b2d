//! Packs the codes and scales of a row in the layout of a matrix on the device.

use formats::mxfp4::{BLOCK_BYTES, E2M1_MAX, e8m0};
use formats::{BLOCK, Storage};
use half::{bf16, f16};

/// Packs the codes of one row, all of which are written, and its scales as row `row` of its group, which must be zero. Returns an upper bound
/// of its magnitudes; infinite for NaN.
pub(crate) fn pack_row(storage: Storage, packed: &[u8], codes: &mut [u32], row: usize, scales: &mut [u32]) -> f32 {
    match storage {
        Storage::F32 => pack_plain(packed, codes, 4 * BLOCK, |bytes| f32::from_le_bytes(*bytes).abs()),
        // F16 values need no conversion.
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
        let bytes = u128::from_le_bytes(bytes);
        let [first, second] = [bytes as u64, (bytes >> 64) as u64];
        *codes = [nibbles(first), nibbles(second), nibbles(first >> 4), nibbles(second >> 4)];
        *scale |= u32::from(exponent) << (row * 8);
        largest = largest.max(exponent);
    }
    bound(E2M1_MAX * e8m0(largest))
}

/// The low nibbles of eight bytes, packed into a word in order.
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
}

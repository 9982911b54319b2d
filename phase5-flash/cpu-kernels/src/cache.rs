//! Blocks of 64 cached positions of a key/value head. Positions are written one at a time; attention decodes whole blocks.
//!
//! Keys are stored transposed, `[head_dim, 64]`, and values as `[64, head_dim]`, the layouts that attention reads.

use formats::cache_block::{self, SCALES};
use formats::{BLOCK, CacheFormat};
use half::f16;

use crate::simd::{LANES, Simd};

/// Positions in a block.
pub const POSITIONS: usize = 64;

/// Vectors that hold one dimension of a block's keys.
const KEY_VECTORS: usize = POSITIONS / LANES;

/// The keys and values of one key/value head in a block, for reading.
#[derive(Clone, Copy)]
pub struct KeyBlock<'a> {
    pub format: CacheFormat,
    pub head_dim: usize,
    /// Keys `[head_dim, 64]`, then values `[64, head_dim]`: [`KeyBlock::bytes`] bytes.
    pub data: &'a [u8],
}

impl KeyBlock<'_> {
    /// Size in bytes of a block of one head.
    pub fn bytes(format: CacheFormat, head_dim: usize) -> usize {
        2 * half_bytes(format, head_dim)
    }

    /// Writes the key and value of the position in `slot`.
    ///
    /// # Panics
    /// If lengths do not match, the slot is not below 64, or `head_dim` is not a multiple of 16 (of 32 in Q8_0).
    pub fn write(data: &mut [u8], format: CacheFormat, slot: usize, key: &[f32], value: &[f32]) {
        let head_dim = key.len();
        check(format, head_dim);
        assert!(
            value.len() == head_dim && slot < POSITIONS,
            "the value must be as long as the key, and the slot below 64"
        );
        assert_eq!(data.len(), Self::bytes(format, head_dim), "the data must be one head's block");
        let (keys, values) = data.split_at_mut(half_bytes(format, head_dim));
        match format {
            CacheFormat::F32 => {
                for d in 0..head_dim {
                    keys[4 * (d * POSITIONS + slot)..][..4].copy_from_slice(&key[d].to_le_bytes());
                    values[4 * (slot * head_dim + d)..][..4].copy_from_slice(&value[d].to_le_bytes());
                }
            }
            CacheFormat::F16 => {
                for d in 0..head_dim {
                    let half = |x: f32| f16::from_f32(x.clamp(-65504.0, 65504.0)).to_le_bytes();
                    keys[2 * (d * POSITIONS + slot)..][..2].copy_from_slice(&half(key[d]));
                    values[2 * (slot * head_dim + d)..][..2].copy_from_slice(&half(value[d]));
                }
            }
            CacheFormat::Q8_0 => {
                for (part, (key, value)) in key.as_chunks().0.iter().zip(value.as_chunks().0).enumerate() {
                    for (i, code) in cache_block::encode(key).into_iter().enumerate() {
                        keys[(part * BLOCK + i) * POSITIONS + slot] = code as u8;
                    }
                    let codes = cache_block::encode(value).map(|code| code as u8);
                    values[slot * head_dim + part * BLOCK..][..BLOCK].copy_from_slice(&codes);
                }
            }
        }
    }

    /// A copy of the data with positions from `count` on set to zero.
    pub fn first(&self, count: usize) -> Vec<u8> {
        let (width, half) = (half_bytes(self.format, 1) / POSITIONS, half_bytes(self.format, self.head_dim));
        let mut data = self.data.to_vec();
        let (keys, values) = data.split_at_mut(half);
        for dimension in keys.chunks_exact_mut(width * POSITIONS) {
            dimension[width * count..].fill(0);
        }
        values[width * self.head_dim * count..].fill(0);
        data
    }

    /// Decodes the key and value of the position in `slot`, below 64. `key` and `value` have the length `head_dim`.
    pub fn read(&self, slot: usize, key: &mut [f32], value: &mut [f32]) {
        let head_dim = self.head_dim;
        let mut decoded = vec![0.0; 2 * POSITIONS * head_dim];
        let (keys, values) = decoded.split_at_mut(POSITIONS * head_dim);
        decode_portably(self, keys, values);
        for d in 0..head_dim {
            key[d] = keys[d * POSITIONS + slot];
            value[d] = values[slot * head_dim + d];
        }
    }
}

fn half_bytes(format: CacheFormat, head_dim: usize) -> usize {
    POSITIONS * format.row_bytes(head_dim)
}

fn check(format: CacheFormat, head_dim: usize) {
    let unit = if format == CacheFormat::Q8_0 { BLOCK } else { LANES };
    assert!(head_dim > 0 && head_dim.is_multiple_of(unit), "a head of {head_dim} is not a multiple of {unit}");
}

fn decode_portably(block: &KeyBlock<'_>, keys: &mut [f32], values: &mut [f32]) {
    // SAFETY: plain Rust needs no special instructions; both slices hold 64 · head_dim values.
    unsafe {
        decode_keys::<crate::simd::portable::Portable>(block, keys.as_mut_ptr(), block.data.as_ptr());
        decode_values::<crate::simd::portable::Portable>(block, values.as_mut_ptr(), block.data.as_ptr());
    }
}

/// Decodes keys and prefetches those of the next block from `ahead`, because the hardware prefetcher cannot predict the next block's
/// address.
///
/// # Safety
/// The block is whole, and `to` has room for `[head_dim, 64]`.
#[inline(always)]
pub(crate) unsafe fn decode_keys<S: Simd>(block: &KeyBlock<'_>, to: *mut f32, ahead: *const u8) {
    let from = block.data.as_ptr();
    // SAFETY: the caller guarantees the contract; prefetching never faults.
    unsafe {
        if block.format != CacheFormat::Q8_0 {
            return decode_floats::<S>(block, from, to, ahead);
        }
        for part in 0..block.head_dim / BLOCK {
            let first = part * BLOCK * POSITIONS;
            let mut scales = [S::zero(); KEY_VECTORS];
            for (k, scales) in scales.iter_mut().enumerate() {
                *scales = S::scales_in_bytes(from.add(first + k * LANES), POSITIONS);
            }
            for row in 0..BLOCK {
                let row = first + row * POSITIONS;
                S::prefetch(ahead.wrapping_add(row));
                for (k, &scales) in scales.iter().enumerate() {
                    let at = row + k * LANES;
                    S::store(to.add(at), S::mul(S::load_i8(from.add(at)), scales));
                }
            }
        }
    }
}

/// As [`decode_keys`], for values.
///
/// # Safety
/// The block is whole, and `to` has room for `[64, head_dim]`.
#[inline(always)]
pub(crate) unsafe fn decode_values<S: Simd>(block: &KeyBlock<'_>, to: *mut f32, ahead: *const u8) {
    let from = block.data[half_bytes(block.format, block.head_dim)..].as_ptr();
    // SAFETY: the caller guarantees the contract; prefetching never faults.
    unsafe {
        if block.format != CacheFormat::Q8_0 {
            return decode_floats::<S>(block, from, to, ahead);
        }
        for at in (0..POSITIONS * block.head_dim).step_by(BLOCK) {
            S::prefetch(ahead.wrapping_add(at));
            let scale = S::splat(SCALES[usize::from(scale_bits(from.add(at)))]);
            for at in [at, at + LANES] {
                S::store(to.add(at), S::mul(S::load_i8(from.add(at)), scale));
            }
        }
    }
}

/// As [`decode_keys`], for the keys or the values of an f32 or f16 block, whose layout does not change.
///
/// # Safety
/// All of the keys or values can be read, and `to` has room for them.
#[inline(always)]
unsafe fn decode_floats<S: Simd>(block: &KeyBlock<'_>, from: *const u8, to: *mut f32, ahead: *const u8) {
    let count = POSITIONS * block.head_dim;
    let value_bytes = half_bytes(block.format, block.head_dim) / count;
    // SAFETY: the caller guarantees the contract; prefetching never faults.
    unsafe {
        for at in (0..count).step_by(LANES) {
            S::prefetch(ahead.wrapping_add(at * value_bytes));
            let v = match block.format {
                CacheFormat::F32 => S::load(from.add(4 * at).cast()),
                _ => S::load_f16(from.add(2 * at)),
            };
            S::store(to.add(at), v);
        }
    }
}

/// The lowest bits of eight bytes, packed into one.
///
/// # Safety
/// Eight bytes can be read.
#[inline(always)]
unsafe fn scale_bits(bytes: *const u8) -> u8 {
    // SAFETY: the caller guarantees the contract.
    let bytes = u64::from_le(unsafe { bytes.cast::<u64>().read_unaligned() });
    // The product puts bit 8 i at bit 56 + i, and its terms do not overlap.
    ((bytes & 0x0101_0101_0101_0101).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8
}

#[cfg(test)]
mod tests {
    use formats::cache_block::SCALE_BITS;
    use proptest::prelude::*;

    use super::*;
    use crate::isa::{Isa, Kernel};

    struct Decode<'a> {
        block: &'a KeyBlock<'a>,
        keys: &'a mut [f32],
        values: &'a mut [f32],
    }

    impl Kernel for Decode<'_> {
        type Output = ();

        unsafe fn run<S: Simd>(self) {
            let Decode { block, keys, values } = self;
            // SAFETY: both slices hold 64 · head_dim values.
            unsafe {
                decode_keys::<S>(block, keys.as_mut_ptr(), block.data.as_ptr());
                decode_values::<S>(block, values.as_mut_ptr(), block.data.as_ptr());
            }
        }
    }

    /// Value `i` of a block's keys or values. In Q8_0, the scale has 8 bits: bit b is the lowest bit of the code at `first + b · step`.
    fn plainly(format: CacheFormat, half: &[u8], i: usize, first: usize, step: usize) -> f32 {
        match format {
            CacheFormat::F32 => f32::from_le_bytes(half.as_chunks().0[i]),
            CacheFormat::F16 => f16::from_le_bytes(half.as_chunks().0[i]).to_f32(),
            CacheFormat::Q8_0 => {
                let bits = (0..SCALE_BITS).fold(0, |bits, bit| bits | u16::from(half[first + bit * step] & 1) << bit);
                f16::from_bits(bits << 7).to_f32() * f32::from(half[i] as i8)
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Every instruction set decodes any bytes as the format defines, to the bit.
        #[test]
        fn any_bytes_decode_as_the_format_defines(
            format in prop::sample::select(vec![CacheFormat::F32, CacheFormat::F16, CacheFormat::Q8_0]),
            parts in 1usize..4,
            bytes in prop::collection::vec(any::<u8>(), 1..5000),
        ) {
            let head_dim = parts * BLOCK;
            let data: Vec<u8> = bytes.into_iter().cycle().take(KeyBlock::bytes(format, head_dim)).collect();
            let block = KeyBlock { format, head_dim, data: &data };
            let (half_keys, half_values) = data.split_at(data.len() / 2);
            // Any two NaNs count as equal.
            let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
            for isa in Isa::all() {
                let [mut keys, mut values] = [(); 2].map(|()| vec![f32::NAN; POSITIONS * head_dim]);
                // SAFETY: the slices are as long as the kernel asks.
                unsafe { isa.run(Decode { block: &block, keys: &mut keys, values: &mut values }) };
                for slot in 0..POSITIONS {
                    for d in 0..head_dim {
                        let (i, first) = (d * POSITIONS + slot, d / BLOCK * BLOCK * POSITIONS + slot);
                        let key = plainly(format, half_keys, i, first, POSITIONS);
                        prop_assert!(same(keys[i], key), "{isa}: key {}, not {key}", keys[i]);
                        let i = slot * head_dim + d;
                        let value = plainly(format, half_values, i, i / BLOCK * BLOCK, 1);
                        prop_assert!(same(values[i], value), "{isa}: value {}, not {value}", values[i]);
                    }
                }
            }
        }
    }
}

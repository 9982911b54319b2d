//! Packs keys and values for caches in f16 or Q8_0, and unpacks them, on the CPU and on GPUs.
//!
//! A row is the `head_dim` values of one head at one position. A packed row consists of whole 32-bit words, so that Burn can slice and
//! concatenate rows without knowing their format:
//! - f16: two values per word, the earlier in the low half;
//! - Q8_0: four codes of a [block](formats::cache_block) per word, the earliest in the lowest byte.

mod cube;
mod flex;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{Int, Tensor};
use formats::CacheFormat;

/// The largest f16: packing saturates instead of producing infinities.
const LARGEST: f32 = 65504.0;

/// `[heads, n, head_dim]` to words `[heads, n, row_words]`.
pub(crate) fn pack(x: Tensor<3>, kind: CacheFormat) -> Tensor<3, Int> {
    Tensor::from_dispatch(<Dispatch as CachePacking>::pack_rows(x.into_dispatch(), kind))
}

/// Words `[heads, n, row_words]` to `[heads, n, head_dim]`.
pub(crate) fn unpack(words: Tensor<3, Int>, kind: CacheFormat, head_dim: usize) -> Tensor<3> {
    Tensor::from_dispatch(<Dispatch as CachePacking>::unpack_rows(words.into_dispatch(), kind, head_dim))
}

#[backend_extension(Cube, Flex)]
trait CachePacking: Backend {
    fn pack_rows(x: FloatTensor<Self>, kind: CacheFormat) -> IntTensor<Self>;
    fn unpack_rows(words: IntTensor<Self>, kind: CacheFormat, head_dim: usize) -> FloatTensor<Self>;
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use formats::BLOCK;
    use formats::cache_block::{decode, encode, scale};
    use half::f16;
    use phase2_forward::ComputeDevice;
    use proptest::prelude::*;

    use super::*;

    /// Values of all magnitudes that caches store, including zeros and values beyond f16's range; half of the cases are rescaled.
    fn values(dim: usize) -> impl Strategy<Value = Vec<f32>> {
        let value = prop_oneof![
            8 => -4.0f32..4.0,
            1 => -1e-4f32..1e-4,
            1 => -1e-7f32..1e-7,
            1 => prop::sample::select(vec![0.0, -0.0, 65504.0, 1e9, -7e4, 2049.0, 6.1e-5, 2.98e-8]),
        ];
        let size = prop_oneof![Just(0), -30i32..30];
        (1usize..4, 1usize..20, size).prop_flat_map(move |(heads, n, size)| {
            let value = value.clone().prop_map(move |value| value * 2f32.powi(size));
            prop::collection::vec(value, heads * n * dim)
        })
    }

    fn round_trip(values: &[f32], dim: usize, kind: CacheFormat, device: &ComputeDevice) -> (Vec<u32>, Vec<f32>) {
        let x = TensorData::new(values.to_vec(), [1, values.len() / dim, dim]);
        let words = pack(Tensor::from_data(x, &device.burn), kind);
        let back = unpack(words.clone(), kind, dim);
        (words.into_data().try_to_vec().expect("u32"), back.into_data().try_to_vec().expect("f32"))
    }

    /// Every f16 must be the nearest one, and every Q8_0 code the nearest with the lowest bit that its [block](formats::cache_block)
    /// requires. On a GPU a value may also be rounded to the other side of a tie, because a division may be off by its last bit. Scales are
    /// equal on both devices.
    fn check(values: &[f32], dim: usize) -> Result<(), TestCaseError> {
        for device in ComputeDevice::for_gates().expect("both devices") {
            let (words, back) = round_trip(values, dim, CacheFormat::F16, &device);
            prop_assert_eq!(words.len() * 4, values.len() / dim * CacheFormat::F16.row_bytes(dim));
            for (&value, &back) in values.iter().zip(&back) {
                let nearest = f16::from_f32(value.clamp(-LARGEST, LARGEST)).to_f32();
                prop_assert_eq!(back, nearest, "{} on {}", value, &device.name);
            }
            let (words, back) = round_trip(values, dim, CacheFormat::Q8_0, &device);
            prop_assert_eq!(words.len() * 4, values.len() / dim * CacheFormat::Q8_0.row_bytes(dim));
            let blocks = values.as_chunks::<BLOCK>().0.iter().zip(words.as_chunks::<{ BLOCK / 4 }>().0);
            for ((values, words), back) in blocks.zip(back.as_chunks::<BLOCK>().0) {
                let codes: [i8; BLOCK] = std::array::from_fn(|i| words[i / 4].to_le_bytes()[i % 4] as i8);
                let context = format!("{values:?} became {codes:?} on {}", device.name);
                prop_assert_eq!(*back, decode(&codes), "{}", context);
                let expected = encode(values);
                if device.is_cpu() {
                    prop_assert_eq!(codes, expected, "{}", context);
                }
                for (i, (code, expected)) in codes.into_iter().zip(expected).enumerate() {
                    let (parity, allowed) = if i < 8 { (1, 2.0) } else { (0, 1.0) };
                    prop_assert_eq!(code & parity, expected & parity, "{}", context);
                    if code != expected {
                        let tie = values[i] / scale(&codes) - (f32::from(code) + f32::from(expected)) / 2.0;
                        let apart = (f32::from(code) - f32::from(expected)).abs();
                        prop_assert!(apart == allowed && tie.abs() < 1e-4, "{i}: {expected} expected, {context}");
                    }
                }
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn heads_of_64_round_to_nearest(values in values(64)) {
            check(&values, 64)?;
        }

        #[test]
        fn heads_of_32_round_to_nearest(values in values(32)) {
            check(&values, 32)?;
        }

        #[test]
        fn heads_of_96_round_to_nearest(values in values(96)) {
            check(&values, 96)?;
        }
    }
}

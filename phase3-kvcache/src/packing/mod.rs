//! Keys and values in fewer bits: the two operations that a cache in f16 or Q8_0 needs, on the CPU and on GPUs.
//!
//! A row is the `head_dim` values of one head at one position. Packed it is whole 32-bit words, so that Burn can slice and
//! join rows without knowing what is in them:
//! - f16: two values a word, the earlier in the low half;
//! - Q8_0: four codes a word, each 128 + the rounded quotient of value and scale; behind them the f16 scales of the row's
//!   blocks of 32, two a word.

mod cube;
mod flex;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{Int, Tensor};

use crate::cache_type::CacheType;

/// The largest f16: packing saturates instead of making infinities.
const LARGEST: f32 = 65504.0;

/// `[heads, n, head_dim]` to words `[heads, n, row_words]`.
pub(crate) fn pack(x: Tensor<3>, kind: CacheType) -> Tensor<3, Int> {
    Tensor::from_dispatch(<Dispatch as CachePacking>::pack_rows(x.into_dispatch(), kind))
}

/// Words `[heads, n, row_words]` to `[heads, n, head_dim]`.
pub(crate) fn unpack(words: Tensor<3, Int>, kind: CacheType, head_dim: usize) -> Tensor<3> {
    Tensor::from_dispatch(<Dispatch as CachePacking>::unpack_rows(words.into_dispatch(), kind, head_dim))
}

#[backend_extension(Cube, Flex)]
trait CachePacking: Backend {
    fn pack_rows(x: FloatTensor<Self>, kind: CacheType) -> IntTensor<Self>;
    fn unpack_rows(words: IntTensor<Self>, kind: CacheType, head_dim: usize) -> FloatTensor<Self>;
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use phase2_forward::ComputeDevice;
    use proptest::prelude::*;

    use super::*;

    /// Values of every size that caches meet, zeros and what an f16 cannot hold among them.
    fn values(dim: usize) -> impl Strategy<Value = Vec<f32>> {
        let value = prop_oneof![
            8 => -4.0f32..4.0,
            1 => -1e-4f32..1e-4,
            1 => -1e-7f32..1e-7,
            1 => prop::sample::select(vec![0.0, -0.0, 65504.0, 1e9, -7e4, 2049.0, 6.1e-5, 2.98e-8]),
        ];
        (1usize..4, 1usize..20).prop_flat_map(move |(heads, n)| prop::collection::vec(value.clone(), heads * n * dim))
    }

    fn round_trip(values: &[f32], dim: usize, kind: CacheType, device: &ComputeDevice) -> (Vec<u32>, Vec<f32>) {
        let x = TensorData::new(values.to_vec(), [1, values.len() / dim, dim]);
        let words = pack(Tensor::from_data(x, &device.burn), kind);
        let back = unpack(words.clone(), kind, dim);
        (words.into_data().try_to_vec().expect("u32"), back.into_data().try_to_vec().expect("f32"))
    }

    /// The error that a format may make of one of 32 neighbours.
    fn allowed(kind: CacheType, value: f32, largest: f32) -> f32 {
        match kind {
            CacheType::F32 => 0.0,
            CacheType::F16 => value.abs() / 2048.0 + 3e-8,
            // Half a step, the rounding of the scale to f16, and what the smallest scale loses.
            CacheType::Q8_0 => largest / 127.0 * (0.5 + 127.0 / 2048.0) + 127.0 * 3e-8,
        }
    }

    fn check(values: &[f32], dim: usize) -> Result<(), TestCaseError> {
        let [cpu, gpu] = ComputeDevice::for_gates().expect("both devices");
        for kind in [CacheType::F16, CacheType::Q8_0] {
            let (words, back) = round_trip(values, dim, kind, &cpu);
            prop_assert_eq!(words.len() * 4, values.len() / dim * kind.row_bytes(dim));
            for (block, back) in values.chunks(32).zip(back.chunks(32)) {
                // What is too large for an f16, or for the scale of a block, becomes the largest there is.
                let most = if kind == CacheType::F16 { LARGEST } else { LARGEST * 127.0 };
                let largest = block.iter().fold(0.0f32, |most, v| most.max(v.abs())).min(most);
                for (&value, &back) in block.iter().zip(back) {
                    let value = value.clamp(-most, most);
                    let error = (value - back).abs();
                    let limit = allowed(kind, value, largest);
                    prop_assert!(error <= limit, "{}: {} became {}, limit {}", kind, value, back, limit);
                }
            }
            let (gpu_words, gpu_back) = round_trip(values, dim, kind, &gpu);
            if kind == CacheType::F16 {
                prop_assert_eq!(&gpu_words, &words, "{}", gpu.name);
            }
            // GPUs may divide a last bit differently, which may move a code by one.
            for ((&gpu, &cpu), block) in
                gpu_back.iter().zip(&back).zip(values.chunks(32).flat_map(|b| vec![b; b.len()]))
            {
                let largest = block.iter().fold(0.0f32, |most, v| most.max(v.abs()));
                let step = if kind == CacheType::Q8_0 { largest / 126.0 + 127.0 * 6e-8 } else { 0.0 };
                prop_assert!((gpu - cpu).abs() <= step, "{}: {} on the GPU, {} on the CPU", kind, gpu, cpu);
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn heads_of_64(values in values(64)) {
            check(&values, 64)?;
        }

        /// One block, whose scale has a word to itself; three, whose last has.
        #[test]
        fn heads_of_32(values in values(32)) {
            check(&values, 32)?;
        }

        #[test]
        fn heads_of_96(values in values(96)) {
            check(&values, 96)?;
        }
    }
}

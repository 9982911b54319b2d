//! Random weights, generated in the packed format and scaled so that activations keep their magnitude from layer to layer.

use std::io::{self, Write};

use half::{bf16, f16};
use phase1_loading::write::TensorPlan;
use phase1_loading::{E2M1, Format};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Bytes that are filled from one random stream, few enough to distribute the work among cores.
const PIECE: usize = 1 << 20;
/// Pieces held in memory at a time.
const PIECES: usize = 32;

/// Writes the tensor's data, and zeros as padding. `stream` is (seed, tensor number); `wrote` is called after each write with its number of
/// bytes.
pub(crate) fn write_random(
    out: &mut impl Write,
    plan: &TensorPlan,
    stream: (u64, u64),
    padding: u64,
    wrote: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let distribution = Distribution::of(plan);
    let fill = |random: &mut ChaCha8Rng, bytes: &mut [u8]| distribution.fill(random, plan.format, bytes);
    write_pieces(out, plan.bytes() as usize, plan.format.block_bytes(), stream, fill, wrote)?;
    out.write_all(&vec![0; padding as usize])?;
    wrote(padding);
    Ok(())
}

/// Writes `total` bytes in pieces of whole blocks. `fill` fills the pieces in parallel, each from its own random stream.
pub(crate) fn write_pieces(
    out: &mut impl Write,
    total: usize,
    block: usize,
    (seed, tensor): (u64, u64),
    fill: impl Fn(&mut ChaCha8Rng, &mut [u8]) + Sync,
    wrote: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let piece = PIECE / block * block;
    let mut buffer = vec![0; total.min(PIECES * piece)];
    for start in (0..total).step_by(PIECES * piece) {
        let len = (total - start).min(PIECES * piece);
        let bytes = &mut buffer[..len];
        bytes.par_chunks_mut(piece).enumerate().for_each(|(index, bytes)| {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let piece_number = (start / piece + index) as u64;
            random.set_stream(tensor << 32 | piece_number);
            fill(&mut random, bytes);
        });
        out.write_all(bytes)?;
        wrote(len as u64);
    }
    Ok(())
}

/// Uniform values around a mean.
struct Distribution {
    mean: f32,
    deviation: f32,
}

impl Distribution {
    /// Matrices preserve the variance of an input with variance 1; those that write to the residual stream halve its standard deviation.
    /// The output matrix spreads the logits, so that the largest differs from the others by more than rounding errors.
    fn of(plan: &TensorPlan) -> Distribution {
        let name = plan.name.as_str();
        let fan_in = (*plan.shape.last().expect("a tensor has a dimension") as f32).sqrt();
        let (mean, deviation) = if name.ends_with("norm.weight") {
            (1.0, 0.1)
        } else if name.ends_with("sinks.weight") {
            (0.0, 1.0)
        } else if name.ends_with("bias") {
            (0.0, 0.1)
        } else if name == "token_embd.weight" {
            (0.0, 1.0)
        } else if name == "output.weight" {
            (0.0, 4.0 / fan_in)
        } else if name.ends_with("attn_output.weight") || name.contains("down_exps") {
            (0.0, 0.5 / fan_in)
        } else {
            (0.0, 1.0 / fan_in)
        };
        Distribution { mean, deviation }
    }

    /// Fills whole blocks. In block formats the codes are random bytes, and the scales set the standard deviation.
    fn fill(&self, random: &mut ChaCha8Rng, format: Format, bytes: &mut [u8]) {
        // A uniform variable on [−1, 1) has the standard deviation 1/√3.
        let spread = self.deviation * 3f32.sqrt();
        let uniform = |random: &mut ChaCha8Rng| {
            let unit = (random.next_u32() >> 8) as f32 / (1 << 24) as f32;
            self.mean + spread * (2.0 * unit - 1.0)
        };
        match format {
            Format::F32 => {
                for value in bytes.as_chunks_mut::<4>().0 {
                    *value = uniform(random).to_le_bytes();
                }
            }
            Format::F16 => {
                for value in bytes.as_chunks_mut::<2>().0 {
                    *value = f16::from_f32(uniform(random)).to_le_bytes();
                }
            }
            Format::BF16 => {
                for value in bytes.as_chunks_mut::<2>().0 {
                    *value = bf16::from_f32(uniform(random)).to_le_bytes();
                }
            }
            Format::Q8_0 => {
                let code_deviation = 127.0 / 3f32.sqrt();
                random.fill_bytes(bytes);
                for block in bytes.as_chunks_mut::<{ Format::Q8_0.block_bytes() }>().0 {
                    let jitter = 0.75 + f32::from(block[0]) / 512.0;
                    let scale = f16::from_f32(self.deviation / code_deviation * jitter);
                    block[..2].copy_from_slice(&scale.to_le_bytes());
                    // Quantizers never produce −128.
                    block[2..].iter_mut().for_each(|q| *q = (*q as i8).max(-127) as u8);
                }
            }
            Format::Mxfp4 => {
                let squares: f32 = E2M1.iter().map(|v| v * v).sum();
                let code_deviation = (squares / 16.0).sqrt();
                let exponent = (self.deviation / code_deviation).log2().round() as i32 + 127;
                random.fill_bytes(bytes);
                for block in bytes.as_chunks_mut::<{ Format::Mxfp4.block_bytes() }>().0 {
                    // Uses two different scales, so that a test detects a reader that ignores the scales.
                    block[0] = (exponent - i32::from(block[0] & 1)).clamp(0, 254) as u8;
                }
            }
            _ => unreachable!("no synthetic tensor is stored as {}", format.name()),
        }
    }
}

//! Random numbers and weights.
#![allow(dead_code, reason = "each test file uses a part")]

use cpu_kernels::Storage;
use half::{bf16, f16};

/// Cases of a property: so many, or what `KERNEL_CASES` asks for.
pub fn cases(usual: u32) -> u32 {
    std::env::var("KERNEL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// A small generator, so that a seed in a failure message repeats it.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// From −1 to 1.
    pub fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn floats(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.float() * scale).collect()
    }
}

const E2M1: [f64; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Packed bytes of `blocks` blocks behind a byte that puts them at an odd address, and their values. Scales are around 2^exponent,
/// or nearer to 1 where they are f16.
pub fn misaligned_weights(random: &mut Random, storage: Storage, blocks: usize, exponent: i32) -> (Vec<u8>, Vec<f64>) {
    let exponent = if matches!(storage, Storage::F16 | Storage::Q8_0) { exponent % 8 } else { exponent };
    let (bytes, values) = weights(random, storage, blocks, exponent);
    ([&[0xff][..], &bytes].concat(), values)
}

/// Packed bytes of `blocks` blocks with scales around 2^exponent, and their values.
fn weights(random: &mut Random, storage: Storage, blocks: usize, exponent: i32) -> (Vec<u8>, Vec<f64>) {
    let (mut bytes, mut values) = (Vec::new(), Vec::new());
    for _ in 0..blocks {
        let exponent = exponent + (random.bits() % 5) as i32 - 2;
        let scale = 2f32.powi(exponent);
        match storage {
            Storage::F32 | Storage::F16 | Storage::BF16 => {
                for _ in 0..32 {
                    let value = random.float() * scale;
                    let (packed, value) = match storage {
                        Storage::F32 => (value.to_le_bytes().to_vec(), f64::from(value)),
                        Storage::F16 => (f16::from_f32(value).to_le_bytes().to_vec(), f16::from_f32(value).to_f64()),
                        _ => (bf16::from_f32(value).to_le_bytes().to_vec(), bf16::from_f32(value).to_f64()),
                    };
                    bytes.extend(packed);
                    values.push(value);
                }
            }
            Storage::Q8_0 => {
                let scale = f16::from_f32(scale / 100.0 * (1.5 + random.float()));
                bytes.extend(scale.to_le_bytes());
                for _ in 0..32 {
                    let code = random.bits() as i8;
                    bytes.push(code as u8);
                    values.push(scale.to_f64() * f64::from(code));
                }
            }
            Storage::Mxfp4 => {
                let byte = (127 + exponent).clamp(0, 254);
                bytes.push(byte as u8);
                let codes: [u8; 16] = std::array::from_fn(|_| random.bits() as u8);
                bytes.extend(codes);
                let scale = 2f64.powi(byte - 127);
                values.extend(codes.map(|code| E2M1[usize::from(code & 15)] * scale));
                values.extend(codes.map(|code| E2M1[usize::from(code >> 4)] * scale));
            }
        }
    }
    (bytes, values)
}

//! Random weights, and the number of cases of a property.
#![allow(dead_code, reason = "each test file uses a part")]

use cpu_kernels::Storage;
use gptoss_reference::Random;
use half::{bf16, f16};

/// Number of cases of a property: the default, or the value of `KERNEL_CASES`.
pub fn cases(usual: u32) -> u32 {
    std::env::var("KERNEL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

const E2M1: [f64; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// One unused byte and then the packed bytes of `blocks` blocks, so that these are not aligned; and their values. Scales are around
/// 2^exponent; in F16 and Q8_0, which have the range of f16, the exponent is reduced modulo 8.
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
                    let value = random.value(scale);
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
                let scale = f16::from_f32(scale / 100.0 * (1.5 + random.value(1.0)));
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

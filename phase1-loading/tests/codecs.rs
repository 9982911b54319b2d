//! Properties of the storage formats.

use gptoss_reference::Golden;
use half::{bf16, f16};
use phase1_loading::{E2M1, Format, e8m0, repack_mxfp4_from_hf};
use proptest::prelude::*;

fn decode(format: Format, packed: &[u8]) -> Vec<f32> {
    let blocks = packed.len() / format.block_bytes();
    // The output is filled with NaN first, so that a value that is not written is detected.
    let mut values = vec![f32::NAN; blocks * format.block_len()];
    format.decode(packed, &mut values);
    values
}

/// MXFP4 blocks that are the same after decoding and encoding: their largest magnitude is 4 or 6 times the scale, so that the encoder
/// chooses the same scale, and they have no negative zero.
fn canonical_mxfp4() -> impl Strategy<Value = Vec<u8>> {
    (1u8..=250, prop::collection::vec(0u8..16, 32), 0usize..32, prop::sample::select(vec![6u8, 7, 14, 15])).prop_map(
        |(scale, mut codes, place, large)| {
            codes.iter_mut().for_each(|code| *code = if *code == 8 { 0 } else { *code });
            codes[place] = large;
            let mut block = vec![scale];
            block.extend((0..16).map(|j| codes[j] | codes[j + 16] << 4));
            block
        },
    )
}

proptest! {
    #[test]
    fn f32_round_trips(values in prop::collection::vec(any::<f32>(), 1..100)) {
        let back = decode(Format::F32, &Format::F32.encode(&values));
        prop_assert_eq!(values.iter().map(|v| v.to_bits()).collect::<Vec<_>>(),
                        back.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
    }

    #[test]
    fn half_formats_decode_exactly(bits in prop::collection::vec(any::<u16>(), 1..100)) {
        let packed: Vec<u8> = bits.iter().flat_map(|b| b.to_le_bytes()).collect();
        for (value, &b) in decode(Format::F16, &packed).iter().zip(&bits) {
            let expected = f16::from_bits(b).to_f64();
            prop_assert!(f64::from(*value) == expected || (value.is_nan() && expected.is_nan()));
        }
        for (value, &b) in decode(Format::BF16, &packed).iter().zip(&bits) {
            let expected = bf16::from_bits(b).to_f64();
            prop_assert!(f64::from(*value) == expected || (value.is_nan() && expected.is_nan()));
        }
    }

    #[test]
    fn q8_0_decodes_scale_times_code(scale in 0u16..0x7c00, codes in prop::collection::vec(any::<i8>(), 32)) {
        let mut block = scale.to_le_bytes().to_vec();
        block.extend(codes.iter().map(|&c| c as u8));
        for (value, code) in decode(Format::Q8_0, &block).iter().zip(codes) {
            prop_assert_eq!(f64::from(*value), f16::from_bits(scale).to_f64() * f64::from(code));
        }
    }

    #[test]
    fn q8_0_error_is_at_most_half_a_step(values in prop::collection::vec(-1000.0f32..1000.0, 64)) {
        let back = decode(Format::Q8_0, &Format::Q8_0.encode(&values));
        for (block, back) in values.chunks(32).zip(back.chunks(32)) {
            let step = block.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
            for (v, b) in block.iter().zip(back) {
                // The scale itself is rounded to half precision.
                prop_assert!((v - b).abs() <= step * 0.51 + 127.0 * step * 4.9e-4, "{v} became {b}, step {step}");
            }
        }
    }

    #[test]
    fn mxfp4_decodes_table_times_scale(scale in 0u8..255, codes in prop::collection::vec(0u8..16, 32)) {
        let mut block = vec![scale];
        block.extend((0..16).map(|j| codes[j] | codes[j + 16] << 4));
        for (value, code) in decode(Format::Mxfp4, &block).iter().zip(codes) {
            let expected = f64::from(E2M1[usize::from(code)]) * 2f64.powi(i32::from(scale) - 127);
            prop_assert!(f64::from(*value) == expected || expected.abs() > f64::from(f32::MAX));
        }
    }

    #[test]
    fn mxfp4_codes_round_trip(block in canonical_mxfp4()) {
        prop_assert_eq!(Format::Mxfp4.encode(&decode(Format::Mxfp4, &block)), block);
    }

    #[test]
    fn repacking_keeps_every_element(hf in prop::array::uniform16(any::<u8>())) {
        let mut block = vec![127];
        block.extend(repack_mxfp4_from_hf(&hf));
        let values = decode(Format::Mxfp4, &block);
        for (element, value) in values.iter().enumerate() {
            let code = if element % 2 == 0 { hf[element / 2] & 15 } else { hf[element / 2] >> 4 };
            prop_assert_eq!(*value, E2M1[usize::from(code)]);
        }
    }
}

#[test]
fn e8m0_is_a_power_of_two() {
    for byte in 0..255 {
        assert_eq!(f64::from(e8m0(byte)), 2f64.powi(i32::from(byte) - 127), "byte {byte}");
    }
    assert!(!e8m0(255).is_finite());
}

#[test]
fn e2m1_equals_its_bit_layout() {
    for (code, value) in E2M1.iter().enumerate() {
        let (sign, exponent, mantissa) = (code >> 3, (code >> 1) & 3, code & 1);
        let magnitude = if exponent == 0 {
            mantissa as f32 * 0.5
        } else {
            (1.0 + mantissa as f32 * 0.5) * 2f32.powi(exponent as i32 - 1)
        };
        assert_eq!(*value, if sign == 1 { -magnitude } else { magnitude }, "code {code}");
    }
}

/// Every block format against the Python package `gguf` on random blocks: each value is equal, or NaN in both.
#[test]
fn quantized_formats_decode_as_the_gguf_package_does() {
    let golden = Golden::committed("quants.safetensors");
    let quantized = Format::GGUF.into_iter().filter(|format| format.block_len() > 1);
    for format in quantized {
        let name = format.name();
        let packed = golden.u8s(&format!("{name}.packed")).expect("a golden");
        let expected = golden.f32s(&format!("{name}.values")).expect("a golden");
        let found = decode(format, &packed);
        assert_eq!(found.len(), expected.len(), "{name}");
        let first_different =
            (0..found.len()).find(|&i| found[i] != expected[i] && !(found[i].is_nan() && expected[i].is_nan()));
        if let Some(i) = first_different {
            panic!("{name}: value {i} is {} and should be {}", found[i], expected[i]);
        }
    }
}

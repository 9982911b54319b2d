//! Compares the operations of every instruction set of this machine with plain Rust, bit by bit, on inputs for which their definition
//! determines every bit of the result.

use gptoss_reference::Random;
use proptest::prelude::*;

use super::{LANES, Simd};
use crate::isa::{Isa, Kernel};

#[derive(Clone, Copy, Debug)]
enum Lanes {
    Floats([f32; LANES]),
    Words([u32; LANES]),
}

impl Lanes {
    /// Any two NaNs count as equal.
    fn same(self, other: Lanes) -> bool {
        match (self, other) {
            (Lanes::Floats(a), Lanes::Floats(b)) => {
                a.into_iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan())
            }
            (Lanes::Words(a), Lanes::Words(b)) => a == b,
            _ => false,
        }
    }
}

/// Operands of all operations. Operations that need no alignment read `bytes` from an odd address on.
struct Operands {
    bytes: Vec<u8>,
    /// Two vectors with zeros, infinities, NaN, subnormals and halfway cases of rounding, such as 1.5.
    floats: [f32; 2 * LANES],
    /// Magnitudes from 1.1 to 1.9, of either sign.
    factors: [f32; LANES],
    /// Whole numbers from −126 to 126.
    exponents: [f32; LANES],
}

impl Operands {
    fn new(seed: u64) -> Operands {
        let mut random = Random::new(seed);
        let bytes = (0..64 * LANES + 1).map(|_| random.bits() as u8).collect();
        let special =
            [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.5, 1.5, 2.5, -0.5, -1.5, f32::MIN_POSITIVE / 8.0];
        let floats = std::array::from_fn(|_| match random.below(3) {
            0 => random.of(&special),
            1 => random.value(1000.0),
            _ => f32::from_bits(random.bits() as u32),
        });
        let factors = std::array::from_fn(|_| random.of(&[-1.0f32, 1.0]) * (1.5 + random.value(0.4)));
        let exponents = std::array::from_fn(|_| random.below(253) as f32 - 126.0);
        Operands { bytes, floats, factors, exponents }
    }
}

impl Kernel for &Operands {
    type Output = Vec<(&'static str, Lanes)>;

    unsafe fn run<S: Simd>(self) -> Self::Output {
        // SAFETY: a vector of words or floats has 64 bytes, and `bytes` holds 16 such vectors from the odd address on.
        unsafe {
            let p = self.bytes.as_ptr().add(1);
            let (a, b) = (S::load(self.floats.as_ptr()), S::load(self.floats.as_ptr().add(LANES)));
            let (factors, exponents) = (S::load(self.factors.as_ptr()), S::load(self.exponents.as_ptr()));
            let (bytes, words) = (S::load_i8(p), S::load_words(p.cast()));
            let (e2m1_low, e2m1_high) = S::e2m1(p);
            let (low, high) = S::nibbles(words);
            let pairs = S::i8_pairs(p);
            let (halves, wide) = (S::mul(bytes, S::splat(0.5)), S::mul(bytes, S::splat(255.9)));
            let mut found = Vec::new();

            let mut floats = |what, v| {
                let mut lanes = [0.0; LANES];
                S::store(lanes.as_mut_ptr(), v);
                found.push((what, Lanes::Floats(lanes)));
            };
            floats("zero", S::zero());
            floats("load, unaligned", S::load(p.cast()));
            floats("add", S::add(a, b));
            floats("sub", S::sub(a, b));
            floats("mul", S::mul(a, b));
            floats("div", S::div(a, b));
            floats("fma of integers", S::fma(bytes, bytes, bytes));
            floats("max", S::max(a, b));
            floats("min", S::min(a, b));
            floats("sum of integers", S::splat(S::sum(bytes)));
            floats("maximum", S::splat(S::maximum(bytes)));
            floats("round", S::round(a));
            floats("scale", S::scale(factors, exponents));
            floats("load_f16", S::load_f16(p));
            floats("load_bf16", S::load_bf16(p));
            floats("load_i8", bytes);
            floats("splat_f16", S::splat_f16(p));
            floats("scales_in_bytes", S::scales_in_bytes(p, 33));
            floats("e2m1, low", e2m1_low);
            floats("e2m1, high", e2m1_high);
            floats("to_f32", S::to_f32(words));

            let mut words_of = |what, v| {
                let mut lanes = [0; LANES];
                S::store_words(lanes.as_mut_ptr(), v);
                found.push((what, Lanes::Words(lanes)));
            };
            words_of("zero_words", S::zero_words());
            words_of("load_words, unaligned", words);
            words_of("splat_word", S::splat_word(0x8765_4321));
            words_of("bits", S::bits(bytes));
            words_of("e2m1_pairs", S::e2m1_pairs(p));
            words_of("i8_pairs", pairs);
            words_of("round_pairs of halves", S::round_pairs(halves, factors));
            words_of("round_pairs of large values", S::round_pairs(factors, wide));
            words_of("dot_pairs", S::dot_pairs(words, pairs, words));
            words_of("nibbles, low", low);
            words_of("nibbles, high", high);
            words_of("dot_bytes, low", S::dot_bytes(words, low, words));
            words_of("dot_bytes, high", S::dot_bytes(words, high, pairs));
            let mut rows = std::array::from_fn(|row| S::load_words(p.add(64 * row).cast()));
            S::transpose(&mut rows);
            for row in rows {
                words_of("transpose", row);
            }
            found
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn operations_agree_with_plain_rust(seed: u64) {
        let operands = Operands::new(seed);
        let sets = Isa::all();
        // SAFETY: the operands are as long as the kernel reads.
        let run = |isa: Isa| unsafe { isa.run(&operands) };
        let expected = run(sets[sets.len() - 1]);
        for isa in sets {
            for ((what, found), (_, expected)) in run(isa).into_iter().zip(&expected) {
                prop_assert!(found.same(*expected), "{isa}: {what}: {found:?}, not {expected:?}");
            }
        }
    }
}

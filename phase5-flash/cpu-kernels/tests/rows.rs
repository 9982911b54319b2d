//! Compares RMS norms and SwiGLU on every instruction set of this machine with f64.

use cpu_kernels::{Isa, rms_norm, swiglu};
use gptoss_reference::Random;
use proptest::prelude::*;

proptest! {
    #[test]
    fn norms_equal_f64(seed: u64, length in 1usize..200, exponent in -20i32..20) {
        let mut random = Random::new(seed);
        let (x, weight) = (random.values(length, 2f32.powi(exponent)), random.values(length, 2.0));
        let mean = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / length as f64;
        for isa in Isa::all() {
            let mut out = vec![f32::NAN; length];
            rms_norm(isa, &x, &weight, 1e-5, &mut out);
            for i in 0..length {
                let expected = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(weight[i]);
                prop_assert!((f64::from(out[i]) - expected).abs() <= 1e-6 * (1.0 + expected.abs()), "{isa}");
            }
        }
    }

    #[test]
    fn swiglu_equals_f64(seed: u64, length in 1usize..70, scale in 0f32..60.0) {
        let mut random = Random::new(seed);
        let (gate, up) = (random.values(length, scale), random.values(length, scale));
        for isa in Isa::all() {
            let mut out = gate.clone();
            swiglu(isa, &mut out, &up);
            for i in 0..length {
                let (g, u) = (f64::from(gate[i]).min(7.0), f64::from(up[i]).clamp(-7.0, 7.0));
                let expected = (u + 1.0) * g / (1.0 + (-1.702 * g).exp());
                let error = (f64::from(out[i]) - expected).abs();
                prop_assert!(error <= 1e-6 * (1.0 + expected.abs()), "{isa}: {} and {}: {}", gate[i], up[i], out[i]);
            }
        }
    }

    #[test]
    fn nan_is_preserved(length in 1usize..70, bad in any::<prop::sample::Index>(), in_gate: bool) {
        let at = bad.index(length);
        for isa in Isa::all() {
            let (mut gate, mut up) = (vec![1.0; length], vec![1.0; length]);
            if in_gate { gate[at] = f32::NAN } else { up[at] = f32::NAN }
            swiglu(isa, &mut gate, &up);
            for (i, y) in gate.iter().enumerate() {
                prop_assert_eq!(y.is_nan(), i == at, "{}: {}", isa, y);
            }
        }
    }
}

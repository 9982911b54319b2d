//! Loops of multiply-adds in vector registers on x86, with `CHAINS` independent accumulators.

use std::arch::x86_64::*;
use std::hint::black_box;

#[target_feature(enable = "avx512f")]
pub fn f32_512<const CHAINS: usize>(rounds: usize) {
    let factor = black_box(_mm512_set1_ps(0.999));
    let mut sums = [factor; CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, factor, factor);
        }
    }
    black_box(sums);
}

#[target_feature(enable = "avx2,fma")]
pub fn f32_256<const CHAINS: usize>(rounds: usize) {
    let factor = black_box(_mm256_set1_ps(0.999));
    let mut sums = [factor; CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, factor, factor);
        }
    }
    black_box(sums);
}

#[target_feature(enable = "avx512f,avx512vnni")]
pub fn packed_512<const CHAINS: usize>(rounds: usize) {
    let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(5)));
    let mut sums = [_mm512_setzero_si512(); CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
    }
    black_box(sums);
}

#[target_feature(enable = "avx2")]
pub fn packed_256<const CHAINS: usize>(rounds: usize) {
    let (a, b, ones) = (black_box(_mm256_set1_epi8(3)), black_box(_mm256_set1_epi8(5)), _mm256_set1_epi16(1));
    let mut sums = [a; CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            // The sum is an input of the product, because the compiler would move a product that never changes out of the loop.
            let pairs = _mm256_maddubs_epi16(a, _mm256_xor_si256(b, *sum));
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
        }
    }
    black_box(sums);
}

//! Detection of instruction sets, and dispatch of kernels to them.

use std::fmt;

#[cfg(target_arch = "aarch64")]
use crate::simd::neon::Neon;
use crate::simd::{Simd, portable::Portable};
#[cfg(target_arch = "x86_64")]
use crate::simd::{avx2::Avx2, avx512::Avx512};

/// An instruction set that this machine has: values are created only after detecting it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    NeonDotprod,
    #[cfg(target_arch = "aarch64")]
    Neon,
    Portable,
}

/// A computation that is compiled once for each instruction set.
pub(crate) trait Kernel {
    type Output;

    /// # Safety
    /// The machine must have the instructions of `S`, and the kernel's own conditions must hold.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

impl Isa {
    /// All instruction sets of this machine, fastest first.
    pub fn all() -> Vec<Isa> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vnni")
                && is_x86_feature_detected!("f16c")
            {
                found.push(Isa(Level::Avx512));
                if is_x86_feature_detected!("avx512bf16") {
                    found.insert(usize::from(has_slow_bf16()), Isa(Level::Avx512Bf16));
                }
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                found.push(Isa(Level::Avx2));
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected;
            if is_aarch64_feature_detected!("neon") {
                if is_aarch64_feature_detected!("dotprod") {
                    found.push(Isa(Level::NeonDotprod));
                }
                found.push(Isa(Level::Neon));
            }
        }
        found.push(Isa(Level::Portable));
        found
    }

    pub fn best() -> Isa {
        Isa::all()[0]
    }

    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => "avx512-bf16",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "aarch64")]
            Level::NeonDotprod => "neon-dotprod",
            #[cfg(target_arch = "aarch64")]
            Level::Neon => "neon",
            Level::Portable => "portable",
        }
    }

    /// Number of inputs whose sums of products with a tile of weights are kept in registers at the same time.
    pub(crate) fn group_size(self) -> usize {
        struct GroupSize;
        impl Kernel for GroupSize {
            type Output = usize;

            #[inline(always)]
            unsafe fn run<S: Simd>(self) -> usize {
                S::PANEL
            }
        }
        // SAFETY: the kernel only returns a number.
        unsafe { self.run(GroupSize) }
    }

    /// # Safety
    /// The kernel's own conditions must hold.
    #[inline]
    pub(crate) unsafe fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: an `Isa` exists only where its instructions were detected; the caller guarantees the kernel's own conditions.
        unsafe {
            match self.0 {
                #[cfg(target_arch = "x86_64")]
                Level::Avx512Bf16 => run_avx512_bf16(kernel),
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => run_avx512(kernel),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => run_avx2(kernel),
                #[cfg(target_arch = "aarch64")]
                Level::NeonDotprod => run_neon_dotprod(kernel),
                #[cfg(target_arch = "aarch64")]
                Level::Neon => run_neon(kernel),
                Level::Portable => kernel.run::<Portable>(),
            }
        }
    }
}

/// Whether products with MXFP4 are faster in f32 than in bf16: on Intel's processors (measured on Emerald Rapids), not on AMD's
/// (measured on Zen 5; figures are in `prepared.rs`).
#[cfg(target_arch = "x86_64")]
fn has_slow_bf16() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
    name.as_flattened() == b"GenuineIntel"
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
unsafe fn run_avx512_bf16<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function's own features are those of `Avx512` with BF16.
    unsafe { kernel.run::<Avx512<true>>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function's own features are those of `Avx512` without BF16.
    unsafe { kernel.run::<Avx512<false>>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function's own features are those of `Avx2`.
    unsafe { kernel.run::<Avx2>() }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod")]
unsafe fn run_neon_dotprod<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function's own features are those of `Neon` with `sdot`.
    unsafe { kernel.run::<Neon<true>>() }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn run_neon<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function's own features are those of `Neon` without `sdot`.
    unsafe { kernel.run::<Neon<false>>() }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The other tests run whatever [`Isa::all`] lists, so a missing instruction set would not fail them. `KERNEL_ISAS` is the list
    /// that the machine must have, such as `neon-dotprod,neon,portable`; every aarch64 must have NEON.
    #[test]
    fn no_instruction_set_is_missing() {
        let found: Vec<&str> = Isa::all().into_iter().map(Isa::name).collect();
        assert_eq!(found.last(), Some(&"portable"), "{found:?}");
        if let Ok(expected) = std::env::var("KERNEL_ISAS") {
            assert_eq!(found.join(","), expected, "KERNEL_ISAS");
        }
        #[cfg(target_arch = "aarch64")]
        assert!(found.contains(&"neon"), "{found:?}");
    }
}

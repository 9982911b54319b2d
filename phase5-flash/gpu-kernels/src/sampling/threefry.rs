//! Random numbers that are a function of seed and position: Threefry-2x32 with 20 rounds (Salmon et al., "Parallel random numbers: as
//! easy as 1, 2, 3", 2011).

use cubecl::prelude::*;

/// Rotation distances of eight rounds; later rounds repeat them.
const ROTATIONS: [u32; 8] = [13, 15, 26, 6, 17, 29, 16, 24];
const ROUNDS: u32 = 20;
/// The constant of the Skein hash function that, XORed with both words of the seed, gives the third word of the key.
const PARITY: u32 = 0x1BD1_1BDA;

/// The random number in [0, 1) of the token at `position`.
#[cube]
pub(super) fn number(seed_low: u32, seed_high: u32, position: u32) -> f32 {
    let mut keys = Array::<u32>::new(3usize);
    keys[0usize] = seed_low;
    keys[1usize] = seed_high;
    keys[2usize] = seed_low ^ seed_high ^ PARITY;
    let mut x = position + seed_low;
    let mut y = seed_high;
    #[unroll]
    for round in 0..ROUNDS {
        let rotation = comptime![ROTATIONS[(round % 8) as usize]];
        x += y;
        y = ((y << rotation) | (y >> comptime![32 - rotation])) ^ x;
        if comptime![round % 4 == 3] {
            let group = comptime![round / 4 + 1];
            x += keys[comptime![(group % 3) as usize]];
            y += keys[comptime![((group + 1) % 3) as usize]] + group;
        }
    }
    // Times 2⁻²⁴.
    f32::cast_from(x >> 8u32) * f32::new(5.960_464_5e-8)
}

#[cfg(test)]
mod tests {
    use phase2_forward::draw_number;

    use super::*;
    use crate::testing::{Random, device, poisoned};

    #[cube(launch_unchecked)]
    fn numbers(seeds: &[u32], out: &mut [f32], count: u32) {
        if ABSOLUTE_POS < count as usize {
            let at = ABSOLUTE_POS * 3;
            out[ABSOLUTE_POS] = number(seeds[at], seeds[at + 1], seeds[at + 2]);
        }
    }

    #[test]
    fn threefry_equals_the_hosts() {
        let (device, mut random) = (device(), Random::fresh());
        const COUNT: usize = 1000;
        let mut word = || random.below(1 << 31) as u64;
        let draws: Vec<(u64, usize)> = (0..COUNT).map(|_| (word() << 33 | word(), word() as usize >> 11)).collect();
        let words = draws.iter().flat_map(|&(seed, position)| [seed as u32, (seed >> 32) as u32, position as u32]);
        let (seeds, out) = (device.upload(words.collect()), poisoned(&device, COUNT));
        // SAFETY: `count` bounds the kernel.
        unsafe {
            numbers::launch_unchecked(
                device.client(),
                CubeCount::Static(COUNT.div_ceil(64) as u32, 1, 1),
                CubeDim::new_1d(64),
                seeds.arg(),
                out.arg(),
                COUNT as u32,
            );
        }
        let found = device.read_f32(&out).expect("reads");
        for (&(seed, position), found) in draws.iter().zip(found) {
            assert_eq!(found, draw_number(seed, position), "{seed} {position} {random:?}");
        }
    }
}

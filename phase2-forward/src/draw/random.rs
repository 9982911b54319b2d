//! Counter-based random numbers: each number is a function of seed and position, so there is no generator state to keep.
//!
//! Threefry-2x32 with 20 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). It needs only additions, rotations
//! and XORs of 32-bit words, which every shader language has.

/// Rotation distances of eight rounds; the rounds after them repeat these.
const ROTATIONS: [u32; 8] = [13, 15, 26, 6, 17, 29, 16, 24];
const ROUNDS: usize = 20;
/// The constant of the key schedule's parity word, from the hash function Skein.
const PARITY: u32 = 0x1BD1_1BDA;

/// Two random words for a key and a counter.
pub fn threefry([key0, key1]: [u32; 2], [counter0, counter1]: [u32; 2]) -> [u32; 2] {
    let keys = [key0, key1, PARITY ^ key0 ^ key1];
    let mut x = [counter0.wrapping_add(key0), counter1.wrapping_add(key1)];
    for round in 0..ROUNDS {
        x[0] = x[0].wrapping_add(x[1]);
        x[1] = x[1].rotate_left(ROTATIONS[round % 8]) ^ x[0];
        if round % 4 == 3 {
            let group = round / 4 + 1;
            x[0] = x[0].wrapping_add(keys[group % 3]);
            x[1] = x[1].wrapping_add(keys[(group + 1) % 3]).wrapping_add(group as u32);
        }
    }
    x
}

/// The number in [0, 1) that draws the token at `position` of a sequence. It has 24 bits, so f32 represents it exactly.
pub fn draw_number(seed: u64, position: usize) -> f32 {
    let position = position as u64;
    let [word, _] = threefry([seed as u32, (seed >> 32) as u32], [position as u32, (position >> 32) as u32]);
    (word >> 8) as f32 / (1 << 24) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Test vectors of Random123, the authors' implementation.
    #[test]
    fn threefry_equals_known_answers() {
        assert_eq!(threefry([0, 0], [0, 0]), [0x6b20_0159, 0x99ba_4efe]);
        assert_eq!(threefry([u32::MAX; 2], [u32::MAX; 2]), [0x1cb9_96fc, 0xbb00_2be7]);
        assert_eq!(threefry([0x1319_8a2e, 0x0370_7344], [0x243f_6a88, 0x85a3_08d3]), [0xc492_3a9c, 0x483d_f7a0]);
    }

    #[test]
    fn numbers_are_uniform() {
        let numbers: Vec<f64> = (0..100_000).map(|position| f64::from(draw_number(7, position))).collect();
        let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
        let square = numbers.iter().map(|number| number * number).sum::<f64>() / numbers.len() as f64;
        // At most five standard errors from the expected values, 1/2 and 1/3.
        assert!((mean - 0.5).abs() < 5.0 * (1.0f64 / 12.0 / 1e5).sqrt(), "{mean}");
        assert!((square - 1.0 / 3.0).abs() < 5.0 * (4.0f64 / 45.0 / 1e5).sqrt(), "{square}");
        assert!(numbers.iter().all(|number| (0.0..1.0).contains(number)));
    }

    #[test]
    fn draws_depend_on_high_word_and_position() {
        assert_ne!(draw_number(1, 0), draw_number(1 << 32 | 1, 0));
        assert_ne!(draw_number(1, 0), draw_number(1, 1));
    }
}

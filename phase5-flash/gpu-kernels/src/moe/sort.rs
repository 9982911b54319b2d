//! Sorts slots by their expert, and splits them into tiles of one expert each. A slot is one of the experts chosen for one row.
//!
//! A single cube counts and sorts. Each unit handles one expert in one part of the slots, or several experts if there are more experts than
//! units, so that the order does not depend on the timing of units.
//!
//! History (H100, gpt-oss-20b's shape, 2,048 slots, 32 experts): with one unit per expert for all slots, a prompt of 512 tokens took
//! 47.3 ms; with 8 parts, and MXFP4 unpacked in pairs, 42.9 ms.

use cubecl::prelude::*;

use crate::device::{Buffer, Device};

/// Words per tile: expert, index of the first sorted slot, and number of slots, which is 0 in an unused tile.
const TILE_WORDS: u32 = 3;
const UNITS: u32 = 256;
/// The most parts of the slots that are counted in parallel.
const MAX_PARTS: u32 = 32;

/// A tile: `count` sorted slots from index `first` on, all of `expert`.
#[derive(CubeType)]
pub(crate) struct SlotTile {
    pub expert: u32,
    pub first: u32,
    /// 0 in an unused tile.
    pub count: u32,
}

#[cube]
impl SlotTile {
    pub fn read(tiles: &[u32], number: u32) -> SlotTile {
        let at = (number * TILE_WORDS) as usize;
        SlotTile { expert: tiles[at], first: tiles[at + 1], count: tiles[at + 2] }
    }
}

/// An upper bound of the number of tiles of `tile` slots that any assignment of `slots` slots to `experts` experts needs.
pub(crate) const fn most_tiles(slots: usize, experts: usize, tile: u32) -> usize {
    slots / tile as usize + if experts < slots { experts } else { slots }
}

/// Number of words of `most_tiles(slots, experts, tile)` tiles, which suffice for any assignment of `slots` slots to `experts` experts.
pub const fn tile_words(slots: usize, experts: usize, tile: u32) -> usize {
    most_tiles(slots, experts, tile) * TILE_WORDS as usize
}

/// Sorts the slots of several rows.
pub struct SlotSort<'a> {
    /// The expert of each slot, `[slots]`.
    pub chosen: &'a Buffer,
    /// Output: slots sorted by expert, `[slots]`. Slots of the same expert keep their order.
    pub sorted_slots: &'a Buffer,
    /// Output: [`tile_words`] words.
    pub tiles: &'a Buffer,
    pub slots: usize,
    pub experts: usize,
    /// The most slots per tile.
    pub tile: u32,
}

impl SlotSort<'_> {
    /// # Panics
    /// If a buffer is too short, or `experts` or `tile` is 0.
    pub fn launch(&self, device: &Device) {
        let SlotSort { slots, experts, tile, .. } = *self;
        assert!(experts > 0 && tile > 0, "at least one expert, and at least one slot per tile");
        self.chosen.expect("the chosen experts", slots);
        self.sorted_slots.expect("the sorted slots", slots);
        self.tiles.expect("the tiles of slots", tile_words(slots, experts, tile));
        let units = device.whole_planes(UNITS);
        // SAFETY: lengths are checked; the kernels that choose experts write only numbers of existing ones.
        unsafe {
            sort::launch_unchecked(
                device.client(),
                CubeCount::Static(1, 1, 1),
                CubeDim::new_1d(units),
                self.chosen.arg(),
                self.sorted_slots.arg(),
                self.tiles.arg(),
                slots as u32,
                most_tiles(slots, experts, tile) as u32,
                experts as u32,
                tile,
                (units / experts as u32).clamp(1, MAX_PARTS),
            );
        }
    }
}

#[cube(launch_unchecked)]
fn sort(
    chosen: &[u32],
    sorted_slots: &mut [u32],
    tiles: &mut [u32],
    slots: u32,
    most_tiles: u32,
    #[comptime] experts: u32,
    #[comptime] tile_slots: u32,
    #[comptime] parts: u32,
) {
    // Counts per expert, in each part of the slots and in total.
    let mut counts = Shared::<[u32]>::new_slice(comptime![(experts * parts) as usize]);
    let mut totals = Shared::<[u32]>::new_slice(comptime![experts as usize]);
    let length = slots.div_ceil(parts);
    let mut unit = UNIT_POS;
    while unit < comptime![experts * parts] {
        let first = unit / experts * length;
        let mut count = 0u32;
        for slot in first..min(first + length, slots) {
            count += select(chosen[slot as usize] == unit % experts, 1u32, 0u32);
        }
        counts[unit as usize] = count;
        unit += CUBE_DIM;
    }
    let mut tile = UNIT_POS;
    while tile < most_tiles {
        tiles[(tile * TILE_WORDS + 2) as usize] = 0u32;
        tile += CUBE_DIM;
    }
    // All tiles are marked as unused before any tile is filled. The storage barrier also synchronizes the cube.
    sync_storage();
    let mut expert = UNIT_POS;
    while expert < experts {
        let mut total = 0u32;
        for part in 0..parts {
            total += counts[(part * experts + expert) as usize];
        }
        totals[expert as usize] = total;
        expert += CUBE_DIM;
    }
    sync_cube();

    let mut unit = UNIT_POS;
    while unit < comptime![experts * parts] {
        let expert = unit % experts;
        let mut place = 0u32;
        let mut tile = 0u32;
        for before in 0..expert {
            place += totals[before as usize];
            tile += totals[before as usize].div_ceil(tile_slots);
        }
        if unit < experts {
            let total = totals[expert as usize];
            let mut done = 0u32;
            while done < total {
                tiles[(tile * TILE_WORDS) as usize] = expert;
                tiles[(tile * TILE_WORDS + 1) as usize] = place + done;
                tiles[(tile * TILE_WORDS + 2) as usize] = min(total - done, tile_slots);
                tile += 1;
                done += tile_slots;
            }
        }
        for before in 0..unit / experts {
            place += counts[(before * experts + expert) as usize];
        }
        let first = unit / experts * length;
        for slot in first..min(first + length, slots) {
            if chosen[slot as usize] == expert {
                sorted_slots[place as usize] = slot;
                place += 1;
            }
        }
        unit += CUBE_DIM;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, device};

    #[test]
    fn slots_are_sorted_by_expert() {
        let device = device();
        let mut random = Random::fresh();
        let shapes = [(1, 1), (4, 32), (300, 5), (2048, 32), (130, 300), (64, 1), (200, 2)];
        for ((slots, experts), most) in shapes.into_iter().flat_map(|shape| [(shape, 64), (shape, 8)]) {
            let chosen: Vec<u32> = (0..slots).map(|_| random.below(experts) as u32).collect();
            let sorted_slots = device.upload(vec![u32::MAX; slots]);
            let tiles = device.upload(vec![u32::MAX; tile_words(slots, experts, most)]);
            SlotSort {
                chosen: &device.upload(chosen.clone()),
                sorted_slots: &sorted_slots,
                tiles: &tiles,
                slots,
                experts,
                tile: most,
            }
            .launch(&device);
            let (sorted, tiles) = (device.read(&sorted_slots).expect("reads"), device.read(&tiles).expect("reads"));
            let mut expected: Vec<u32> = (0..slots as u32).collect();
            expected.sort_by_key(|&slot| chosen[slot as usize]);
            assert_eq!(sorted[..slots], expected, "{slots} {experts} {random:?}");
            let mut covered = 0;
            for tile in tiles.as_chunks::<{ TILE_WORDS as usize }>().0.iter().take(most_tiles(slots, experts, most)) {
                let [expert, first, count] = *tile;
                assert!(count <= most, "{slots} {experts} {random:?}");
                if count > 0 {
                    assert_eq!(first, covered, "{random:?}");
                    covered += count;
                    let members = &sorted[first as usize..(first + count) as usize];
                    assert!(members.iter().all(|&slot| chosen[slot as usize] == expert), "{random:?}");
                }
            }
            assert_eq!(covered as usize, slots, "{slots} {experts} {random:?}");
        }
    }
}

//! Puts rows that chose the same expert side by side, and adds their products up again.
//!
//! A slot is one choice of one row: row i's are slots `i · chosen` to `i · chosen + chosen − 1`. One cube counts and orders them;
//! every unit answers for an expert in a share of the slots, so that the order does not depend on which unit is faster.
//!
//! Ladder (H100, gpt-oss-20b's shape, 2,048 slots of 32 experts): a unit an expert, over all slots, and a prompt of 512 took
//! 47.3 ms; in 8 shares, and MXFP4 unpacked in pairs, 42.9.

use cubecl::prelude::*;

use super::experts::Experts;
use crate::gpu::device::{Buffer, Gpu};

/// Slots that one tile of [`gemm`](super::gemm) holds.
pub(crate) const TILE: u32 = 64;
/// Words that describe a tile: expert, first place in the order, and slots, none in a tile that is not needed; one unused.
pub(crate) const TILE_WORDS: u32 = 4;
const UNITS: u32 = 256;
/// The most shares that slots are counted in.
const MOST_SHARES: u32 = 32;

/// Gate, up and down projections of grouped rows.
pub(crate) struct GroupedExperts<'a> {
    pub gate: &'a Experts,
    pub up: &'a Experts,
    pub down: &'a Experts,
    /// `[inputs, hidden]`
    pub x: &'a Buffer,
    /// Slots by expert, and the tiles over them, as [`group`] fills them.
    pub order: &'a Buffer,
    pub tiles: &'a Buffer,
    /// `[inputs · chosen, width]`
    pub activations: &'a Buffer,
    /// `[inputs · chosen, hidden]`: each slot's product, with its bias and not yet weighted.
    pub out: &'a Buffer,
    pub chosen_per_row: usize,
    pub inputs: usize,
}

/// What the words of a tile say: `count` slots chose `expert`, from place `first` of the order on.
#[derive(CubeType)]
pub(super) struct SlotTile {
    pub expert: u32,
    pub first: u32,
    /// 0 in a tile that is not needed.
    pub count: u32,
}

#[cube]
impl SlotTile {
    pub fn read(tiles: &[u32], number: u32) -> SlotTile {
        let at = (number * TILE_WORDS) as usize;
        SlotTile { expert: tiles[at], first: tiles[at + 1], count: tiles[at + 2] }
    }
}

/// Tiles of `tile` slots that any choice of `slots` slots among `experts` experts needs at most.
pub(crate) const fn most_tiles(slots: usize, experts: usize, tile: u32) -> usize {
    slots / tile as usize + if experts < slots { experts } else { slots }
}

/// Fills `order` `[slots]` with slots by expert and `tiles` with the tiles over them, of `tile` slots at most.
pub(crate) fn group(
    gpu: &Gpu,
    chosen: &Buffer,
    [slots, experts]: [usize; 2],
    tile: u32,
    order: &Buffer,
    tiles: &Buffer,
) {
    let units = UNITS.next_multiple_of(gpu.plane);
    // SAFETY: slots and experts are bounded in the kernel; `tiles` has room for the most there can be.
    unsafe {
        group_kernel::launch_unchecked(
            &gpu.client,
            CubeCount::Static(1, 1, 1),
            CubeDim::new_1d(units),
            chosen.arg(),
            order.arg(),
            tiles.arg(),
            slots as u32,
            most_tiles(slots, experts, tile) as u32,
            experts as u32,
            tile,
            (units / experts as u32).clamp(1, MOST_SHARES),
        );
    }
}

#[cube(launch_unchecked)]
fn group_kernel(
    chosen: &[u32],
    order: &mut [u32],
    tiles: &mut [u32],
    slots: u32,
    most_tiles: u32,
    #[comptime] experts: u32,
    #[comptime] tile_slots: u32,
    #[comptime] shares: u32,
) {
    // Of each expert, in each share of the slots, and in all.
    let mut counts = Shared::<[u32]>::new_slice(comptime![(experts * shares) as usize]);
    let mut totals = Shared::<[u32]>::new_slice(comptime![experts as usize]);
    let share = slots.div_ceil(shares);
    let mut unit = UNIT_POS;
    while unit < comptime![experts * shares] {
        let first = unit / experts * share;
        let mut count = 0u32;
        for slot in first..min(first + share, slots) {
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
    sync_cube();
    sync_storage();
    let mut expert = UNIT_POS;
    while expert < experts {
        let mut total = 0u32;
        for share in 0..shares {
            total += counts[(share * experts + expert) as usize];
        }
        totals[expert as usize] = total;
        expert += CUBE_DIM;
    }
    sync_cube();

    let mut unit = UNIT_POS;
    while unit < comptime![experts * shares] {
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
        let first = unit / experts * share;
        for slot in first..min(first + share, slots) {
            if chosen[slot as usize] == expert {
                order[place as usize] = slot;
                place += 1;
            }
        }
        unit += CUBE_DIM;
    }
}

/// `out[i] += Σ weight · product` over row i's slots; products are `[inputs · chosen, hidden]`.
pub(crate) fn add_up(
    gpu: &Gpu,
    products: &Buffer,
    weights: &Buffer,
    out: &Buffer,
    [inputs, chosen_per_row, hidden]: [usize; 3],
) {
    let vectors = hidden as u32 / 4;
    // SAFETY: inputs, slots and columns are bounded in the kernel.
    unsafe {
        add_up_kernel::launch_unchecked(
            &gpu.client,
            CubeCount::Static(inputs as u32, vectors.div_ceil(UNITS), 1),
            CubeDim::new_1d(UNITS),
            products.arg4(),
            weights.arg(),
            out.arg4(),
            chosen_per_row as u32,
            vectors,
        );
    }
}

#[cube(launch_unchecked)]
fn add_up_kernel(
    products: &[Vector<f32, Const<4>>],
    weights: &[f32],
    out: &mut [Vector<f32, Const<4>>],
    chosen_per_row: u32,
    vectors: u32,
) {
    let column = CUBE_POS_Y * UNITS + UNIT_POS;
    if column < vectors {
        let mut sum = out[(CUBE_POS_X * vectors + column) as usize];
        for slot in CUBE_POS_X * chosen_per_row..(CUBE_POS_X + 1) * chosen_per_row {
            let weight = Vector::<f32, Const<4>>::new(weights[slot as usize]);
            sum += weight * products[(slot * vectors + column) as usize];
        }
        out[(CUBE_POS_X * vectors + column) as usize] = sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::kernels::testing::{Random, gpu};

    #[test]
    fn every_slot_has_one_place_by_its_expert() {
        let gpu = gpu();
        let mut random = Random::fresh();
        let shapes = [(1, 1), (4, 32), (300, 5), (2048, 32), (130, 300), (64, 1), (200, 2)];
        for ((slots, experts), most) in shapes.into_iter().flat_map(|shape| [(shape, TILE), (shape, 8)]) {
            let chosen: Vec<u32> = (0..slots).map(|_| random.below(experts) as u32).collect();
            let order = gpu.upload(vec![u32::MAX; slots]);
            let tiles = gpu.upload(vec![u32::MAX; most_tiles(slots, experts, most) * TILE_WORDS as usize]);
            group(&gpu, &gpu.upload(chosen.clone()), [slots, experts], most, &order, &tiles);
            let (order, tiles) = (gpu.read(&order).expect("reads"), gpu.read(&tiles).expect("reads"));
            let mut expected: Vec<u32> = (0..slots as u32).collect();
            expected.sort_by_key(|&slot| chosen[slot as usize]);
            assert_eq!(order[..slots], expected, "{slots} {experts} {random:?}");
            let mut covered = 0;
            for tile in tiles.as_chunks::<4>().0.iter().take(most_tiles(slots, experts, most)) {
                let [expert, first, count, _] = *tile;
                assert!(count <= most);
                if count > 0 {
                    assert_eq!(first, covered, "{random:?}");
                    covered += count;
                    let members = &order[first as usize..(first + count) as usize];
                    assert!(members.iter().all(|&slot| chosen[slot as usize] == expert), "{random:?}");
                }
            }
            assert_eq!(covered as usize, slots, "{slots} {experts} {random:?}");
        }
    }
}

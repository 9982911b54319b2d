//! Looks up and unpacks the embeddings of a step's tokens on the device, because tokens may have been chosen there.

use cubecl::prelude::*;

use crate::device::Buffer;
use crate::gpu::Gpu;
use crate::matrix::Matrix;
use crate::packed::{Packing, load_blocks, packed_scale, packed_values};
use crate::rows::{ROW_WORDS, TAKES_DRAWN};

const UNITS: u32 = 128;

/// `out[i] = table[token of row i]` for `inputs` rows, `[inputs, hidden]`. `rows` has [`ROW_WORDS`] words for each row, as
/// [`Row::words`](crate::Row::words) returns them. If a row is marked as taking a drawn token, its token is not in `rows`: it is
/// `drawn[slot]`, the token that was last sampled for the row's sequence. Every slot must be below the length of `drawn`, which is not
/// checked.
///
/// # Panics
/// If `rows` or `out` is too short, or `drawn` is empty.
pub fn embed(gpu: &Gpu, table: &Matrix, rows: &Buffer, drawn: &Buffer, out: &Buffer, inputs: usize) {
    rows.expect("the rows", inputs * ROW_WORDS as usize);
    drawn.expect("the drawn tokens", 1);
    out.expect("the embeddings", inputs * table.columns());
    let blocks = table.blocks() as u32;
    for part in table.parts() {
        // SAFETY: lengths are checked; slots are below the length of `drawn`, as documented; a part handles only tokens that are its rows.
        unsafe {
            embed_kernel::launch_unchecked(
                gpu.device.client(),
                CubeCount::Static(blocks.div_ceil(UNITS), inputs as u32, 1),
                CubeDim::new_1d(UNITS),
                part.codes.arg4(),
                part.scales.arg(),
                rows.arg(),
                drawn.arg(),
                out.arg4(),
                part.first_row as u32,
                part.rows as u32,
                blocks,
                gpu.packing(table.storage()),
            );
        }
    }
}

#[cube(launch_unchecked)]
fn embed_kernel(
    codes: &[Vector<u32, Const<4>>],
    scales: &[u32],
    rows: &[u32],
    drawn: &[u32],
    out: &mut [Vector<f32, Const<4>>],
    first_row: u32,
    part_rows: u32,
    blocks: u32,
    #[comptime] packing: Packing,
) {
    let block = CUBE_POS_X * UNITS + UNIT_POS;
    let words = CUBE_POS_Y * ROW_WORDS;
    let own = rows[words as usize];
    let token =
        if rows[(words + 3) as usize] == TAKES_DRAWN { drawn[rows[(words + 2) as usize] as usize] } else { own };
    if block < blocks && token >= first_row && token - first_row < part_rows {
        let row = token - first_row;
        let mut words = Array::<Vector<u32, Const<4>>>::new(comptime![packing.vectors() as usize]);
        let mut scale_word = Array::<u32>::new(1usize);
        load_blocks(codes, scales, row, block, blocks, &mut words, &mut scale_word, 0u32, 1u32, packing.storage);
        let scale = Vector::<f32, Const<4>>::new(packed_scale(scale_word[0usize], packing));
        #[unroll]
        for i in 0..8u32 {
            out[((CUBE_POS_Y * blocks + block) * 8 + i) as usize] = packed_values(&words, 0u32, i, packing) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use formats::Storage;

    use super::*;
    use crate::testing::{Random, gpu, matrix, poisoned};

    #[test]
    fn unpacks_requested_rows() {
        let gpu = gpu();
        let mut random = Random::fresh();
        for storage in Storage::ALL {
            for (vocab, hidden) in [(299, 96), (7, 32), (50, 2880)] {
                let values = random.values(vocab * hidden, 1.0);
                // The table of 299 rows is in three parts, as if the whole exceeded the limit of a binding.
                let row_bytes = hidden / 32 * 16 * crate::matrix::vectors(storage);
                let device = match vocab {
                    299 => gpu.device.clone().with_binding_bytes(100 * row_bytes as u64),
                    _ => gpu.device.clone(),
                };
                let (values, table) = matrix(&device, storage, [1, vocab, hidden], &values);
                assert_eq!(table.parts().len(), if vocab == 299 { 3 } else { 1 });
                let tokens: Vec<u32> = (0..5).map(|_| random.below(vocab) as u32).collect();
                // Every second row feeds the token that its slot drew last.
                let words = |(row, &token): (usize, &u32)| match row % 2 {
                    0 => [token, 0, 0, 0],
                    _ => [u32::MAX, 0, row as u32, TAKES_DRAWN],
                };
                let rows = device.upload(tokens.iter().enumerate().flat_map(words).collect());
                let drawn = device.upload(tokens.clone());
                let out = poisoned(&device, tokens.len() * hidden);
                embed(&gpu, &table, &rows, &drawn, &out, tokens.len());
                let row = |&token: &u32| &values[token as usize * hidden..][..hidden];
                let expected: Vec<f32> = tokens.iter().flat_map(row).copied().collect();
                let found = device.read_f32(&out).expect("reads");
                assert_eq!(found[..expected.len()], expected, "{storage:?}, {random:?}");
            }
        }
    }
}

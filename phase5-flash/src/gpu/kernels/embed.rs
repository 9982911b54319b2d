//! The embeddings of a step's tokens, unpacked on the device: the token may have been chosen there.

use cubecl::prelude::*;
use phase1_loading::Format;

use super::codes::{Codes, block_values, load_codes, load_scales, scale_value};
use crate::gpu::device::{Buffer, Gpu};
use crate::gpu::layout::{Matrix, vectors};
use crate::gpu::rows::{ROW_WORDS, TAKES_DRAWN};

const UNITS: u32 = 128;

/// `out[i] = table[token of row i]` for `inputs` rows, `[inputs, hidden]`. `drawn` has the token that each slot drew last.
pub(crate) fn embed(gpu: &Gpu, table: &Matrix, rows: &Buffer, drawn: &Buffer, out: &Buffer, inputs: usize) {
    let blocks = table.blocks() as u32;
    for part in &table.parts {
        // SAFETY: a row's token is below the table's rows, and a part answers only for its own.
        unsafe {
            embed_kernel::launch_unchecked(
                &gpu.client,
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
                table.format,
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
    #[comptime] format: Format,
) {
    let block = CUBE_POS_X * UNITS + UNIT_POS;
    let words = CUBE_POS_Y * ROW_WORDS;
    let own = rows[words as usize];
    let token =
        if rows[(words + 3) as usize] == TAKES_DRAWN { drawn[rows[(words + 2) as usize] as usize] } else { own };
    if block < blocks && token >= first_row && token - first_row < part_rows {
        let row = token - first_row;
        let vectors = comptime![vectors(format) as u32];
        let mut words = Array::<Vector<u32, Const<4>>>::new(comptime![vectors as usize]);
        load_codes(codes, row, block, blocks, &mut words, 0u32, vectors);
        let mut scale_word = Array::<u32>::new(1usize);
        load_scales(scales, row, block, blocks, &mut scale_word, 0u32, 1u32, format);
        let scale = Vector::<f32, Const<4>>::new(scale_value(scale_word[0usize], format));
        #[unroll]
        for i in 0..8u32 {
            out[((CUBE_POS_Y * blocks + block) * 8 + i) as usize] =
                block_values(&words, 0u32, i, format, Codes::Less2) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::kernels::testing::{Random, gpu, poisoned};
    use phase1_loading::HostTensor;

    #[test]
    fn unpacks_the_rows_asked_for() {
        let gpu = gpu();
        let mut random = Random::fresh();
        for format in Format::WRITTEN {
            for (vocab, hidden) in [(299, 96), (7, 32), (50, 2880)] {
                let values = random.values(vocab * hidden, 1.0);
                let tensor = HostTensor::packed_rows(format, vec![vocab, hidden], format.encode(&values).into());
                let mut table = Matrix::upload(&gpu, "embedding", &[&tensor]).expect("uploads");
                if vocab == 299 {
                    // As if a binding could not span it.
                    let halves = [0, 100].map(|first| {
                        let rows = if first == 0 { 100 } else { 199 };
                        let data = tensor.packed_as(format, first..first + rows);
                        let half = HostTensor::packed_rows(format, vec![rows, hidden], data);
                        let part = Matrix::upload(&gpu, "half", &[&half]).expect("uploads").parts.remove(0);
                        crate::gpu::layout::Part { first_row: first, ..part }
                    });
                    table.parts = halves.into();
                }
                let tokens: Vec<u32> = (0..5).map(|_| random.below(vocab) as u32).collect();
                // Every second token is the one that its slot drew last.
                let words = |(row, &token): (usize, &u32)| match row % 2 {
                    0 => [token, 0, 0, 0],
                    _ => [u32::MAX, 0, row as u32, TAKES_DRAWN],
                };
                let rows = gpu.upload(tokens.iter().enumerate().flat_map(words).collect());
                let drawn = gpu.upload(tokens.clone());
                let out = poisoned(&gpu, tokens.len() * hidden);
                embed(&gpu, &table, &rows, &drawn, &out, tokens.len());
                let expected: Vec<f32> = tokens
                    .iter()
                    .flat_map(|&token| tensor.to_f32()[token as usize * hidden..][..hidden].to_vec())
                    .collect();
                assert_eq!(gpu.read_f32(&out).expect("reads")[..expected.len()], expected, "{format:?}, {random:?}");
            }
        }
    }
}

//! The mixture of experts. The weights of an expert are read once per step, for all tokens that chose it.

use cpu_kernels::{SMALL_BATCH, Shared, Storage, TILE, prepare_input, swiglu};

use super::forward::{Forward, Input, small_batch};
use super::model::{Layer, Matrix};
use super::scratch::{Chosen, ExpertInputs, Scratch};

impl Forward {
    /// Whether products of this matrix with at most [`SMALL_BATCH`] inputs use inputs converted by [`prepare_input`].
    fn takes_prepared(&self, matrix: &Matrix) -> bool {
        !self.exact && matrix.storage == Storage::Mxfp4
    }

    /// Packs the inputs of the chosen experts for `matrices`. `input(i)` returns the input of entry i of
    /// [`Choices::tokens`](super::scratch::Choices::tokens).
    fn pack_experts<'a>(
        &self,
        packed: &mut ExpertInputs,
        experts: &[Chosen],
        matrices: &[&Matrix],
        input: impl Fn(usize) -> &'a [f32] + Sync,
    ) {
        let (format, columns) = (self.panel_format(matrices), matrices[0].columns);
        let prepared = matrices.iter().any(|matrix| self.takes_prepared(matrix));
        let (panels, places) = (Shared::new(&mut packed.panels), Shared::new(&mut packed.prepared));
        self.pool.run(experts.len(), &|task, _| {
            let Chosen { first, count, .. } = experts[task];
            // SAFETY: each expert has its own panel and its own prepared inputs.
            unsafe {
                if count > SMALL_BATCH {
                    let panel = &mut panels.part(task, 1)[0];
                    let filling = panel.begin(self.isa, format, columns, count);
                    for group in 0..filling.groups() {
                        filling.pack(group, |i| input(first + i));
                    }
                } else if prepared {
                    for place in first..first + count {
                        prepare_input(self.isa, input(place), places.part(place * columns, columns));
                    }
                }
            }
        });
    }

    /// The inputs of the chosen expert with index `number`, for `matrix`.
    fn expert_input<'a>(
        &self,
        packed: &'a ExpertInputs,
        number: usize,
        chosen: Chosen,
        matrix: &Matrix,
        input: impl Fn(usize) -> &'a [f32],
    ) -> Input<'a> {
        let Chosen { first, count, .. } = chosen;
        let columns = matrix.columns;
        if count > SMALL_BATCH {
            Input::Panel(&packed.panels[number])
        } else if self.takes_prepared(matrix) {
            let (prepared, count) = small_batch(count, |i| &packed.prepared[(first + i) * columns..][..columns]);
            Input::Prepared(prepared, count)
        } else {
            let (rows, count) = small_batch(count, |i| input(first + i));
            Input::SmallBatch(rows, count)
        }
    }

    /// Gate and up projections of the chosen experts, and SwiGLU. A task is 32 outputs of one expert, for all its tokens.
    pub(super) fn gate_up(&self, layer: &Layer, s: &mut Scratch) {
        let (hidden, width) = (self.config.hidden, self.config.expert_width);
        let Scratch { h, hidden: out, choices, expert_inputs, threads, .. } = s;
        let input = |place: usize| &h[choices.tokens[place].0 * hidden..][..hidden];
        self.pack_experts(expert_inputs, &choices.experts, &[&layer.gate.weight, &layer.up.weight], input);
        let (out, threads) = (Shared::new(out), Shared::new(threads));
        let tiles = width.div_ceil(TILE);
        self.pool.run(choices.experts.len() * tiles, &|task, thread| {
            let (number, row) = (task / tiles, task % tiles * TILE);
            let chosen = choices.experts[number];
            let Chosen { expert, first, count } = chosen;
            // SAFETY: each thread has its own scratch, and each task its own columns of the result.
            unsafe {
                let [gate, up] = &mut threads.part(thread, 1)[0].tiles;
                for (linear, tile) in [(&layer.gate, &mut *gate), (&layer.up, &mut *up)] {
                    let rows = linear.weight.rows_of(expert, row, TILE);
                    self.multiply(rows, self.expert_input(expert_inputs, number, chosen, &linear.weight, input), tile);
                    let bias = &linear.bias[expert * width + row..][..rows.count()];
                    for y in tile.chunks_exact_mut(TILE).take(count) {
                        y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
                    }
                }
                let rows = TILE.min(width - row);
                for (i, (gate, up)) in gate.chunks_exact_mut(TILE).zip(up.chunks_exact(TILE)).take(count).enumerate() {
                    swiglu(self.isa, &mut gate[..rows], &up[..rows]);
                    out.part((first + i) * width + row, rows).copy_from_slice(&gate[..rows]);
                }
            }
        });
    }

    /// Down projections of the chosen experts, weighted and added to the residual stream. A task is 32 outputs, for all experts.
    pub(super) fn down(&self, layer: &Layer, s: &mut Scratch) {
        let (hidden, width) = (self.config.hidden, self.config.expert_width);
        let Scratch { x, hidden: h, choices, expert_inputs, threads, .. } = s;
        let input = |place: usize| &h[place * width..][..width];
        self.pack_experts(expert_inputs, &choices.experts, &[&layer.down.weight], input);
        let (x, threads) = (Shared::new(x), Shared::new(threads));
        self.pool.run(hidden.div_ceil(TILE), &|task, thread| {
            let row = task * TILE;
            for (number, &chosen) in choices.experts.iter().enumerate() {
                let Chosen { expert, first, count } = chosen;
                let input = self.expert_input(expert_inputs, number, chosen, &layer.down.weight, input);
                let rows = layer.down.weight.rows_of(expert, row, TILE);
                let bias = &layer.down.bias[expert * hidden + row..][..rows.count()];
                // SAFETY: each thread has its own scratch, and each task its own columns of the stream.
                unsafe {
                    let tile = &mut threads.part(thread, 1)[0].tiles[0];
                    self.multiply(rows, input, tile);
                    for (y, &(token, weight)) in tile.chunks_exact(TILE).zip(&choices.tokens[first..first + count]) {
                        let x = x.part(token * hidden + row, bias.len());
                        for ((x, y), bias) in x.iter_mut().zip(y).zip(bias) {
                            *x += weight * (y + bias);
                        }
                    }
                }
            }
        });
    }
}

//! The forward pass of a step, top to bottom.
//!
//! Shapes are as in phase 2, with the new tokens of all sequences as one matrix `[tokens, hidden]`. Each operation is cut
//! into tiles of 32 weight rows, which the pool's threads take one after another.

use cpu_kernels::{
    FEW, Isa, KeyBlock, PackedRows, Panel, PanelFormat, Pool, Queries, Shared, TILE, attend, multiply_few,
    multiply_panel, multiply_strips, rms_norm, rotate,
};
use phase1_loading::{AttentionKind, GptOssConfig};
use phase2_forward::{Operation, Probe, Rope, Span};

use super::cache::{Cache, PageList};
use super::model::{Layer, Matrix, Model};
use super::scratch::{Scratch, ThreadScratch, grow};
use crate::pages::POSITIONS;

/// Positions whose queries one attention task takes.
const QUERY_TILE: usize = 8;
/// Experts whose router logits one task computes.
const ROUTER_TILE: usize = 8;

/// The model, and what computes it.
pub(super) struct Forward {
    pub config: GptOssConfig,
    pub rope: Rope,
    pub model: Model,
    pub pool: Pool,
    pub isa: Isa,
    pub exact: bool,
}

/// The new tokens of one sequence in a step.
pub(super) struct Part {
    /// The first one's row among all tokens of the step, and how many there are.
    pub first: usize,
    pub count: usize,
    /// The position of the first one.
    pub start: usize,
    /// Pages with room for them, in full layers and in sliding ones.
    pub full: PageList,
    pub sliding: PageList,
}

impl Part {
    fn pages(&self, kind: AttentionKind) -> &PageList {
        match kind {
            AttentionKind::Full => &self.full,
            AttentionKind::Sliding => &self.sliding,
        }
    }
}

/// The input of a product.
#[derive(Clone, Copy)]
pub(super) enum Input<'a> {
    /// At most [`FEW`] rows.
    Few([&'a [f32]; FEW], usize),
    /// As many, laid out for MXFP4.
    Strips([&'a [u32]; FEW], usize),
    Panel(&'a Panel),
}

/// At most [`FEW`] rows by number.
pub(super) fn few<'a, T>(count: usize, row: impl Fn(usize) -> &'a [T]) -> ([&'a [T]; FEW], usize) {
    (std::array::from_fn(|i| if i < count { row(i) } else { &[] }), count)
}

impl Forward {
    /// Runs the tokens through the layers. The result is the scratch's residual stream.
    pub fn layers(&self, cache: &mut Cache, s: &mut Scratch, tokens: &[u32], parts: &[Part], probe: &mut dyn Probe) {
        let (n, sequences) = (tokens.len(), parts.len());
        self.prepare(s, n);
        self.angles(s, parts);
        probe.done(Span { operation: Operation::Mask, layer: None, tokens: n, sequences, keys: 0 });

        self.embed(s, tokens);
        let hidden = self.config.hidden;
        see(probe, || "embed".into(), &s.x, n, hidden);
        probe.done(Span { operation: Operation::Embed, layer: None, tokens: n, sequences, keys: 0 });
        for (number, layer) in self.model.layers.iter().enumerate() {
            let span = |operation, keys| Span { operation, layer: Some(number), tokens: n, sequences, keys };
            self.norm(&s.x, &layer.attention_norm, n, |row| row, &mut s.h);
            probe.done(span(Operation::AttentionNorm, 0));
            self.qkv(layer, s, n);
            probe.done(span(Operation::Qkv, 0));
            self.append(cache, s, number, parts);
            let keys = visible_keys(cache, layer, parts);
            probe.done(span(Operation::CacheAppend, keys));
            self.attention(cache, s, number, parts);
            probe.done(span(Operation::Attention, keys));
            self.attention_out(layer, s, n);
            see(probe, || format!("layers.{number}.resid_attn"), &s.x, n, hidden);
            probe.done(span(Operation::AttentionOut, 0));

            self.norm(&s.x, &layer.mlp_norm, n, |row| row, &mut s.h);
            probe.done(span(Operation::MlpNorm, 0));
            self.router(layer, s, n);
            see(probe, || format!("layers.{number}.router_logits"), &s.router_logits, n, self.config.experts);
            s.choices.choose(
                &s.router_logits[..n * self.config.experts],
                self.config.experts,
                self.config.experts_per_token,
            );
            probe.done(span(Operation::Router, 0));
            self.gate_up(layer, s);
            probe.done(span(Operation::GateUp, 0));
            self.down(layer, s);
            see(probe, || format!("layers.{number}.resid_mlp"), &s.x, n, hidden);
            probe.done(span(Operation::Down, 0));
        }
    }

    fn prepare(&self, s: &mut Scratch, n: usize) {
        let config = &self.config;
        let dim = config.head_dim;
        grow(&mut s.x, n * config.hidden);
        grow(&mut s.h, n * config.hidden);
        grow(&mut s.q, n * config.heads * dim);
        grow(&mut s.mixed, n * config.heads * dim);
        grow(&mut s.k, n * config.kv_heads * dim);
        grow(&mut s.v, n * config.kv_heads * dim);
        grow(&mut s.cosines, n * dim / 2);
        grow(&mut s.sines, n * dim / 2);
        grow(&mut s.router_logits, n * config.experts);
        grow(&mut s.hidden, n * config.experts_per_token * config.expert_width);
        s.expert_inputs.panels.resize_with(config.experts, Panel::default);
        grow(&mut s.expert_inputs.strips, n * config.experts_per_token * config.hidden.max(config.expert_width));
        s.threads.resize_with(self.pool.threads(), ThreadScratch::default);
        for thread in &mut s.threads {
            thread.tiles.iter_mut().for_each(|tile| grow(tile, n * TILE));
        }
    }

    /// Cosines and sines of every token's position, as phase 2 computes them.
    fn angles(&self, s: &mut Scratch, parts: &[Part]) {
        let positions = parts.iter().flat_map(|part| part.start..part.start + part.count);
        let angles = positions.flat_map(|p| self.rope.inverse_frequencies.iter().map(move |f| p as f32 * f));
        for ((angle, cos), sin) in angles.zip(&mut s.cosines).zip(&mut s.sines) {
            (*cos, *sin) = (angle.cos() * self.rope.mscale, angle.sin() * self.rope.mscale);
        }
    }

    fn embed(&self, s: &mut Scratch, tokens: &[u32]) {
        let embedding = &self.model.embedding;
        for (&token, x) in tokens.iter().zip(s.x.chunks_exact_mut(self.config.hidden)) {
            embedding.decode_row(token as usize, x);
        }
    }

    /// RMS norm of `n` rows of `x`: row `i` of `out` is that of row `row(i)`.
    fn norm(&self, x: &[f32], weight: &[f32], n: usize, row: impl Fn(usize) -> usize + Sync, out: &mut [f32]) {
        let hidden = self.config.hidden;
        let out = Shared::new(out);
        self.pool.run(n, &|i, _| {
            // SAFETY: a task's row is its own.
            let out = unsafe { out.part(i * hidden, hidden) };
            rms_norm(self.isa, &x[row(i) * hidden..][..hidden], weight, self.config.rms_eps, out);
        });
    }

    /// The format in which these matrices take their inputs.
    pub(super) fn panel_format(&self, matrices: &[&Matrix]) -> PanelFormat {
        let integers = !self.exact && matrices.iter().all(|matrix| matrix.storage.is_quantized());
        if integers { PanelFormat::I16 } else { PanelFormat::F32 }
    }

    /// `n` rows `x` `[n, columns]` as the input of matrices.
    fn input<'a>(&self, panel: &'a mut Panel, x: &'a [f32], n: usize, matrices: &[&Matrix]) -> Input<'a> {
        let columns = matrices[0].columns;
        let row = |i: usize| &x[i * columns..(i + 1) * columns];
        if n <= FEW {
            let (rows, count) = few(n, row);
            return Input::Few(rows, count);
        }
        let filling = panel.begin(self.isa, self.panel_format(matrices), columns, n);
        // SAFETY: each group is packed by one task.
        self.pool.run(filling.groups(), &|group, _| unsafe { filling.pack(group, row) });
        Input::Panel(panel)
    }

    pub(super) fn multiply(&self, rows: PackedRows<'_>, input: Input<'_>, out: &mut [f32]) {
        match input {
            Input::Few(inputs, count) => multiply_few(self.isa, rows, &inputs[..count], out),
            Input::Strips(strips, count) => multiply_strips(self.isa, rows, &strips[..count], out),
            Input::Panel(panel) => multiply_panel(self.isa, rows, panel, out),
        }
    }

    fn qkv(&self, layer: &Layer, s: &mut Scratch, n: usize) {
        let Scratch { h, q, k, v, panel, threads, .. } = s;
        let input = self.input(panel, h, n, &[&layer.q.weight, &layer.k.weight, &layer.v.weight]);
        let projections = [(&layer.q, Shared::new(q)), (&layer.k, Shared::new(k)), (&layer.v, Shared::new(v))];
        let tiles = projections.map(|(linear, _)| linear.weight.rows.div_ceil(TILE));
        let threads = Shared::new(threads);
        self.pool.run(tiles.iter().sum(), &|mut task, thread| {
            let mut which = 0;
            while task >= tiles[which] {
                task -= tiles[which];
                which += 1;
            }
            let (linear, out) = projections[which];
            let width = linear.weight.rows;
            let rows = linear.weight.rows_of(0, task * TILE, TILE);
            // SAFETY: a thread's scratch is its own, and so are a task's columns of the result.
            unsafe {
                let tile = &mut threads.part(thread, 1)[0].tiles[0];
                self.multiply(rows, input, tile);
                let bias = &linear.bias[task * TILE..][..rows.count()];
                for (token, y) in tile.chunks_exact(TILE).take(n).enumerate() {
                    let out = out.part(token * width + task * TILE, bias.len());
                    for ((out, y), bias) in out.iter_mut().zip(y).zip(bias) {
                        *out = y + bias;
                    }
                }
            }
        });
    }

    /// Rotates queries and keys; keys and values go into the caches. A task takes one key/value head of one part.
    fn append(&self, cache: &mut Cache, s: &mut Scratch, layer: usize, parts: &[Part]) {
        let (dim, kv_heads) = (self.config.head_dim, self.config.kv_heads);
        let (q_width, kv_width) = (self.config.heads * dim, kv_heads * dim);
        let group = self.config.heads / kv_heads;
        let scale = 1.0 / (dim as f32).sqrt();
        let Scratch { q, k, v, cosines, sines, .. } = s;
        let (q, k) = (Shared::new(q), Shared::new(k));
        let (format, kind) = (cache.format, cache.kind(layer));
        let (pool, bytes) = cache.pool_mut(layer);
        let pool = Shared::new(pool);
        self.pool.run(parts.len() * kv_heads, &|task, _| {
            let (part, head) = (&parts[task / kv_heads], task % kv_heads);
            for i in 0..part.count {
                let token = part.first + i;
                let angles = (&cosines[token * dim / 2..][..dim / 2], &sines[token * dim / 2..][..dim / 2]);
                // SAFETY: the heads of a part belong to one task, in the buffers as in its pages, which no other sequence holds.
                unsafe {
                    let q = q.part(token * q_width + head * group * dim, group * dim);
                    for q in q.chunks_exact_mut(dim) {
                        rotate(q, angles.0, angles.1);
                        q.iter_mut().for_each(|q| *q *= scale);
                    }
                    let k = k.part(token * kv_width + head * dim, dim);
                    rotate(k, angles.0, angles.1);
                    let v = &v[token * kv_width + head * dim..][..dim];
                    let position = part.start + i;
                    let page = part.pages(kind).at(position) as usize;
                    let block = pool.part((page * kv_heads + head) * bytes, bytes);
                    KeyBlock::write(block, format, position % POSITIONS, k, v);
                }
            }
        });
    }

    /// A task takes a few positions of one part and one key/value head.
    fn attention(&self, cache: &Cache, s: &mut Scratch, layer: usize, parts: &[Part]) {
        let (dim, kv_heads) = (self.config.head_dim, self.config.kv_heads);
        let stride = self.config.heads * dim;
        let group = self.config.heads / kv_heads;
        let sinks = &self.model.layers[layer].sinks;
        let Scratch { q, mixed, threads, .. } = s;
        let (mixed, threads) = (Shared::new(mixed), Shared::new(threads));
        let tiles: usize = parts.iter().map(|part| part.count.div_ceil(QUERY_TILE)).sum();
        self.pool.run(tiles * kv_heads, &|task, thread| {
            let (mut tile, head) = (task / kv_heads, task % kv_heads);
            let part = parts.iter().find(|part| {
                let own = part.count.div_ceil(QUERY_TILE);
                let found = tile < own;
                tile -= if found { 0 } else { own };
                found
            });
            let part = part.expect("a tile belongs to a part");
            let before = tile * QUERY_TILE;
            let count = QUERY_TILE.min(part.count - before);
            let list = part.pages(cache.kind(layer));
            let first = (part.first + before) * stride + head * group * dim;
            let queries = Queries {
                q: &q[first..],
                stride,
                sinks: &sinks[head * group..(head + 1) * group],
                head_dim: dim,
                count,
                start: part.start + before,
                window: cache.reach(cache.kind(layer)),
            };
            let block = |number: usize| cache.block(layer, list.pages[number], head);
            // SAFETY: a thread's scratch is its own. Results of a task are rows of heads; between two rows lie those of other
            // heads, so that they are collected first and then copied row by row.
            unsafe {
                let own = &mut threads.part(thread, 1)[0];
                let result = &mut own.tiles[0];
                grow(result, (count - 1) * stride + group * dim);
                let (start, count_of_pages) = (list.first * POSITIONS, list.pages.len());
                attend(self.isa, &queries, start, &block, count_of_pages, result, &mut own.attention);
                for i in 0..count {
                    let out = mixed.part(first + i * stride, group * dim);
                    out.copy_from_slice(&result[i * stride..][..group * dim]);
                }
            }
        });
    }

    fn attention_out(&self, layer: &Layer, s: &mut Scratch, n: usize) {
        let hidden = self.config.hidden;
        let Scratch { x, mixed, panel, threads, .. } = s;
        let input = self.input(panel, mixed, n, &[&layer.o.weight]);
        let (x, threads) = (Shared::new(x), Shared::new(threads));
        self.pool.run(hidden.div_ceil(TILE), &|task, thread| {
            let rows = layer.o.weight.rows_of(0, task * TILE, TILE);
            let bias = &layer.o.bias[task * TILE..][..rows.count()];
            // SAFETY: a thread's scratch is its own, and so are a task's columns of the stream.
            unsafe {
                let tile = &mut threads.part(thread, 1)[0].tiles[0];
                self.multiply(rows, input, tile);
                for (token, y) in tile.chunks_exact(TILE).take(n).enumerate() {
                    let x = x.part(token * hidden + task * TILE, bias.len());
                    for ((x, y), bias) in x.iter_mut().zip(y).zip(bias) {
                        *x += y + bias;
                    }
                }
            }
        });
    }

    /// Router logits, always in f32: a task takes a few tokens and a few experts.
    fn router(&self, layer: &Layer, s: &mut Scratch, n: usize) {
        let (hidden, experts) = (self.config.hidden, self.config.experts);
        let Scratch { h, router_logits, .. } = s;
        let logits = Shared::new(router_logits);
        let tiles = experts.div_ceil(ROUTER_TILE);
        self.pool.run(n.div_ceil(FEW) * tiles, &|task, _| {
            let (first, expert) = (task / tiles * FEW, task % tiles * ROUTER_TILE);
            let count = FEW.min(n - first);
            let rows = layer.router.weight.rows_of(0, expert, ROUTER_TILE);
            let bias = &layer.router.bias[expert..][..rows.count()];
            let mut tile = [0.0; FEW * TILE];
            let (inputs, count) = few(count, |i| &h[(first + i) * hidden..][..hidden]);
            self.multiply(rows, Input::Few(inputs, count), &mut tile);
            for (i, y) in tile.chunks_exact(TILE).take(count).enumerate() {
                // SAFETY: these logits are this task's.
                let out = unsafe { logits.part((first + i) * experts + expert, bias.len()) };
                for ((out, y), bias) in out.iter_mut().zip(y).zip(bias) {
                    *out = y + bias;
                }
            }
        });
    }

    /// Normalizes rows of the stream into the first rows of `h`.
    pub fn final_norm(&self, s: &mut Scratch, rows: &[usize], sequences: usize, probe: &mut dyn Probe) {
        let (hidden, count) = (self.config.hidden, rows.len());
        self.norm(&s.x, &self.model.final_norm, count, |i| rows[i], &mut s.h);
        see(probe, || "final_norm".into(), &s.h, count, hidden);
        probe.done(Span { operation: Operation::HeadNorm, layer: None, tokens: count, sequences, keys: 0 });
    }

    /// Logits of the first `count` rows of `h`, `[count, vocab]`.
    pub fn head(&self, s: &mut Scratch, count: usize, sequences: usize, probe: &mut dyn Probe) -> Vec<f32> {
        let vocab = self.config.vocab;
        let Scratch { h, panel, threads, .. } = s;
        let input = self.input(panel, h, count, &[&self.model.head]);
        let mut logits = vec![0.0; count * vocab];
        let (all, threads) = (Shared::new(&mut logits), Shared::new(threads));
        self.pool.run(vocab.div_ceil(TILE), &|task, thread| {
            let weights = self.model.head.rows_of(0, task * TILE, TILE);
            // SAFETY: a thread's scratch is its own, and so are a task's columns of the logits.
            unsafe {
                let tile = &mut threads.part(thread, 1)[0].tiles[0];
                self.multiply(weights, input, tile);
                for (row, y) in tile.chunks_exact(TILE).take(count).enumerate() {
                    let out = all.part(row * vocab + task * TILE, weights.count());
                    out.copy_from_slice(&y[..weights.count()]);
                }
            }
        });
        probe.done(Span { operation: Operation::Head, layer: None, tokens: count, sequences, keys: 0 });
        logits
    }
}

/// Keys that the step's last query may choose from.
fn visible_keys(cache: &Cache, layer: &Layer, parts: &[Part]) -> usize {
    let length = parts.last().map_or(0, |part| part.start + part.count);
    length.min(cache.reach(layer.attention))
}

/// Offers a probe the first `rows` rows.
fn see(probe: &mut dyn Probe, name: impl Fn() -> String, values: &[f32], rows: usize, width: usize) {
    probe.see(&name, &|| ([rows, width], values[..rows * width].to_vec()));
}

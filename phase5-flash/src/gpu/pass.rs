//! A pass of rows through the layers: every operation by whichever kernel suits the number of rows.

use phase1_loading::{AttentionKind, GptOssConfig};
use phase2_forward::{Activation, Operation, Probe, Span};

use super::cache::PAGE;
use super::device::{Buffer, Gpu};
use super::engine::GpuEngine;
use super::kernels::attention::{Attention, Unrotated};
use super::kernels::embed::embed;
use super::kernels::experts::{Down, GateUp};
use super::kernels::few::{FEW, Few};
use super::kernels::flash;
use super::kernels::fragments::Planes;
use super::kernels::gemm::Gemm;
use super::kernels::group::{GroupedExperts, TILE, add_up, group};
use super::kernels::norm::norm;
use super::kernels::prefill;
use super::kernels::project::Project;
use super::kernels::rope::Rope;
use super::kernels::router::{Choice, Route};
use super::layout::Matrix;
use super::tuning::Tuning;
use super::weights::Layer;

/// The rows that `scratch.row_words` describes.
#[derive(Clone, Copy)]
pub(super) struct Pass {
    pub rows: usize,
    /// How many sequences they are of.
    pub sequences: usize,
    /// The most keys that one of them sees.
    pub keys: usize,
    /// The tiles of `scratch.row_tiles` that they attend in; without, each attends for itself.
    pub tiles: Option<usize>,
}

impl Pass {
    /// The operations of a layer, in their order. Single rows are normed where they are multiplied, and rotated where they attend.
    pub fn operations(self, tuning: &Tuning) -> impl Iterator<Item = Operation> + use<> {
        let norm = (self.rows > tuning.single_rows).then_some(Operation::AttentionNorm);
        let append = (!self.alone()).then_some(Operation::CacheAppend);
        norm.into_iter().chain([Operation::Qkv]).chain(append).chain([
            Operation::Attention,
            Operation::AttentionOut,
            Operation::Router,
            Operation::GateUp,
            Operation::Down,
        ])
    }

    /// Whether no row sees another of the pass.
    fn alone(self) -> bool {
        self.rows == self.sequences
    }
}

/// Shares of the keys that keep the GPU busy with `n` rows, or tiles of rows, that see `keys` keys.
pub(super) fn splits(gpu: &Gpu, config: &GptOssConfig, n: usize, keys: usize) -> usize {
    let wish = gpu.tuning.attention_cubes.div_ceil(config.kv_heads * n);
    wish.min(keys.div_ceil(PAGE)).max(1)
}

/// Rows of a sequence that attend together, in a tile, where heads have a shape that allows it.
pub(super) fn rows_a_tile(gpu: &Gpu, config: &GptOssConfig) -> Option<usize> {
    match flash_planes(gpu, config) {
        Some(planes) => flash::rows_a_tile(planes, config),
        None => prefill::rows_a_tile(config),
    }
}

/// The planes that attend on matrix units, where heads have a shape that allows it.
fn flash_planes(gpu: &Gpu, config: &GptOssConfig) -> Option<Planes> {
    gpu.planes.filter(|&planes| flash::rows_a_tile(planes, config).is_some())
}

impl GpuEngine {
    /// Runs rows through all layers; the residual stream is in `scratch.x` then.
    pub(super) fn layers(&self, pass: Pass, probe: &mut dyn Probe) {
        let (scratch, config) = (&self.scratch, &self.config);
        let see = |probe: &mut dyn Probe, name: &dyn Fn() -> String, buffer: &Buffer, width| {
            probe.see(name, &|| self.activation(buffer, [pass.rows, width]));
        };
        self.embed(pass.rows);
        see(probe, &|| "embed".into(), &scratch.x, config.hidden);
        probe.done(Span {
            operation: Operation::Embed,
            layer: None,
            tokens: pass.rows,
            sequences: pass.sequences,
            keys: 0,
        });
        for number in 0..self.weights.layers.len() {
            for operation in pass.operations(&self.gpu.tuning) {
                self.launch(operation, number, pass);
                probe.done(self.span(operation, number, pass));
                if operation == Operation::AttentionOut {
                    see(probe, &|| format!("layers.{number}.resid_attn"), &scratch.x, config.hidden);
                }
            }
            see(probe, &|| format!("layers.{number}.router_logits"), &scratch.router_logits, config.experts);
            see(probe, &|| format!("layers.{number}.resid_mlp"), &scratch.x, config.hidden);
        }
    }

    /// A result as a probe sees it; without values if the device fails, which the step's outcome then says.
    fn activation(&self, buffer: &Buffer, [rows, width]: [usize; 2]) -> Activation {
        ([rows, width], self.gpu.read_f32(&buffer.first(rows * width)).unwrap_or_default())
    }

    /// What a probe hears of an operation of layer `number`.
    pub(super) fn span(&self, operation: Operation, number: usize, pass: Pass) -> Span {
        let keys = match operation {
            Operation::CacheAppend | Operation::Attention => self.keys(number, pass),
            _ => 0,
        };
        Span { operation, layer: Some(number), tokens: pass.rows, sequences: pass.sequences, keys }
    }

    /// Launches one of [`Pass::operations`] in layer `number`.
    pub(super) fn launch(&self, operation: Operation, number: usize, pass: Pass) {
        let layer = &self.weights.layers[number];
        match operation {
            Operation::AttentionNorm => self.attention_norm(layer, pass.rows),
            Operation::Qkv => self.qkv(layer, pass.rows),
            Operation::CacheAppend => self.append(number, pass.rows),
            Operation::Attention => self.attend(number, pass),
            Operation::AttentionOut => self.attention_out(layer, pass.rows),
            Operation::Router => self.route(layer, pass.rows),
            Operation::GateUp => self.gate_up(layer, pass.rows),
            Operation::Down => self.down(layer, pass.rows),
            _ => unreachable!("{operation:?} is no operation of a layer"),
        }
    }

    /// The embeddings of the rows' tokens, into `scratch.x`.
    pub(super) fn embed(&self, n: usize) {
        let scratch = &self.scratch;
        embed(&self.gpu, &self.weights.embedding, &scratch.row_words, &self.drawn, &scratch.x, n);
    }

    fn attention_norm(&self, layer: &Layer, n: usize) {
        let (scratch, config) = (&self.scratch, &self.config);
        let shape = [n, config.hidden];
        let weight = &layer.attention_norm;
        norm(&self.gpu, &scratch.x, &scratch.every_row, weight, config.rms_eps, &scratch.normed, shape);
    }

    fn qkv(&self, layer: &Layer, n: usize) {
        let scratch = &self.scratch;
        if n > self.gpu.tuning.single_rows {
            return self.product(&layer.qkv, &scratch.normed, Some(&layer.qkv_bias), &scratch.qkv, false, n);
        }
        Project {
            matrix: &layer.qkv,
            x: &scratch.x,
            norm: Some((&layer.attention_norm, self.config.rms_eps)),
            bias: Some(&layer.qkv_bias),
            out: &scratch.qkv,
            add: false,
            inputs: n,
        }
        .launch(&self.gpu);
    }

    fn append(&self, number: usize, n: usize) {
        let scratch = &self.scratch;
        Rope {
            qkv: &scratch.qkv,
            table: &self.rotations,
            rows: &scratch.row_words,
            cache: self.cache.layer(number),
            queries: &scratch.queries,
            heads: self.config.heads,
            shape: self.cache.row,
            inputs: n,
        }
        .launch(&self.gpu);
    }

    /// Keys that a query of layer `number` sees at most, its own among them.
    fn reach(&self, number: usize) -> usize {
        match self.weights.layers[number].attention {
            AttentionKind::Sliding => self.config.sliding_window,
            AttentionKind::Full => usize::MAX,
        }
    }

    /// Keys that the rows of a sequence see together.
    fn keys(&self, number: usize, pass: Pass) -> usize {
        pass.keys.min(self.reach(number).saturating_add(pass.rows / pass.sequences - 1))
    }

    fn attend(&self, number: usize, pass: Pass) {
        let (scratch, config, reach) = (&self.scratch, &self.config, self.reach(number));
        let keys = self.keys(number, pass).min(reach);
        let attention = Attention {
            queries: &scratch.queries,
            rows: &scratch.row_words,
            cache: self.cache.layer(number),
            sinks: &self.weights.layers[number].sinks,
            out: &scratch.mixed,
            shares: &scratch.shares,
            splits: splits(&self.gpu, config, pass.tiles.unwrap_or(pass.rows), keys),
            heads: config.heads,
            shape: self.cache.row,
            reach,
            inputs: pass.rows,
        };
        match pass.tiles {
            Some(count) => match flash_planes(&self.gpu, config) {
                Some(planes) => attention.launch_flash(&self.gpu, &scratch.row_tiles, count, planes),
                None => attention.launch_tiles(&self.gpu, &scratch.row_tiles, count),
            },
            None if pass.alone() => {
                let unrotated = Unrotated { qkv: &scratch.qkv, table: &self.rotations };
                attention.launch_unrotated(&self.gpu, unrotated);
            }
            None => attention.launch(&self.gpu),
        }
    }

    fn attention_out(&self, layer: &Layer, n: usize) {
        self.product(&layer.o, &self.scratch.mixed, Some(&layer.o_bias), &self.scratch.x, true, n);
    }

    fn route(&self, layer: &Layer, n: usize) {
        let (gpu, scratch, config) = (&self.gpu, &self.scratch, &self.config);
        let route = Route {
            x: &scratch.x,
            norm: &layer.mlp_norm,
            eps: config.rms_eps,
            weight: &layer.router,
            bias: &layer.router_bias,
            normed: &scratch.normed,
            logits: &scratch.router_logits,
            hidden: config.hidden,
            experts: config.experts,
            inputs: n,
        };
        if n <= self.gpu.tuning.single_rows {
            route.launch_logits(gpu);
        } else {
            let per_row = config.experts_per_token;
            route.launch(gpu, &Choice { chosen: &scratch.chosen, weights: &scratch.weights, per_row });
        }
    }

    fn gate_up(&self, layer: &Layer, n: usize) {
        let (gpu, scratch, config) = (&self.gpu, &self.scratch, &self.config);
        if n > self.gpu.tuning.single_rows {
            let few = self.few_slots(n);
            let shape = [n * config.experts_per_token, config.experts];
            group(gpu, &scratch.chosen, shape, if few { FEW } else { TILE }, &scratch.order, &scratch.tiles);
            let experts = self.grouped(layer, n);
            return match (few, gpu.planes) {
                (true, _) => experts.launch_few_gate_up(gpu),
                (false, Some(planes)) => experts.launch_fragments_gate_up(gpu, planes.by(gpu.tuning.expert_planes)),
                (false, None) => experts.launch_gate_up(gpu),
            };
        }
        GateUp {
            gate: &layer.gate,
            up: &layer.up,
            x: &scratch.normed,
            logits: &scratch.router_logits,
            experts: config.experts,
            chosen: &scratch.chosen,
            weights: &scratch.weights,
            chosen_per_row: config.experts_per_token,
            out: &scratch.activations,
            inputs: n,
        }
        .launch(gpu);
    }

    fn down(&self, layer: &Layer, n: usize) {
        let (gpu, scratch, config) = (&self.gpu, &self.scratch, &self.config);
        if n > self.gpu.tuning.single_rows {
            let experts = self.grouped(layer, n);
            match (self.few_slots(n), gpu.planes) {
                (true, _) => experts.launch_few_down(gpu),
                (false, Some(planes)) => experts.launch_fragments_down(gpu, planes.by(gpu.tuning.expert_planes)),
                (false, None) => experts.launch_down(gpu),
            }
            let shape = [n, config.experts_per_token, config.hidden];
            return add_up(gpu, &scratch.products, &scratch.weights, &scratch.x, shape);
        }
        Down {
            down: &layer.down,
            x: &scratch.activations,
            chosen: &scratch.chosen,
            weights: &scratch.weights,
            chosen_per_row: config.experts_per_token,
            out: &scratch.x,
            inputs: n,
        }
        .launch(gpu);
    }

    /// Whether the experts of `n` rows get too few slots each to be tiled.
    fn few_slots(&self, n: usize) -> bool {
        n * self.config.experts_per_token < self.gpu.tuning.tiled_slots * self.config.experts
    }

    fn grouped<'a>(&'a self, layer: &'a Layer, n: usize) -> GroupedExperts<'a> {
        let scratch = &self.scratch;
        GroupedExperts {
            gate: &layer.gate,
            up: &layer.up,
            down: &layer.down,
            x: &scratch.normed,
            order: &scratch.order,
            tiles: &scratch.tiles,
            activations: &scratch.activations,
            out: &scratch.products,
            chosen_per_row: self.config.experts_per_token,
            inputs: n,
        }
    }

    /// One product for each of `inputs` rows.
    fn product(&self, matrix: &Matrix, x: &Buffer, bias: Option<&Buffer>, out: &Buffer, add: bool, inputs: usize) {
        if inputs <= self.gpu.tuning.single_rows {
            Project { matrix, x, norm: None, bias, out, add, inputs }.launch(&self.gpu);
        } else if inputs < self.gpu.tuning.tiled_rows {
            Few { matrix, x, bias, out, add, inputs }.launch(&self.gpu);
        } else {
            let gemm = Gemm { matrix, x, bias, out, add, inputs };
            match self.gpu.planes {
                Some(planes) => gemm.launch_fragments(&self.gpu, planes.by(self.gpu.tuning.dense_planes)),
                None => gemm.launch(&self.gpu),
            }
        }
    }

    /// The logits of `inputs` picked rows of the last pass into `out`, `[inputs, vocab]`.
    pub(super) fn logits(&self, inputs: usize, picks: &Buffer, out: &Buffer, probe: &mut dyn Probe) {
        let span = |operation| Span { operation, layer: None, tokens: inputs, sequences: inputs, keys: 0 };
        self.head_norm(inputs, picks);
        probe.see(&|| "final_norm".into(), &|| self.activation(&self.scratch.normed, [inputs, self.config.hidden]));
        probe.done(span(Operation::HeadNorm));
        self.head(inputs, out);
        probe.done(span(Operation::Head));
    }

    pub(super) fn head_norm(&self, inputs: usize, picks: &Buffer) {
        let (scratch, config) = (&self.scratch, &self.config);
        let shape = [inputs, config.hidden];
        norm(&self.gpu, &scratch.x, picks, &self.weights.final_norm, config.rms_eps, &scratch.normed, shape);
    }

    pub(super) fn head(&self, inputs: usize, out: &Buffer) {
        self.product(&self.weights.head, &self.scratch.normed, None, out, false, inputs);
    }
}

//! The forward pass of a batch of rows. The number of rows decides which kernel computes an operation.

use std::collections::HashSet;
use std::sync::Arc;

use gpu_kernels::attention::{Attention, ROW_TILE_WORDS, Unrotated, row_tiles, rows_per_tile};
use gpu_kernels::matmul::{SMALL_BATCH, TILE};
use gpu_kernels::matvec::{Down, GateUp, InputNorm, PAIR, RowLoop};
use gpu_kernels::moe::{Combine, ExpertChoice, Route, SlotSort};
use gpu_kernels::{Buffer, ExpertProduct, Experts, Gpu, Matrix, Norm, Product, Rope, Row, embed};
use phase1_loading::{AttentionKind, GptOssConfig};
use phase2_forward::{Activation, Operation, Probe, Span};

use super::buffers::Buffers;
use super::cache::Cache;
use super::plan::{Attend, Pass, Products, splits, tile_splits};
use super::tuning::{MAX_ROWS, Tuning};
use super::weights::{Layer, Weights};

/// Initial number of positions in the table of rotations. It doubles when a sequence outgrows it.
const FIRST_POSITIONS: usize = 4096;

/// A model on a GPU, with the buffers that its passes read and write.
pub(super) struct Forward {
    pub gpu: Gpu,
    tuning: Tuning,
    pub config: GptOssConfig,
    pub weights: Arc<Weights>,
    pub cache: Cache,
    /// The token that each sequence drew last, by the sequence's slot ([`Row::slot`]).
    pub drawn: Buffer,
    /// (cosine, sine) for each position and pair of dimensions.
    rotations: Buffer,
    positions: usize,
    pub buffers: Buffers,
    /// The rows that `buffers.row_words` describes once all submitted steps have run; empty after a pass that was not captured.
    pub placed: Vec<Row>,
    /// Counts replacements of buffers that steps read. Each one invalidates captured steps.
    pub epoch: u64,
}

impl Forward {
    pub fn new(gpu: Gpu, tuning: Tuning, config: GptOssConfig, weights: Arc<Weights>, cache: Cache) -> Forward {
        Forward {
            drawn: gpu.device.upload(vec![0; cache.padding_slot as usize + 1]),
            rotations: gpu.device.empty(0),
            positions: 0,
            buffers: Buffers::new(&gpu, &config, cache.row, &tuning, 1),
            placed: Vec::new(),
            epoch: 0,
            gpu,
            tuning,
            config,
            weights,
            cache,
        }
    }

    pub fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// Replaces the kernel choices.
    pub fn set_tuning(&mut self, tuning: Tuning) {
        self.tuning = tuning;
        // The tuning determines the number of attention's splits, and thereby the size of a buffer.
        self.replace_buffers(self.buffers.rows);
    }

    /// Grows the table of rotations to `length` positions.
    pub fn reserve_positions(&mut self, length: usize) {
        if length > self.positions {
            self.positions = length.next_power_of_two().max(FIRST_POSITIONS);
            let rope = &self.weights.rope;
            let angles = (0..self.positions).flat_map(|p| rope.inverse_frequencies.iter().map(move |f| p as f32 * f));
            let table = angles.flat_map(|angle| [angle.cos() * rope.mscale, angle.sin() * rope.mscale]);
            self.rotations = self.gpu.device.upload(table.map(f32::to_bits).collect());
            self.epoch += 1;
        }
    }

    /// Grows the buffers for passes of `rows` rows.
    pub fn reserve_rows(&mut self, rows: usize) {
        if rows > self.buffers.rows {
            self.replace_buffers(rows.next_power_of_two().min(MAX_ROWS));
        }
    }

    fn replace_buffers(&mut self, rows: usize) {
        self.buffers = Buffers::new(&self.gpu, &self.config, self.cache.row, &self.tuning, rows);
        self.placed.clear();
        self.epoch += 1;
    }

    /// Writes the description of the rows, and of their tiles, for the next pass.
    pub fn set_rows(&mut self, rows: &[Row]) -> Pass {
        self.placed.clear();
        self.write_rows(rows);
        let keys = rows.iter().map(|row| row.position as usize + 1).max().unwrap_or(0);
        let slots: HashSet<u32> = rows.iter().map(|row| row.slot).collect();
        let most = rows_per_tile(&self.gpu, self.cache.row, self.config.heads);
        let tiles = most.map(|most| row_tiles(rows, most)).unwrap_or_default();
        let count = tiles.len() / ROW_TILE_WORDS;
        // A tile of one row costs as much as one of four, so tiles are only faster with at least two rows in each on average.
        let tiled = count > 0 && 2 * count <= rows.len();
        if tiled {
            self.gpu.device.write_at(&self.buffers.row_tiles, 0, tiles);
        }
        Pass { rows: rows.len(), sequences: slots.len(), keys, tiles: tiled.then_some(count) }
    }

    /// Writes the description of the rows of the next pass.
    pub fn write_rows(&self, rows: &[Row]) {
        self.gpu.device.write_at(&self.buffers.row_words, 0, rows.iter().flat_map(|row| row.words()).collect());
    }

    /// Computes all layers. The residual stream is in `buffers.x` afterwards.
    pub fn layers(&self, pass: Pass, probe: &mut dyn Probe) {
        let (buffers, config) = (&self.buffers, &self.config);
        let observe = |probe: &mut dyn Probe, name: &dyn Fn() -> String, buffer: &Buffer, width| {
            probe.observe(name, &|| self.activation(buffer, [pass.rows, width]));
        };
        self.embed(pass.rows);
        observe(probe, &|| "embed".into(), &buffers.x, config.hidden);
        probe.done(Span {
            operation: Operation::Embed,
            layer: None,
            tokens: pass.rows,
            sequences: pass.sequences,
            keys: 0,
        });
        for number in 0..self.weights.layers.len() {
            for operation in pass.operations(&self.tuning) {
                self.launch(operation, number, pass);
                probe.done(self.span(operation, number, pass));
                if operation == Operation::AttentionOut {
                    observe(probe, &|| format!("layers.{number}.resid_attn"), &buffers.x, config.hidden);
                }
            }
            observe(probe, &|| format!("layers.{number}.router_logits"), &buffers.router_logits, config.experts);
            observe(probe, &|| format!("layers.{number}.resid_mlp"), &buffers.x, config.hidden);
            // Submits the launches so far, so that the device computes a prompt's first layers while the host launches the others. Captured
            // steps never have tiles, so they are not flushed here.
            if pass.tiles.is_some() && (number + 1).is_power_of_two() {
                self.gpu.device.flush();
            }
        }
    }

    /// Computes the logits of the `inputs` rows of the last pass that `row_indices` lists, into `out`, `[inputs, vocab]`.
    pub fn logits(&self, inputs: usize, row_indices: &Buffer, out: &Buffer, probe: &mut dyn Probe) {
        let span = |operation| Span { operation, layer: None, tokens: inputs, sequences: inputs, keys: 0 };
        self.head_norm(inputs, row_indices);
        probe.observe(&|| "final_norm".into(), &|| self.activation(&self.buffers.normed, [inputs, self.config.hidden]));
        probe.done(span(Operation::HeadNorm));
        self.head(inputs, out);
        probe.done(span(Operation::Head));
    }

    /// A result for a probe; empty if the device fails, in which case the step returns the error.
    fn activation(&self, buffer: &Buffer, [rows, width]: [usize; 2]) -> Activation {
        ([rows, width], self.gpu.device.read_f32(&buffer.first(rows * width)).unwrap_or_default())
    }

    /// The span of an operation in layer `number`.
    pub fn span(&self, operation: Operation, number: usize, pass: Pass) -> Span {
        let keys = match operation {
            Operation::CacheAppend | Operation::Attention => self.keys(number, pass),
            _ => 0,
        };
        Span { operation, layer: Some(number), tokens: pass.rows, sequences: pass.sequences, keys }
    }

    /// Launches an operation of [`Pass::operations`] in layer `number`.
    pub fn launch(&self, operation: Operation, number: usize, pass: Pass) {
        let layer = &self.weights.layers[number];
        match operation {
            Operation::AttentionNorm => self.norm(pass.rows, &self.buffers.every_row, &layer.attention_norm),
            Operation::Qkv => self.qkv(layer, pass.rows),
            Operation::CacheAppend => self.append(number, pass.rows),
            Operation::Attention => self.attend(number, pass),
            Operation::AttentionOut => self.attention_out(layer, pass.rows),
            Operation::Router => self.route(layer, pass.rows),
            Operation::GateUp => self.gate_up(layer, pass.rows),
            Operation::Down => self.down(layer, pass.rows),
            _ => unreachable!("{operation:?} is not an operation of a layer"),
        }
    }

    /// Looks up the embeddings of the rows' tokens, into `buffers.x`.
    pub fn embed(&self, n: usize) {
        let buffers = &self.buffers;
        embed(&self.gpu, &self.weights.embedding, &buffers.row_words, &self.drawn, &buffers.x, n);
    }

    /// RMS norm of rows of `buffers.x`, into `buffers.normed`.
    fn norm(&self, inputs: usize, row_indices: &Buffer, weight: &Buffer) {
        let (eps, columns) = (self.config.rms_eps, self.config.hidden);
        Norm { x: &self.buffers.x, row_indices, weight, eps, out: &self.buffers.normed, inputs, columns }
            .launch(&self.gpu.device);
    }

    fn qkv(&self, layer: &Layer, inputs: usize) {
        let buffers = &self.buffers;
        let product = Product {
            matrix: &layer.qkv,
            x: &buffers.normed,
            bias: Some(&layer.qkv_bias),
            out: &buffers.qkv,
            add: false,
            inputs,
        };
        match Products::dense(&self.tuning, inputs) {
            Products::Single => {
                let norm = InputNorm { weight: &layer.attention_norm, eps: self.config.rms_eps };
                let choice = self.tuning.matvec(self.tuning.project);
                Product { x: &buffers.x, ..product }.launch_matvec(&self.gpu, Some(norm), choice);
            }
            _ => self.product(product),
        }
    }

    fn append(&self, number: usize, inputs: usize) {
        let buffers = &self.buffers;
        Rope {
            qkv: &buffers.qkv,
            table: &self.rotations,
            rows: &buffers.row_words,
            cache: self.cache.layer(number),
            queries: &buffers.queries,
            heads: self.config.heads,
            inputs,
        }
        .launch(&self.gpu.device);
    }

    /// The most keys that a query attends to in layer `number`, including its own.
    fn reach(&self, number: usize) -> usize {
        match self.weights.layers[number].attention {
            AttentionKind::Sliding => self.config.sliding_window,
            AttentionKind::Full => usize::MAX,
        }
    }

    /// Number of keys that the rows of a sequence attend to together.
    fn keys(&self, number: usize, pass: Pass) -> usize {
        pass.keys.min(self.reach(number).saturating_add(pass.rows / pass.sequences - 1))
    }

    fn attend(&self, number: usize, pass: Pass) {
        let (gpu, buffers, reach) = (&self.gpu, &self.buffers, self.reach(number));
        let keys = self.keys(number, pass).min(reach);
        let splits = match pass.attend() {
            Attend::Tiles(count) => tile_splits(&self.tuning, &self.config, count, keys),
            Attend::Rows | Attend::Unrotated => splits(&self.tuning, &self.config, pass.rows, keys),
        };
        let attention = Attention {
            queries: &buffers.queries,
            rows: &buffers.row_words,
            cache: self.cache.layer(number),
            sinks: &self.weights.layers[number].sinks,
            out: &buffers.attention_out,
            partials: &buffers.partials,
            splits,
            heads: self.config.heads,
            reach,
            inputs: pass.rows,
        };
        match pass.attend() {
            Attend::Tiles(count) => attention.launch_tiled(gpu, &buffers.row_tiles, count),
            Attend::Rows => attention.launch(gpu),
            Attend::Unrotated => {
                attention.launch_unrotated(gpu, Unrotated { qkv: &buffers.qkv, table: &self.rotations });
            }
        }
    }

    fn attention_out(&self, layer: &Layer, inputs: usize) {
        let (matrix, bias) = (&layer.o, Some(&layer.o_bias));
        self.product(Product { matrix, x: &self.buffers.attention_out, bias, out: &self.buffers.x, add: true, inputs });
    }

    fn route(&self, layer: &Layer, inputs: usize) {
        let (device, buffers, config) = (&self.gpu.device, &self.buffers, &self.config);
        let route = Route {
            x: &buffers.x,
            norm: &layer.mlp_norm,
            eps: config.rms_eps,
            weight: &layer.router,
            bias: &layer.router_bias,
            normed: &buffers.normed,
            logits: &buffers.router_logits,
            hidden: config.hidden,
            experts: config.experts,
            inputs,
        };
        match self.experts(inputs) {
            // The kernel of gate and up chooses the experts.
            Products::Single => route.launch_logits(device),
            _ => {
                let per_row = config.experts_per_token;
                route.launch(device, &ExpertChoice { chosen: &buffers.chosen, weights: &buffers.weights, per_row });
            }
        }
    }

    fn gate_up(&self, layer: &Layer, inputs: usize) {
        let (buffers, config) = (&self.buffers, &self.config);
        let chosen_per_row = config.experts_per_token;
        let tile = match self.experts(inputs) {
            Products::Single => {
                let choice = self.tuning.matvec(self.tuning.gate_up);
                return GateUp {
                    gate: &layer.gate,
                    up: &layer.up,
                    x: &buffers.normed,
                    logits: &buffers.router_logits,
                    chosen: &buffers.chosen,
                    weights: &buffers.weights,
                    chosen_per_row,
                    out: &buffers.activations,
                    inputs,
                }
                .launch(&self.gpu, choice);
            }
            Products::Pairs => PAIR,
            Products::Small => SMALL_BATCH,
            Products::Tiled(rows) => rows,
        };
        SlotSort {
            chosen: &buffers.chosen,
            sorted_slots: &buffers.sorted_slots,
            tiles: &buffers.slot_tiles,
            slots: inputs * chosen_per_row,
            experts: config.experts,
            tile,
        }
        .launch(&self.gpu.device);
        let product = ExpertProduct {
            up: Some(&layer.up),
            x: &buffers.normed,
            x_by_slot: false,
            out: &buffers.activations,
            ..self.over_slots(&layer.gate, inputs)
        };
        self.sorted_product(product, self.tuning.gate_up);
    }

    fn down(&self, layer: &Layer, inputs: usize) {
        let (buffers, config) = (&self.buffers, &self.config);
        let (weights, chosen_per_row) = (&buffers.weights, config.experts_per_token);
        if self.experts(inputs) == Products::Single {
            let choice = self.tuning.matvec(self.tuning.down);
            let (x, chosen) = (&buffers.activations, &buffers.chosen);
            return Down { down: &layer.down, x, chosen, weights, chosen_per_row, out: &buffers.x, inputs }
                .launch(&self.gpu, choice);
        }
        self.sorted_product(self.over_slots(&layer.down, inputs), self.tuning.down);
        let (products, hidden) = (&buffers.products, config.hidden);
        Combine { products, weights, out: &buffers.x, inputs, chosen_per_row, hidden }.launch(&self.gpu.device);
    }

    fn experts(&self, inputs: usize) -> Products {
        Products::experts(&self.tuning, &self.config, inputs)
    }

    /// A product over the sorted slots (pairs of a row and one of its experts), with the down projection's input and output.
    fn over_slots<'a>(&'a self, experts: &'a Experts, inputs: usize) -> ExpertProduct<'a> {
        let buffers = &self.buffers;
        ExpertProduct {
            experts,
            up: None,
            x: &buffers.activations,
            x_by_slot: true,
            out: &buffers.products,
            sorted_slots: &buffers.sorted_slots,
            tiles: &buffers.slot_tiles,
            inputs,
            chosen_per_row: self.config.experts_per_token,
        }
    }

    fn sorted_product(&self, product: ExpertProduct<'_>, row_loop: RowLoop) {
        match self.experts(product.inputs) {
            Products::Pairs => product.launch_pairs(&self.gpu, self.tuning.matvec(row_loop)),
            Products::Tiled(rows) => {
                let layout = if rows < TILE { self.tuning.low_expert_tile } else { self.tuning.expert_tile };
                product.launch_tiled(&self.gpu, layout, rows);
            }
            _ => product.launch_small(&self.gpu, self.tuning.small_batch),
        }
    }

    /// Launches a product whose inputs have been normalized, if they need to be.
    fn product(&self, product: Product<'_>) {
        let (gpu, tuning) = (&self.gpu, &self.tuning);
        match Products::dense(tuning, product.inputs) {
            Products::Single | Products::Pairs => product.launch_matvec(gpu, None, tuning.matvec(tuning.project)),
            Products::Small => product.launch_small(gpu, tuning.small_batch),
            Products::Tiled(rows) => {
                let layout = if rows < TILE { tuning.low_dense_tile } else { tuning.dense_tile };
                product.launch_tiled(gpu, layout, rows);
            }
        }
    }

    pub fn head_norm(&self, inputs: usize, row_indices: &Buffer) {
        self.norm(inputs, row_indices, &self.weights.final_norm);
    }

    pub fn head(&self, inputs: usize, out: &Buffer) {
        let matrix: &Matrix = &self.weights.head;
        self.product(Product { matrix, x: &self.buffers.normed, bias: None, out, add: false, inputs });
    }
}

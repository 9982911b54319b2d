//! The inputs of a product, for all kernels that compute products: with one matrix for all rows, or with the experts that rows chose.

use cubecl::prelude::*;

use crate::device::Buffer;
use crate::matrix::Matrix;
use crate::moe;

/// `out = x Wᵀ + bias` for the `inputs` rows of x, or `out += x Wᵀ + bias`. In the shapes below, `rows` and `columns` are those of the
/// matrix.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    pub matrix: &'a Matrix,
    /// `[inputs, columns]`
    pub x: &'a Buffer,
    /// `[rows]`
    pub bias: Option<&'a Buffer>,
    /// `[inputs, rows]`
    pub out: &'a Buffer,
    /// Adds to `out` instead of replacing it.
    pub add: bool,
    pub inputs: usize,
}

impl Product<'_> {
    /// # Panics
    /// If `inputs` is 0, a buffer is too short, or the matrix is a stack of several.
    #[track_caller]
    pub(crate) fn check(&self) {
        let Product { matrix, inputs, .. } = *self;
        assert!(inputs > 0, "a product needs at least one row");
        assert_eq!(matrix.stack(), 1, "a product needs a single matrix");
        self.x.expect("a product's input", inputs * matrix.columns());
        self.out.expect("a product's output", inputs * matrix.rows());
        if let Some(bias) = self.bias {
            bias.expect("a product's bias", matrix.rows());
        }
    }
}

/// A projection of all experts.
#[derive(Clone)]
pub struct Experts {
    pub weight: Matrix,
    /// `[experts, rows]`
    pub bias: Buffer,
}

impl Experts {
    /// # Panics
    /// If the biases are too short, or the stack is in several parts.
    #[track_caller]
    pub(crate) fn check(&self) {
        self.bias.expect("the experts' bias", self.weight.stack() * self.weight.rows());
        self.weight.whole();
    }

    /// # Panics
    /// If `other` has another shape or storage format.
    #[track_caller]
    pub(crate) fn assert_same_shape(&self, other: &Experts) {
        let shape = |experts: &Experts| {
            let weight = &experts.weight;
            (weight.storage(), weight.stack(), weight.rows(), weight.columns())
        };
        assert_eq!(shape(self), shape(other), "gate and up must have the same shape and format");
    }
}

/// A product of many rows with their chosen experts: `out[slot] = x W[expert]ᵀ + bias`, or the SwiGLU of two such products. A slot is a
/// pair of a row of the inputs and one of its experts; slots are processed sorted by expert. In the shapes below, `rows` and `columns` are
/// those of a matrix.
#[derive(Clone, Copy)]
pub struct ExpertProduct<'a> {
    /// The down projections, or the gate projections.
    pub experts: &'a Experts,
    /// The up projections: the output is then `swiglu(gate x, up x)`.
    pub up: Option<&'a Experts>,
    /// `[inputs, columns]`, or `[slots, columns]` if [`ExpertProduct::x_by_slot`].
    pub x: &'a Buffer,
    pub x_by_slot: bool,
    /// `[slots, rows]`
    pub out: &'a Buffer,
    /// `[slots]`, as [`SlotSort`](crate::moe::SlotSort) writes it.
    pub sorted_slots: &'a Buffer,
    /// The tiles of the sorted slots, as [`SlotSort`](crate::moe::SlotSort) writes them.
    pub tiles: &'a Buffer,
    pub inputs: usize,
    /// Experts per row: there are `inputs · chosen_per_row` slots.
    pub chosen_per_row: usize,
}

impl ExpertProduct<'_> {
    pub(crate) fn slots(&self) -> usize {
        self.inputs * self.chosen_per_row
    }

    /// Slots that read the same row of `x`.
    pub(crate) fn slots_per_input(&self) -> usize {
        if self.x_by_slot { 1 } else { self.chosen_per_row }
    }

    /// Whether the matrices' values can be converted to 16-bit floats.
    pub(crate) fn fits_f16(&self) -> bool {
        self.experts.weight.fits_f16() && self.up.is_none_or(|up| up.weight.fits_f16())
    }

    /// `tile_words` is the number of words of the largest possible number of tiles.
    ///
    /// # Panics
    /// If a buffer is too short, a stack is in several parts, or gate and up differ in shape or format.
    #[track_caller]
    pub(crate) fn check(&self, tile_words: usize) {
        let weight = &self.experts.weight;
        let slots = self.slots();
        self.experts.check();
        if let Some(up) = self.up {
            up.check();
            self.experts.assert_same_shape(up);
        }
        self.x.expect("the experts' input", slots / self.slots_per_input() * weight.columns());
        self.out.expect("the experts' output", slots * weight.rows());
        self.sorted_slots.expect("the sorted slots", slots);
        self.tiles.expect("the tiles of slots", tile_words);
    }
}

/// The buffers and shape of a product with experts, except their codes.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct ExpertArgs {
    pub x: Box<[Vector<f32, Const<4>>]>,
    pub scales: Box<[u32]>,
    pub bias: Box<[f32]>,
    /// Scales of the up projections; without those, the scales of the only matrices.
    pub up_scales: Box<[u32]>,
    pub up_bias: Box<[f32]>,
    pub sorted_slots: Box<[u32]>,
    pub tiles: Box<[u32]>,
    pub out: Box<[f32]>,
    pub rows: u32,
    pub stride: u32,
    pub blocks: u32,
    pub slots_per_input: u32,
}

pub(crate) fn expert_args(product: &ExpertProduct<'_>) -> ExpertArgsLaunch {
    let (experts, up) = (product.experts, product.up.unwrap_or(product.experts));
    let weight = &experts.weight;
    ExpertArgsLaunch::new(
        product.x.arg4(),
        weight.whole().scales.arg(),
        experts.bias.arg(),
        up.weight.whole().scales.arg(),
        up.bias.arg(),
        product.sorted_slots.arg(),
        product.tiles.arg(),
        product.out.arg(),
        weight.rows() as u32,
        weight.stride() as u32,
        weight.blocks() as u32,
        product.slots_per_input() as u32,
    )
}

/// The most tiles of `tile` slots that a product with experts needs.
pub(crate) fn most_tiles(product: &ExpertProduct<'_>, tile: u32) -> u32 {
    moe::most_tiles(product.slots(), product.experts.weight.stack(), tile) as u32
}

/// Number of words of [`most_tiles`] tiles.
pub(crate) fn tile_words(product: &ExpertProduct<'_>, tile: u32) -> usize {
    moe::tile_words(product.slots(), product.experts.weight.stack(), tile)
}

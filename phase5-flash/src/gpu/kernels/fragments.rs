//! Matrix units: the planes of a cube multiply fragments, squares of 16 by 16 numbers, and keep their sums in f32. Lanes never see
//! which of them holds what, so sums are read by way of shared memory.

use cubecl::cmma::{self, Matrix as Fragment, MatrixIdent, MatrixLayout};
use cubecl::ir::features::MmaConfig;
use cubecl::ir::{DeviceProperties, ElemType, FloatKind};
use cubecl::prelude::*;

use super::group::TILE;
use super::reduce::sum4;

/// Rows, columns and depth of a fragment.
pub(super) const SIDE: u32 = 16;
/// Fragments of a tile's rows.
pub(super) const ROUNDS: u32 = TILE / SIDE;
/// Vectors of a row in shared memory: a block's eight and two more, so that a fragment's rows lie in different banks.
pub(super) const STRIDE: u32 = 10;
/// Vectors of four sums of a plane's 16 rows of 16 low and 16 high outputs.
pub(super) const FOURS: u32 = SIDE * FOURS_A_ROW;
pub(super) const FOURS_A_ROW: u32 = 2 * SIDE / 4;

/// The planes of a cube.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Planes {
    /// Each has 16 low and 16 high outputs of a tile.
    pub count: u32,
    /// Lanes of a plane.
    pub width: u32,
    /// Whether planes multiply fragments of 16-bit floats; otherwise their lanes multiply, in f32, what fragments would hold. That is
    /// how adapters without matrix units play them in tests.
    pub fragments: bool,
}

impl Planes {
    /// Matrix units as they are played; the width need not be the adapter's.
    pub const PLAYED: Planes = Planes { count: 2, width: 32, fragments: false };

    /// What an adapter offers; `None` if its planes multiply no fragments, or differ in width.
    pub fn of(properties: &DeviceProperties) -> Option<Planes> {
        let (f16, f32) = (ElemType::Float(FloatKind::F16), ElemType::Float(FloatKind::F32));
        let fragment = MmaConfig { a_type: f16, b_type: f16, cd_type: f32, m: SIDE, n: SIDE, k: SIDE };
        let width = properties.hardware.plane_size_max;
        let alike = properties.hardware.plane_size_min == width && [32, 64].contains(&width);
        let fits = alike && properties.features.matmul.cmma.contains(&fragment);
        fits.then_some(Planes { count: 4, width, fragments: true })
    }

    /// As many planes as this, unless they are played.
    pub fn by(self, count: u32) -> Planes {
        if self.fragments { Planes { count, ..self } } else { self }
    }

    /// Outputs of a tile's half.
    pub(super) const fn half(self) -> u32 {
        SIDE * self.count
    }

    pub(super) const fn units(self) -> u32 {
        self.count * self.width
    }

    /// Vectors of a tile in shared memory: rows of inputs, then of low and of high outputs.
    pub(super) const fn vectors(self) -> u32 {
        (TILE + 2 * self.half()) * STRIDE
    }

    /// How many times eight columns of inputs a unit reads of a block.
    pub(super) const fn eights_a_unit(self) -> u32 {
        (TILE * 4).div_ceil(self.units())
    }

    /// Outputs of which a unit unpacks eight columns.
    pub(super) const fn outputs_a_unit(self) -> u32 {
        2 * self.half() * 4 / self.units()
    }
}

/// The first of this plane's outputs in either half of a tile.
#[cube]
pub(super) fn plane_outputs(#[comptime] planes: Planes) -> u32 {
    UNIT_POS / planes.width * SIDE
}

/// This plane's sums `4 place` to `4 place + 3` of those shown.
#[cube]
pub(super) fn shown(
    stage: &Shared<[Vector<f32, Const<4>>]>,
    place: u32,
    #[comptime] planes: Planes,
) -> Vector<f32, Const<4>> {
    stage[(UNIT_POS / planes.width * FOURS + place) as usize]
}

/// A plane's sums: of all rows of a tile, 16 low and 16 high outputs.
#[derive(CubeType)]
pub(super) struct Sums {
    /// Low and high ones of the first 16 rows, then of the next.
    fragments: Sequence<Fragment<f32>>,
    /// Without fragments, every `width`-th four of sums from this unit's lane on.
    plain: Array<f32>,
}

#[cube]
impl Sums {
    pub fn zeros(#[comptime] planes: Planes) -> Sums {
        let mut fragments = Sequence::new();
        let shares = comptime![if planes.fragments { 1 } else { (ROUNDS * FOURS * 4 / planes.width) as usize }];
        let mut plain = Array::<f32>::new(shares);
        if comptime![planes.fragments] {
            #[unroll]
            for _ in 0..comptime![2 * ROUNDS] {
                fragments.push(Fragment::<f32>::from_value(
                    MatrixIdent::Accumulator,
                    comptime![SIDE as usize],
                    comptime![SIDE as usize],
                    comptime![SIDE as usize],
                    MatrixLayout::Undefined,
                    0.0f32,
                ));
            }
        } else {
            for i in 0..shares {
                plain[i] = 0.0f32;
            }
        }
        Sums { fragments, plain }
    }

    /// Adds the products of a block's 32 columns, for the first `rounds` times 16 rows.
    pub fn multiply<T: Float>(
        &mut self,
        tile: &Shared<[Vector<T, Const<4>>]>,
        #[comptime] rounds: u32,
        #[comptime] planes: Planes,
    ) {
        let low_row = TILE + plane_outputs(planes);
        let high_row = low_row + planes.half();
        if comptime![planes.fragments] {
            #[unroll]
            for step in 0..2u32 {
                let low = fragment::<T>(tile, low_row, step, MatrixIdent::B, MatrixLayout::ColMajor);
                let high = fragment::<T>(tile, high_row, step, MatrixIdent::B, MatrixLayout::ColMajor);
                #[unroll]
                for round in 0..rounds {
                    let row = (round * SIDE).runtime();
                    let rows = fragment::<T>(tile, row, step, MatrixIdent::A, MatrixLayout::RowMajor);
                    let sums = &self.fragments[comptime![(2 * round) as usize]];
                    cmma::execute(&rows, &low, sums, sums);
                    let sums = &self.fragments[comptime![(2 * round + 1) as usize]];
                    cmma::execute(&rows, &high, sums, sums);
                }
            }
        } else {
            for i in 0..comptime![ROUNDS * FOURS / planes.width] {
                let place = UNIT_POS % planes.width + i * planes.width;
                let output = place % FOURS_A_ROW * 4;
                let output = select(output < SIDE, low_row, high_row - SIDE) + output;
                let x = place / FOURS_A_ROW * STRIDE;
                for j in 0..4u32 {
                    let w = (output + j) * STRIDE;
                    let mut sum = Vector::<f32, Const<4>>::new(0.0f32);
                    for k in 0..8u32 {
                        sum += Vector::<f32, Const<4>>::cast_from(tile[(x + k) as usize] * tile[(w + k) as usize]);
                    }
                    self.plain[(4 * i + j) as usize] += sum4(sum);
                }
            }
        }
    }

    /// Puts this plane's sums of rows `16 round` to `16 round + 15` where its lanes see them all.
    pub fn show(
        &self,
        stage: &mut Shared<[Vector<f32, Const<4>>]>,
        #[comptime] round: u32,
        #[comptime] planes: Planes,
    ) {
        let first = UNIT_POS / planes.width * FOURS;
        if comptime![planes.fragments] {
            let end = first + FOURS;
            #[unroll]
            for half in 0..2u32 {
                let first = first + comptime![half * SIDE / 4];
                let shown = stage.slice_mut(first as usize, end as usize);
                let sums = &self.fragments[comptime![(2 * round + half) as usize]];
                cmma::store(shown, sums, comptime![2 * SIDE], MatrixLayout::RowMajor);
            }
        } else {
            let shares = comptime![FOURS / planes.width];
            for i in 0..shares {
                let place = UNIT_POS % planes.width + i * planes.width;
                let mut four = Vector::<f32, Const<4>>::empty();
                #[unroll]
                for j in 0..4u32 {
                    four.insert(comptime![j as usize], self.plain[(4 * (round * shares + i) + j) as usize]);
                }
                stage[(first + place) as usize] = four;
            }
        }
        sync_cube();
    }
}

/// Sixteen rows from `row` on and 16 columns from `16 step` on of a tile in shared memory.
#[cube]
fn fragment<T: Float>(
    tile: &Shared<[Vector<T, Const<4>>]>,
    row: u32,
    #[comptime] step: u32,
    #[comptime] ident: MatrixIdent,
    #[comptime] layout: MatrixLayout,
) -> Fragment<T> {
    let side = comptime![SIDE as usize];
    // SAFETY: it is filled by the next line.
    let mut fragment = unsafe { Fragment::<T>::uninitialized(ident, side, side, side, layout) };
    let first = row * STRIDE + comptime![step * SIDE / 4];
    let end = (row + SIDE) * STRIDE;
    cmma::load(&mut fragment, tile.slice(first as usize, end as usize), comptime![4 * STRIDE]);
    fragment
}

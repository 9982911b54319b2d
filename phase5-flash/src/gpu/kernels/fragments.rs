//! Matrix units: the planes of a cube multiply fragments, squares of 16 by 16 numbers, and keep their sums in f32. Lanes never see
//! which of them holds what, so sums are read by way of shared memory.

use cubecl::cmma::{self, Matrix as Fragment, MatrixIdent, MatrixLayout};
use cubecl::ir::features::MmaConfig;
use cubecl::ir::{DeviceProperties, ElemType, FloatKind};
use cubecl::prelude::*;

use super::reduce::sum4;

/// Rows, columns and depth of a fragment.
pub(super) const SIDE: u32 = 16;
/// Fours of a square.
const SQUARE: u32 = SIDE * SIDE / 4;

/// The planes of a cube, and whether they have matrix units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Planes {
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
        let hardware = &properties.hardware;
        let width = hardware.plane_size_max;
        let alike = hardware.plane_size_min == width && [32, 64].contains(&width);
        let fits = alike && properties.features.matmul.cmma.contains(&fragment);
        fits.then_some(Planes { count: 4, width, fragments: true })
    }

    /// As many planes as this, unless they are played.
    pub fn by(self, count: u32) -> Planes {
        if self.fragments { Planes { count, ..self } } else { self }
    }

    pub(super) const fn units(self) -> u32 {
        self.count * self.width
    }
}

/// Sixteen rows and columns of numbers in shared memory.
#[derive(CubeType)]
pub(super) struct Piece<T: Float> {
    /// One, where planes multiply fragments.
    fragment: Sequence<Fragment<T>>,
    first: u32,
}

/// The piece that begins at vector `first`, with rows `stride` vectors apart; of an operand whose rows, or columns, are these.
#[cube]
pub(super) fn piece<T: Float>(
    shared: &Shared<[Vector<T, Const<4>>]>,
    first: u32,
    #[comptime] stride: u32,
    #[comptime] operand: MatrixIdent,
    #[comptime] layout: MatrixLayout,
    #[comptime] planes: Planes,
) -> Piece<T> {
    let mut fragment = Sequence::new();
    if comptime![planes.fragments] {
        let side = comptime![SIDE as usize];
        // SAFETY: it is filled by the next line.
        let mut loaded = unsafe { Fragment::<T>::uninitialized(operand, side, side, side, layout) };
        let end = first + comptime![SIDE * stride];
        cmma::load(&mut loaded, shared.slice(first as usize, end as usize), comptime![4 * stride]);
        fragment.push(loaded);
    }
    Piece::<T> { fragment, first }
}

/// Squares of 16 by 16 sums of a plane.
#[derive(CubeType)]
pub(super) struct Squares {
    fragments: Sequence<Fragment<f32>>,
    /// Without fragments, of each square every `width`-th four of a row from this unit's lane on.
    plain: Array<f32>,
}

#[cube]
impl Squares {
    pub fn zeros(#[comptime] count: u32, #[comptime] planes: Planes) -> Squares {
        let mut fragments = Sequence::new();
        let shares = comptime![if planes.fragments { 1 } else { (count * SQUARE * 4 / planes.width) as usize }];
        let mut plain = Array::<f32>::new(shares);
        if comptime![planes.fragments] {
            #[unroll]
            for _ in 0..count {
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
        Squares { fragments, plain }
    }

    /// Adds a product to square `square`: of a piece of `left`, by rows, and one of `right`, by columns or by rows.
    #[allow(clippy::too_many_arguments)]
    pub fn add<T: Float>(
        &mut self,
        #[comptime] square: u32,
        left: &Shared<[Vector<T, Const<4>>]>,
        a: &Piece<T>,
        #[comptime] a_stride: u32,
        right: &Shared<[Vector<T, Const<4>>]>,
        b: &Piece<T>,
        #[comptime] b_stride: u32,
        #[comptime] by_columns: bool,
        #[comptime] planes: Planes,
    ) {
        if comptime![planes.fragments] {
            let sums = &self.fragments[comptime![square as usize]];
            cmma::execute(&a.fragment[0usize], &b.fragment[0usize], sums, sums);
        } else {
            for i in 0..comptime![SQUARE / planes.width] {
                let place = UNIT_POS % planes.width + i * planes.width;
                let a_row = a.first + place / 4 * a_stride;
                let at = (square * comptime![SQUARE / planes.width] + i) * 4;
                let mut sums = Vector::<f32, Const<4>>::new(0.0f32);
                if comptime![by_columns] {
                    #[unroll]
                    for j in 0..4u32 {
                        let mut sum = Vector::<f32, Const<4>>::new(0.0f32);
                        for four in 0..4u32 {
                            let w = right[(b.first + (place % 4 * 4 + j) * b_stride + four) as usize];
                            sum += Vector::<f32, Const<4>>::cast_from(left[(a_row + four) as usize] * w);
                        }
                        sums.insert(comptime![j as usize], sum4(sum));
                    }
                } else {
                    for four in 0..4u32 {
                        let x = left[(a_row + four) as usize];
                        #[unroll]
                        for k in 0..4u32 {
                            let w = right[(b.first + (four * 4 + k) * b_stride + place % 4) as usize];
                            let x = Vector::<T, Const<4>>::new(x.extract(comptime![k as usize]));
                            sums += Vector::<f32, Const<4>>::cast_from(x * w);
                        }
                    }
                }
                #[unroll]
                for j in 0..4u32 {
                    self.plain[(at + j) as usize] += sums.extract(comptime![j as usize]);
                }
            }
        }
    }

    /// Writes a square where lanes can read it, from vector `first` on, with rows `stride` vectors apart.
    pub fn show(
        &self,
        #[comptime] square: u32,
        stage: &mut Shared<[Vector<f32, Const<4>>]>,
        first: u32,
        #[comptime] stride: u32,
        #[comptime] planes: Planes,
    ) {
        if comptime![planes.fragments] {
            let end = first + comptime![SIDE * stride];
            let shown = stage.slice_mut(first as usize, end as usize);
            let sums = &self.fragments[comptime![square as usize]];
            cmma::store(shown, sums, comptime![4 * stride], MatrixLayout::RowMajor);
        } else {
            for i in 0..comptime![SQUARE / planes.width] {
                let place = UNIT_POS % planes.width + i * planes.width;
                let at = (square * comptime![SQUARE / planes.width] + i) * 4;
                let mut four = Vector::<f32, Const<4>>::empty();
                #[unroll]
                for j in 0..4u32 {
                    four.insert(comptime![j as usize], self.plain[(at + j) as usize]);
                }
                stage[(first + place / 4 * stride + place % 4) as usize] = four;
            }
        }
    }

    /// Reads a square back from where [`Squares::show`] put it.
    pub fn take(
        &mut self,
        #[comptime] square: u32,
        stage: &Shared<[Vector<f32, Const<4>>]>,
        first: u32,
        #[comptime] stride: u32,
        #[comptime] planes: Planes,
    ) {
        if comptime![planes.fragments] {
            let end = first + comptime![SIDE * stride];
            let shown = stage.slice(first as usize, end as usize);
            let sums = &mut self.fragments[comptime![square as usize]];
            cmma::load_with_layout(sums, shown, comptime![4 * stride], MatrixLayout::RowMajor);
        } else {
            for i in 0..comptime![SQUARE / planes.width] {
                let place = UNIT_POS % planes.width + i * planes.width;
                let at = (square * comptime![SQUARE / planes.width] + i) * 4;
                let four = stage[(first + place / 4 * stride + place % 4) as usize];
                #[unroll]
                for j in 0..4u32 {
                    self.plain[(at + j) as usize] = four.extract(comptime![j as usize]);
                }
            }
        }
    }
}

/// Waits until the lanes of a plane see what the others wrote.
#[cube]
pub(super) fn sync_lanes(#[comptime] planes: Planes) {
    if comptime![planes.fragments] {
        sync_plane();
    } else {
        sync_cube();
    }
}

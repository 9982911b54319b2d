//! Matrix units: the planes of a cube multiply fragments, squares of 16 by 16 numbers, with sums in f32. The mapping of a fragment's
//! numbers to lanes depends on the device, so sums are read through shared memory.

use cubecl::cmma::{self, Matrix as Fragment, MatrixIdent, MatrixLayout};
use cubecl::ir::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use crate::device::Device;
use crate::vec4::sum4;

/// Rows, columns and depth of a fragment.
pub(crate) const SIDE: u32 = 16;
/// Vectors of four in a fragment.
const SQUARE: u32 = SIDE * SIDE / 4;

/// How a device multiplies fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatrixUnits {
    /// Lanes of a plane.
    width: u32,
    /// Whether lanes compute the products of fragments in f32 instead, so that tests can run these kernels on adapters without matrix
    /// units.
    emulated: bool,
}

impl MatrixUnits {
    /// Matrix units emulated on any adapter; the width need not be the adapter's.
    pub const EMULATED: MatrixUnits = MatrixUnits { width: 32, emulated: true };

    /// The device's matrix units; `None` if its planes cannot multiply fragments of 16-bit floats, have different widths or one
    /// other than 32 and 64, or if kernels are not compiled to SPIR-V.
    pub fn of(device: &Device) -> Option<MatrixUnits> {
        let (client, properties) = (device.client(), device.client().properties());
        let (f16, f32) = (ElemType::Float(FloatKind::F16), ElemType::Float(FloatKind::F32));
        let fragment = MmaConfig { a_type: f16, b_type: f16, cd_type: f32, m: SIDE, n: SIDE, k: SIDE };
        let hardware = &properties.hardware;
        let width = hardware.plane_size_max;
        let alike = hardware.plane_size_min == width && [32, 64].contains(&width);
        // Matrix units are used only through SPIR-V. Kernels synchronize the lanes of one plane in code that other planes may skip; WGSL
        // would make this a barrier of the whole workgroup, which those planes never reach. Other compilers are not tested.
        let spirv = client.name().contains("spirv");
        let fits = spirv && alike && properties.features.matmul.cmma.contains(&fragment);
        fits.then_some(MatrixUnits { width, emulated: false })
    }

    pub fn are_emulated(self) -> bool {
        self.emulated
    }

    /// A cube of `count` planes. If matrix units are emulated, there are at most two planes, because operands then take twice as much
    /// shared memory.
    pub(crate) fn planes(self, count: u32) -> Planes {
        Planes { count: if self.emulated { count.min(2) } else { count }, width: self.width, fragments: !self.emulated }
    }
}

/// The planes of a cube.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Planes {
    pub count: u32,
    /// Lanes per plane.
    pub width: u32,
    /// Whether the device's matrix units are used; otherwise they are emulated.
    pub fragments: bool,
}

impl Planes {
    pub const fn units(self) -> u32 {
        self.count * self.width
    }

    /// Bytes per number of an operand.
    pub const fn operand_bytes(self) -> u32 {
        if self.fragments { 2 } else { 4 }
    }
}

/// A factor of a product: sixteen rows by sixteen columns of numbers in shared memory.
#[derive(CubeType)]
pub(crate) struct Operand<T: Float> {
    /// One fragment if matrix units are used, otherwise none.
    fragment: Sequence<Fragment<T>>,
    first: u32,
}

/// The operand that begins at vector `first`, with rows `stride` vectors apart. It is the left or the right factor, and stored by rows or
/// by columns.
#[cube]
pub(crate) fn operand<T: Float>(
    shared: &Shared<[Vector<T, Const<4>>]>,
    first: u32,
    #[comptime] stride: u32,
    #[comptime] side: MatrixIdent,
    #[comptime] layout: MatrixLayout,
    #[comptime] planes: Planes,
) -> Operand<T> {
    let mut fragment = Sequence::new();
    if comptime![planes.fragments] {
        let length = comptime![SIDE as usize];
        // SAFETY: the next line fills it.
        let mut loaded = unsafe { Fragment::<T>::uninitialized(side, length, length, length, layout) };
        let end = first + comptime![SIDE * stride];
        cmma::load(&mut loaded, shared.slice(first as usize, end as usize), comptime![4 * stride]);
        fragment.push(loaded);
    }
    Operand::<T> { fragment, first }
}

/// The sums of a plane, in squares of 16 by 16.
///
/// Indices of squares must be constants if matrix units are used. Emulated squares are processed in loops, because a software rasterizer
/// takes almost a minute to compile them unrolled.
#[derive(CubeType)]
pub(crate) struct Accumulators {
    fragments: Sequence<Fragment<f32>>,
    /// Emulation only: lane l holds vectors l, l + width, … of each square, row-major.
    plain: Array<f32>,
}

#[cube]
impl Accumulators {
    pub fn zeros(#[comptime] count: u32, #[comptime] planes: Planes) -> Accumulators {
        let mut fragments = Sequence::new();
        let values = comptime![if planes.fragments { 1 } else { (count * SQUARE * 4 / planes.width) as usize }];
        let mut plain = Array::<f32>::new(values);
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
            for i in 0..values {
                plain[i] = 0.0f32;
            }
        }
        Accumulators { fragments, plain }
    }

    /// Adds to square `square` the product of an operand in `left`, stored by rows, and one in `right`, stored by columns or rows.
    #[allow(clippy::too_many_arguments)]
    pub fn add<T: Float>(
        &mut self,
        square: usize,
        left: &Shared<[Vector<T, Const<4>>]>,
        a: &Operand<T>,
        #[comptime] a_stride: u32,
        right: &Shared<[Vector<T, Const<4>>]>,
        b: &Operand<T>,
        #[comptime] b_stride: u32,
        #[comptime] by_columns: bool,
        #[comptime] planes: Planes,
    ) {
        if comptime![planes.fragments] {
            let sums = &self.fragments[square];
            cmma::execute(&a.fragment[0usize], &b.fragment[0usize], sums, sums);
        } else {
            for i in 0..comptime![SQUARE / planes.width] {
                let place = UNIT_POS % planes.width + i * planes.width;
                let a_row = a.first + place / 4 * a_stride;
                let at = (square as u32 * comptime![SQUARE / planes.width] + i) * 4;
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

    /// Writes a square to shared memory, from vector `first` on, with rows `stride` vectors apart.
    pub fn store(
        &self,
        square: usize,
        stage: &mut Shared<[Vector<f32, Const<4>>]>,
        first: u32,
        #[comptime] stride: u32,
        #[comptime] planes: Planes,
    ) {
        if comptime![planes.fragments] {
            let end = first + comptime![SIDE * stride];
            let stored = stage.slice_mut(first as usize, end as usize);
            let sums = &self.fragments[square];
            cmma::store(stored, sums, comptime![4 * stride], MatrixLayout::RowMajor);
        } else {
            for i in 0..comptime![SQUARE / planes.width] {
                let place = UNIT_POS % planes.width + i * planes.width;
                let at = (square as u32 * comptime![SQUARE / planes.width] + i) * 4;
                let mut four = Vector::<f32, Const<4>>::empty();
                #[unroll]
                for j in 0..4u32 {
                    four.insert(comptime![j as usize], self.plain[(at + j) as usize]);
                }
                stage[(first + place / 4 * stride + place % 4) as usize] = four;
            }
        }
    }

    /// Reads back a square that [`Accumulators::store`] wrote.
    pub fn load(
        &mut self,
        square: usize,
        stage: &Shared<[Vector<f32, Const<4>>]>,
        first: u32,
        #[comptime] stride: u32,
        #[comptime] planes: Planes,
    ) {
        if comptime![planes.fragments] {
            let end = first + comptime![SIDE * stride];
            let stored = stage.slice(first as usize, end as usize);
            let sums = &mut self.fragments[square];
            cmma::load_with_layout(sums, stored, comptime![4 * stride], MatrixLayout::RowMajor);
        } else {
            for i in 0..comptime![SQUARE / planes.width] {
                let place = UNIT_POS % planes.width + i * planes.width;
                let at = (square as u32 * comptime![SQUARE / planes.width] + i) * 4;
                let four = stage[(first + place / 4 * stride + place % 4) as usize];
                #[unroll]
                for j in 0..4u32 {
                    self.plain[(at + j) as usize] = four.extract(comptime![j as usize]);
                }
            }
        }
    }
}

/// Waits until all lanes of a plane see each other's writes. If matrix units are emulated, waits for all lanes of the cube.
#[cube]
pub(crate) fn sync_lanes(#[comptime] planes: Planes) {
    if comptime![planes.fragments] {
        sync_plane();
    } else {
        sync_cube();
    }
}

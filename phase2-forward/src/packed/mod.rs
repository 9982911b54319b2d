//! Matrices that stay packed: a stack of `[out, in]` matrices in a storage format, multiplied without being unpacked as a
//! whole.
//!
//! On the CPU the packed bytes are the pages of the mapped file; on a GPU they are a buffer of 32-bit words.

mod cube;
mod flex;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{AllocationProperty, Bytes, DType, Int, Tensor, TensorData};
use phase1_loading::{Format, HostTensor};

use crate::device::ComputeDevice;

/// A stack of packed matrices on a device; a plain matrix is a stack of one.
#[derive(Clone)]
pub struct PackedMatrix {
    /// The packed rows of all matrices, one after another: bytes on the CPU, little-endian words on a GPU.
    words: Tensor<1, Int>,
    pub layout: PackedLayout,
}

/// How the bytes of a [`PackedMatrix`] are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedLayout {
    pub format: Format,
    /// Rows of one matrix: the length of its output.
    pub rows: usize,
    /// Values in a row: the length of its input.
    pub columns: usize,
}

impl PackedMatrix {
    /// Puts a matrix `[out, in]` or a stack `[experts, out, in]` on the device. On the CPU this copies nothing.
    pub fn new(tensor: &HostTensor, device: &ComputeDevice) -> PackedMatrix {
        let layout = PackedLayout {
            format: tensor.format,
            rows: tensor.shape[tensor.shape.len() - 2],
            columns: tensor.row_len(),
        };
        let (dtype, word_bytes) = if device.is_cpu() { (DType::U8, 1) } else { (DType::U32, 4) };
        let bytes = match tensor.data.len() % word_bytes {
            0 => Bytes::from_shared(tensor.data.clone(), AllocationProperty::File),
            _ => {
                let mut padded = tensor.data.to_vec();
                padded.resize(padded.len().next_multiple_of(word_bytes), 0);
                Bytes::from_bytes_vec(padded)
            }
        };
        let words = bytes.len() / word_bytes;
        let data = TensorData::from_bytes(bytes, [words], dtype);
        PackedMatrix { words: Tensor::from_data(data, (&device.burn, dtype)), layout }
    }
}

/// `y[i] = W[matrix[i]] · x[i]`: every row of `x` is multiplied by the matrix of the stack that `matrix` names for it.
///
/// `x` is `[n, in]` in f32, `matrix` is `[n]` with values below the stack's height; the result is `[n, out]`, accumulated in f32.
pub fn packed_matmul(x: Tensor<2>, weights: &PackedMatrix, matrix: Tensor<1, Int>) -> Tensor<2> {
    let [_, columns] = x.dims();
    assert_eq!(columns, weights.layout.columns, "the input's width is the matrix's");
    let matrix = matrix.cast(DType::I32);
    let product = <Dispatch as PackedOps>::packed_matmul(
        x.into_dispatch(),
        weights.words.clone().into_dispatch(),
        matrix.into_dispatch(),
        weights.layout,
    );
    Tensor::from_dispatch(product)
}

/// The operation that Burn lacks, once for the CPU backend and once for every GPU.
#[backend_extension(Cube, Flex)]
trait PackedOps: Backend {
    fn packed_matmul(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        matrix: IntTensor<Self>,
        layout: PackedLayout,
    ) -> FloatTensor<Self>;
}

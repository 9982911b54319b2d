//! Packed matrices: stacks of `[out, in]` matrices in a storage format. A product unpacks only parts of them at a time.
//!
//! On the CPU the packed bytes are pages of the mapped file, in any format. On a GPU they are a buffer of 32-bit words, in one of the
//! formats that the kernel supports.

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
    data: PackedData,
    /// Values per row, the length of the input.
    pub columns: usize,
}

/// The location of the packed rows; the rows of all matrices follow each other.
#[derive(Clone)]
#[expect(clippy::large_enum_variant, reason = "there are a few hundred of them")]
enum PackedData {
    Host(HostTensor),
    /// Little-endian words in a GPU buffer.
    Device {
        words: Tensor<1, Int>,
        layout: PackedLayout,
    },
}

/// The layout of a matrix on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PackedLayout {
    pub format: Format,
    /// Rows per matrix, the length of the output.
    pub rows: usize,
    pub columns: usize,
}

impl PackedMatrix {
    /// Loads a matrix `[out, in]` or a stack `[experts, out, in]` onto the device. On the CPU nothing is copied. On a GPU a format that the
    /// kernel does not support becomes F32, which represents every value exactly.
    pub fn new(tensor: &HostTensor, device: &ComputeDevice) -> PackedMatrix {
        let columns = tensor.row_len();
        if device.is_cpu() {
            return PackedMatrix { data: PackedData::Host(tensor.clone()), columns };
        }
        let format = device_format(tensor.format);
        let data = tensor.packed_as(format, 0..tensor.rows());
        let bytes = match data.len() % 4 {
            0 => Bytes::from_shared(data, AllocationProperty::File),
            _ => {
                let mut padded = data.to_vec();
                padded.resize(padded.len().next_multiple_of(4), 0);
                Bytes::from_bytes_vec(padded)
            }
        };
        let words = bytes.len() / 4;
        let data = TensorData::from_bytes(bytes, [words], DType::U32);
        let layout = PackedLayout { format, rows: tensor.shape[tensor.shape.len() - 2], columns };
        let words = Tensor::from_data(data, (&device.burn, DType::U32));
        PackedMatrix { data: PackedData::Device { words, layout }, columns }
    }
}

/// The format in which a GPU stores a matrix of `format`.
pub(crate) fn device_format(format: Format) -> Format {
    match format {
        Format::F32 | Format::F16 | Format::BF16 | Format::Q8_0 | Format::Mxfp4 => format,
        _ => Format::F32,
    }
}

/// `y[i] = W[matrix[i]] · x[i]`: every row of `x` is multiplied by one matrix of the stack, whose index is in `matrix`.
///
/// `x` is `[n, in]` in f32, `matrix` is `[n]` with values below the number of matrices in the stack; the result is `[n, out]`,
/// accumulated in f32.
pub fn packed_matmul(x: Tensor<2>, weights: &PackedMatrix, matrix: Tensor<1, Int>) -> Tensor<2> {
    let [_, columns] = x.dims();
    assert_eq!(columns, weights.columns, "the input must be as wide as the matrix");
    let (x, matrix) = (x.into_dispatch(), matrix.cast(DType::I32).into_dispatch());
    Tensor::from_dispatch(match &weights.data {
        PackedData::Host(tensor) => <Dispatch as HostMatmul>::host_matmul(x, matrix, tensor.clone()),
        PackedData::Device { words, layout } => {
            <Dispatch as DeviceMatmul>::device_matmul(x, words.clone().into_dispatch(), matrix, *layout)
        }
    })
}

/// The packed product on the CPU, which Burn lacks.
#[backend_extension(Flex)]
trait HostMatmul: Backend {
    fn host_matmul(x: FloatTensor<Self>, matrix: IntTensor<Self>, weights: HostTensor) -> FloatTensor<Self>;
}

/// The packed product on a GPU.
#[backend_extension(Cube)]
trait DeviceMatmul: Backend {
    fn device_matmul(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        matrix: IntTensor<Self>,
        layout: PackedLayout,
    ) -> FloatTensor<Self>;
}

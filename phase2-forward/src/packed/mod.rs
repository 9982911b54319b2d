//! Matrices that stay packed: a stack of `[out, in]` matrices in a storage format, multiplied without being unpacked as a
//! whole.
//!
//! On the CPU the packed bytes are the pages of the mapped file, whatever their format; on a GPU they are a buffer of
//! 32-bit words in one of the formats that the kernel reads.

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
    place: Place,
    /// Values in a row: the length of the input.
    pub columns: usize,
}

/// Where the packed rows of all matrices lie, one after another.
#[derive(Clone)]
#[expect(clippy::large_enum_variant, reason = "there are a few hundred of them")]
enum Place {
    Host(HostTensor),
    /// Little-endian words in a GPU's buffer.
    Device {
        words: Tensor<1, Int>,
        layout: PackedLayout,
    },
}

/// How the words of a matrix on a GPU are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PackedLayout {
    pub format: Format,
    /// Rows of one matrix: the length of its output.
    pub rows: usize,
    pub columns: usize,
}

impl PackedMatrix {
    /// Puts a matrix `[out, in]` or a stack `[experts, out, in]` on the device. On the CPU this copies nothing. On a GPU a
    /// format that its kernel does not read becomes F32, which holds every value exactly.
    pub fn new(tensor: &HostTensor, device: &ComputeDevice) -> PackedMatrix {
        let columns = tensor.row_len();
        if device.is_cpu() {
            return PackedMatrix { place: Place::Host(tensor.clone()), columns };
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
        PackedMatrix { place: Place::Device { words, layout }, columns }
    }
}

/// The format that a GPU keeps a matrix of `format` in.
pub(crate) fn device_format(format: Format) -> Format {
    match format {
        Format::F32 | Format::F16 | Format::BF16 | Format::Q8_0 | Format::Mxfp4 => format,
        _ => Format::F32,
    }
}

/// `y[i] = W[matrix[i]] · x[i]`: every row of `x` is multiplied by the matrix of the stack that `matrix` names for it.
///
/// `x` is `[n, in]` in f32, `matrix` is `[n]` with values below the stack's height; the result is `[n, out]`, accumulated in f32.
pub fn packed_matmul(x: Tensor<2>, weights: &PackedMatrix, matrix: Tensor<1, Int>) -> Tensor<2> {
    let [_, columns] = x.dims();
    assert_eq!(columns, weights.columns, "the input's width is the matrix's");
    let (x, matrix) = (x.into_dispatch(), matrix.cast(DType::I32).into_dispatch());
    Tensor::from_dispatch(match &weights.place {
        Place::Host(tensor) => <Dispatch as HostMatmul>::host_matmul(x, matrix, tensor.clone()),
        Place::Device { words, layout } => {
            <Dispatch as DeviceMatmul>::device_matmul(x, words.clone().into_dispatch(), matrix, *layout)
        }
    })
}

/// The operation that Burn lacks, for the CPU.
#[backend_extension(Flex)]
trait HostMatmul: Backend {
    fn host_matmul(x: FloatTensor<Self>, matrix: IntTensor<Self>, weights: HostTensor) -> FloatTensor<Self>;
}

/// The same for every GPU.
#[backend_extension(Cube)]
trait DeviceMatmul: Backend {
    fn device_matmul(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        matrix: IntTensor<Self>,
        layout: PackedLayout,
    ) -> FloatTensor<Self>;
}

//! A tensor as its file stores it: a storage format, a shape, and weights in the file's layout.

use std::ops::Range;

use bytes::Bytes;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::codec::{Format, MAX_BLOCK_BYTES, repack_mxfp4_from_hf};

/// A tensor on the host. Its weights are slices of the mapped file. Cloning copies no weights.
#[derive(Clone, Debug)]
pub struct HostTensor {
    pub format: Format,
    /// Row-major: `[out, in]` for a matrix, `[experts, out, in]` for stacked experts, `[n]` for a vector.
    pub shape: Vec<usize>,
    storage: Storage,
}

#[derive(Clone, Debug)]
enum Storage {
    /// Rows one after another, each `format.row_bytes(in)` long: the layout of GGUF.
    Packed(Bytes),
    /// Codes separate from their scales: the layout of quantized tensors in safetensors files.
    Planes(Planes),
    /// Rows stored as columns: Hugging Face's layout of experts that are not quantized.
    Columns(Columns),
    /// Rows selected from a larger tensor, because Ollama and others join several matrices in one; or MXFP4 with another order of codes.
    Rows(Rows),
}

/// Stacked matrices of packed rows; some of these rows form the tensor.
#[derive(Clone, Debug)]
struct Rows {
    data: Bytes,
    /// Whether a byte holds two neighbouring MXFP4 codes, OpenAI's order, instead of codes 16 apart.
    in_pairs: bool,
    /// Rows per stored matrix.
    stored: usize,
    /// Row i of a matrix is its stored row `first + i · step`.
    first: usize,
    step: usize,
}

/// Stacked matrices of plain numbers, each stored transposed, `[experts, in, width]`.
#[derive(Clone, Debug)]
pub(crate) struct Columns {
    pub data: Bytes,
    pub width: usize,
    /// Row i of a matrix is its stored column `first + i · step`: Hugging Face interleaves gate and up.
    pub first: usize,
    pub step: usize,
}

/// The parts of a quantized tensor in safetensors files, and which of their rows are the tensor's.
#[derive(Clone, Debug)]
pub(crate) struct Planes {
    /// Codes of four bits, low nibble first, or of eight bits.
    pub codes: Bytes,
    /// E8M0 bytes for MXFP4, otherwise numbers of `scale_format`.
    pub scales: Bytes,
    /// For affine groups, numbers of `scale_format`; otherwise empty.
    pub biases: Bytes,
    pub scale_format: Format,
    /// Row i is the planes' row `first + i · step`: Hugging Face interleaves the rows of gate and up.
    pub first: usize,
    pub step: usize,
}

impl HostTensor {
    /// A tensor whose rows are packed one after another in `data`.
    ///
    /// # Panics
    /// If the length of `data` does not agree with `shape`.
    pub fn packed_rows(format: Format, shape: Vec<usize>, data: Bytes) -> HostTensor {
        let tensor = HostTensor { format, shape, storage: Storage::Packed(data.clone()) };
        assert_eq!(data.len(), tensor.bytes(), "{} of shape {:?}", format.name(), tensor.shape);
        tensor
    }

    /// The lengths of the planes must have been checked against the shape.
    pub(crate) fn from_planes(format: Format, shape: Vec<usize>, planes: Planes) -> HostTensor {
        HostTensor { format, shape, storage: Storage::Planes(planes) }
    }

    /// The length of the data must have been checked against the shape, `[experts, out, in]`.
    pub(crate) fn from_columns(format: Format, shape: Vec<usize>, columns: Columns) -> HostTensor {
        HostTensor { format, shape, storage: Storage::Columns(columns) }
    }

    /// A tensor of MXFP4 rows, packed one after another in `data` with OpenAI's order of codes. The length of `data` must have been checked
    /// against the shape.
    pub(crate) fn mxfp4_in_pairs(shape: Vec<usize>, data: Bytes) -> HostTensor {
        let stored = matrix_rows(&shape);
        let rows = Rows { data, in_pairs: true, stored, first: 0, step: 1 };
        HostTensor { format: Format::Mxfp4, shape, storage: Storage::Rows(rows) }
    }

    /// Whether the tensor was made by [`HostTensor::mxfp4_in_pairs`], or selected from one that was.
    pub(crate) fn is_in_pairs(&self) -> bool {
        matches!(&self.storage, Storage::Rows(rows) if rows.in_pairs)
    }

    /// A view of rows `first`, `first + step`, … of every matrix, as many as `shape` has. The tensor must not itself be such a view of only
    /// some rows, which is not checked.
    ///
    /// # Panics
    /// If the tensor has planes or columns, which only safetensors files have, or has fewer rows.
    pub(crate) fn select_rows(&self, shape: Vec<usize>, first: usize, step: usize) -> HostTensor {
        let (stored, wanted) = (matrix_rows(&self.shape), matrix_rows(&shape));
        assert!(first + (wanted - 1) * step < stored, "rows of shape {:?} from shape {:?}", shape, self.shape);
        let (data, in_pairs) = match &self.storage {
            Storage::Packed(data) if stored == self.rows() && step == 1 => {
                let row_bytes = self.row_bytes();
                return Self::packed_rows(
                    self.format,
                    shape,
                    data.slice(first * row_bytes..(first + wanted) * row_bytes),
                );
            }
            Storage::Packed(data) => (data.clone(), false),
            Storage::Rows(rows) => (rows.data.clone(), rows.in_pairs),
            Storage::Planes(_) | Storage::Columns(_) => panic!("rows can be selected only from tensors of GGUF files"),
        };
        let rows = Rows { data, in_pairs, stored, first, step };
        HostTensor { format: self.format, shape, storage: Storage::Rows(rows) }
    }

    /// Length of the innermost dimension: the values of one row.
    pub fn row_len(&self) -> usize {
        *self.shape.last().expect("a tensor has a dimension")
    }

    /// Number of rows: the product of all outer dimensions.
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len() - 1].iter().product()
    }

    fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.row_len())
    }

    /// Bytes of all packed rows.
    pub fn bytes(&self) -> usize {
        self.rows() * self.row_bytes()
    }

    /// The parts of the file from which the rows are read.
    pub(crate) fn stored(&self) -> Vec<Bytes> {
        match &self.storage {
            Storage::Packed(data) => vec![data.clone()],
            Storage::Planes(planes) => vec![planes.codes.clone(), planes.scales.clone(), planes.biases.clone()],
            Storage::Columns(columns) => vec![columns.data.clone()],
            Storage::Rows(rows) => vec![rows.data.clone()],
        }
    }

    /// Whether the rows lie one after another in the mapped file, so that [`HostTensor::packed`] copies nothing.
    pub fn is_contiguous(&self) -> bool {
        matches!(self.storage, Storage::Packed(_))
    }

    /// All packed rows, one after another: a view of the mapped file, or a copy if the rows are stored differently.
    pub fn packed(&self) -> Bytes {
        self.packed_as(self.format, 0..self.rows())
    }

    /// A range of existing rows, counted over all outer dimensions, packed in `format`: a view of the mapped file if the rows are stored
    /// like that, otherwise a copy.
    ///
    /// # Panics
    /// If `format` differs from the tensor's format and cannot be encoded: see [`Format::encode`].
    pub fn packed_as(&self, format: Format, rows: Range<usize>) -> Bytes {
        let row_bytes = format.row_bytes(self.row_len());
        match &self.storage {
            _ if format != self.format => {
                let new_row = || vec![0.0; self.row_len()];
                let rows = rows.into_par_iter().map_init(new_row, |values, row| {
                    self.decode_row(row, values);
                    format.encode(values)
                });
                rows.collect::<Vec<_>>().concat().into()
            }
            Storage::Packed(data) => data.slice(rows.start * row_bytes..rows.end * row_bytes),
            Storage::Planes(_) | Storage::Rows(_) => {
                let mut packed = vec![0; rows.len() * row_bytes];
                packed.par_chunks_exact_mut(row_bytes).zip(rows).for_each(|(packed, row)| {
                    for (block, packed) in packed.chunks_exact_mut(format.block_bytes()).enumerate() {
                        self.pack_block(row, block, packed);
                    }
                });
                packed.into()
            }
            Storage::Columns(columns) => {
                let mut packed = vec![0; rows.len() * row_bytes];
                packed.par_chunks_exact_mut(row_bytes).zip(rows).for_each(|(packed, row)| {
                    let values = packed.chunks_exact_mut(format.block_bytes());
                    values.zip(columns.row(self, row)).for_each(|(to, from)| to.copy_from_slice(from));
                });
                packed.into()
            }
        }
    }

    /// Unpacks one row, counted over all outer dimensions, into `values` `[in]`.
    pub fn decode_row(&self, row: usize, values: &mut [f32]) {
        let row_bytes = self.row_bytes();
        match &self.storage {
            Storage::Packed(data) => self.format.decode(&data[row * row_bytes..][..row_bytes], values),
            Storage::Planes(_) | Storage::Rows(_) => {
                let mut packed = [0; MAX_BLOCK_BYTES];
                let packed = &mut packed[..self.format.block_bytes()];
                for (block, values) in values.chunks_exact_mut(self.format.block_len()).enumerate() {
                    self.pack_block(row, block, packed);
                    self.format.decode(packed, values);
                }
            }
            Storage::Columns(columns) => {
                let values = values.chunks_exact_mut(1);
                values.zip(columns.row(self, row)).for_each(|(to, from)| self.format.decode(from, to));
            }
        }
    }

    /// Copies block `block` of row `row` to `packed`, with the codes in the order of the format.
    fn pack_block(&self, row: usize, block: usize, packed: &mut [u8]) {
        match &self.storage {
            Storage::Planes(planes) => planes.pack_block(self.format, self.row_len(), row, block, packed),
            Storage::Rows(rows) => {
                let row_start = rows.place(row, matrix_rows(&self.shape)) * self.row_bytes();
                packed.copy_from_slice(&rows.data[row_start + block * packed.len()..][..packed.len()]);
                if rows.in_pairs {
                    let codes: [u8; 16] = packed[1..].try_into().expect("sixteen bytes");
                    packed[1..].copy_from_slice(&repack_mxfp4_from_hf(&codes));
                }
            }
            Storage::Packed(_) | Storage::Columns(_) => unreachable!("these are copied by rows"),
        }
    }

    /// The first MXFP4 block with a scale byte of 255, counted over all rows. Reads only the scales.
    pub(crate) fn bad_scale(&self) -> Option<usize> {
        if self.format != Format::Mxfp4 {
            return None;
        }
        let bad = |row: usize| Some(row * self.row_len() / self.format.block_len() + self.bad_scale_of(row)?);
        (0..self.rows()).into_par_iter().with_min_len(64).find_map_first(bad)
    }

    /// The first block with a scale byte of 255 in a row of MXFP4; rows are counted over all outer dimensions. See
    /// [`check_scales`](crate::check_scales).
    pub fn bad_scale_of(&self, row: usize) -> Option<usize> {
        if self.format != Format::Mxfp4 {
            return None;
        }
        let (bytes, step) = self.scale_bytes(row, self.row_len() / self.format.block_len());
        bytes.iter().step_by(step).position(|&scale| scale == 255)
    }

    /// The bytes of a row of MXFP4 from its first scale byte on, and the distance from each scale byte to the next.
    fn scale_bytes(&self, row: usize, blocks: usize) -> (&[u8], usize) {
        let (row_bytes, block_bytes) = (self.row_bytes(), self.format.block_bytes());
        match &self.storage {
            Storage::Packed(data) => (&data[row * row_bytes..][..row_bytes], block_bytes),
            Storage::Rows(rows) => {
                let place = rows.place(row, matrix_rows(&self.shape));
                (&rows.data[place * row_bytes..][..row_bytes], block_bytes)
            }
            Storage::Planes(planes) => (&planes.scales[(planes.first + row * planes.step) * blocks..][..blocks], 1),
            Storage::Columns(_) => unreachable!("columns hold plain numbers"),
        }
    }

    /// Every value as f32, in row-major order.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.shape.iter().product()];
        for (row, values) in values.chunks_exact_mut(self.row_len()).enumerate() {
            self.decode_row(row, values);
        }
        values
    }
}

/// Number of rows of one matrix of a stack; 1 for a vector.
fn matrix_rows(shape: &[usize]) -> usize {
    shape.len().checked_sub(2).map_or(1, |dimension| shape[dimension])
}

impl Rows {
    /// The stored row of row `row`, both counted over all matrices; a matrix has `rows` rows.
    fn place(&self, row: usize, rows: usize) -> usize {
        row / rows * self.stored + self.first + row % rows * self.step
    }
}

impl Columns {
    /// The encoded numbers of a row of `tensor`, counted over all matrices.
    fn row(&self, tensor: &HostTensor, row: usize) -> impl Iterator<Item = &[u8]> {
        let (rows, row_len, bytes) = (tensor.shape[1], tensor.row_len(), tensor.format.block_bytes());
        let (matrix, column) = (row / rows, self.first + row % rows * self.step);
        (0..row_len).map(move |i| &self.data[((matrix * row_len + i) * self.width + column) * bytes..][..bytes])
    }
}

impl Planes {
    /// Assembles block `block` of row `row`. The order of nibbles in safetensors files matters only here.
    fn pack_block(&self, format: Format, row_len: usize, row: usize, block: usize, packed: &mut [u8]) {
        let blocks = row_len / format.block_len();
        let at = (self.first + row * self.step) * blocks + block;
        match format {
            Format::Mxfp4 => {
                let codes = self.codes[at * 16..][..16].try_into().expect("sixteen bytes");
                packed[0] = self.scales[at];
                packed[1..].copy_from_slice(&repack_mxfp4_from_hf(codes));
            }
            Format::Affine { .. } => {
                let codes = packed.len() - 8;
                packed[..4].copy_from_slice(&self.number(&self.scales, at).to_le_bytes());
                packed[4..8].copy_from_slice(&self.number(&self.biases, at).to_le_bytes());
                packed[8..].copy_from_slice(&self.codes[at * codes..][..codes]);
            }
            _ => unreachable!("{} has no planes", format.name()),
        }
    }

    fn number(&self, plane: &[u8], at: usize) -> f32 {
        let pair = || [plane[at * 2], plane[at * 2 + 1]];
        match self.scale_format {
            Format::F16 => f16::from_le_bytes(pair()).to_f32(),
            Format::BF16 => bf16::from_le_bytes(pair()).to_f32(),
            _ => f32::from_le_bytes(plane[at * 4..][..4].try_into().expect("four bytes")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::{Bits, Group};

    fn numbers(format: Format, values: &[f32]) -> Bytes {
        format.encode(values).into()
    }

    proptest! {
        /// Every supported code width, group size and scale format of mlx-lm's affine planes, with strided rows, against
        /// `code · scale + bias`.
        #[test]
        fn affine_planes_decode(
            bits in prop::sample::select(vec![Bits::Four, Bits::Eight]),
            group in prop::sample::select(vec![Group::Of32, Group::Of64]),
            scale_format in prop::sample::select(vec![Format::F32, Format::F16, Format::BF16]),
            (rows, groups, step) in (1usize..4, 1usize..4, 1usize..3),
            seed in prop::collection::vec(any::<u8>(), 1024 * 3),
        ) {
            let (width, row_len) = (bits as usize, groups * group as usize);
            let plane_rows = rows * step;
            let codes = &seed[..plane_rows * row_len * width / 8];
            let plane = |salt: usize| -> Vec<f32> {
                let numbers = (0..plane_rows * groups).map(|i| f32::from(seed[i * 7 + salt] as i8) / 64.0);
                numbers.collect()
            };
            let (scales, biases) = (plane(1), plane(2));
            let planes = Planes {
                codes: Bytes::copy_from_slice(codes),
                scales: numbers(scale_format, &scales),
                biases: numbers(scale_format, &biases),
                scale_format,
                first: step - 1,
                step,
            };
            let tensor = HostTensor::from_planes(Format::Affine { bits, group }, vec![rows, row_len], planes);
            let mut expected = Vec::new();
            for row in 0..rows {
                let row = step - 1 + row * step;
                for column in 0..row_len {
                    let at = row * row_len + column;
                    let code = match bits {
                        Bits::Eight => codes[at],
                        Bits::Four => codes[at / 2] >> (at % 2 * 4) & 15,
                    };
                    let group = at / group as usize;
                    expected.push(f32::from(code) * scales[group] + biases[group]);
                }
            }
            prop_assert_eq!(&tensor.to_f32(), &expected);
            let packed = HostTensor::packed_rows(tensor.format, tensor.shape.clone(), tensor.packed());
            prop_assert_eq!(packed.to_f32(), expected);
        }
    }
}

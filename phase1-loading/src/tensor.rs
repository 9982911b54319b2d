//! A tensor as it lies in the file: a name's worth of packed bytes, a shape and a storage format.

use bytes::Bytes;

use crate::codec::Format;

/// A tensor on the host. `data` is a view of the mapped file, never a copy.
#[derive(Clone, Debug)]
pub struct HostTensor {
    pub format: Format,
    /// Row-major: `[out, in]` for a matrix, `[experts, out, in]` for stacked experts, `[n]` for a vector.
    pub shape: Vec<usize>,
    /// `shape` rows one after another, each `format.row_bytes(in)` long.
    pub data: Bytes,
}

impl HostTensor {
    /// Length of the innermost dimension: the values of one row.
    pub fn row_len(&self) -> usize {
        *self.shape.last().expect("a tensor has a dimension")
    }

    /// Number of rows of all outer dimensions together.
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len() - 1].iter().product()
    }

    /// The packed bytes of row `row`, counted over all outer dimensions.
    pub fn row(&self, row: usize) -> &[u8] {
        let bytes = self.format.row_bytes(self.row_len());
        &self.data[row * bytes..(row + 1) * bytes]
    }

    /// Every value as f32, in row-major order.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.shape.iter().product()];
        self.format.decode(&self.data, &mut values);
        values
    }
}

//! Weights that are no numbers. Finding them takes reading them all: engines look for scales when they load a model, and for values that
//! are not finite somebody has to ask.

use std::path::Path;

use crate::codec::Format;
use crate::error::{Defect, LoadError};
use crate::tensor::HostTensor;

/// Refuses an MXFP4 tensor with a scale byte of 255: NaN to one reader, 2¹²⁸ to another, meant by none.
///
/// # Errors
/// The tensor and the block.
pub fn check_scales(path: &Path, name: &str, tensor: &HostTensor) -> Result<(), LoadError> {
    match tensor.bad_scale() {
        None => Ok(()),
        Some(block) => {
            let found = format!("255 in block {block}; the file is damaged: download or convert it again");
            Err(Defect::new(format!("tensor `{name}`"), "MXFP4 scale bytes from 0 to 254", found).in_file(path))
        }
    }
}

/// Whether some packed rows have such a scale byte.
pub(crate) fn has_bad_scale(format: Format, packed: &[u8]) -> bool {
    format == Format::Mxfp4 && packed.iter().step_by(Format::Mxfp4.block_bytes()).any(|&scale| scale == 255)
}

/// Decodes a whole tensor and refuses the first value that is not finite.
///
/// # Errors
/// The tensor, the row and the value.
pub fn check_values(path: &Path, name: &str, tensor: &HostTensor) -> Result<(), LoadError> {
    check_scales(path, name, tensor)?;
    let mut values = vec![0.0; tensor.row_len()];
    for row in 0..tensor.rows() {
        tensor.decode_row(row, &mut values);
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            let found = format!("{value} in row {row}");
            return Err(Defect::new(format!("tensor `{name}`"), "finite numbers", found).in_file(path));
        }
    }
    Ok(())
}

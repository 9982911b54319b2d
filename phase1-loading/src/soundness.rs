//! Finds weights that are not finite, which requires reading all of them. Engines check the MXFP4 scales of the models that they load;
//! `gptoss inspect --check` checks every value.

use std::path::Path;

use crate::codec::Format;
use crate::error::{Defect, LoadError};
use crate::tensor::HostTensor;

/// Refuses an MXFP4 tensor with a scale byte of 255, which is NaN in OCP's standard and 2¹²⁸ in some readers.
///
/// # Errors
/// Names the tensor and its first such block.
pub fn check_scales(path: &Path, name: &str, tensor: &HostTensor) -> Result<(), LoadError> {
    match tensor.bad_scale() {
        None => Ok(()),
        Some(block) => {
            let found = format!("255 in block {block}; the file is damaged: download or convert it again");
            Err(Defect::new(format!("tensor `{name}`"), "MXFP4 scale bytes from 0 to 254", found).in_file(path))
        }
    }
}

/// Whether packed rows of `format` have an MXFP4 scale byte of 255.
pub(crate) fn has_bad_scale(format: Format, packed: &[u8]) -> bool {
    format == Format::Mxfp4 && packed.iter().step_by(Format::Mxfp4.block_bytes()).any(|&scale| scale == 255)
}

/// Decodes a whole tensor and refuses the first value that is not finite.
///
/// # Errors
/// Names the tensor, the row and the value; or as [`check_scales`].
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

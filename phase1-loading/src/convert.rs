//! Any checkpoint to one GGUF file, streamed: no more than [`PIECE`] bytes of weights are in memory at a time.

use std::io::{self, Write};
use std::path::Path;

use bytes::Bytes;
use rayon::prelude::*;

use crate::checkpoint::{Checkpoint, Role, tensor_specs};
use crate::codec::Format;
use crate::error::{Defect, LoadError};
use crate::gguf::{TensorPlan, write_header};
use crate::mapping::write_whole;
use crate::soundness::has_bad_scale;
use crate::synthetic::RestFormat;
use crate::tensor::HostTensor;

/// Bytes of a tensor that are read, packed and written together.
const PIECE: usize = 32 << 20;

/// Writes `from` as a GGUF file, which gets its name when it is complete. `progress` hears (bytes written, bytes in all).
///
/// Experts are copied bit for bit. Vectors and the router become F32, as every GGUF has them. Other matrices become
/// `rest`; without it they stay as they are, or F32 if GGUF lacks their format, which loses nothing.
///
/// # Errors
/// A vocabulary that cannot be read, an MXFP4 scale byte of 255, rows that are no whole blocks of `rest`, or a file that cannot be written.
pub fn convert(
    from: &Checkpoint,
    to: &Path,
    rest: Option<RestFormat>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), LoadError> {
    let mut plans = Vec::new();
    for spec in tensor_specs(&from.config) {
        let stored = from.tensor(&spec.name).format;
        let exact = if stored.ggml_type().is_some() { stored } else { Format::F32 };
        let format = match spec.role {
            Role::Vector | Role::Router => Format::F32,
            Role::Experts if stored.ggml_type().is_some() => stored,
            Role::Experts | Role::Matrix => rest.map_or(exact, RestFormat::format),
        };
        let row_len = *spec.shape.last().expect("a tensor has a dimension");
        if row_len % format.block_len() != 0 {
            let expected = format!("rows of whole blocks of {} for {}", format.block_len(), format.name());
            let part = format!("tensor `{}`", spec.name);
            return Err(Defect::new(part, expected, format!("{row_len} values")).in_file(&from.path));
        }
        plans.push(TensorPlan { name: spec.name, format, shape: spec.shape });
    }
    let vocabulary = from.vocabulary.to_gguf().map_err(|defect| defect.in_file(&from.path))?;
    let name = from.path.file_stem().map_or("GPT-OSS".into(), |name| name.to_string_lossy().into_owned());
    let metadata: Vec<_> = from.config.to_gguf(&name).into_iter().chain(vocabulary).collect();

    let total = plans.iter().map(TensorPlan::padded_bytes).sum();
    let mut written = 0;
    let result = write_whole(to, |out| {
        write_header(out, &metadata, &plans)?;
        for plan in &plans {
            write_tensor(out, from.tensor(&plan.name), plan, &mut |bytes| {
                written += bytes;
                progress(written, total);
            })?;
        }
        Ok(())
    });
    result.map_err(|source| LoadError::Unwritten { path: to.to_owned(), source })
}

fn write_tensor(
    out: &mut impl Write,
    tensor: &HostTensor,
    plan: &TensorPlan,
    wrote: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let row_len = tensor.row_len();
    // Vectors may have more values than a piece has bytes for rows, but never by much.
    let rows = (PIECE / plan.format.row_bytes(row_len)).max(1);
    for start in (0..tensor.rows()).step_by(rows) {
        let range = start..(start + rows).min(tensor.rows());
        let piece: Bytes = match (plan.format == tensor.format, tensor.mapped()) {
            (true, Some(data)) => {
                let row_bytes = plan.format.row_bytes(row_len);
                data.slice(range.start * row_bytes..range.end * row_bytes)
            }
            (true, None) => tensor.packed_range(range).into(),
            (false, _) => {
                let rows: Vec<Vec<u8>> = range
                    .into_par_iter()
                    .map_init(
                        || vec![0.0; row_len],
                        |values, row| {
                            tensor.decode_row(row, values);
                            plan.format.encode(values)
                        },
                    )
                    .collect();
                rows.concat().into()
            }
        };
        if has_bad_scale(plan.format, &piece) {
            let sentence =
                format!("tensor `{}` has an MXFP4 scale byte of 255, which no two readers agree on", plan.name);
            return Err(io::Error::new(io::ErrorKind::InvalidData, sentence));
        }
        out.write_all(&piece)?;
        wrote(piece.len() as u64);
    }
    out.write_all(&vec![0; plan.padding() as usize])?;
    wrote(plan.padding());
    Ok(())
}

//! Converts any checkpoint to one GGUF file. The conversion is streamed: only a few pieces of [`PIECE`] bytes are in memory at a time.

use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};

use bytes::Bytes;

use crate::checkpoint::Checkpoint;
use crate::codec::{DenseFormat, Format};
use crate::error::{Defect, LoadError};
use crate::gguf::{TensorPlan, write_header};
use crate::mapping::write_whole;
use crate::soundness::has_bad_scale;
use crate::specs::{TensorRole, tensor_specs};
use crate::tensor::HostTensor;

/// Bytes of a tensor that are read, packed and written at a time.
const PIECE: usize = 32 << 20;

/// Writes `from` as a GGUF file at `to`, under a temporary name until it is complete. `progress` is called with the bytes of tensors that
/// are written and their total, without the header.
///
/// Experts in a format that GGUF has are copied bit for bit. Vectors and the router become F32, as GGUF files usually store them. All other
/// matrices are stored as `rest`; if that is `None`, they keep their format, or become F32 without loss if GGUF lacks that format.
///
/// GGUF has no key for YaRN's ramp: a file that was written opens with [`crate::YarnRamp::Exact`].
///
/// # Errors
/// The vocabulary cannot be read, an MXFP4 scale byte is 255, a row is not a whole number of blocks of `rest`, a value in F16 or a scale in
/// Q8_0 would become infinite or NaN, or the file cannot be written.
pub fn convert(
    from: &Checkpoint,
    to: &Path,
    rest: Option<DenseFormat>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), LoadError> {
    let mut plans = Vec::new();
    for spec in tensor_specs(&from.config) {
        let stored = from.tensor(&spec.name).format;
        let exact = if stored.ggml_type().is_some() { stored } else { Format::F32 };
        let format = match spec.role {
            TensorRole::Vector | TensorRole::Router => Format::F32,
            TensorRole::Experts if stored.ggml_type().is_some() => stored,
            TensorRole::Experts | TensorRole::Matrix => rest.map_or(exact, DenseFormat::format),
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
        std::thread::scope(|scope| {
            // One piece is packed while the one before it is written.
            let (packed, pieces) = sync_channel(1);
            scope.spawn(|| pack_all(from, &plans, packed));
            for piece in pieces {
                let piece: Bytes = piece?;
                out.write_all(&piece)?;
                written += piece.len() as u64;
                progress(written, total);
            }
            Ok(())
        })
    });
    result.map_err(|source| LoadError::Unwritten { path: to.to_owned(), source })
}

/// Sends the data and padding of every tensor, until one fails or the receiver is gone.
fn pack_all(from: &Checkpoint, plans: &[TensorPlan], packed: SyncSender<io::Result<Bytes>>) {
    for plan in plans {
        let tensor = from.tensor(&plan.name);
        let rows = (PIECE / plan.format.row_bytes(tensor.row_len())).max(1);
        let starts = (0..tensor.rows()).step_by(rows);
        let pieces = starts.map(|start| pack(tensor, plan, start..(start + rows).min(tensor.rows())));
        let padding = Bytes::from(vec![0; plan.padding() as usize]);
        for piece in pieces.chain([Ok(padding)]) {
            let failed = piece.is_err();
            if packed.send(piece).is_err() || failed {
                return;
            }
        }
    }
}

/// Some rows, in the format in which they will be stored.
fn pack(tensor: &HostTensor, plan: &TensorPlan, rows: Range<usize>) -> io::Result<Bytes> {
    let piece = tensor.packed_as(plan.format, rows);
    if has_bad_scale(plan.format, &piece) {
        let sentence = format!("tensor `{}` has an MXFP4 scale byte of 255, which has no agreed meaning", plan.name);
        return Err(io::Error::new(io::ErrorKind::InvalidData, sentence));
    }
    if plan.format != tensor.format && has_infinite_half(plan.format, &piece) {
        let sentence = format!("tensor `{}` has values that {} cannot hold", plan.name, plan.format.name());
        return Err(io::Error::new(io::ErrorKind::InvalidData, sentence));
    }
    Ok(piece)
}

/// Whether a 16-bit float in packed rows, either a value or a scale, is infinite or NaN.
fn has_infinite_half(format: Format, packed: &[u8]) -> bool {
    let any = |block_bytes| packed.chunks_exact(block_bytes).any(|block: &[u8]| block[1] & 0x7c == 0x7c);
    match format {
        Format::F16 | Format::Q8_0 => any(format.block_bytes()),
        _ => false,
    }
}

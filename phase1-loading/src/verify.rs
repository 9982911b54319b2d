//! Compares two checkpoints: configuration, vocabulary, and every tensor after decoding.

use rayon::prelude::*;

use crate::checkpoint::Checkpoint;
use crate::codec::{Bits, Format};
use crate::error::LoadError;
use crate::tensor::HostTensor;

/// The result of a comparison.
pub struct ModelComparison {
    /// Differences outside the weights, one sentence each.
    pub differences: Vec<String>,
    /// The tensors that both checkpoints have in the same shape, by name.
    pub tensors: Vec<TensorComparison>,
}

/// The comparison of one tensor.
pub struct TensorComparison {
    pub name: String,
    pub formats: [Format; 2],
    /// Root mean square of the difference, relative to that of the first checkpoint's values.
    pub rms: f64,
    pub verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All values are equal.
    Identical,
    /// The formats differ, and the values differ by no more than the rounding errors of the formats.
    Rounded,
    Different,
}

impl ModelComparison {
    /// Whether both hold the same model, within the precision of their formats.
    pub fn same(&self) -> bool {
        self.differences.is_empty() && self.tensors.iter().all(|tensor| tensor.verdict != Verdict::Different)
    }
}

/// Compares two checkpoints. `progress` is called with (values compared, values in all).
///
/// # Errors
/// A vocabulary cannot be read.
pub fn verify(
    a: &Checkpoint,
    b: &Checkpoint,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<ModelComparison, LoadError> {
    let mut differences = config_differences(a, b);
    differences.extend(vocabulary_differences(a, b)?);
    let values = |tensor: &HostTensor| tensor.shape.iter().product::<usize>() as u64;
    let total = a.tensors.values().map(values).sum();
    let mut done = 0;
    let mut tensors = Vec::new();
    for (name, tensor) in &a.tensors {
        match b.tensors.get(name) {
            Some(other) if other.shape == tensor.shape => tensors.push(compare(name, tensor, other)),
            Some(other) => {
                differences.push(format!("tensor `{name}`: shape {:?} and {:?}", tensor.shape, other.shape));
            }
            None => differences.push(format!("tensor `{name}`: only in the first")),
        }
        done += values(tensor);
        progress(done, total);
    }
    let only_b = b.tensors.keys().filter(|name| !a.tensors.contains_key(*name));
    differences.extend(only_b.map(|name| format!("tensor `{name}`: only in the second")));
    Ok(ModelComparison { differences, tensors })
}

fn config_differences(a: &Checkpoint, b: &Checkpoint) -> Vec<String> {
    let (a, b) = (&a.config, &b.config);
    let sizes = [
        ("hidden width", a.hidden, b.hidden),
        ("expert width", a.expert_width, b.expert_width),
        ("query heads", a.heads, b.heads),
        ("key/value heads", a.kv_heads, b.kv_heads),
        ("head size", a.head_dim, b.head_dim),
        ("experts", a.experts, b.experts),
        ("experts per token", a.experts_per_token, b.experts_per_token),
        ("vocabulary", a.vocab, b.vocab),
        ("context", a.context_length, b.context_length),
        ("sliding window", a.sliding_window, b.sliding_window),
        ("layers", a.layers(), b.layers()),
    ];
    let sizes = sizes.into_iter().filter(|(_, a, b)| a != b).map(|(name, a, b)| format!("{name}: {a} and {b}"));
    let others = [
        ("rms epsilon", a.rms_eps != b.rms_eps, format!("{} and {}", a.rms_eps, b.rms_eps)),
        ("rope", a.rope != b.rope, format!("{:?} and {:?}", a.rope, b.rope)),
        ("layer types", a.layers() == b.layers() && a.attention != b.attention, "different layers slide".into()),
    ];
    let others = others.into_iter().filter(|(_, differ, _)| *differ).map(|(name, _, how)| format!("{name}: {how}"));
    sizes.chain(others).collect()
}

fn vocabulary_differences(a: &Checkpoint, b: &Checkpoint) -> Result<Vec<String>, LoadError> {
    let lists =
        |checkpoint: &Checkpoint| checkpoint.vocabulary.lists().map_err(|defect| defect.in_file(&checkpoint.path));
    let (first, second) = (lists(a)?, lists(b)?);
    let mut found = Vec::new();
    let different = first.tokens.iter().zip(&second.tokens).position(|(a, b)| a != b);
    if let Some(id) = different {
        found.push(format!("tokenizer: token {id} is {:?} and {:?}", first.tokens[id], second.tokens[id]));
    }
    if let Some(id) = first.kinds.iter().zip(&second.kinds).position(|(a, b)| a != b) {
        found.push(format!("tokenizer: token {id} is of type {} and {}", first.kinds[id], second.kinds[id]));
    }
    if first.merges.len() != second.merges.len() {
        found.push(format!("tokenizer: {} and {} merges", first.merges.len(), second.merges.len()));
    } else if let Some(i) = first.merges.iter().zip(&second.merges).position(|(a, b)| a != b) {
        found.push(format!("tokenizer: merge {i} is {:?} and {:?}", first.merges[i], second.merges[i]));
    }
    let (eos, other) = (a.vocabulary.special.eos, b.vocabulary.special.eos);
    if eos != other {
        found.push(format!("tokenizer: the end of a sequence is {eos:?} and {other:?}"));
    }
    Ok(found)
}

/// Running sums over the values of a tensor.
#[derive(Clone, Copy, Default)]
struct Sums {
    error: f64,
    magnitude: f64,
    different: bool,
}

fn compare(name: &str, a: &HostTensor, b: &HostTensor) -> TensorComparison {
    let row_len = a.row_len();
    let sums = (0..a.rows())
        .into_par_iter()
        .with_min_len(64)
        .fold(
            || (Sums::default(), vec![0.0; row_len], vec![0.0; row_len]),
            |(mut sums, mut first, mut second), row| {
                a.decode_row(row, &mut first);
                b.decode_row(row, &mut second);
                for (&a, &b) in first.iter().zip(&second) {
                    let (a, b) = (f64::from(a), f64::from(b));
                    sums.error += (a - b) * (a - b);
                    sums.magnitude += a * a;
                    // Zeros with different signs, and NaN in both tensors, do not count as different.
                    sums.different |= a != b && !(a.is_nan() && b.is_nan());
                }
                (sums, first, second)
            },
        )
        .map(|(sums, ..)| sums)
        .reduce(Sums::default, |a, b| Sums {
            error: a.error + b.error,
            magnitude: a.magnitude + b.magnitude,
            different: a.different || b.different,
        });
    let formats = [a.format, b.format];
    let rms = if sums.different { (sums.error / sums.magnitude).sqrt() } else { 0.0 };
    // Between tensors of the same format any difference counts, because conversion does not round a tensor to the format that it has.
    let verdict = if !sums.different {
        Verdict::Identical
    } else if a.format != b.format && rms <= formats.into_iter().map(rounding).sum::<f64>() {
        Verdict::Rounded
    } else {
        Verdict::Different
    };
    TensorComparison { name: name.to_owned(), formats, rms, verdict }
}

/// The largest rms error that is accepted as a format's rounding, relative to the rms of the values: at least about twice the error for
/// normally distributed weights.
fn rounding(format: Format) -> f64 {
    match format {
        Format::F32 => 1e-6,
        Format::F16 => 1e-3,
        Format::BF16 => 4e-3,
        Format::Q8_0 | Format::Affine { bits: Bits::Eight, .. } => 0.02,
        Format::Q6_K => 0.04,
        Format::Q5_0 | Format::Q5_1 | Format::Q5_K => 0.08,
        Format::Q4_0 | Format::Q4_1 | Format::Q4_K | Format::Iq4Nl | Format::Iq4Xs => 0.2,
        Format::Q3_K | Format::Iq3S | Format::Iq3Xxs => 0.4,
        Format::Q2_K | Format::Iq2S | Format::Iq2Xs | Format::Iq2Xxs => 0.8,
        // Ternary formats keep little more than signs.
        Format::Tq1_0 | Format::Tq2_0 => 1.2,
        Format::Affine { bits: Bits::Four, .. } => 0.2,
        Format::Mxfp4 => 0.25,
    }
}

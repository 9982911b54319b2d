//! The CPU engine of phase 5. Its kernels read packed weights directly from the mapped file; matrices that the file stores in a layout or
//! format without kernels are copied when the model is loaded.
//!
//! [`CpuEngine`] computes all sequences of a batch together: their new tokens form one matrix, so that a weight is read at most once per
//! step. `forward.rs` is the forward pass, from top to bottom, and `experts.rs` the mixture of experts; the arithmetic is in the crate
//! `cpu-kernels`.

mod attention;
mod cache;
mod choice;
mod engine;
mod experts;
mod forward;
mod model;
mod part;
mod scratch;
mod shortlist;
mod threads;
mod weight_check;

pub use cpu_kernels::Isa;
pub use engine::{CpuEngine, CpuOptions};
pub use model::CpuLoadError;

#[cfg(test)]
mod tests {
    use phase2_forward::Operation;

    /// The groups of the CPU kernels' benches have names of operations, as a profile's rows have. The benches on GPUs take theirs from
    /// `Operation`.
    #[test]
    fn kernel_benches_are_named_after_operations() {
        let source = include_str!("../../cpu-kernels/benches/kernels.rs");
        let code = source.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        // Every second part is the content of a string.
        let strings = code.split('"').skip(1).step_by(2);
        let groups: Vec<&str> = strings
            .filter(|text| text.chars().all(|c| c.is_ascii_lowercase() || c == '.' || c == '_'))
            .filter(|text| ["attn", "head", "moe"].iter().any(|part| text.starts_with(part)))
            .collect();
        assert!(
            ["attn.qkv", "attn.scores", "head", "moe.gate_up"].iter().all(|name| groups.contains(name)),
            "{groups:?}"
        );
        for group in groups {
            assert!(Operation::ALL.iter().any(|operation| operation.name() == group), "no operation is called {group}");
        }
    }
}

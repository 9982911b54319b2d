//! Phase 5's gate on the CPU.

mod committed;

use gates::flash_cpu;

#[test]
fn every_instruction_set_computes_what_mlx_computes() {
    committed::pass(flash_cpu::run);
}

//! Phase 5's gate on the CPU.

mod committed;

use gates::flash_cpu;

#[test]
fn every_instruction_set_equals_mlx() {
    committed::pass(flash_cpu::run);
}

//! Compares phase 5's CPU engine with the golden outputs of MLX.

mod committed;

use gates::flash_cpu;

#[test]
fn every_instruction_set_equals_mlx() {
    committed::pass(flash_cpu::run);
}

//! The packed product on the CPU: each weight row is unpacked once, into a buffer that fits the L1 cache, for all inputs that need it.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::TensorData;
use phase1_loading::HostTensor;
use rayon::prelude::*;

use super::HostMatmul;

/// Weight rows per task: enough work to outweigh the cost of a task, few enough to balance the threads.
const ROWS_PER_TASK: usize = 64;

impl HostMatmul for Flex {
    fn host_matmul(x: FlexTensor, matrix: FlexTensor, weights: HostTensor) -> FlexTensor {
        let (rows, columns) = (weights.shape[weights.shape.len() - 2], weights.row_len());
        let x = x.to_contiguous();
        let inputs: Vec<&[f32]> = x.storage::<f32>().chunks_exact(columns).collect();
        let matrix = matrix.to_contiguous();
        let matrix = matrix.storage::<i32>();
        let mut product = vec![0.0; inputs.len() * rows];

        let mut chosen = matrix.to_vec();
        chosen.sort_unstable();
        chosen.dedup();
        for number in chosen {
            let users: Vec<usize> = (0..inputs.len()).filter(|&i| matrix[i] == number).collect();
            let inputs: Vec<&[f32]> = users.iter().map(|&i| inputs[i]).collect();
            let stripes: Vec<Vec<f32>> = (0..rows)
                .into_par_iter()
                .step_by(ROWS_PER_TASK)
                .map(|start| {
                    let first = number as usize * rows + start;
                    let last = first + ROWS_PER_TASK.min(rows - start);
                    multiply_rows(&weights, first..last, &inputs)
                })
                .collect();
            for (task, stripe) in stripes.iter().enumerate() {
                let width = stripe.len() / users.len();
                for (&user, values) in users.iter().zip(stripe.chunks_exact(width)) {
                    let start = user * rows + task * ROWS_PER_TASK;
                    product[start..start + width].copy_from_slice(values);
                }
            }
        }
        FlexTensor::from_data(TensorData::new(product, [inputs.len(), rows]))
    }
}

/// The products of a range of packed rows with every input: `[inputs, rows]`.
fn multiply_rows(matrix: &HostTensor, rows: std::ops::Range<usize>, inputs: &[&[f32]]) -> Vec<f32> {
    let mut weights = vec![0.0; matrix.row_len()];
    let mut products = vec![0.0; inputs.len() * rows.len()];
    for (column, row) in rows.clone().enumerate() {
        matrix.decode_row(row, &mut weights);
        for (index, input) in inputs.iter().enumerate() {
            products[index * rows.len() + column] = dot(&weights, input);
        }
    }
    products
}

/// Sixteen partial sums: compilers vectorize them, and their rounding errors are smaller than those of one sum.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    let mut sums = [0.0; 16];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..16 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

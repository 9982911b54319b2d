//! Compiling kernels while weights are on their way to the device.
//!
//! CubeCL compiles a kernel when it is launched first, on the one thread that serves the device, and has no other way to compile one that
//! would not stop the launches of every other engine in the process. What is launched while a step is captured does not run, however. So
//! the passes that a model begins with are captured before there are weights to run them on, and thrown away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gpu_kernels::{Error, Gpu, KvRow, Row};
use phase1_loading::GptOssConfig;

use super::cache::Cache;
use super::choice::{Choices, Choosing};
use super::forward::Forward;
use super::plan::Pass;
use super::tuning::{MAX_ROWS, Tuning};
use super::weights::Weights;

/// Rows of the passes: a decoding step, a prompt whose products all come in tiles, and one with few rows for each expert.
const ROWS: [usize; 3] = [1, 128, 32];
/// Pages of the cache; nothing is put there.
const PAGES: usize = 2;
/// Layers of each kind have the same kernels, and a model begins with one of each.
const LAYERS: usize = 2;

/// Weights of fewer bytes have arrived before one kernel is compiled.
pub(super) const LEAST_BYTES: u64 = 256 << 20;

/// Passes to capture. Only the weights are those of the engine: a capture that fails leaves every buffer unreadable that it would have
/// written.
pub(super) struct WarmUp {
    forward: Forward,
    choices: Choices,
    passes: [Pass; ROWS.len()],
}

impl WarmUp {
    pub fn new(gpu: &Gpu, tuning: Tuning, config: &GptOssConfig, row: KvRow, weights: &Arc<Weights>) -> WarmUp {
        let cache = Cache::new(&gpu.device, config, row, PAGES, MAX_ROWS);
        let choices = Choices::new(&gpu.device, config.vocab, 1);
        let mut forward = Forward::new(gpu.clone(), tuning, config.clone(), weights.clone(), cache);
        let most = ROWS.into_iter().max().unwrap_or(1);
        forward.reserve_positions(most);
        forward.reserve_rows(most);
        let slot = forward.cache.padding_slot;
        let passes = ROWS.map(|count| {
            let row = |position| Row { token: Some(0), position, slot };
            forward.place(&(0..count as u32).map(row).collect::<Vec<Row>>())
        });
        WarmUp { forward, choices, passes }
    }

    /// Does `work`, which must not use CubeCL, and compiles on another thread until it is done.
    pub fn beside<T>(self, work: impl FnOnce() -> T) -> T {
        let enough = &AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let device = self.forward.gpu.device.clone();
                // What could not be compiled is compiled, or refused, when it is needed.
                device.on_its_stream(|| self.run(enough)).unwrap_or_default();
            });
            let done = work();
            enough.store(true, Ordering::Relaxed);
            done
        })
    }

    /// Compiles the kernels of the passes, one after another, until `enough` is set.
    ///
    /// # Errors
    /// A kernel that the device does not run, or another capture on the device's stream.
    fn run(self, enough: &AtomicBool) -> Result<(), Error> {
        let client = self.forward.gpu.device.client();
        client.graph_prepare()?;
        client.start_capture()?;
        // Flushing waits until the launch before was compiled.
        self.launch(&|| (!enough.load(Ordering::Relaxed) && client.flush().is_ok()).then_some(()));
        client.stop_capture()?;
        Ok(())
    }

    /// Launches one operation after another as long as `next` says so.
    fn launch(&self, next: &dyn Fn() -> Option<()>) -> Option<()> {
        let WarmUp { forward, choices, passes: [decoding, prompt, short_prompt] } = self;
        self.launch_layers(*decoding, next)?;
        self.launch_layers(*prompt, next)?;
        forward.head_norm(1, &forward.buffers.every_row);
        next()?;
        forward.head(1, &choices.logits);
        next()?;
        choices.launch(&forward.gpu.device, Choosing::GREEDY, &forward.buffers.row_words, &forward.drawn, 1);
        next()?;
        self.launch_layers(*short_prompt, next)
    }

    fn launch_layers(&self, pass: Pass, next: &dyn Fn() -> Option<()>) -> Option<()> {
        let forward = &self.forward;
        forward.embed(pass.rows);
        next()?;
        for number in 0..forward.weights.layers.len().min(LAYERS) {
            for operation in pass.operations(forward.tuning()) {
                forward.launch(operation, number, pass);
                next()?;
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use phase2_forward::Engine;

    use super::*;
    use crate::gpu::captured::tests::alone;

    #[test]
    fn what_is_warmed_up_can_be_captured_and_changes_nothing() {
        let (_own, mut engine) = alone(2);
        let before = engine.last_logits(0, &[1, 2, 3]).expect("computes");
        engine.release(0);
        let Forward { gpu, config, weights, cache, .. } = &engine.runner.forward;
        let warm_up = WarmUp::new(gpu, *engine.runner.forward.tuning(), config, cache.row, weights);
        warm_up.run(&AtomicBool::new(false)).expect("every kernel compiles");
        assert_eq!(engine.last_logits(0, &[1, 2, 3]).expect("still computes"), before);
    }

    #[test]
    fn a_warm_up_ends_with_the_work_beside_it() {
        let (_own, mut engine) = alone(1);
        let Forward { gpu, config, weights, cache, .. } = &engine.runner.forward;
        let warm_up = WarmUp::new(gpu, *engine.runner.forward.tuning(), config, cache.row, weights);
        let buffer = gpu.device.upload(vec![7; 4]);
        assert_eq!(warm_up.beside(|| 7), 7);
        assert_eq!(gpu.device.read(&buffer).expect("no capture is under way"), [7; 4]);
        // Another capture may begin.
        assert!(engine.last_logits(0, &[1, 2, 3]).is_ok());
        assert!(!engine.runner.forward.gpu.device.client().is_capturing());
    }
}

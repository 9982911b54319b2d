//! Compiles kernels while weights are uploaded.
//!
//! CubeCL compiles a kernel at its first launch, on the one thread that serves a device. A launch that is captured for later replay compiles
//! the kernel without running it, and the thread serves other engines between two launches. So the first passes that a model will need are
//! captured before the weights have arrived, and the captures are discarded.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use gpu_kernels::{Error, Gpu, KvRow, Row};
use phase1_loading::GptOssConfig;

use super::cache::Cache;
use super::choice::{Choices, DrawFeatures};
use super::forward::Forward;
use super::load_times::Compiled;
use super::plan::Pass;
use super::tuning::{MAX_ROWS, Tuning};
use super::weights::Weights;

/// Rows of the passes: a decoding step, a prompt with many rows per expert, and one with few.
const ROWS: [usize; 3] = [1, 512, 32];
/// Pages of the cache, which stays empty.
const PAGES: usize = 2;
/// Number of layers whose kernels are compiled. All layers of a kind use the same kernels, and a model begins with one layer of each kind.
const LAYERS: usize = 2;

/// The least bytes of weights for which a warm-up is useful: smaller models are uploaded before the first kernel is compiled.
pub(super) const MIN_BYTES: u64 = 256 << 20;

/// Passes to capture. Only the weights, which no pass writes, are shared with the engine: a failed capture makes the buffers that it would
/// have written unreadable.
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
            forward.set_rows(&(0..count as u32).map(row).collect::<Vec<Row>>())
        });
        WarmUp { forward, choices, passes }
    }

    /// Runs `work` and returns its result. Another thread captures launches until all are compiled or `work` has ended, so `work` must not
    /// use CubeCL: its launches would be captured too.
    pub fn compile_during<T>(self, work: impl FnOnce() -> T) -> (T, Compiled) {
        let enough = &AtomicBool::new(false);
        std::thread::scope(|scope| {
            let compiling = scope.spawn(move || {
                let device = self.forward.gpu.device.clone();
                // Errors are ignored: a kernel that was not compiled here is compiled at its first use, which reports the error.
                device.on_pinned_stream(|| self.run(enough)).unwrap_or_default()
            });
            let done = work();
            enough.store(true, Ordering::Relaxed);
            let compiled = compiling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (done, compiled)
        })
    }

    /// Compiles the kernels of the passes, one after another, until `enough` is set.
    ///
    /// # Errors
    /// The device does not support a kernel, or its stream is already being captured.
    fn run(self, enough: &AtomicBool) -> Result<Compiled, Error> {
        let (start, launches) = (Instant::now(), Cell::new(0));
        let client = self.forward.gpu.device.client();
        client.graph_prepare()?;
        client.start_capture()?;
        // Flushing waits until the previous launch has been compiled.
        let next = || {
            launches.set(launches.get() + 1);
            (!enough.load(Ordering::Relaxed) && client.flush().is_ok()).then_some(())
        };
        let is_complete = self.launch(&next).is_some();
        client.stop_capture()?;
        Ok(Compiled { time: start.elapsed(), launches: launches.get(), is_complete })
    }

    /// Launches one operation after another, and stops when `next` returns `None`. The kernels of a decoding step and of a greedy draw come
    /// first, because they are the most likely to be needed.
    fn launch(&self, next: &dyn Fn() -> Option<()>) -> Option<()> {
        let WarmUp { forward, choices, passes: [decoding, prompt, short_prompt] } = self;
        self.launch_layers(*decoding, next)?;
        forward.head_norm(1, &forward.buffers.every_row);
        next()?;
        forward.head(1, &choices.logits);
        next()?;
        choices.launch(&forward.gpu.device, DrawFeatures::GREEDY, &forward.buffers.row_words, &forward.drawn, 1);
        next()?;
        self.launch_layers(*prompt, next)?;
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
    fn warmed_up_shapes_are_captured_without_changing_results() {
        let (_own, mut engine) = alone(2);
        let before = engine.last_logits(0, &[1, 2, 3]).expect("computes");
        engine.release(0);
        let Forward { gpu, config, weights, cache, .. } = &engine.runner.forward;
        let warm_up = WarmUp::new(gpu, *engine.runner.forward.tuning(), config, cache.row, weights);
        let compiled = warm_up.run(&AtomicBool::new(false)).expect("every kernel compiles");
        // At least an operation per layer of each pass.
        assert!(compiled.is_complete && compiled.launches > LAYERS * ROWS.len(), "{compiled:?}");
        assert_eq!(engine.last_logits(0, &[1, 2, 3]).expect("still computes"), before);
    }

    #[test]
    fn warm_up_stops_with_the_concurrent_work() {
        let (_own, mut engine) = alone(1);
        let Forward { gpu, config, weights, cache, .. } = &engine.runner.forward;
        let warm_up = WarmUp::new(gpu, *engine.runner.forward.tuning(), config, cache.row, weights);
        let buffer = gpu.device.upload(vec![7; 4]);
        assert_eq!(warm_up.compile_during(|| 7).0, 7);
        assert_eq!(gpu.device.read(&buffer).expect("no capture is under way"), [7; 4]);
        // Another capture may begin.
        assert!(engine.last_logits(0, &[1, 2, 3]).is_ok());
        assert!(!engine.runner.forward.gpu.device.client().is_capturing());
    }
}

//! Decoding steps that are captured once and then replayed, so that the host submits one command instead of launching every kernel.

use cubecl::client::Graph;
use gpu_kernels::{Device, Error};

use super::choice::DrawFeatures;

/// The most captured steps that are kept. Before another is captured, the least recently used one is dropped.
const MAX_STEPS: usize = 64;
/// Steps of up to this many rows are captured without padding; larger ones are padded to a multiple of [`BUCKET`].
const EXACT_ROWS: usize = 16;
const BUCKET: usize = 8;
/// A captured step splits attention for at least this many keys, even if its rows attend to fewer.
const MIN_KEYS: usize = 256;

/// The key of a captured step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Shape {
    pub rows: usize,
    /// Number of keys that attention is split for.
    pub keys: usize,
    pub features: DrawFeatures,
}

impl Shape {
    /// Number of rows including padding.
    pub fn padded(rows: usize) -> usize {
        if rows <= EXACT_ROWS { rows } else { rows.next_multiple_of(BUCKET) }
    }

    /// Number of keys to split attention for if a row attends to at most `keys`.
    pub fn keys(keys: usize) -> usize {
        keys.next_power_of_two().max(MIN_KEYS)
    }
}

/// Captured steps, the most recently used last.
#[derive(Default)]
pub(super) struct CapturedSteps {
    steps: Vec<(Shape, Graph)>,
    /// The value of [`Forward::epoch`](super::forward::Forward::epoch) when they were captured.
    epoch: u64,
}

impl CapturedSteps {
    /// Replays the captured step of this shape, or else runs `launch` and captures it.
    ///
    /// # Errors
    /// The device fails.
    ///
    /// # Safety
    /// As long as `epoch` is unchanged, `launch` must launch the same kernels on the same buffers for a shape, and the buffers must stay
    /// alive.
    pub unsafe fn run(&mut self, device: &Device, shape: Shape, epoch: u64, launch: &dyn Fn()) -> Result<(), Error> {
        if self.epoch != epoch {
            self.steps.clear();
            self.epoch = epoch;
        }
        let steps = &mut self.steps;
        if let Some(found) = steps.iter().position(|(of, _)| *of == shape) {
            let step = steps.remove(found);
            steps.push(step);
            // SAFETY: the caller promises that its buffers are alive; all work is on the device's single stream.
            return Ok(unsafe { steps[steps.len() - 1].1.replay() }?);
        }
        if steps.len() == MAX_STEPS {
            steps.remove(0);
        }
        let client = device.client();
        // The first run computes the step and compiles every kernel; the second only records launches.
        client.graph_prepare()?;
        launch();
        client.start_capture()?;
        launch();
        let graph = client.stop_capture()?;
        steps.push((shape, graph));
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::VecDeque;

    use cubecl::wgpu::{WgpuSetup, wgpu};
    use gpu_kernels::{Buffer, Gpu};
    use phase1_loading::Checkpoint;
    use phase2_forward::{Draw, Engine, ModelNeeds, Sampling, Want, Work, register};
    use synthetic::SyntheticModel;

    use super::*;
    use crate::gpu::{GpuEngine, Options};

    /// The side effects of a step.
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Trace {
        /// Number of submission indices of the device's queue that it used.
        queued: u64,
        /// Number of times that the host waited for the device.
        waits: u64,
        /// Bytes of device memory that it allocated.
        bytes: i64,
    }

    /// A GPU that no other test uses.
    pub struct OwnGpu {
        pub wgpu: wgpu::Device,
        queue: wgpu::Queue,
        gpu: Gpu,
    }

    /// A GPU that is started for a model with `layers` layers.
    fn own_gpu(layers: usize) -> OwnGpu {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
        let adapters = cubecl::future::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
        let adapter = adapters.into_iter().next().expect("a GPU or a software rasterizer");
        let request = wgpu::DeviceDescriptor {
            required_features: adapter.features() & !wgpu::Features::all_experimental_mask(),
            required_limits: adapter.limits(),
            ..wgpu::DeviceDescriptor::default()
        };
        let (device, queue) = cubecl::future::block_on(adapter.request_device(&request)).expect("a device");
        let backend = adapter.get_info().backend;
        let setup = WgpuSetup { instance, adapter, device: device.clone(), queue: queue.clone(), backend };
        let tasks = ModelNeeds { layers, ..ModelNeeds::default() }.tasks();
        let found = cubecl::Device::Wgpu(register(setup, tasks).expect("a runtime"));
        let gpu = Gpu::new(Device::new(found.client(), (device.clone(), queue.clone()), None));
        OwnGpu { wgpu: device, queue, gpu: gpu.expect("it runs kernels") }
    }

    /// A small model with `layers` layers on its own GPU.
    pub fn alone(layers: usize) -> (OwnGpu, GpuEngine) {
        let own = own_gpu(layers);
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("model.gguf");
        let model = SyntheticModel { layers, ..SyntheticModel::preset("nano").expect("a preset") };
        model.write(&path, 1, &mut |_, _| ()).expect("written");
        let checkpoint = Checkpoint::open(&path).expect("opens");
        let loaded = GpuEngine::load_on(own.gpu.clone(), &checkpoint, Options::default(), &mut |_, _| ());
        (own, loaded.expect("loads"))
    }

    /// The next index of the queue. Reading it consumes one.
    fn queue_index(queue: &wgpu::Queue) -> u64 {
        let index = format!("{:?}", queue.submit([]));
        index.chars().filter(char::is_ascii_digit).collect::<String>().parse().expect("a number")
    }

    /// Traces decoding steps in which no sequence begins a page, and a readback with nothing queued.
    fn trace(layers: usize, sequences: u64, draw: Draw<'_>) -> (Vec<Trace>, Trace) {
        let (OwnGpu { queue, gpu, .. }, mut engine) = alone(layers);
        let seen = || {
            let bytes = gpu.device.memory_used() as i64;
            Trace { queued: queue_index(&queue), waits: gpu.device.waits(), bytes }
        };
        // Reading the index consumed one.
        let between = |before: Trace, after: Trace| Trace {
            queued: after.queued - before.queued - 1,
            waits: after.waits - before.waits,
            bytes: after.bytes - before.bytes,
        };
        let first: Vec<Work<'_>> =
            (0..sequences).map(|sequence| Work::tokens(sequence, &[7], Want::Token(draw))).collect();
        let next: Vec<Work<'_>> = (0..sequences).map(|sequence| Work::decode(sequence, draw)).collect();
        let mut in_flight = VecDeque::from([engine.submit(&first).expect("begins")]);
        let mut marks = Vec::new();
        for length in 2..128 {
            in_flight.push_back(engine.submit(&next).expect("begins"));
            engine.collect(in_flight.pop_front().expect("in flight")).expect("ends");
            // The second page has begun.
            if length > 70 {
                marks.push(seen());
            }
        }
        engine.collect(in_flight.pop_front().expect("in flight")).expect("ends");
        gpu.device.sync().expect("the device was not lost");
        let drawn: &Buffer = &engine.runner.forward.drawn;
        let before = seen();
        gpu.device.read(drawn).expect("reads");
        (marks.windows(2).map(|marks| between(marks[0], marks[1])).collect(), between(before, seen()))
    }

    /// `cargo test -p phase5-flash --release --lib trace -- --nocapture` prints the trace.
    #[test]
    fn a_trace_of_decoding_has_one_readback_per_step_and_no_allocation() {
        let sampling = Sampling { temperature: 0.8, top_p: 0.9, ..Sampling::GREEDY };
        let drawn = Draw { sampling, seed: 3, ..Draw::GREEDY };
        // 40 layers take 265 launches. They are one submission only because `own_gpu` sets its size by the number of layers: the least
        // size, 256 launches, is too small.
        for (layers, sequences, draw) in [(40, 1, Draw::GREEDY), (4, 3, drawn)] {
            let (steps, readback) = trace(layers, sequences, draw);
            println!("{layers} layers, {sequences} sequences, {draw:?}; a readback alone: {readback:?}");
            steps.iter().enumerate().for_each(|(number, step)| println!("step {number:2}: {step:?}"));
            assert_eq!((steps.len(), readback.waits, readback.bytes), (56, 1, 0));
            // The launches are one submission. The copy of the tokens is another, and wgpu also counts the mapping of its destination.
            let expected = Trace { queued: 1 + readback.queued, waits: 1, bytes: 0 };
            assert!(
                steps.iter().all(|&step| step == expected),
                "{layers} {sequences} {draw:?}: {steps:?}, {expected:?}"
            );
        }
    }
}

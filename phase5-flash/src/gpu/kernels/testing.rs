//! What the kernels' tests share.

use cubecl::Device;
use cubecl::wgpu::{WgpuSetup, wgpu};
use phase1_loading::{AttentionKind, Format, GptOssConfig, HostTensor, RopeConfig};
use phase2_forward::{ComputeDevice, register};

use super::experts::{Down, Experts, GateUp};
use super::few::Division;
use super::gemm::Gemm;
use super::group::{GroupedExperts, TILE_WORDS, add_up, group, most_tiles};
use crate::gpu::device::{Buffer, Gpu};
use crate::gpu::layout::Matrix;
use crate::gpu::tuning::{Tuning, Walk};

/// A GPU, played by a program if there is no real one.
pub fn gpu() -> Gpu {
    let [_, gpu] = ComputeDevice::for_gates().expect("a GPU, or a program that plays one");
    Gpu::new(&gpu).expect("a client")
}

/// The same with random choices; cubes walk in small matrices too.
pub fn tuned(random: &mut Random) -> Gpu {
    let mut walk = || Walk::all().nth(random.below(Walk::all().count())).expect("one of them");
    let (project, gate_up, down) = (walk(), walk(), walk());
    let few = Division::ALL[random.below(Division::ALL.len())];
    let together = Tuning::TOGETHER[random.below(Tuning::TOGETHER.len())];
    Gpu { tuning: Tuning { project, gate_up, down, few, together, product_cubes: 1, ..Tuning::default() }, ..gpu() }
}

/// A model of which only the heads matter: query heads, key/value heads and their width, and a layer of each kind.
pub fn heads_config(
    [heads, kv_heads, head_dim]: [usize; 3],
    sliding_window: usize,
    attention: Vec<AttentionKind>,
) -> GptOssConfig {
    GptOssConfig {
        hidden: 32,
        expert_width: 32,
        heads,
        kv_heads,
        head_dim,
        experts: 1,
        experts_per_token: 1,
        vocab: 1,
        context_length: 4096,
        rms_eps: 1e-5,
        sliding_window,
        attention,
        rope: RopeConfig { theta: 1e4, factor: 1.0, original_context: 4096, ramp: Default::default() },
    }
}

/// A device that no other test uses.
pub struct OwnDevice {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub gpu: Gpu,
}

impl OwnDevice {
    /// A device with `shared` bytes of shared memory.
    pub fn new(shared: u32) -> OwnDevice {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
        let adapters = cubecl::future::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
        let adapter = adapters.into_iter().next().expect("a GPU, or a program that plays one");
        let request = wgpu::DeviceDescriptor {
            required_features: adapter.features() & !wgpu::Features::all_experimental_mask(),
            required_limits: wgpu::Limits { max_compute_workgroup_storage_size: shared, ..adapter.limits() },
            ..wgpu::DeviceDescriptor::default()
        };
        let (device, queue) = cubecl::future::block_on(adapter.request_device(&request)).expect("a device");
        let backend = adapter.get_info().backend;
        let setup = WgpuSetup { instance, adapter, device: device.clone(), queue: queue.clone(), backend };
        let cube = Device::Wgpu(register(setup, 256).expect("a runtime"));
        OwnDevice { device, queue, gpu: Gpu::reached_by(cube.client(), None).expect("runs") }
    }
}

/// A buffer that no kernel has written.
pub fn poisoned(gpu: &Gpu, len: usize) -> Buffer {
    gpu.upload_f32(&vec![f32::NAN; len])
}

/// Fresh numbers, the same again for the same seed.
#[derive(Debug)]
pub struct Random {
    /// Where the numbers began: for a failure's message.
    #[allow(dead_code, reason = "it is printed")]
    seed: u64,
    state: u64,
}

impl Random {
    pub fn fresh() -> Random {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let seed = now.as_nanos() as u64 | 1;
        Random { seed, state: seed }
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        ((self.state >> 33) % end as u64) as usize
    }

    /// Uniform on `[−spread, spread]`.
    pub fn values(&mut self, count: usize, spread: f32) -> Vec<f32> {
        (0..count).map(|_| (self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0) * spread).collect()
    }
}

/// What sums in f32 are off by at most, relative to the sum of their terms' magnitudes.
pub const F32: f64 = 2e-6;

/// The same where terms are rounded to 16-bit floats.
pub const F16: f64 = 1e-3;

/// `size` is the sum of the terms' magnitudes.
#[track_caller]
pub fn assert_close(found: f32, expected: f64, size: f64, context: &str) {
    assert_within(F32, found, expected, size, context);
}

/// The same with another relative error.
#[track_caller]
pub fn assert_within(limit: f64, found: f32, expected: f64, size: f64, context: &str) {
    let error = (f64::from(found) - expected).abs();
    assert!(error <= limit * size + 1e-30, "{context}: {found}, expected {expected} (error {error:e}, size {size:e})");
}

/// A random matrix or stack, as it is read back, and on the device.
pub fn matrix(gpu: &Gpu, random: &mut Random, format: Format, shape: Vec<usize>) -> (Vec<f32>, Matrix) {
    let values = random.values(shape.iter().product(), 1.0);
    let tensor = HostTensor::packed_rows(format, shape, format.encode(&values).into());
    (tensor.to_f32(), Matrix::upload(gpu, "w", &[&tensor]).expect("uploads"))
}

/// Products of `(inputs, rows, columns)` in every format against f64, with and without bias and what was there before.
pub fn check_dense(limit: f64, shapes: &[(usize, usize, usize)], launch: impl Fn(&Gpu, &Gemm<'_>)) {
    let mut random = Random::fresh();
    for (number, format) in Format::WRITTEN.into_iter().enumerate() {
        for (shape, &(inputs, rows, columns)) in shapes.iter().enumerate() {
            // Each kernel takes a software rasterizer seconds to compile: formats and shapes take turns with and without a bias.
            let both = (number + shape).is_multiple_of(2);
            let (biased, add) = (both, both);
            let gpu = tuned(&mut random);
            let context = format!("{format:?} {inputs} {rows} {columns} {biased} {:?} {random:?}", gpu.tuning);
            let (weights, matrix) = matrix(&gpu, &mut random, format, vec![rows, columns]);
            let x = random.values(inputs * columns, 1.0);
            let (bias, before) = (random.values(rows, 1.0), random.values(inputs * rows, 1.0));
            let out = if add { gpu.upload_f32(&before) } else { poisoned(&gpu, inputs * rows) };
            let (x_buffer, bias_buffer) = (gpu.upload_f32(&x), gpu.upload_f32(&bias));
            let bias_buffer = biased.then_some(&bias_buffer);
            launch(&gpu, &Gemm { matrix: &matrix, x: &x_buffer, bias: bias_buffer, out: &out, add, inputs });
            let found = gpu.read_f32(&out).expect("reads");
            for input in 0..inputs {
                for row in 0..rows {
                    let terms = weights[row * columns..][..columns].iter().zip(&x[input * columns..]);
                    let start = if biased { f64::from(bias[row] + before[input * rows + row]) } else { 0.0 };
                    let (sum, size) = terms.fold((start, 2.0), |(sum, size), (&w, &x)| {
                        let term = f64::from(w) * f64::from(x);
                        (sum + term, size + term.abs())
                    });
                    assert_within(limit, found[input * rows + row], sum, size, &context);
                }
            }
        }
    }
}

/// Grouped products of `(inputs, experts, width, hidden, chosen)`, in tiles of `tile` slots, against the mat-vec kernels, which are
/// held to f64.
pub fn check_grouped(
    limit: f64,
    shapes: &[(usize, usize, usize, usize, usize)],
    tile: u32,
    launch: impl Fn(&Gpu, &GroupedExperts<'_>),
) {
    let mut random = Random::fresh();
    for &(inputs, experts, width, hidden, chosen) in shapes {
        let gpu = tuned(&mut random);
        let context = format!("{inputs} {experts} {width} {hidden} {chosen} {:?} {random:?}", gpu.tuning);
        let mut stack = |rows: usize, columns: usize| {
            let (_, weight) = matrix(&gpu, &mut random, Format::Mxfp4, vec![experts, rows, columns]);
            Experts { weight, bias: gpu.upload_f32(&random.values(experts * rows, 1.0)) }
        };
        let (gate, up, down) = (stack(width, hidden), stack(width, hidden), stack(hidden, width));
        let slots = inputs * chosen;
        // Most rows choose expert 0, so that its slots fill several tiles.
        let mut logits = random.values(inputs * experts, 1.0);
        logits.chunks_mut(experts).for_each(|row| row[0] += 3.0 * random.below(3) as f32);
        let logits = gpu.upload_f32(&logits);
        let [ids, weights] = [slots, slots].map(|len| poisoned(&gpu, len));
        let x = gpu.upload_f32(&random.values(inputs * hidden, 0.5));
        let before = random.values(inputs * hidden, 1.0);
        let (grouped, single) = (gpu.upload_f32(&before), gpu.upload_f32(&before));
        let [activations, singly, products] =
            [slots * width, slots * width, slots * hidden].map(|len| poisoned(&gpu, len));
        let order = gpu.upload(vec![u32::MAX; slots]);
        let tiles = gpu.upload(vec![u32::MAX; most_tiles(slots, experts, tile) * TILE_WORDS as usize]);

        GateUp {
            gate: &gate,
            up: &up,
            x: &x,
            logits: &logits,
            experts,
            chosen: &ids,
            weights: &weights,
            chosen_per_row: chosen,
            out: &singly,
            inputs,
        }
        .launch(&gpu);
        group(&gpu, &ids, [slots, experts], tile, &order, &tiles);
        let all = GroupedExperts {
            gate: &gate,
            up: &up,
            down: &down,
            x: &x,
            order: &order,
            tiles: &tiles,
            activations: &activations,
            out: &products,
            chosen_per_row: chosen,
            inputs,
        };
        launch(&gpu, &all);
        add_up(&gpu, &products, &weights, &grouped, [inputs, chosen, hidden]);

        Down { down: &down, x: &singly, chosen: &ids, weights: &weights, chosen_per_row: chosen, out: &single, inputs }
            .launch(&gpu);
        for (name, found, expected) in [("activations", &activations, &singly), ("sums", &grouped, &single)] {
            let (found, expected) = (gpu.read_f32(found).expect("reads"), gpu.read_f32(expected).expect("reads"));
            for (i, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
                let size = 10.0 * width.max(hidden) as f64;
                assert_within(limit, found, f64::from(expected), size, &format!("{name} {i} {context}"));
            }
        }
    }
}

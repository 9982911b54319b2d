//! Helpers of the kernels' tests.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use cubecl::wgpu::{WgpuSetup, wgpu};
use formats::Storage;
pub use gptoss_reference::Random;
use phase2_forward::{ComputeDevice, register};

use crate::device::{Buffer, Device};
use crate::fill::Unfilled;
use crate::gpu::Gpu;
use crate::kv::{KvCache, KvPool, PAGE};
use crate::matrix::Matrix;
use crate::matvec::{MatvecChoice, RowLoop};
use crate::upload::Upload;

/// A GPU, or else a software rasterizer; the same one for all calls of a test.
///
/// A rasterizer compiles kernels on one thread per device, which takes most of a test's time. Tests, each in its thread, therefore get one
/// of two devices in turn.
pub fn device() -> Device {
    const SIDE_BY_SIDE: usize = 2;
    static DEVICES: [OnceLock<(cubecl::Device, Queue)>; SIDE_BY_SIDE] = [const { OnceLock::new() }; SIDE_BY_SIDE];
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    // Each test runs in its own thread.
    thread_local!(static NUMBER: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SIDE_BY_SIDE);

    let [_, found] = ComputeDevice::for_gates().expect("a GPU or a software rasterizer");
    if !found.is_software() {
        return Device::new(found.client().expect("a GPU"), found.queue().expect("a GPU"), found.memory);
    }
    let (device, queue) = DEVICES[NUMBER.with(|&number| number)].get_or_init(|| open(None));
    Device::new(device.client(), queue.clone(), found.memory)
}

pub fn gpu() -> Gpu {
    Gpu::new(device()).expect("it runs kernels")
}

/// A device that no other test uses.
pub struct OwnDevice {
    pub wgpu: wgpu::Device,
    pub device: Device,
}

impl OwnDevice {
    /// A device with `shared` bytes of shared memory.
    pub fn new(shared: u32) -> OwnDevice {
        let (device, queue) = open(Some(shared));
        OwnDevice { wgpu: queue.0.clone(), device: Device::new(device.client(), queue, None) }
    }
}

/// A wgpu device and its queue, as [`Device::new`] takes them.
type Queue = (wgpu::Device, wgpu::Queue);

/// Another device of the first adapter, with `shared` bytes of shared memory, or the adapter's maximum.
fn open(shared: Option<u32>) -> (cubecl::Device, Queue) {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters = cubecl::future::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let adapter = adapters.into_iter().next().expect("a GPU or a software rasterizer");
    let mut required_limits = adapter.limits();
    if let Some(shared) = shared {
        required_limits.max_compute_workgroup_storage_size = shared;
    }
    let request = wgpu::DeviceDescriptor {
        required_features: adapter.features() & !wgpu::Features::all_experimental_mask(),
        required_limits,
        ..wgpu::DeviceDescriptor::default()
    };
    let (wgpu, queue) = cubecl::future::block_on(adapter.request_device(&request)).expect("a device");
    let backend = adapter.get_info().backend;
    let setup = WgpuSetup { instance, adapter, device: wgpu.clone(), queue: queue.clone(), backend };
    let device = cubecl::Device::Wgpu(register(setup, 256).expect("a runtime"));
    (device, (wgpu, queue))
}

/// A buffer of NaN, so that tests notice values that a kernel did not write.
pub fn poisoned(device: &Device, len: usize) -> Buffer {
    device.upload_f32(&vec![f32::NAN; len])
}

/// A random tiling of mat-vec products, in which cubes take several steps even in small matrices.
pub fn matvec_choice(random: &mut Random) -> MatvecChoice {
    let row_loop = RowLoop::all().nth(random.below(RowLoop::COUNT)).expect("one of them");
    MatvecChoice { row_loop, inputs_per_read: [1, 2, 4][random.below(3)], least_cubes: 1 }
}

/// A matrix or stack on the device, and its values after packing.
pub fn matrix(device: &Device, storage: Storage, shape: [usize; 3], values: &[f32]) -> (Vec<f32>, Matrix) {
    let packed = storage.encode(values);
    let mut decoded = vec![0.0; values.len()];
    storage.decode(&packed, &mut decoded);
    (decoded, filled(device, storage, shape, &packed))
}

/// A matrix or stack on the device, filled with these packed rows.
pub fn filled(device: &Device, storage: Storage, shape: [usize; 3], packed: &[u8]) -> Matrix {
    let row_bytes = shape[2] / 32 * storage.block_bytes();
    let matrix = Matrix::empty(device, "w", storage, shape).expect("there is room");
    let mut upload = Upload::new(device);
    let rows = |rows: Range<usize>| &packed[rows.start * row_bytes..rows.end * row_bytes];
    Unfilled::new(device, &matrix).expect("allocated").fill(&mut upload, rows).expect("filled");
    upload.finish().expect("copied");
    matrix
}

/// The cache of several sequences, with random pages of a pool. The rows of the page table are in the reverse order of the sequences.
pub struct TestCache {
    pub pool: KvPool,
    table: Buffer,
    /// The pages of each sequence; in a ring they are reused.
    pages: Vec<Vec<u32>>,
    columns: usize,
}

impl TestCache {
    /// `pages` pages for each of `sequences` sequences. All bits of words that no kernel writes are ones: NaN in F32 and F16.
    pub fn new(
        device: &Device,
        random: &mut Random,
        pool: KvPool,
        [sequences, pages, columns]: [usize; 3],
    ) -> TestCache {
        for part in [pool.keys(), pool.values()] {
            device.write_at(part, 0, vec![u32::MAX; pool.pages() * pool.row().page_words()]);
        }
        let mut free: Vec<u32> = (0..pool.pages() as u32).collect();
        let mut take = |_: usize| free.swap_remove(random.below(free.len()));
        let pages: Vec<Vec<u32>> = (0..sequences).map(|_| (0..pages).map(&mut take).collect()).collect();
        let mut table = vec![0; pages.len() * columns];
        for (row, pages) in table.chunks_exact_mut(columns).zip(pages.iter().rev()) {
            row[..pages.len()].copy_from_slice(pages);
        }
        TestCache { pool, table: device.upload(table), pages, columns }
    }

    /// The row of the page table of a sequence: the last one for the first sequence.
    pub fn slot(&self, sequence: usize) -> u32 {
        (self.pages.len() - 1 - sequence) as u32
    }

    pub fn view(&self) -> KvCache<'_> {
        KvCache { pool: &self.pool, table: &self.table, columns: self.columns, ring_pages: self.pages[0].len() }
    }

    /// Index of the word at which the row of `head` at `position` begins in the pool.
    pub fn word(&self, sequence: usize, position: usize, head: usize) -> usize {
        let pages = &self.pages[sequence];
        let page = pages[position / PAGE % pages.len()] as usize;
        ((page * self.pool.row().kv_heads() + head) * PAGE + position % PAGE) * self.pool.row().words()
    }
}

/// The largest error of sums in f32, relative to the sum of their terms' magnitudes.
pub const F32: f64 = 2e-6;

/// As [`F32`], for terms that are rounded to 16-bit floats.
pub const F16: f64 = 1e-3;

/// As [`F16`], for products that are also summed in 16 bits, a few at a time.
pub const F16_PAIRS: f64 = 3e-4;

/// As [`F16`], for experts, where the error is relative to the largest possible sum of terms.
pub const F16_EXPERTS: f64 = 3e-5;

/// Asserts an error within [`F32`]; `size` is the sum of the terms' magnitudes.
#[track_caller]
pub fn assert_close(found: f32, expected: f64, size: f64, context: &str) {
    assert_within(F32, found, expected, size, context);
}

/// As [`assert_close`], with `limit` as the largest relative error.
#[track_caller]
pub fn assert_within(limit: f64, found: f32, expected: f64, size: f64, context: &str) {
    let error = (f64::from(found) - expected).abs();
    assert!(error <= limit * size + 1e-30, "{context}: {found}, expected {expected} (error {error:e}, size {size:e})");
}

/// Asserts that the chosen experts and their weights are those that sorting the logits gives.
pub fn assert_choice(ids: &[u32], weights: &[f32], logits: &[f32], context: &str) {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    order.truncate(ids.len());
    assert_eq!(ids, order, "{context}");
    let likeliest = f64::from(logits[order[0] as usize]);
    let exponentials: Vec<f64> = order.iter().map(|&e| (f64::from(logits[e as usize]) - likeliest).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    for (&weight, e) in weights.iter().zip(exponentials) {
        // The error of the exponential grows with its argument.
        assert_close(weight, e / sum, 10.0, context);
    }
}

//! The GPU as the engine sees it: a client that launches kernels, buffers, and the limits that shape them.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use burn::tensor::Tensor;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::MemoryScope;
use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::future::block_on;
use cubecl::prelude::*;
use cubecl::server::Handle;
use cubecl_environment::stream::StreamId;
use phase2_forward::ComputeDevice;

use super::GpuError;
use super::kernels::codes::Codes;
use super::kernels::decoding;
use super::kernels::flash;
use super::kernels::fragments::Planes;
use super::tuning::Tuning;

/// A device and how to reach it.
#[derive(Clone)]
pub(crate) struct Gpu {
    pub client: Client,
    /// Lanes of the widest plane. Kernels read the real width; cubes are whole multiples of this one.
    pub plane: u32,
    /// Lanes of the narrowest plane: bounds how many planes a cube may have.
    pub least_plane: u32,
    /// The most bytes that one binding may span.
    pub binding_bytes: u64,
    /// Bytes that the device can hold, where its driver says.
    pub memory: Option<u64>,
    /// How MXFP4 codes become floats.
    pub codes: Codes,
    /// How planes share out products of many rows, if they multiply fragments.
    pub planes: Option<Planes>,
    pub tuning: Tuning,
    /// How often the engine has waited for the device, or has begun to: reading and draining count here.
    pub waits: Arc<AtomicU64>,
}

/// The words of some buffers on their way to the host.
pub(crate) enum Pending {
    Waiting(Reading),
    Arrived(Result<Vec<Vec<u32>>, GpuError>),
}

type Reading = Pin<Box<dyn Future<Output = Result<Vec<Vec<u32>>, GpuError>> + Send>>;

impl Pending {
    /// The words, buffer by buffer.
    ///
    /// # Errors
    /// A device that was lost, or a kernel that failed before.
    pub fn wait(self) -> Result<Vec<Vec<u32>>, GpuError> {
        match self {
            Pending::Waiting(reading) => block_on(reading),
            Pending::Arrived(words) => words,
        }
    }
}

/// Values in device memory, addressed in 32-bit words.
#[derive(Clone)]
pub(crate) struct Buffer {
    pub handle: Handle,
    /// Words.
    pub len: usize,
}

impl Buffer {
    /// Words from `first` on.
    pub fn part(&self, first: usize, len: usize) -> Buffer {
        assert!(first + len <= self.len, "the part lies in the buffer");
        let behind = (self.len - first - len) as u64 * 4;
        Buffer { handle: self.handle.clone().offset_start(first as u64 * 4).offset_end(behind), len }
    }

    /// The first `len` words.
    pub fn first(&self, len: usize) -> Buffer {
        self.part(0, len)
    }

    /// The buffer as scalars.
    pub fn arg(&self) -> BufferArg {
        // SAFETY: `len` words were allocated.
        unsafe { BufferArg::from_raw_parts(self.handle.clone(), self.len) }
    }

    /// The buffer as vectors of four.
    pub fn arg4(&self) -> BufferArg {
        // SAFETY: `len` words were allocated.
        unsafe { BufferArg::from_raw_parts(self.handle.clone(), self.len / 4) }
    }

    /// The buffer as vectors of two.
    pub fn arg2(&self) -> BufferArg {
        // SAFETY: `len` words were allocated.
        unsafe { BufferArg::from_raw_parts(self.handle.clone(), self.len / 2) }
    }
}

impl Gpu {
    /// # Errors
    /// A device that is no GPU.
    pub fn new(device: &ComputeDevice) -> Result<Gpu, GpuError> {
        let probe = Tensor::<1>::zeros([1], &device.burn);
        let probe: CubeTensor =
            probe.try_into_primitive::<CubeBackend>().map_err(|_| GpuError::NoGpu(device.name.clone()))?;
        Gpu::reached_by(probe.client.clone(), device.memory)
    }

    /// # Errors
    /// A device that does not run kernels.
    pub fn reached_by(mut client: Client, memory: Option<u64>) -> Result<Gpu, GpuError> {
        let properties = client.properties().clone();
        let hardware = &properties.hardware;
        let (plane, least_plane) = (hardware.plane_size_max.max(1), hardware.plane_size_min.max(1));
        let binding_bytes = properties.memory.max_page_size;
        // SAFETY: whatever thread the engine moves to, its work stays on the stream that it began on, in order.
        unsafe { client.set_stream(StreamId::current()) };
        let gpu = Gpu {
            plane,
            least_plane,
            binding_bytes,
            memory,
            codes: Codes::Less2,
            planes: Planes::of(&properties)
                .filter(|&planes| flash::shared_bytes(planes) <= hardware.max_shared_memory_size),
            tuning: Tuning::default(),
            client,
            waits: Arc::default(),
        };
        Ok(Gpu { codes: decoding::quickest(&gpu)?, ..gpu })
    }

    /// Bytes of memory that nothing of this process takes, where the driver says how many there are.
    pub fn memory_left(&self) -> Option<u64> {
        Some(self.memory?.saturating_sub(self.memory_taken()))
    }

    fn memory_taken(&self) -> u64 {
        self.client.memory_report(MemoryScope::Device).usage().bytes_reserved
    }

    /// # Errors
    /// Less memory than `what` needs beside everything that is there already, by the driver's own figure.
    pub fn expect_memory(&self, what: &str, need: u64) -> Result<(), GpuError> {
        let Some(limit) = self.memory else { return Ok(()) };
        if self.memory_taken() + need > limit {
            // An engine that is gone may have left memory in the allocator's pools. While another engine captures a step, it stays there.
            let _ = self.client.memory_cleanup();
        }
        let taken = self.memory_taken();
        if taken + need > limit {
            return Err(GpuError::Memory { what: what.to_owned(), need, taken, limit });
        }
        Ok(())
    }

    /// Room for `words` words, with whatever was there before.
    pub fn empty(&self, words: usize) -> Buffer {
        let len = words.next_multiple_of(4).max(4);
        Buffer { handle: self.client.empty(len * 4), len }
    }

    pub fn upload_f32(&self, values: &[f32]) -> Buffer {
        self.upload(values.iter().map(|value| value.to_bits()).collect())
    }

    pub fn upload(&self, mut words: Vec<u32>) -> Buffer {
        words.resize(words.len().next_multiple_of(4).max(4), 0);
        let len = words.len();
        Buffer { handle: self.client.create(Bytes::from_elems(words)), len }
    }

    /// Memory that stays for the engine's life and is no larger than asked for.
    pub fn upload_weights(&self, words: Vec<u32>) -> Buffer {
        self.client.memory_persistent_allocation(words, |words| self.upload(words))
    }

    /// Overwrites the words from `first` on, in order with the kernels launched before and after.
    pub fn write_at(&self, buffer: &Buffer, first: usize, words: Vec<u32>) {
        if !words.is_empty() {
            self.client.write(&buffer.part(first, words.len()).handle, Bytes::from_elems(words));
        }
    }

    /// # Errors
    /// A device that was lost, or a kernel that failed before.
    pub fn read(&self, buffer: &Buffer) -> Result<Vec<u32>, GpuError> {
        Ok(self.read_later(&[buffer]).wait()?.swap_remove(0))
    }

    /// Queues a readback behind the kernels launched so far; those launched from now on do not wait for it.
    pub fn read_later(&self, buffers: &[&Buffer]) -> Pending {
        self.waits.fetch_add(1, Ordering::Relaxed);
        let handles = buffers.iter().map(|buffer| buffer.handle.clone()).collect();
        let client = self.client.clone();
        let mut reading: Reading = Box::pin(async move {
            let read = client.read_async(handles).await?;
            Ok(read.iter().map(|bytes| u32::from_bytes(bytes).to_vec()).collect())
        });
        // The first poll queues it.
        match reading.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => Pending::Waiting(reading),
            Poll::Ready(words) => Pending::Arrived(words),
        }
    }

    /// # Errors
    /// As [`Gpu::read`].
    pub fn read_f32(&self, buffer: &Buffer) -> Result<Vec<f32>, GpuError> {
        Ok(self.read(buffer)?.into_iter().map(f32::from_bits).collect())
    }

    /// # Errors
    /// A device that was lost, or a kernel that failed.
    pub fn sync(&self) -> Result<(), GpuError> {
        self.waits.fetch_add(1, Ordering::Relaxed);
        Ok(block_on(self.client.sync())?)
    }
}

#[cfg(test)]
mod tests {
    use cubecl::wgpu::wgpu;
    use phase2_forward::{Draw, Sampling};

    use super::*;
    use crate::gpu::kernels::greedy::{STRIPE_WORDS, Successors};
    use crate::gpu::kernels::sample::{CUT_WORDS, DIGIT_WORDS, Filters, Sample, settings};
    use crate::gpu::kernels::testing::{OwnDevice, gpu};

    /// Draws from twenty logits, and says what reading the token gives.
    fn draw(gpu: &Gpu) -> Result<Vec<u32>, GpuError> {
        let sampling = Sampling { temperature: 1.0, top_k: 3, top_p: 1.0, min_p: 0.0 };
        let draw = Draw { sampling, ..Draw::GREEDY };
        let tokens = gpu.empty(1);
        Sample {
            successors: Successors {
                logits: &gpu.upload_f32(&[0.5; 20]),
                vocab: 20,
                stripes: &gpu.empty(STRIPE_WORDS),
                rows: &gpu.upload(vec![0; 4]),
                drawn: &gpu.empty(1),
                tokens: &tokens,
                inputs: 1,
            },
            settings: &gpu.upload(settings(&draw).to_vec()),
            digits: &gpu.empty(DIGIT_WORDS),
            cuts: &gpu.empty(CUT_WORDS),
            filters: Filters::of([&draw]),
        }
        .launch(gpu);
        gpu.read(&tokens)
    }

    #[test]
    fn a_kernel_that_does_not_fit_is_named_by_its_limit() {
        let OwnDevice { gpu: enough, .. } = OwnDevice::new(16_384);
        assert!(draw(&enough).expect("fits")[0] < 20);
        // Enough for the last kernel, which then has nothing to draw from.
        let OwnDevice { gpu: little, .. } = OwnDevice::new(2048);
        let error = draw(&little).expect_err("does not fit");
        assert!(matches!(error, GpuError::Kernel { limit: 2048, need, .. } if need > 2048), "{error}");
        assert!(
            error.to_string().contains("bytes of shared memory and this adapter has 2048; use --phase 3"),
            "{error}"
        );
    }

    #[test]
    fn a_lost_device_is_an_error() {
        let OwnDevice { device, gpu, .. } = OwnDevice::new(16_384);
        draw(&gpu).expect("still there");
        device.destroy();
        // The driver's word is heard when somebody listens.
        let _ = device.poll(wgpu::PollType::Poll);
        let error = draw(&gpu).expect_err("gone");
        assert!(matches!(error, GpuError::Lost(_)), "{error}");
        assert!(gpu.read(&gpu.upload(vec![1])).is_err());
    }

    #[test]
    fn memory_is_asked_for_before_it_is_taken() {
        let gpu = Gpu { memory: Some(1 << 40), ..gpu() };
        gpu.expect_memory("a test", 1 << 20).expect("there is plenty");
        let error = gpu.expect_memory("a test", 1 << 40).expect_err("not beside what is there");
        let start = "a test needs 1099.51 GB more and ";
        assert!(
            error.to_string().starts_with(start) && error.to_string().contains("of this adapter's 1099.51 GB"),
            "{error}"
        );
        // One piece that no page holds.
        let error = gpu.read(&gpu.empty(1 << 38)).expect_err("too large");
        assert!(matches!(error, GpuError::OutOfMemory { size } if size == 1 << 40), "{error}");
        assert_eq!(gpu.read(&gpu.upload(vec![5])).expect("goes on")[0], 5);
    }
}

//! A device: a client that launches kernels, buffers, and the limits that determine the shapes of kernels.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use cubecl::MemoryScope;
use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::future::block_on;
use cubecl::prelude::*;
use cubecl::server::{BufferBinding, Handle};
use cubecl::wgpu::{AutoCompiler, WgpuServer, wgpu};
use cubecl_environment::stream::StreamId;

use crate::error::Error;

/// The most cubes along one axis that every GPU accepts.
const MAX_CUBES: u32 = 65_535;
/// The most words of a buffer: kernels index them with 32 bits, and there are whole vectors of four.
const MAX_WORDS: u64 = u32::MAX as u64 / 4 * 4;

/// A device and its client. Clones share one stream: launches, writes and reads are executed in the order of the calls, from any thread.
#[derive(Clone)]
pub struct Device {
    client: Client,
    /// The client's stream.
    stream: StreamId,
    /// The wgpu device that the client uses.
    wgpu: wgpu::Device,
    queue: wgpu::Queue,
    plane: u32,
    least_plane: u32,
    binding_bytes: u64,
    memory: Option<u64>,
    waits: Arc<AtomicU64>,
}

/// A readback of some buffers that is in flight.
pub struct Readback(ReadbackState);

enum ReadbackState {
    Waiting(Pin<Box<dyn Future<Output = Words> + Send>>),
    Arrived(Words),
}

/// The words of each buffer.
type Words = Result<Vec<Vec<u32>>, Error>;

impl Readback {
    /// Waits, and returns the words of each buffer.
    ///
    /// # Errors
    /// The device was lost, or an earlier allocation or kernel failed.
    pub fn wait(self) -> Result<Vec<Vec<u32>>, Error> {
        match self.0 {
            ReadbackState::Waiting(reading) => block_on(reading),
            ReadbackState::Arrived(words) => words,
        }
    }
}

/// A buffer as the target of copies that bypass CubeCL. Its memory is not moved or reused while this exists.
pub(crate) struct CopyTarget {
    pub buffer: wgpu::Buffer,
    /// Offset of the words in bytes.
    pub offset: u64,
    _bound: BufferBinding,
}

/// Values in device memory, addressed in 32-bit words. Allocations are whole vectors of four words.
#[derive(Clone)]
pub struct Buffer {
    handle: Handle,
    len: usize,
}

impl Buffer {
    /// `handle` must hold `len` words.
    fn new(handle: Handle, len: usize) -> Buffer {
        assert!(len as u64 <= MAX_WORDS, "kernels index words with 32 bits, and a buffer has {len}");
        Buffer { handle, len }
    }

    /// A view of `len` words from `first` on, in the same memory.
    ///
    /// # Panics
    /// If the buffer does not contain all of them.
    #[track_caller]
    pub fn part(&self, first: usize, len: usize) -> Buffer {
        assert!(first + len <= self.len, "words {first} to {} of a buffer of {}", first + len, self.len);
        let behind = (self.len - first - len) as u64 * 4;
        Buffer::new(self.handle.clone().offset_start(first as u64 * 4).offset_end(behind), len)
    }

    /// A view of the first `len` words, in the same memory.
    ///
    /// # Panics
    /// If the buffer holds fewer.
    #[track_caller]
    pub fn first(&self, len: usize) -> Buffer {
        self.part(0, len)
    }

    /// Number of words, at least as many as were requested.
    #[allow(clippy::len_without_is_empty, reason = "no buffer is empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The buffer for copies on the device's queue. Nothing else may use the buffer until the copies are submitted.
    ///
    /// # Errors
    /// The memory could not be allocated, or the device was lost.
    pub(crate) fn copy_target(&self, device: &Device) -> Result<CopyTarget, Error> {
        let handle = self.handle.clone();
        let bound = handle.clone().binding();
        let resource = device.client.get_resource::<WgpuServer<AutoCompiler>>(handle)?;
        let resource = resource.resource();
        Ok(CopyTarget { buffer: resource.buffer.clone(), offset: resource.offset, _bound: bound })
    }

    /// # Panics
    /// If the buffer holds fewer than `words` words. Kernels do not check bounds, so every launch checks the lengths of its buffers with
    /// this function.
    #[track_caller]
    pub(crate) fn expect(&self, name: &str, words: usize) {
        assert!(self.len >= words, "{name} holds {} words and the kernel uses {words}", self.len);
    }

    /// The buffer as scalars.
    pub(crate) fn arg(&self) -> BufferArg {
        // SAFETY: `len` words were allocated.
        unsafe { BufferArg::from_raw_parts(self.handle.clone(), self.len) }
    }

    /// The buffer as vectors of four.
    pub(crate) fn arg4(&self) -> BufferArg {
        // SAFETY: `len` words were allocated.
        unsafe { BufferArg::from_raw_parts(self.handle.clone(), self.len / 4) }
    }

    /// The buffer as vectors of two.
    pub(crate) fn arg2(&self) -> BufferArg {
        // SAFETY: `len` words were allocated.
        unsafe { BufferArg::from_raw_parts(self.handle.clone(), self.len / 2) }
    }
}

impl Device {
    /// `wgpu` and `queue` are the wgpu device and queue of the client's runtime. `memory` is the device's memory in bytes, if its driver
    /// reports it.
    ///
    /// The client is pinned to the calling thread's current stream, so that the device may move between threads: a replay of captured
    /// launches is ordered only relative to its own stream.
    pub fn new(mut client: Client, (wgpu, queue): (wgpu::Device, wgpu::Queue), memory: Option<u64>) -> Device {
        let stream = StreamId::current();
        // SAFETY: the stream is the one that the client would use here anyway; from now on it uses no other.
        unsafe { client.set_stream(stream) };
        let properties = client.properties();
        let hardware = &properties.hardware;
        Device {
            plane: hardware.plane_size_max.max(1),
            least_plane: hardware.plane_size_min.max(1),
            binding_bytes: properties.memory.max_page_size.min(4 * MAX_WORDS),
            memory,
            waits: Arc::default(),
            stream,
            wgpu,
            queue,
            client,
        }
    }

    /// The client that launches, captures and replays.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Calls `work` as if on the thread whose stream the client is pinned to. CubeCL has one stream per thread, up to a small number, after
    /// which threads share them: a thread that only launches for another should not take one.
    pub fn on_pinned_stream<T>(&self, work: impl FnOnce() -> T) -> T {
        self.stream.executes(work)
    }

    pub(crate) fn wgpu(&self) -> &wgpu::Device {
        &self.wgpu
    }

    /// The queue that also gets all launches, writes and reads.
    pub(crate) fn queue(&self) -> &wgpu::Queue {
        &self.queue
    }

    /// The largest size in bytes of one binding. It is limited so that kernels can index every word with 32 bits.
    pub fn binding_bytes(&self) -> u64 {
        self.binding_bytes
    }

    /// The same device with a smaller limit for bindings.
    pub fn with_binding_bytes(self, binding_bytes: u64) -> Device {
        Device { binding_bytes, ..self }
    }

    /// The same device with `memory` bytes of memory.
    pub fn with_memory(self, memory: Option<u64>) -> Device {
        Device { memory, ..self }
    }

    /// How often the host has waited for the device: reads and synchronizations count.
    pub fn waits(&self) -> u64 {
        self.waits.load(Ordering::Relaxed)
    }

    /// The most units of a cube.
    pub(crate) fn max_units(&self) -> u32 {
        self.client.properties().hardware.max_units_per_cube
    }

    /// Shared memory that a cube may use, in bytes.
    pub(crate) fn shared_bytes(&self) -> usize {
        self.client.properties().hardware.max_shared_memory_size
    }

    /// `units`, rounded up to whole planes. Kernels read the actual plane size; the result is valid for every size that the device may
    /// choose.
    pub(crate) fn whole_planes(&self, units: u32) -> u32 {
        units.next_multiple_of(self.plane)
    }

    /// The largest number of planes that `units` units may form.
    pub(crate) fn most_planes(&self, units: u32) -> u32 {
        units.div_ceil(self.least_plane)
    }

    /// Bytes of memory that this process does not use, if the driver reports the total.
    pub fn memory_available(&self) -> Option<u64> {
        Some(self.memory?.saturating_sub(self.memory_used()))
    }

    /// Bytes of memory that this process uses.
    pub fn memory_used(&self) -> u64 {
        self.client.memory_report(MemoryScope::Device).usage().bytes_reserved
    }

    /// Releases the memory of dropped buffers, which the allocator keeps in its pools. The memory is not released while another engine
    /// captures a step.
    pub fn free_unused_memory(&self) {
        let _ = self.client.memory_cleanup();
    }

    /// # Errors
    /// `what` needs more bytes than the device's memory has beyond what this process uses. Not checked if the driver does not report the
    /// device's memory.
    pub fn expect_memory(&self, what: &str, need: u64) -> Result<(), Error> {
        let Some(limit) = self.memory else { return Ok(()) };
        if self.memory_used().saturating_add(need) > limit {
            self.free_unused_memory();
        }
        let taken = self.memory_used();
        if taken.saturating_add(need) > limit {
            return Err(Error::Memory { what: what.to_owned(), need, taken, limit });
        }
        Ok(())
    }

    /// Allocates `words` words without initializing them.
    pub fn empty(&self, words: usize) -> Buffer {
        let len = words.next_multiple_of(4).max(4);
        Buffer::new(self.client.empty(len * 4), len)
    }

    pub fn upload_f32(&self, values: &[f32]) -> Buffer {
        self.upload(values.iter().map(|value| value.to_bits()).collect())
    }

    pub fn upload(&self, mut words: Vec<u32>) -> Buffer {
        words.resize(words.len().next_multiple_of(4).max(4), 0);
        let len = words.len();
        Buffer::new(self.client.create(Bytes::from_elems(words)), len)
    }

    /// Uploads data that stays for the engine's lifetime, to an allocation that is no larger than the data.
    pub fn upload_weights(&self, words: Vec<u32>) -> Buffer {
        // The allocation mode is set for the thread's stream, whichever stream the client is pinned to.
        self.stream.executes(|| self.client.memory_persistent_allocation(words, |words| self.upload(words)))
    }

    /// Room for `words` words as [`Device::upload_weights`] allocates it, with undefined values.
    pub(crate) fn empty_weights(&self, words: usize) -> Buffer {
        self.stream.executes(|| self.client.memory_persistent_allocation(words, |words| self.empty(words)))
    }

    /// Overwrites words from `first` on, after the kernels launched before this call and before those launched after it.
    ///
    /// # Panics
    /// If the buffer does not contain all of them.
    #[track_caller]
    pub fn write_at(&self, buffer: &Buffer, first: usize, words: Vec<u32>) {
        if !words.is_empty() {
            self.client.write(&buffer.part(first, words.len()).handle, Bytes::from_elems(words));
        }
    }

    /// # Errors
    /// The device was lost, or an earlier allocation or kernel failed.
    pub fn read(&self, buffer: &Buffer) -> Result<Vec<u32>, Error> {
        Ok(self.start_read(&[buffer]).wait()?.swap_remove(0))
    }

    /// Queues a readback after the kernels launched so far. Kernels launched later do not wait for it.
    pub fn start_read(&self, buffers: &[&Buffer]) -> Readback {
        self.waits.fetch_add(1, Ordering::Relaxed);
        let handles = buffers.iter().map(|buffer| buffer.handle.clone()).collect();
        let client = self.client.clone();
        let mut reading: Pin<Box<dyn Future<Output = Words> + Send>> = Box::pin(async move {
            let read = client.read_async(handles).await?;
            Ok(read.iter().map(|bytes| u32::from_bytes(bytes).to_vec()).collect())
        });
        // The first poll queues the readback.
        Readback(match reading.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => ReadbackState::Waiting(reading),
            Poll::Ready(words) => ReadbackState::Arrived(words),
        })
    }

    /// # Errors
    /// As [`Device::read`].
    pub fn read_f32(&self, buffer: &Buffer) -> Result<Vec<f32>, Error> {
        Ok(self.read(buffer)?.into_iter().map(f32::from_bits).collect())
    }

    /// Submits everything launched so far, so that the device can start before more is launched. Failures are reported when a result is
    /// read.
    pub fn flush(&self) {
        let _ = self.client.flush();
    }

    /// # Errors
    /// The device was lost, or an allocation or kernel failed.
    pub fn sync(&self) -> Result<(), Error> {
        self.waits.fetch_add(1, Ordering::Relaxed);
        Ok(block_on(self.client.sync())?)
    }
}

/// Splits a number of cubes into counts along two axes that every GPU accepts. The product of the counts may exceed `cubes`.
pub(crate) fn cube_grid(cubes: u32) -> (u32, u32) {
    let z = cubes.div_ceil(MAX_CUBES).max(1);
    (cubes.div_ceil(z), z)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{
        Draw, DrawSettings, Filters, HISTOGRAM_WORDS, NextTokens, PARTIAL_MAX_WORDS, THRESHOLD_WORDS,
    };
    use crate::testing::{OwnDevice, device};

    /// Draws from twenty logits, and returns the result of reading the token.
    fn draw(device: &Device) -> Result<Vec<u32>, Error> {
        let settings = DrawSettings { temperature: 1.0, top_k: 3, top_p: 1.0, min_p: 0.0, seed: 0 };
        let tokens = device.empty(1);
        Draw {
            next: NextTokens {
                logits: &device.upload_f32(&[0.5; 20]),
                vocab: 20,
                partial_max: &device.empty(PARTIAL_MAX_WORDS),
                rows: &device.upload(vec![0; 4]),
                drawn: &device.empty(1),
                tokens: &tokens,
                inputs: 1,
            },
            settings: &device.upload(settings.words().to_vec()),
            histogram: &device.empty(HISTOGRAM_WORDS),
            thresholds: &device.empty(THRESHOLD_WORDS),
            filters: Filters::of([settings]),
        }
        .launch(device);
        device.read(&tokens)
    }

    #[test]
    fn kernel_beyond_a_limit_is_refused_with_that_limit() {
        let OwnDevice { device: enough, .. } = OwnDevice::new(16_384);
        assert!(draw(&enough).expect("fits")[0] < 20);
        // This is enough for the last kernel, but not for the searches before it, which find its candidates.
        let OwnDevice { device: little, .. } = OwnDevice::new(2048);
        let error = draw(&little).expect_err("does not fit");
        assert!(matches!(error, Error::Kernel { limit: 2048, need, .. } if need > 2048), "{error}");
        assert!(error.to_string().contains("bytes of shared memory, but this adapter has 2048"), "{error}");
    }

    #[test]
    fn a_lost_device_is_an_error() {
        let OwnDevice { wgpu: own, device } = OwnDevice::new(16_384);
        draw(&device).expect("the device was not lost yet");
        own.destroy();
        // The driver reports the loss only when the device is polled.
        let _ = own.poll(wgpu::PollType::Poll);
        let error = draw(&device).expect_err("the device was lost");
        assert!(matches!(error, Error::Lost(_)), "{error}");
        assert!(device.read(&device.upload(vec![1])).is_err());
    }

    #[test]
    fn memory_is_checked_before_allocation() {
        let device = device().with_memory(Some(1 << 40));
        device.expect_memory("a test", 1 << 20).expect("there is plenty");
        let error = device.expect_memory("a test", (1 << 40) + 1).expect_err("more than the device has");
        let start = "a test needs 1099.51 GB more, but ";
        assert!(
            error.to_string().starts_with(start) && error.to_string().contains("of this adapter's 1099.51 GB"),
            "{error}"
        );
        assert!(device.expect_memory("a test", u64::MAX).is_err(), "more than a sum can hold");
        // An allocation larger than the device's largest page.
        let huge = Buffer { handle: device.client.empty(1 << 40), len: 4 };
        let error = device.read(&huge).expect_err("too large");
        assert!(matches!(error, Error::OutOfMemory { size } if size == 1 << 40), "{error}");
        assert_eq!(device.read(&device.upload(vec![5])).expect("the device still works")[0], 5);
    }

    #[test]
    fn part_of_a_buffer_is_read_and_written() {
        let device = device();
        let buffer = device.upload((0..256).collect());
        device.write_at(&buffer, 64, vec![7, 8]);
        let parts = [buffer.part(64, 64), buffer.first(64)];
        let words = device.start_read(&[&parts[0], &parts[1]]).wait().expect("reads");
        assert_eq!((words[0][..4].to_vec(), words[1][63]), (vec![7, 8, 66, 67], 63));
        assert!(std::panic::catch_unwind(|| buffer.part(200, 57)).is_err());
    }
}

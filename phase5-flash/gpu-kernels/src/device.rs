//! A device: a client that launches kernels, buffers, and the limits that shape kernels.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use cubecl::MemoryScope;
use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::future::block_on;
use cubecl::prelude::*;
use cubecl::server::Handle;
use cubecl_environment::stream::StreamId;

use crate::error::Error;

/// The most cubes along one axis that every GPU accepts.
const MAX_CUBES: u32 = 65_535;

/// A device and how to reach it. Clones share the same stream: what they launch, write and read happens in that order, from
/// whatever thread.
#[derive(Clone)]
pub struct Device {
    client: Client,
    /// The client's.
    stream: StreamId,
    plane: u32,
    least_plane: u32,
    binding_bytes: u64,
    memory: Option<u64>,
    waits: Arc<AtomicU64>,
}

/// The words of some buffers on their way to the host.
pub struct Pending(Reading);

enum Reading {
    Waiting(Pin<Box<dyn Future<Output = Words> + Send>>),
    Arrived(Words),
}

/// Words, buffer by buffer.
type Words = Result<Vec<Vec<u32>>, Error>;

impl Pending {
    /// The words, buffer by buffer.
    ///
    /// # Errors
    /// A device that was lost, or a kernel that failed before.
    pub fn wait(self) -> Result<Vec<Vec<u32>>, Error> {
        match self.0 {
            Reading::Waiting(reading) => block_on(reading),
            Reading::Arrived(words) => words,
        }
    }
}

/// Values in device memory, addressed in 32-bit words. What is allocated holds whole vectors of four.
#[derive(Clone)]
pub struct Buffer {
    handle: Handle,
    len: usize,
}

impl Buffer {
    /// `handle` must hold `len` words.
    fn new(handle: Handle, len: usize) -> Buffer {
        assert!(len as u64 <= u64::from(u32::MAX), "kernels index words with 32 bits, and a buffer has {len}");
        Buffer { handle, len }
    }

    /// Words from `first` on, in the same memory.
    ///
    /// # Panics
    /// If they are not all in the buffer.
    #[track_caller]
    pub fn part(&self, first: usize, len: usize) -> Buffer {
        assert!(first + len <= self.len, "words {first} to {} of a buffer of {}", first + len, self.len);
        let behind = (self.len - first - len) as u64 * 4;
        Buffer::new(self.handle.clone().offset_start(first as u64 * 4).offset_end(behind), len)
    }

    /// The first `len` words, in the same memory.
    ///
    /// # Panics
    /// If the buffer holds fewer.
    #[track_caller]
    pub fn first(&self, len: usize) -> Buffer {
        self.part(0, len)
    }

    /// Words, at least as many as were asked for.
    #[allow(clippy::len_without_is_empty, reason = "no buffer is empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// # Panics
    /// If the buffer holds fewer than `words` words. Kernels do not check bounds: every launch does it here.
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
    /// `memory`: bytes that the device can hold, where its driver says.
    ///
    /// The client is pinned to the calling thread's current stream, so that the device may move between threads: replays of captured
    /// launches are ordered against their own stream alone.
    pub fn new(mut client: Client, memory: Option<u64>) -> Device {
        let stream = StreamId::current();
        // SAFETY: the stream is one that the client would take here anyway; from now on it takes no other.
        unsafe { client.set_stream(stream) };
        let properties = client.properties();
        let hardware = &properties.hardware;
        Device {
            plane: hardware.plane_size_max.max(1),
            least_plane: hardware.plane_size_min.max(1),
            binding_bytes: properties.memory.max_page_size,
            memory,
            waits: Arc::default(),
            stream,
            client,
        }
    }

    /// What launches, captures and replays.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The most bytes that one binding may span.
    pub fn binding_bytes(&self) -> u64 {
        self.binding_bytes
    }

    /// The same device, as if a binding spanned less.
    pub fn with_binding_bytes(self, binding_bytes: u64) -> Device {
        Device { binding_bytes, ..self }
    }

    /// The same device, as if it held `memory` bytes.
    pub fn with_memory(self, memory: Option<u64>) -> Device {
        Device { memory, ..self }
    }

    /// How often the host has waited for the device, or has begun to: reading and draining count here.
    pub fn waits(&self) -> u64 {
        self.waits.load(Ordering::Relaxed)
    }

    /// The most units of a cube.
    pub(crate) fn max_units(&self) -> u32 {
        self.client.properties().hardware.max_units_per_cube
    }

    /// Bytes of shared memory that a cube may have.
    pub(crate) fn shared_bytes(&self) -> usize {
        self.client.properties().hardware.max_shared_memory_size
    }

    /// `units` in whole planes: kernels read the real plane size, and this is right for every size that the device may choose.
    pub(crate) fn whole_planes(&self, units: u32) -> u32 {
        units.next_multiple_of(self.plane)
    }

    /// The most planes that `units` units make up.
    pub(crate) fn most_planes(&self, units: u32) -> u32 {
        units.div_ceil(self.least_plane)
    }

    /// Bytes of memory that nothing of this process takes, where the driver says how many there are.
    pub fn memory_left(&self) -> Option<u64> {
        Some(self.memory?.saturating_sub(self.memory_taken()))
    }

    /// Bytes of memory that this process takes.
    pub fn memory_taken(&self) -> u64 {
        self.client.memory_report(MemoryScope::Device).usage().bytes_reserved
    }

    /// Gives back memory of buffers that are gone, which the allocator has kept in its pools. While another engine captures a step, it
    /// stays there.
    pub fn free_unused_memory(&self) {
        let _ = self.client.memory_cleanup();
    }

    /// # Errors
    /// Less memory than `what` needs beside everything that is there already, by the driver's own figure.
    pub fn expect_memory(&self, what: &str, need: u64) -> Result<(), Error> {
        let Some(limit) = self.memory else { return Ok(()) };
        if self.memory_taken().saturating_add(need) > limit {
            self.free_unused_memory();
        }
        let taken = self.memory_taken();
        if taken.saturating_add(need) > limit {
            return Err(Error::Memory { what: what.to_owned(), need, taken, limit });
        }
        Ok(())
    }

    /// Room for `words` words, with whatever was there before.
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

    /// Memory that stays for the engine's life and is no larger than asked for.
    pub fn upload_weights(&self, words: Vec<u32>) -> Buffer {
        // The way memory is allocated is set for the thread's stream, whatever the client is pinned to.
        self.stream.executes(|| self.client.memory_persistent_allocation(words, |words| self.upload(words)))
    }

    /// Overwrites the words from `first` on, in order with the kernels launched before and after.
    ///
    /// # Panics
    /// If they are not all in the buffer.
    #[track_caller]
    pub fn write_at(&self, buffer: &Buffer, first: usize, words: Vec<u32>) {
        if !words.is_empty() {
            self.client.write(&buffer.part(first, words.len()).handle, Bytes::from_elems(words));
        }
    }

    /// # Errors
    /// A device that was lost, or a kernel that failed before.
    pub fn read(&self, buffer: &Buffer) -> Result<Vec<u32>, Error> {
        Ok(self.read_later(&[buffer]).wait()?.swap_remove(0))
    }

    /// Queues a readback behind the kernels launched so far; those launched from now on do not wait for it.
    pub fn read_later(&self, buffers: &[&Buffer]) -> Pending {
        self.waits.fetch_add(1, Ordering::Relaxed);
        let handles = buffers.iter().map(|buffer| buffer.handle.clone()).collect();
        let client = self.client.clone();
        let mut reading: Pin<Box<dyn Future<Output = Words> + Send>> = Box::pin(async move {
            let read = client.read_async(handles).await?;
            Ok(read.iter().map(|bytes| u32::from_bytes(bytes).to_vec()).collect())
        });
        // The first poll queues it.
        Pending(match reading.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => Reading::Waiting(reading),
            Poll::Ready(words) => Reading::Arrived(words),
        })
    }

    /// # Errors
    /// As [`Device::read`].
    pub fn read_f32(&self, buffer: &Buffer) -> Result<Vec<f32>, Error> {
        Ok(self.read(buffer)?.into_iter().map(f32::from_bits).collect())
    }

    /// Hands over what was launched so far, so that the device need not wait for the launches that follow. Whoever reads a result hears
    /// of failures.
    pub fn flush(&self) {
        let _ = self.client.flush();
    }

    /// # Errors
    /// A device that was lost, or a kernel that failed.
    pub fn sync(&self) -> Result<(), Error> {
        self.waits.fetch_add(1, Ordering::Relaxed);
        Ok(block_on(self.client.sync())?)
    }
}

/// A number of cubes as two axes that every GPU accepts; the product may exceed it.
pub(crate) fn spread(cubes: u32) -> (u32, u32) {
    let z = cubes.div_ceil(MAX_CUBES).max(1);
    (cubes.div_ceil(z), z)
}

#[cfg(test)]
mod tests {
    use cubecl::wgpu::wgpu;

    use super::*;
    use crate::sampling::{
        Draw, DrawSettings, Filters, HISTOGRAM_WORDS, NextTokens, PARTIAL_MAX_WORDS, THRESHOLD_WORDS,
    };
    use crate::testing::{OwnDevice, device};

    /// Draws from twenty logits, and says what reading the token gives.
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
    fn a_kernel_that_does_not_fit_is_named_by_its_limit() {
        let OwnDevice { device: enough, .. } = OwnDevice::new(16_384);
        assert!(draw(&enough).expect("fits")[0] < 20);
        // Enough for the last kernel, which then has nothing to draw from.
        let OwnDevice { device: little, .. } = OwnDevice::new(2048);
        let error = draw(&little).expect_err("does not fit");
        assert!(matches!(error, Error::Kernel { limit: 2048, need, .. } if need > 2048), "{error}");
        assert!(error.to_string().contains("bytes of shared memory and this adapter has 2048"), "{error}");
    }

    #[test]
    fn a_lost_device_is_an_error() {
        let OwnDevice { wgpu: own, device } = OwnDevice::new(16_384);
        draw(&device).expect("still there");
        own.destroy();
        // The driver's word is heard when somebody listens.
        let _ = own.poll(wgpu::PollType::Poll);
        let error = draw(&device).expect_err("gone");
        assert!(matches!(error, Error::Lost(_)), "{error}");
        assert!(device.read(&device.upload(vec![1])).is_err());
    }

    #[test]
    fn memory_is_asked_for_before_it_is_taken() {
        let device = device().with_memory(Some(1 << 40));
        device.expect_memory("a test", 1 << 20).expect("there is plenty");
        let error = device.expect_memory("a test", 1 << 40).expect_err("not beside what is there");
        let start = "a test needs 1099.51 GB more and ";
        assert!(
            error.to_string().starts_with(start) && error.to_string().contains("of this adapter's 1099.51 GB"),
            "{error}"
        );
        assert!(device.expect_memory("a test", u64::MAX).is_err(), "more than a sum can hold");
        // One piece that no page holds.
        let huge = Buffer { handle: device.client.empty(1 << 40), len: 4 };
        let error = device.read(&huge).expect_err("too large");
        assert!(matches!(error, Error::OutOfMemory { size } if size == 1 << 40), "{error}");
        assert_eq!(device.read(&device.upload(vec![5])).expect("goes on")[0], 5);
    }

    #[test]
    fn a_part_is_read_and_written_by_itself() {
        let device = device();
        let buffer = device.upload((0..256).collect());
        device.write_at(&buffer, 64, vec![7, 8]);
        let parts = [buffer.part(64, 64), buffer.first(64)];
        let words = device.read_later(&[&parts[0], &parts[1]]).wait().expect("reads");
        assert_eq!((words[0][..4].to_vec(), words[1][63]), (vec![7, 8, 66, 67], 63));
        assert!(std::panic::catch_unwind(|| buffer.part(200, 57)).is_err());
    }
}

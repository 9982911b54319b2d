//! Uploads weights through a few host-visible buffers: the device copies from some of them while the host fills another.
//!
//! For every write, CubeCL would allocate a host-visible buffer as large as the data, and fill it on its only thread. The buffers here are
//! reused, and all threads fill them in parallel.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use cubecl::future::block_on;
use cubecl::wgpu::wgpu;

use crate::device::{CopyTarget, Device};
use crate::error::Error;

/// Host-visible buffers: the device copies from three of them while one is filled.
const BUFFERS: usize = 4;
/// Bytes per copy, and the size of a buffer: large enough that submitting a copy takes far less time than filling a buffer.
const CHUNK: usize = 32 << 20;
/// The smallest size of a buffer, in bytes.
const LEAST: usize = 64 << 10;

/// Copies data to device buffers. Uses at most 128 MiB of host-visible memory, unless a group of rows is larger than 32 MiB. The memory is
/// freed on drop.
pub struct Upload {
    device: Device,
    chunk: usize,
    /// Buffers from which a copy was submitted, oldest first.
    copying: VecDeque<Copying>,
    start: Instant,
    times: UploadTimes,
}

/// How the thread that uploads spent its time. The rest of `total` is mostly time spent in the caller.
#[derive(Clone, Copy, Debug, Default)]
pub struct UploadTimes {
    pub total: Duration,
    /// Creating host-visible buffers.
    pub creating: Duration,
    /// Waiting for all threads that pack rows into host-visible buffers.
    pub packing: Duration,
    /// Sum over these threads: getting rows. This includes page faults and reading the file.
    pub threads_reading: Duration,
    /// Sum over these threads: packing rows and writing them to host-visible memory.
    pub threads_writing: Duration,
    /// Encoding and submitting copies.
    pub submitting: Duration,
    /// Waiting for the device to copy.
    pub waiting: Duration,
    /// Number of host-visible buffers that were copied.
    pub chunks: usize,
    /// Bytes that were copied to the device.
    pub bytes: u64,
}

/// A host-visible buffer whose contents are being copied.
struct Copying {
    buffer: wgpu::Buffer,
    submission: wgpu::SubmissionIndex,
    /// Receives a message when the host may write the buffer again.
    writable: Receiver<Result<(), wgpu::BufferAsyncError>>,
}

/// A range of bytes to copy from a host-visible buffer to a device buffer.
pub(crate) struct Region<'a> {
    /// Offset in the host-visible buffer.
    pub from: usize,
    pub target: &'a CopyTarget,
    /// Offset in the target.
    pub at: usize,
    pub bytes: usize,
}

impl Upload {
    pub fn new(device: &Device) -> Upload {
        Upload {
            device: device.clone(),
            chunk: CHUNK,
            copying: VecDeque::new(),
            start: Instant::now(),
            times: UploadTimes::default(),
        }
    }

    /// Sets the bytes per copy.
    #[cfg(test)]
    pub(crate) fn with_chunk(self, chunk: usize) -> Upload {
        Upload { chunk, ..self }
    }

    /// The sizes in bytes of the host-visible buffers.
    #[cfg(test)]
    pub(crate) fn buffer_sizes(&self) -> Vec<u64> {
        self.copying.iter().map(|copying| copying.buffer.size()).collect()
    }

    /// Bytes that a copy should have at most. A single group of rows may be larger.
    pub(crate) fn chunk_bytes(&self) -> usize {
        self.chunk
    }

    /// Returns a buffer of at least `bytes` bytes that the host may write. If the maximum number of buffers is in use, first waits for the
    /// oldest copy.
    ///
    /// # Errors
    /// Not enough memory, or the device failed or was lost.
    pub(crate) fn writable(&mut self, bytes: usize) -> Result<wgpu::Buffer, Error> {
        if self.copying.len() == BUFFERS
            && let Some(oldest) = self.copying.pop_front()
        {
            let buffer = self.wait(oldest)?;
            if buffer.size() >= bytes as u64 {
                return Ok(buffer);
            }
        }
        let start = Instant::now();
        let size = bytes.next_power_of_two().max(LEAST) as u64;
        // Without this error scope, the runtime's error handler would panic if memory is insufficient.
        let scope = self.device.wgpu().push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.wgpu().create_buffer(&wgpu::BufferDescriptor {
            label: Some("weights"),
            size,
            usage: wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: true,
        });
        let failed = block_on(scope.pop());
        self.times.creating += start.elapsed();
        match failed {
            Some(_) => Err(Error::OutOfMemory { size }),
            None => Ok(buffer),
        }
    }

    /// Adds to the times of packing.
    pub(crate) fn add_packing(&mut self, all: Duration, threads_reading: Duration, threads_writing: Duration) {
        self.times.packing += all;
        self.times.threads_reading += threads_reading;
        self.times.threads_writing += threads_writing;
    }

    /// Submits copies from a buffer that was returned by [`Upload::writable`] and has been filled.
    pub(crate) fn copy<'a>(&mut self, buffer: wgpu::Buffer, regions: impl IntoIterator<Item = Region<'a>>) {
        let start = Instant::now();
        buffer.unmap();
        let mut encoder = self.device.wgpu().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: None });
        for Region { from, target, at, bytes } in regions {
            let to = target.offset + at as u64;
            encoder.copy_buffer_to_buffer(&buffer, from as u64, &target.buffer, to, bytes as u64);
            self.times.bytes += bytes as u64;
        }
        let submission = self.device.queue().submit([encoder.finish()]);
        let (sender, writable) = channel();
        buffer.map_async(wgpu::MapMode::Write, .., move |result| {
            // The receiver is gone if the upload has failed elsewhere.
            let _ = sender.send(result);
        });
        self.copying.push_back(Copying { buffer, submission, writable });
        self.times.chunks += 1;
        self.times.submitting += start.elapsed();
    }

    /// Waits until all copies have ended, and returns how the time since [`Upload::new`] was spent.
    ///
    /// # Errors
    /// The device failed or was lost.
    pub fn finish(mut self) -> Result<UploadTimes, Error> {
        while let Some(oldest) = self.copying.pop_front() {
            self.wait(oldest)?;
        }
        Ok(UploadTimes { total: self.start.elapsed(), ..self.times })
    }

    /// Waits until a copy has ended and its buffer may be written again.
    fn wait(&mut self, Copying { buffer, submission, writable }: Copying) -> Result<wgpu::Buffer, Error> {
        let start = Instant::now();
        let wait = wgpu::PollType::Wait { submission_index: Some(submission), timeout: None };
        self.device.wgpu().poll(wait).map_err(|error| self.failure(error))?;
        // If another thread polls at the same time, it may run the callback of `map_async`, so the message may arrive after `poll` returns.
        let message = writable.recv();
        self.times.waiting += start.elapsed();
        match message {
            Ok(Ok(())) => Ok(buffer),
            Ok(Err(error)) => Err(self.failure(error)),
            Err(error) => Err(self.failure(error)),
        }
    }

    /// The error of a failed operation: [`Error::Lost`] if the device was lost, otherwise [`Error::Device`] with `reason`.
    pub(crate) fn failure(&self, reason: impl ToString) -> Error {
        match self.device.sync() {
            Err(lost @ Error::Lost(_)) => lost,
            _ => Error::Device(reason.to_string()),
        }
    }
}

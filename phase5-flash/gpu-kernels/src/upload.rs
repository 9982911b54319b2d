//! Weights on their way to the device: a few host-visible buffers, of which some are copied from while another is filled.
//!
//! CubeCL would allocate a host-visible buffer for every write, as large as what is written, and fill it on its one thread. These are
//! allocated once, and as many threads as there are write into them.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, channel};

use cubecl::future::block_on;
use cubecl::wgpu::wgpu;

use crate::device::{CopyTarget, Device};
use crate::error::Error;

/// Host-visible buffers: the device copies from three of them while one is filled.
const BUFFERS: usize = 4;
/// Bytes that are copied at a time, and the size of a buffer: so many that submitting a copy takes a small part of the time of filling one.
const CHUNK: usize = 32 << 20;
/// The smallest buffer.
const LEAST: usize = 64 << 10;

/// Copies to device buffers. It takes at most 128 MiB of host-visible memory, which is freed when it is dropped.
pub struct Upload {
    device: Device,
    chunk: usize,
    /// Buffers that were copied from, the oldest first.
    copying: VecDeque<Copying>,
}

/// A host-visible buffer whose contents are being copied.
struct Copying {
    buffer: wgpu::Buffer,
    submission: wgpu::SubmissionIndex,
    /// Says when the buffer may be written again.
    writable: Receiver<Result<(), wgpu::BufferAsyncError>>,
}

/// Which bytes of a host-visible buffer go where in a device buffer.
pub(crate) struct Region<'a> {
    pub from: usize,
    pub target: &'a CopyTarget,
    pub at: usize,
    pub bytes: usize,
}

impl Upload {
    pub fn new(device: &Device) -> Upload {
        Upload { device: device.clone(), chunk: CHUNK, copying: VecDeque::new() }
    }

    /// The same with chunks of `chunk` bytes.
    #[cfg(test)]
    pub(crate) fn with_chunk(self, chunk: usize) -> Upload {
        Upload { chunk, ..self }
    }

    /// The size of each host-visible buffer that there is.
    #[cfg(test)]
    pub(crate) fn buffer_sizes(&self) -> Vec<u64> {
        self.copying.iter().map(|copying| copying.buffer.size()).collect()
    }

    /// Bytes that should be copied at a time, unless a single group of rows has more.
    pub(crate) fn chunk_bytes(&self) -> usize {
        self.chunk
    }

    /// A buffer of `bytes` bytes or more that the host may write, once the oldest copy has ended if there are as many as there may be.
    ///
    /// # Errors
    /// No memory, or a device that was lost.
    pub(crate) fn writable(&mut self, bytes: usize) -> Result<wgpu::Buffer, Error> {
        if self.copying.len() == BUFFERS
            && let Some(oldest) = self.copying.pop_front()
        {
            let buffer = self.wait(oldest)?;
            if buffer.size() >= bytes as u64 {
                return Ok(buffer);
            }
        }
        let size = bytes.next_power_of_two().max(LEAST) as u64;
        // Otherwise the runtime's handler panics.
        let scope = self.device.wgpu().push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.wgpu().create_buffer(&wgpu::BufferDescriptor {
            label: Some("weights"),
            size,
            usage: wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: true,
        });
        match block_on(scope.pop()) {
            Some(_) => Err(Error::OutOfMemory { size }),
            None => Ok(buffer),
        }
    }

    /// Submits copies from a buffer of [`Upload::writable`] that has been written.
    pub(crate) fn copy<'a>(&mut self, buffer: wgpu::Buffer, regions: impl IntoIterator<Item = Region<'a>>) {
        buffer.unmap();
        let mut encoder = self.device.wgpu().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: None });
        for Region { from, target, at, bytes } in regions {
            let to = target.offset + at as u64;
            encoder.copy_buffer_to_buffer(&buffer, from as u64, &target.buffer, to, bytes as u64);
        }
        let submission = self.device.queue().submit([encoder.finish()]);
        let (sender, writable) = channel();
        buffer.map_async(wgpu::MapMode::Write, .., move |result| {
            // Nobody listens any more after an error elsewhere.
            let _ = sender.send(result);
        });
        self.copying.push_back(Copying { buffer, submission, writable });
    }

    /// Waits until all copies have ended.
    ///
    /// # Errors
    /// A device that was lost.
    pub fn finish(mut self) -> Result<(), Error> {
        while let Some(oldest) = self.copying.pop_front() {
            self.wait(oldest)?;
        }
        Ok(())
    }

    /// Waits until a copy has ended and its buffer may be written again.
    fn wait(&self, Copying { buffer, submission, writable }: Copying) -> Result<wgpu::Buffer, Error> {
        let wait = wgpu::PollType::Wait { submission_index: Some(submission), timeout: None };
        self.device.wgpu().poll(wait).map_err(|error| self.failure(error))?;
        // Another thread that polls may have been told first, and pass it on in a moment.
        match writable.recv() {
            Ok(Ok(())) => Ok(buffer),
            Ok(Err(error)) => Err(self.failure(error)),
            Err(error) => Err(self.failure(error)),
        }
    }

    /// Why something went wrong: the device was lost, or else `reason`.
    pub(crate) fn failure(&self, reason: impl ToString) -> Error {
        match self.device.sync() {
            Err(lost @ Error::Lost(_)) => lost,
            _ => Error::Device(reason.to_string()),
        }
    }
}

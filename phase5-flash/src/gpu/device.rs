//! The GPU as the engine sees it: a client that launches kernels, buffers, and the limits that shape them.

use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeDevice};
use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;
use phase2_forward::ComputeDevice;

use super::GpuError;
use super::kernels::codes::Codes;
use super::kernels::decoding;

/// A device and how to reach it.
#[derive(Clone)]
pub(crate) struct Gpu {
    pub client: Client,
    pub device: CubeDevice,
    /// Lanes of the widest plane. Kernels read the real width; cubes are whole multiples of this one.
    pub plane: u32,
    /// Lanes of the narrowest plane: bounds how many planes a cube may have.
    pub least_plane: u32,
    /// The most bytes that one binding may span.
    pub binding_bytes: u64,
    /// How MXFP4 codes become floats.
    pub codes: Codes,
}

/// Values in device memory, addressed in 32-bit words.
#[derive(Clone)]
pub(crate) struct Buffer {
    pub handle: Handle,
    /// Words.
    pub len: usize,
}

impl Buffer {
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
        let properties = probe.client.properties();
        let hardware = &properties.hardware;
        let (plane, least_plane) = (hardware.plane_size_max.max(1), hardware.plane_size_min.max(1));
        let binding_bytes = properties.memory.max_page_size;
        let (client, device) = (probe.client.clone(), probe.device.clone());
        let gpu = Gpu { client, device, plane, least_plane, binding_bytes, codes: Codes::Less2 };
        Ok(Gpu { codes: decoding::quickest(&gpu)?, ..gpu })
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

    /// Overwrites a buffer with `words` and zeros behind them, in order with the kernels launched before and after.
    pub fn write(&self, buffer: &Buffer, mut words: Vec<u32>) {
        assert!(words.len() <= buffer.len, "the words fit the buffer");
        words.resize(buffer.len, 0);
        self.client.write(&buffer.handle, Bytes::from_elems(words));
    }

    /// # Errors
    /// A device that was lost, or a kernel that failed before.
    pub fn read(&self, buffer: &Buffer) -> Result<Vec<u32>, GpuError> {
        let bytes =
            self.client.read_one(buffer.handle.clone()).map_err(|error| GpuError::Device(format!("{error:?}")))?;
        Ok(u32::from_bytes(&bytes).to_vec())
    }

    /// # Errors
    /// As [`Gpu::read`].
    pub fn read_f32(&self, buffer: &Buffer) -> Result<Vec<f32>, GpuError> {
        Ok(self.read(buffer)?.into_iter().map(f32::from_bits).collect())
    }

    /// A buffer's first `rows · columns` values as a Burn tensor that shares its memory.
    pub fn tensor(&self, buffer: &Buffer, [rows, columns]: [usize; 2]) -> Tensor<2> {
        let shape = Shape::new([rows, columns]);
        let primitive = CubeTensor::new_contiguous(
            self.client.clone(),
            self.device.clone(),
            shape,
            buffer.handle.clone(),
            DType::F32,
        );
        Tensor::from_primitive::<CubeBackend>(primitive)
    }

    /// # Errors
    /// A device that was lost, or a kernel that failed.
    pub fn sync(&self) -> Result<(), GpuError> {
        cubecl::future::block_on(self.client.sync()).map_err(|error| GpuError::Device(format!("{error:?}")))
    }
}

//! A device, and which computing methods it supports.

use formats::Storage;

use crate::device::Device;
use crate::e2m1::E2m1Decode;
use crate::error::Error;
use crate::matrix_units::MatrixUnits;
use crate::packed::Packing;
use crate::probe;

/// A device and the computing methods that it supports.
#[derive(Clone)]
pub struct Gpu {
    pub device: Device,
    decode: E2m1Decode,
    matrix_units: Option<MatrixUnits>,
    /// Whether kernels may compute products in f32 only.
    f32_only: bool,
}

impl Gpu {
    /// Finds out what the device supports; for pairs of 16-bit floats, which only some devices can have, with a trial kernel.
    ///
    /// # Errors
    /// The device cannot run the trial kernel.
    pub fn new(device: Device) -> Result<Gpu, Error> {
        let decode = probe::quickest_decode(&device)?;
        let matrix_units = MatrixUnits::of(&device);
        Ok(Gpu { device, decode, matrix_units, f32_only: false })
    }

    /// The same device, with all products computed in f32: matrix units and pairs of 16-bit floats are not used.
    pub fn in_f32(self) -> Gpu {
        Gpu { matrix_units: None, f32_only: true, ..self }
    }

    /// The same device with other matrix units: none, or [emulated](MatrixUnits::EMULATED) ones.
    pub fn with_matrix_units(self, matrix_units: Option<MatrixUnits>) -> Gpu {
        Gpu { matrix_units, ..self }
    }

    /// The matrix units that kernels for many rows use, if any.
    pub fn matrix_units(&self) -> Option<MatrixUnits> {
        self.matrix_units
    }

    /// Whether kernels may reinterpret words as pairs of 16-bit floats, including subnormal ones.
    pub(crate) fn has_f16_pairs(&self) -> bool {
        self.decode == E2m1Decode::F16Pairs
    }

    /// Whether products of few rows may be computed in pairs of 16-bit floats.
    pub(crate) fn multiplies_in_16_bits(&self) -> bool {
        self.has_f16_pairs() && !self.f32_only
    }

    /// How a matrix in `storage` is unpacked.
    pub(crate) fn packing(&self, storage: Storage) -> Packing {
        Packing { storage, decode: self.decode }
    }
}

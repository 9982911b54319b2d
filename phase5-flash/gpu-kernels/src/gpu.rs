//! A device, and what was found out about it.

use formats::Storage;

use crate::device::Device;
use crate::e2m1::E2m1Decode;
use crate::error::Error;
use crate::matrix_units::MatrixUnits;
use crate::packed::Packing;
use crate::probe;

/// A device and the ways of computing that it allows.
#[derive(Clone)]
pub struct Gpu {
    pub device: Device,
    decode: E2m1Decode,
    matrix_units: Option<MatrixUnits>,
}

impl Gpu {
    /// Runs a kernel, to find out what the device allows.
    ///
    /// # Errors
    /// A device that does not run kernels.
    pub fn new(device: Device) -> Result<Gpu, Error> {
        let decode = probe::quickest_decode(&device)?;
        let matrix_units = MatrixUnits::of(&device);
        Ok(Gpu { device, decode, matrix_units })
    }

    /// The same with other matrix units: none, to compute in f32 throughout, or [emulated](MatrixUnits::EMULATED) ones.
    pub fn with_matrix_units(self, matrix_units: Option<MatrixUnits>) -> Gpu {
        Gpu { matrix_units, ..self }
    }

    /// The matrix units that many-row kernels use, if there are any.
    pub fn matrix_units(&self) -> Option<MatrixUnits> {
        self.matrix_units
    }

    /// Whether kernels may take words for pairs of 16-bit floats, subnormal ones too.
    pub(crate) fn has_f16_pairs(&self) -> bool {
        self.decode == E2m1Decode::F16Pairs
    }

    /// How a matrix in `storage` is unpacked.
    pub(crate) fn packing(&self, storage: Storage) -> Packing {
        Packing { storage, decode: self.decode }
    }
}

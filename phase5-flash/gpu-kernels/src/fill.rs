//! Fills a matrix on the device: threads pack its rows in the device's layout directly into host-visible buffers, which are copied to the
//! device.

use std::ops::Range;
use std::time::{Duration, Instant};

use cubecl::CubeElement;
use cubecl::wgpu::wgpu;
use formats::Storage;
use rayon::prelude::*;

use crate::device::{CopyTarget, Device};
use crate::error::Error;
use crate::matrix::{Matrix, ROW_GROUP, scale_words, vectors};
use crate::pack::pack_row;
use crate::upload::{Region, Upload};

/// Bytes that a thread packs at a time, approximately, because it packs an even number of groups of rows.
const RUN: usize = 128 << 10;

/// A matrix whose values are still to be written.
pub struct Unfilled {
    matrix: Matrix,
    /// The codes and the scales of each part.
    targets: Vec<[CopyTarget; 2]>,
}

impl Unfilled {
    /// Nothing else may use the matrix until it is filled.
    ///
    /// # Errors
    /// Memory could not be allocated.
    pub fn new(device: &Device, matrix: &Matrix) -> Result<Unfilled, Error> {
        let mut targets = Vec::new();
        for part in matrix.parts() {
            targets.push([part.codes.copy_target(device)?, part.scales.copy_target(device)?]);
        }
        Ok(Unfilled { matrix: matrix.clone(), targets })
    }

    /// Writes all values. `rows` returns the packed bytes of a range of rows, counted over the whole stack; several threads call it. Each
    /// row is requested once, and a range never spans two matrices. Later launches on any thread see the values; the last copies may still
    /// be running.
    ///
    /// # Errors
    /// The device was lost, or there is no memory for copies.
    ///
    /// # Panics
    /// If the number of bytes of the rows is not what the matrix's format needs for its columns.
    pub fn fill<Bytes: AsRef<[u8]>>(
        &self,
        upload: &mut Upload,
        rows: impl Fn(Range<usize>) -> Bytes + Sync,
    ) -> Result<(), Error> {
        let groups = Groups::new(&self.matrix, rows);
        let most = (upload.chunk_bytes() / (groups.code_bytes + groups.scale_bytes)).max(1);
        let mut largest = 0.0f32;
        for (part, [codes, scales]) in self.matrix.parts().iter().zip(&self.targets) {
            let all = part.rows.div_ceil(ROW_GROUP);
            // Scales are whole vectors of four words in device memory, the last of which may be padding.
            let all_scale_bytes = (all * groups.scale_bytes).next_multiple_of(16);
            for first in (0..all).step_by(most) {
                let count = most.min(all - first);
                let (codes_at, scales_at) = (first * groups.code_bytes, first * groups.scale_bytes);
                let code_bytes = count * groups.code_bytes;
                let is_last = first + count == all;
                let scale_bytes = if is_last { all_scale_bytes - scales_at } else { count * groups.scale_bytes };
                let buffer = upload.writable(code_bytes + scale_bytes)?;
                let chunk = Chunk { first: part.first_row / ROW_GROUP + first, count, code_bytes, scale_bytes };
                let start = Instant::now();
                let packed = groups.pack(&buffer, chunk).map_err(|error| upload.failure(error))?;
                upload.add_packing(start.elapsed(), packed.reading, packed.writing);
                largest = largest.max(packed.largest);
                let regions = [
                    Region { from: 0, target: codes, at: codes_at, bytes: code_bytes },
                    Region { from: code_bytes, target: scales, at: scales_at, bytes: scale_bytes },
                ];
                upload.copy(buffer, regions.into_iter().filter(|region| region.bytes > 0));
            }
        }
        self.matrix.bound_values(largest);
        Ok(())
    }
}

/// Groups of rows that are copied together.
#[derive(Clone, Copy)]
struct Chunk {
    /// The number of the first group, counted over the whole stack.
    first: usize,
    count: usize,
    /// Bytes of all codes, which come first, and of all scales with their padding.
    code_bytes: usize,
    scale_bytes: usize,
}

/// The result of packing some groups.
#[derive(Clone, Copy, Default)]
struct Packed {
    /// An upper bound of the values' magnitudes.
    largest: f32,
    /// Sums over all threads.
    reading: Duration,
    writing: Duration,
}

impl Packed {
    fn and(self, other: Packed) -> Packed {
        Packed {
            largest: self.largest.max(other.largest),
            reading: self.reading + other.reading,
            writing: self.writing + other.writing,
        }
    }
}

/// The rows of a stack in groups; the last group of each matrix is padded.
struct Groups<F> {
    rows: F,
    storage: Storage,
    /// Bytes of a packed row.
    row_bytes: usize,
    /// Rows of a matrix, without padding.
    matrix_rows: usize,
    /// Bytes of a group's codes and of its scales on the device.
    code_bytes: usize,
    scale_bytes: usize,
}

impl<Bytes: AsRef<[u8]>, F: Fn(Range<usize>) -> Bytes + Sync> Groups<F> {
    fn new(matrix: &Matrix, rows: F) -> Groups<F> {
        let (storage, blocks) = (matrix.storage(), matrix.blocks());
        Groups {
            rows,
            storage,
            row_bytes: blocks * storage.block_bytes(),
            matrix_rows: matrix.rows(),
            code_bytes: ROW_GROUP * blocks * 16 * vectors(storage),
            scale_bytes: blocks * scale_words(storage) * 4,
        }
    }

    /// Packs groups into a mapped buffer.
    fn pack(&self, buffer: &wgpu::Buffer, chunk: Chunk) -> Result<Packed, wgpu::MapRangeError> {
        // Views must begin at multiples of 8 bytes, and the scales of a group may take only 4: runs have an even number of groups.
        let run = (RUN / (self.code_bytes + self.scale_bytes)).max(1).next_multiple_of(2);
        let pack = |number: usize| -> Result<Packed, wgpu::MapRangeError> {
            let (start, end) = (number * run, chunk.count.min((number + 1) * run));
            let view = |from: usize, to: usize| buffer.get_mapped_range_mut(from as u64..to as u64);
            let mut codes = view(start * self.code_bytes, end * self.code_bytes)?;
            let scales_end = if end == chunk.count { chunk.scale_bytes } else { end * self.scale_bytes };
            let mut scales = match self.scale_bytes {
                0 => None,
                bytes => Some(view(chunk.code_bytes + start * bytes, chunk.code_bytes + scales_end)?),
            };
            Ok(self.pack_run(chunk.first + start..chunk.first + end, &mut codes, scales.as_mut()))
        };
        (0..chunk.count.div_ceil(run)).into_par_iter().map(pack).try_reduce(Packed::default, |a, b| Ok(a.and(b)))
    }

    /// Packs groups into the views of their codes and scales. A view's memory may be slow to read and to write in small pieces, so each
    /// group is first packed in the CPU's cache, and the scales of all groups are written together, because those of one group do not fill
    /// whole cache lines.
    fn pack_run(
        &self,
        groups: Range<usize>,
        codes_view: &mut wgpu::BufferViewMut,
        scales_view: Option<&mut wgpu::BufferViewMut>,
    ) -> Packed {
        let (start, mut reading) = (Instant::now(), Duration::ZERO);
        let mut largest = 0.0f32;
        let mut codes = vec![0u32; self.code_bytes / 4];
        let group_scales = self.scale_bytes / 4;
        let mut scales = vec![0u32; groups.len() * group_scales];
        let mut done = 0;
        let mut pack_group = |rows: [Option<&[u8]>; ROW_GROUP]| {
            let scales = &mut scales[done * group_scales..][..group_scales];
            let row_words = codes.len() / ROW_GROUP;
            for (number, (row, codes)) in rows.into_iter().zip(codes.chunks_exact_mut(row_words)).enumerate() {
                match row {
                    Some(row) => largest = largest.max(pack_row(self.storage, row, codes, number, scales)),
                    None => codes.fill(0),
                }
            }
            let codes_at = done * self.code_bytes;
            codes_view.slice(codes_at..codes_at + self.code_bytes).copy_from_slice(u32::as_bytes(&codes));
            done += 1;
        };
        let matrix_groups = self.matrix_rows.div_ceil(ROW_GROUP);
        let mut group = groups.start;
        while group < groups.end {
            let (matrix, first) = (group / matrix_groups, group % matrix_groups);
            let end = matrix_groups.min(first + groups.end - group);
            let rows = first * ROW_GROUP..self.matrix_rows.min(end * ROW_GROUP);
            let before = Instant::now();
            let packed = (self.rows)(matrix * self.matrix_rows + rows.start..matrix * self.matrix_rows + rows.end);
            reading += before.elapsed();
            assert_eq!(packed.as_ref().len(), rows.len() * self.row_bytes, "the bytes of {} rows", rows.len());
            let mut rows = packed.as_ref().chunks_exact(self.row_bytes);
            for _ in first..end {
                pack_group([(); ROW_GROUP].map(|()| rows.next()));
            }
            group += end - first;
        }
        if let Some(view) = scales_view {
            let scales = u32::as_bytes(&scales);
            view.slice(..scales.len()).copy_from_slice(scales);
            view.slice(scales.len()..).fill(0);
        }
        Packed { largest, reading, writing: start.elapsed().saturating_sub(reading) }
    }
}

#[cfg(test)]
mod tests {
    use formats::BLOCK;

    use super::*;
    use crate::matrix::Part;
    use crate::testing::{OwnDevice, Random, device};

    /// The words of a block's codes, in which code i of MXFP4 is nibble i.
    fn code_words(storage: Storage, block: &[u8]) -> Vec<u32> {
        let words = |bytes: &[u8]| -> Vec<u32> {
            bytes.chunks(4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four bytes"))).collect()
        };
        match storage {
            Storage::F32 | Storage::F16 | Storage::BF16 => words(block),
            Storage::Q8_0 => words(&block[2..]),
            Storage::Mxfp4 => {
                let code = |i: usize| u32::from(if i < 16 { block[1 + i] & 15 } else { block[1 + i - 16] >> 4 });
                (0..4).map(|word| (0..8).map(|nibble| code(8 * word + nibble) << (4 * nibble)).sum()).collect()
            }
        }
    }

    /// The codes and scales of a stack as `matrix.rs` describes them.
    fn laid_out(storage: Storage, [stack, rows, columns]: [usize; 3], packed: &[u8]) -> [Vec<u32>; 2] {
        let (blocks, vectors) = (columns / BLOCK, vectors(storage));
        let padded = stack * rows.next_multiple_of(ROW_GROUP);
        let mut codes = vec![0; padded * blocks * vectors * 4];
        let mut scales = vec![0; padded / ROW_GROUP * blocks * scale_words(storage)];
        for (number, block) in packed.chunks(storage.block_bytes()).enumerate() {
            let (row, b) = (number / blocks, number % blocks);
            let row = row / rows * rows.next_multiple_of(ROW_GROUP) + row % rows;
            for (word, code) in code_words(storage, block).into_iter().enumerate() {
                codes[((row * vectors + word / 4) * blocks + b) * 4 + word % 4] = code;
            }
            let (group, place) = (row / ROW_GROUP, row % ROW_GROUP);
            match storage {
                Storage::F32 | Storage::F16 | Storage::BF16 => {}
                Storage::Q8_0 => {
                    let scale = u32::from(block[0]) | u32::from(block[1]) << 8;
                    scales[(group * blocks + b) * 2 + place / 2] |= scale << (16 * (place % 2));
                }
                Storage::Mxfp4 => scales[group * blocks + b] |= u32::from(block[0]) << (8 * place),
            }
        }
        [codes, scales]
    }

    /// Fills a stack with random bytes, `chunk` bytes per copy, and compares every word.
    #[track_caller]
    fn check(device: &Device, random: &mut Random, storage: Storage, shape: [usize; 3], chunk: usize) {
        let context = format!("{storage:?} {shape:?}, chunks of {chunk}, {random:?}");
        let [stack, rows, columns] = shape;
        let row_bytes = columns / BLOCK * storage.block_bytes();
        let packed: Vec<u8> = (0..stack * rows * row_bytes).map(|_| random.below(256) as u8).collect();
        let matrix = Matrix::empty(device, "w", storage, shape).expect(&context);
        let mut upload = Upload::new(device).with_chunk(chunk);
        let source = |rows: Range<usize>| {
            assert!(!rows.is_empty(), "an empty range of rows was requested");
            &packed[rows.start * row_bytes..rows.end * row_bytes]
        };
        Unfilled::new(device, &matrix).expect(&context).fill(&mut upload, source).expect(&context);
        let sizes = upload.buffer_sizes();
        assert!(
            sizes.len() <= 4 && sizes.iter().all(|&size| size <= (64 << 10).max(2 * chunk as u64)),
            "{context}: {sizes:?}"
        );
        let times = upload.finish().expect(&context);

        let [codes, scales] = laid_out(storage, shape, &packed);
        let (row_words, group_scales) = (row_words(&matrix), matrix.blocks() * scale_words(storage));
        let part_bytes = |part: &Part| {
            let groups = part.rows.div_ceil(ROW_GROUP);
            groups * ROW_GROUP * row_words * 4 + (groups * group_scales * 4).next_multiple_of(16)
        };
        assert_eq!(times.bytes, matrix.parts().iter().map(part_bytes).sum::<usize>() as u64, "{context}");
        for part in matrix.parts() {
            let groups = part.rows.div_ceil(ROW_GROUP);
            let expected = &codes[part.first_row * row_words..][..groups * ROW_GROUP * row_words];
            assert!(
                device.read(&part.codes).expect(&context) == expected,
                "codes from row {}: {context}",
                part.first_row
            );
            if group_scales > 0 {
                let mut expected =
                    scales[part.first_row / ROW_GROUP * group_scales..][..groups * group_scales].to_vec();
                expected.resize(expected.len().next_multiple_of(4), 0);
                assert!(device.read(&part.scales).expect(&context) == expected, "scales: {context}");
            }
        }
    }

    fn row_words(matrix: &Matrix) -> usize {
        matrix.blocks() * 4 * vectors(matrix.storage())
    }

    #[test]
    fn every_row_is_uploaded_to_its_place() {
        let (device, mut random) = (device(), Random::fresh());
        for storage in Storage::ALL {
            // Numbers of rows that are not a multiple of a group, matrices of one row, and a last vector of scales that is padded.
            for shape in [[1, 7, 96], [3, 5, 64], [5, 1, 32], [1, 130, 32], [2, 4, 160]] {
                let rows = 1 + random.below(12);
                for chunk in [1, rows * shape[2] * 4, 1 << 20] {
                    check(&device, &mut random, storage, shape, chunk);
                }
            }
        }
        // Several threads per chunk, more chunks than buffers, and groups whose scales are not a multiple of 8 bytes.
        check(&device, &mut random, Storage::Mxfp4, [1, 4_099, 800], 256 << 10);
        check(&device, &mut random, Storage::Q8_0, [3, 511, 416], 200_000);
        // Matrices in several parts, which are filled one after another.
        let small = device.with_binding_bytes(4_700);
        for storage in Storage::ALL {
            let chunk = 1 + random.below(10_000);
            check(&small, &mut random, storage, [1, 41, 96], chunk);
        }
    }

    #[test]
    fn lost_device_ends_the_upload() {
        let OwnDevice { wgpu: own, device } = OwnDevice::new(16_384);
        let matrix = Matrix::empty(&device, "w", Storage::F32, [1, 4, 32]).expect("there is room");
        let unfilled = Unfilled::new(&device, &matrix).expect("allocated");
        own.destroy();
        // The loss is reported only when the device is polled.
        let _ = own.poll(wgpu::PollType::Poll);
        let rows = |rows: Range<usize>| vec![0u8; rows.len() * 128];
        let error = unfilled.fill(&mut Upload::new(&device), rows).expect_err("the device was lost");
        assert!(matches!(error, Error::Lost(_)), "{error}");
    }
}

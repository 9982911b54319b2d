//! Reads weights of a mapped file before they are needed.
//!
//! The first access to a page of 4 KB takes about 1 µs even if the file is in the page cache: 3 s for 12 GB. While a program waits for a
//! device to start, other threads can make these accesses. If the file is not in the page cache, they also start the disk reads early.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Builder;

use bytes::Bytes;

use crate::tensor::HostTensor;

/// Bytes of a piece, which a thread reads before it takes the next piece. It is small enough that the threads together read the file nearly
/// in order, so that the operating system detects a sequential read.
const PIECE: usize = 2 << 20;
/// The smallest size of a page. Larger pages are accessed several times, which takes little time.
const PAGE: usize = 4096;

/// Threads that access every page of some tensors. Dropping this value tells them to stop, and does not wait for them.
pub struct ReadAhead(Arc<Pieces>);

/// The data to read, and which of it has been taken.
struct Pieces {
    pieces: Vec<Bytes>,
    /// The index of the next piece that no thread has taken.
    next: AtomicUsize,
    stopped: AtomicBool,
}

impl ReadAhead {
    /// Begins to read tensors in this order with up to `threads` threads. If the system cannot start a thread, fewer are used.
    pub fn start<'a>(tensors: impl IntoIterator<Item = &'a HostTensor>, threads: usize) -> ReadAhead {
        let pieces = Arc::new(Pieces::new(tensors));
        for _ in 0..threads {
            let pieces = pieces.clone();
            let thread = Builder::new().name("gptoss-read".into());
            if thread.spawn(move || pieces.read()).is_err() {
                break;
            }
        }
        ReadAhead(pieces)
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.0.stopped.store(true, Ordering::Relaxed);
    }
}

impl Pieces {
    fn new<'a>(tensors: impl IntoIterator<Item = &'a HostTensor>) -> Pieces {
        let parts = tensors.into_iter().flat_map(HostTensor::stored);
        let split = |part: Bytes| {
            let len = part.len();
            (0..len).step_by(PIECE).map(move |start| part.slice(start..len.min(start + PIECE)))
        };
        Pieces { pieces: parts.flat_map(split).collect(), next: AtomicUsize::new(0), stopped: AtomicBool::new(false) }
    }

    /// Reads pieces until all are taken or `stopped` is set.
    fn read(&self) {
        while !self.stopped.load(Ordering::Relaxed)
            && let Some(piece) = self.pieces.get(self.next.fetch_add(1, Ordering::Relaxed))
        {
            map_pages(piece);
        }
    }
}

/// Accesses every page of mapped bytes, so that later accesses are fast.
pub fn map_pages(bytes: &[u8]) {
    let sum = bytes.iter().step_by(PAGE).fold(0, |sum: u8, byte| sum.wrapping_add(*byte));
    std::hint::black_box(sum);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Format;

    fn tensor(rows: usize) -> HostTensor {
        HostTensor::packed_rows(Format::F32, vec![rows, 1024], vec![0u8; rows * 4096].into())
    }

    #[test]
    fn pieces_are_the_tensors_in_order() {
        let (small, large) = (tensor(1), tensor(1200));
        let pieces = Pieces::new([&small, &large, &small]).pieces;
        let place = |bytes: &Bytes| (bytes.as_ptr(), bytes.len());
        let found: Vec<_> = pieces.iter().map(place).collect();
        let (small, large) = (small.packed(), large.packed());
        let cut = [0..PIECE, PIECE..2 * PIECE, 2 * PIECE..large.len()].map(|range| large.slice(range));
        let expected: Vec<_> = [&small, &cut[0], &cut[1], &cut[2], &small].into_iter().map(place).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn each_piece_is_taken_until_the_reading_is_stopped() {
        let tensor = tensor(1200);
        let pieces = Pieces::new([&tensor]);
        pieces.read();
        // Three pieces were taken, and the fourth attempt found none.
        assert_eq!(pieces.next.load(Ordering::Relaxed), 4);

        let pieces = Arc::new(Pieces::new([&tensor]));
        drop(ReadAhead(pieces.clone()));
        pieces.read();
        assert_eq!(pieces.next.load(Ordering::Relaxed), 0);
    }
}

//! Files as bytes: mapped to be read, and written so that they are never seen half done.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::error::{Defect, LoadError};

/// Maps a file of the kind `what`.
///
/// # Errors
/// A file that cannot be read or is empty.
pub(crate) fn map(path: &Path, what: &str) -> Result<Bytes, LoadError> {
    let io = |source| LoadError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(Defect::new("file", what, "something that is no file").in_file(path));
    }
    if metadata.len() == 0 {
        return Err(Defect::new("header", what, "an empty file").in_file(path));
    }
    // SAFETY: the mapping is read-only and private to us. A process that truncates the file while it is mapped makes
    // the next read of the lost pages raise SIGBUS; the command line turns that into a message (`src/lost_file.rs`).
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
    // Pages of 2 MB, where the file system has them: a fault and an entry of the TLB for each 512 of the small ones. Advice may be
    // refused.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(Bytes::from_owner(map))
}

/// Writes a file under a temporary name beside `path`, and gives it its own name when it is complete and on disk. What
/// was at `path` before stays until then; if `write` fails, nothing is left behind.
///
/// # Errors
/// What `write` returns, or a file that cannot be created, written or renamed.
pub fn write_whole<T>(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<T>) -> io::Result<T> {
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let unfinished = Unfinished { path: path.with_file_name(name) };
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&unfinished.path)?);
    let result = write(&mut out)?;
    out.flush()?;
    out.get_ref().sync_data()?;
    drop(out);
    std::fs::rename(&unfinished.path, path)?;
    Ok(result)
}

/// A file that is removed again, unless it has been renamed by then.
struct Unfinished {
    path: PathBuf,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

//! Maps files for reading, and writes files so that no reader sees an incomplete one.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use bytes::Bytes;

use crate::error::{Defect, LoadError};

/// Maps a file; errors name `what` as the expected kind of file.
///
/// # Errors
/// The file cannot be read, is not a regular file, or is empty.
pub(crate) fn map(path: &Path, what: &str) -> Result<Bytes, LoadError> {
    let io = |source| LoadError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(Defect::new("file", what, "something other than a regular file").in_file(path));
    }
    if metadata.len() == 0 {
        return Err(Defect::new("header", what, "an empty file").in_file(path));
    }
    // SAFETY: the mapping is read-only here, and a condition of opening a model is that its file does not change while it is mapped. No
    // system enforces that for other processes. If one truncates the file, the next read of a lost page raises SIGBUS, which the command
    // line turns into a message (`src/lost_file.rs`). If one writes into it, weights change while they are used (any bytes are valid
    // weights), and text that was checked as UTF-8 may become invalid.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
    // Asks for pages of 2 MB, where the file system supports them: one page fault and one TLB entry instead of 512. The system may
    // ignore it.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(Bytes::from_owner(map))
}

/// Writes a whole file atomically: under a temporary name in the directory of `path`, then renamed to `path` when it is complete and on
/// disk. After a failure the file at `path` is unchanged and no temporary file is left. The rename replaces a symbolic link. A `path` that
/// exists and is neither a file nor a directory, such as `/dev/stdout`, is written in place.
///
/// # Errors
/// An error of `write`, or a file that cannot be created, written or renamed.
pub fn write_whole<T>(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<T>) -> io::Result<T> {
    let buffered = |file| BufWriter::with_capacity(1 << 20, file);
    if fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir()) {
        let mut out = buffered(File::options().write(true).open(path)?);
        let result = write(&mut out)?;
        out.flush()?;
        return Ok(result);
    }
    let mut prefix = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    prefix.push(".");
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // `File::create_new` gives the permissions of any new file; `tempfile()` would make the file unreadable for others.
    let temporary =
        tempfile::Builder::new().prefix(&prefix).suffix(".part").make_in(directory, |path| File::create_new(path))?;
    let (file, temporary) = temporary.into_parts();
    let mut out = buffered(file);
    let result = write(&mut out)?;
    out.flush()?;
    out.get_ref().sync_data()?;
    drop(out);
    temporary.persist(path).map_err(|error| error.error)?;
    // Syncs the directory, so that the new name survives a power failure too. Errors are ignored: the file is complete anyway, and some
    // file systems cannot sync a directory.
    #[cfg(unix)]
    let _ = File::open(directory).and_then(|directory| directory.sync_all());
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).expect("readable");
        entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn failed_write_keeps_the_old_file() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("file");
        write_whole(&path, |out| out.write_all(b"old")).expect("written");
        let failed = write_whole(&path, |out| {
            out.write_all(b"new")?;
            out.flush()?;
            Err::<(), _>(io::Error::other("no more"))
        });
        assert_eq!(failed.expect_err("the closure's error").to_string(), "no more");
        assert_eq!(fs::read(&path).expect("readable"), b"old");
        write_whole(&path, |out| out.write_all(b"newer")).expect("written");
        assert_eq!(fs::read(&path).expect("readable"), b"newer");
        assert_eq!(names(directory.path()), ["file"]);
    }

    #[test]
    fn failed_replacement_leaves_no_temporary_file() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let taken = directory.path().join("directory");
        fs::create_dir(&taken).expect("created");
        write_whole(&taken, |out| out.write_all(b"x")).expect_err("a directory");
        assert_eq!(names(directory.path()), ["directory"]);
        let error = write_whole(&taken.join("not").join("there"), |out| out.write_all(b"x")).expect_err("no directory");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[cfg(unix)]
    #[test]
    fn written_files_have_default_permissions() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().expect("a temporary directory");
        let [written, plain] = ["written", "plain"].map(|name| directory.path().join(name));
        write_whole(&written, |out| out.write_all(b"x")).expect("written");
        fs::write(&plain, "x").expect("written");
        let [written, plain] = [written, plain].map(|path| fs::metadata(path).expect("there").permissions().mode());
        assert_eq!(written, plain);
    }

    #[cfg(unix)]
    #[test]
    fn devices_are_written_in_place() {
        use std::os::unix::fs::FileTypeExt;
        // A link, so that a failing test replaces it instead of `/dev/null`.
        let directory = tempfile::tempdir().expect("a temporary directory");
        let link = directory.path().join("null");
        std::os::unix::fs::symlink("/dev/null", &link).expect("linked");
        write_whole(&link, |out| out.write_all(b"x")).expect("written");
        assert!(fs::metadata(&link).expect("there").file_type().is_char_device());
        assert_eq!(names(directory.path()), ["null"]);
    }
}

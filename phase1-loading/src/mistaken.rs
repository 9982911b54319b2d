//! Recognizes files that were given instead of a model: other file types, and remains of failed downloads.

/// Describes a placeholder for a file that was not downloaded, and the remedy; `None` if the file does not look like one.
pub(crate) fn stand_in(file: &[u8]) -> Option<String> {
    let beginning = String::from_utf8_lossy(&file[..file.len().min(512)]).to_ascii_lowercase();
    let text = beginning.trim_start_matches('\u{feff}').trim_start();
    if text.starts_with("version https://git-lfs.github.com/spec/") {
        let size = text.lines().find_map(|line| line.strip_prefix("size ")).unwrap_or("?");
        return Some(format!("a Git LFS pointer to a file of {size} bytes; `git lfs pull` fetches it"));
    }
    let is_page = text.starts_with("<!doctype html") || text.starts_with("<html");
    is_page.then(|| "an HTML page, left by a failed download; download the file again".into())
}

/// Describes what a file that is not GGUF seems to be; `None` if that is unknown.
pub(crate) fn instead_of_gguf(file: &[u8]) -> Option<String> {
    let starts = |bytes: &[u8]| file.starts_with(bytes);
    let is_safetensors = file.get(8) == Some(&b'{') && file[4..8].iter().all(|&byte| byte == 0);
    let is_json = file.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    let found = match () {
        () if is_safetensors => "a safetensors file; name the folder that holds it and its config.json",
        () if is_json => "JSON; name the folder that holds it, with the weights",
        () if starts(&[0x1f, 0x8b]) => "a gzip archive",
        () if starts(b"PK\x03\x04") => "a zip archive, such as PyTorch's",
        () if file.len() > 64 && file.iter().take(4096).all(|&byte| byte == 0) => {
            "only zeros, left by a download that was interrupted; download the file again"
        }
        () => return stand_in(file),
    };
    Some(found.into())
}

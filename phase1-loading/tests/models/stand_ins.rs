//! Files of other kinds that are given instead of a model.

use crate::folders::open;
use crate::made::files;
use bytes::Bytes;
use phase1_loading::Checkpoint;

/// Errors about files that are not models tell what the file is and, except for a gzip archive, what to do.
#[test]
fn files_that_are_not_models_are_identified() {
    const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 12109566560\n";
    const PAGE: &[u8] = b"\n<!DOCTYPE html><html><head><title>404</title></head></html>";
    let gguf = |file: &'static [u8]| {
        Checkpoint::from_bytes("m.gguf", Bytes::from_static(file)).err().expect("refused").to_string()
    };
    let expected = "m.gguf: header: expected the magic bytes `GGUF`, found ";
    let cases: [(&'static [u8], &str); 6] = [
        (POINTER, "a Git LFS pointer to a file of 12109566560 bytes; `git lfs pull` fetches it"),
        (PAGE, "an HTML page, left by a failed download; download the file again"),
        (b"{\"model_type\": \"gpt_oss\"}", "JSON; name the folder that holds it, with the weights"),
        (b"\x40\0\0\0\0\0\0\0{\"a\": 1}", "a safetensors file; name the folder that holds it and its config.json"),
        (b"\x1f\x8b\x08\0", "a gzip archive"),
        (&[0; 100], "only zeros, left by a download that was interrupted; download the file again"),
    ];
    for (file, found) in cases {
        assert_eq!(gguf(file), format!("{expected}{found}"));
    }
    let folder = |name: &str, file: &'static [u8]| {
        let mut files = files("hf");
        files.insert(name.into(), Bytes::from_static(file));
        Checkpoint::from_folder_bytes("folder", &files).err().expect("refused").to_string()
    };
    for name in ["config.json", "tokenizer.json", "model-00002-of-00002.safetensors"] {
        let refused = folder(name, POINTER);
        assert!(
            refused.starts_with(&format!("folder/{name}: file: expected the file itself, found a Git LFS")),
            "{refused}"
        );
        assert!(folder(name, PAGE).contains("an HTML page"), "{name}");
    }
    // Shards without an index.
    let mut unlisted = files("hf");
    unlisted.remove("model.safetensors.index.json");
    let refused = Checkpoint::from_folder_bytes("folder", &unlisted).err().expect("refused").to_string();
    assert!(refused.contains("the index `model.safetensors.index.json`"), "{refused}");
    // A configuration that begins with a byte order mark.
    let mut marked = files("hf");
    let config = [&b"\xef\xbb\xbf"[..], &marked["config.json"][..]].concat();
    marked.insert("config.json".into(), config.into());
    assert_eq!(Checkpoint::from_folder_bytes("folder", &marked).expect("opens").config, open("hf").config);
}

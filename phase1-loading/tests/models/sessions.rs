//! Session files.

use std::path::Path;

use bytes::Bytes;
use phase1_loading::{SavedSession, SessionHeader};

fn small_session() -> SavedSession {
    let header = SessionHeader {
        model: "m".into(),
        rope: "exact".into(),
        cache: "f32".into(),
        form: "phase 3".into(),
        tokens: vec![1, 2, 3],
        length: 2,
    };
    SavedSession { header, items: vec![Bytes::from_static(b"keys"), Bytes::from_static(b"values")] }
}

/// Whoever lists files reads their headers alone.
#[test]
fn a_session_header_is_checked_without_the_items() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("session");
    let saved = small_session();
    saved.write(&path).expect("written");
    let file = std::fs::read(&path).expect("readable");
    assert_eq!(saved.file_bytes(), file.len() as u64);
    assert_eq!(SessionHeader::open(&path).expect("opens"), saved.header);

    // The items are 10 bytes before the last checksum, the checksum of the header is before them.
    let items = file.len() - 8 - 10;
    for at in 0..items {
        let mut damaged = file.clone();
        damaged[at] ^= 1;
        std::fs::write(&path, damaged).expect("written");
        assert!(SessionHeader::open(&path).is_err(), "byte {at}");
    }
    for harmed in [file[..file.len() - 1].to_vec(), file[..items].to_vec(), [&file[..], b"x"].concat()] {
        std::fs::write(&path, &harmed).expect("written");
        assert!(SessionHeader::open(&path).is_err(), "{} bytes", harmed.len());
    }
    let mut damaged = file;
    damaged[items] ^= 1;
    std::fs::write(&path, damaged).expect("written");
    assert_eq!(SessionHeader::open(&path).expect("opens"), saved.header);
    assert!(SavedSession::open(&path).is_err());
}

#[test]
fn each_lie_of_a_session_is_named() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("session");
    let saved = small_session();
    saved.write(&path).expect("written");
    let file = std::fs::read(&path).expect("readable");
    let patched = |at: usize, bytes: &[u8]| {
        let mut file = file.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    // The magic 8, version 4, texts 5, 9, 7 and 11, then the count of tokens.
    let count = 8 + 4 + 5 + 9 + 7 + 11;
    let lies = [
        ("magic", patched(0, b"GGUF")),
        ("later version", patched(8, &[9])),
        ("earlier version", patched(8, &[3])),
        ("long text", patched(12, &u32::MAX.to_le_bytes())),
        ("many tokens", patched(count, &u64::MAX.to_le_bytes())),
        ("more cached than there are", patched(count + 8 + 12, &4u64.to_le_bytes())),
        ("many items", patched(count + 8 + 12 + 8, &u32::MAX.to_le_bytes())),
        ("long item", patched(count + 8 + 12 + 8 + 4, &(1u64 << 60).to_le_bytes())),
        ("flipped bit", patched(file.len() - 10, &[0])),
        ("truncated", file[..file.len() - 1].to_vec()),
        ("longer", [&file[..], b"x"].concat()),
        ("empty", Vec::new()),
    ];
    let refusal =
        |file: Vec<u8>| SavedSession::from_bytes(Path::new("lying"), file.into()).expect_err("refused").to_string();
    let messages: Vec<String> = lies.into_iter().map(|(lie, file)| format!("{lie}: {}", refusal(file))).collect();
    insta::assert_snapshot!(messages.join("\n"));
}

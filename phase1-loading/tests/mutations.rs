//! Damages valid files at random: opening them gives an error, a model or a session, and never panics, takes 5 seconds, or allocates more
//! than 64 MiB beyond the file's own size.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gptoss_reference::{Case, Folder};
use phase1_loading::{Checkpoint, SavedSession, SessionHeader, check_values};
use proptest::prelude::*;

/// An allocator that counts allocated bytes.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all memory comes from the system allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        MOST.fetch_max(NOW.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: the caller guarantees the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller guarantees the contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const BEYOND: usize = 64 << 20;
const LONGEST: Duration = Duration::from_secs(5);

/// A change to a file. Positions are fractions of the file's length. They are cubes of uniform numbers from 0 to 1, so that many are in the
/// header.
#[derive(Clone, Debug)]
enum Harm {
    Truncate(f64),
    Flip(f64, u8),
    /// Replaces eight bytes, or four, that may be a count, a size, an offset or a type.
    Lie(f64, u64, bool),
    Remove(f64, usize),
    Repeat(f64, usize),
    /// Inserts one byte many times, such as an opening bracket.
    Insert(f64, u8, usize),
}

fn harm() -> impl Strategy<Value = Harm> {
    let place = || (0.0f64..1.0).prop_map(|share| share * share * share);
    let lie = prop_oneof![
        prop::sample::select(vec![
            0,
            1,
            5,
            9,
            255,
            1 << 20,
            u32::MAX as u64,
            1 << 40,
            1 << 61,
            i64::MAX as u64,
            u64::MAX - 31,
            u64::MAX
        ]),
        0u64..100_000,
    ];
    prop_oneof![
        1 => place().prop_map(Harm::Truncate),
        4 => (place(), 0u8..8).prop_map(|(at, bit)| Harm::Flip(at, bit)),
        4 => (place(), lie, any::<bool>()).prop_map(|(at, value, wide)| Harm::Lie(at, value, wide)),
        1 => (place(), 1usize..64).prop_map(|(at, len)| Harm::Remove(at, len)),
        1 => (place(), 1usize..4096).prop_map(|(at, len)| Harm::Repeat(at, len)),
        1 => (place(), prop::sample::select(b"[{\"0a,-\xff\x09".to_vec()), 1usize..5000).prop_map(|(at, byte, len)| Harm::Insert(at, byte, len)),
    ]
}

fn harmed(mut file: Vec<u8>, harms: &[Harm]) -> Vec<u8> {
    for harm in harms {
        let at = |share: f64| (file.len() as f64 * share) as usize;
        match *harm {
            Harm::Truncate(share) => file.truncate(at(share)),
            Harm::Flip(share, bit) => {
                let at = at(share);
                if let Some(byte) = file.get_mut(at) {
                    *byte ^= 1 << bit;
                }
            }
            Harm::Lie(share, value, wide) => {
                let at = at(share);
                let bytes = &value.to_le_bytes()[..if wide { 8 } else { 4 }];
                for (place, byte) in file.iter_mut().skip(at).zip(bytes) {
                    *place = *byte;
                }
            }
            Harm::Remove(share, len) => {
                let start = at(share);
                file.drain(start..(start + len).min(file.len()));
            }
            Harm::Repeat(share, len) => {
                let start = at(share);
                let again = file[start..(start + len).min(file.len())].to_vec();
                file.splice(start..start, again);
            }
            Harm::Insert(share, byte, len) => {
                let at = at(share);
                file.splice(at..at, vec![byte; len]);
            }
        }
    }
    file
}

/// Runs `open` on a file of `size` bytes, and checks its time and memory.
fn within_bounds<T>(size: usize, open: impl FnOnce() -> T) -> Result<T, TestCaseError> {
    let before = NOW.load(Relaxed);
    MOST.store(before, Relaxed);
    let start = Instant::now();
    let result = open();
    let took = start.elapsed();
    let most = MOST.load(Relaxed) - before;
    prop_assert!(most <= size + BEYOND, "{} bytes allocated for a file of {}", most, size);
    prop_assert!(took < LONGEST, "opening and using the file took {:?}; at most {:?} are allowed", took, LONGEST);
    Ok(result)
}

/// Uses a model that opened: builds its tokenizer and decodes every row of every tensor.
fn use_model(checkpoint: &Checkpoint) {
    let _ = checkpoint.tokenizer().map(|tokenizer| tokenizer.encode_with_control("<|start|>a test 123"));
    let _ = checkpoint.fingerprint();
    for (name, tensor) in &checkpoint.tensors {
        let _ = check_values(&checkpoint.path, name, tensor);
    }
}

fn gguf() -> Vec<u8> {
    let case = Case::committed().into_iter().find(|case| case.name == "ties").expect("a small case");
    std::fs::read(case.model()).expect("the case's model")
}

fn folder(name: &str) -> BTreeMap<String, Bytes> {
    let folder = Folder::committed().into_iter().find(|folder| folder.name == name).expect("a folder");
    let files = std::fs::read_dir(&folder.path).expect("readable").map(|entry| {
        let path = entry.expect("readable").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        (name, std::fs::read(&path).expect("readable").into())
    });
    files.collect()
}

/// A session and its file.
fn session() -> (SavedSession, Vec<u8>) {
    let header = SessionHeader {
        model: "0123456789abcdef".into(),
        rope: "exact".into(),
        cache: "f16".into(),
        engine: "phase 3".into(),
        tokens: (0..50).collect(),
        length: 49,
    };
    let items = (1..5u8).map(|i| vec![i; usize::from(i) * 100].into()).collect();
    let saved = SavedSession { header, items };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("session");
    saved.write(&path).expect("written");
    assert_eq!(SavedSession::open(&path).expect("opens"), saved);
    let file = std::fs::read(&path).expect("readable");
    (saved, file)
}

fn check_gguf(harms: &[Harm]) -> Result<(), TestCaseError> {
    let file = Bytes::from(harmed(gguf(), harms));
    within_bounds(file.len(), || {
        Checkpoint::from_bytes("harmed", file.clone()).map(|model| use_model(&model)).is_ok()
    })?;
    Ok(())
}

fn check_folder(name: &str, file: &str, harms: &[Harm]) -> Result<(), TestCaseError> {
    let mut files = folder(name);
    let whole = files[file].to_vec();
    files.insert(file.to_owned(), harmed(whole, harms).into());
    let size = files.values().map(Bytes::len).sum();
    within_bounds(size, || Checkpoint::from_folder_bytes("harmed", &files).map(|model| use_model(&model)).is_ok())?;
    Ok(())
}

fn check_session(harms: &[Harm]) -> Result<(), TestCaseError> {
    let (saved, file) = session();
    let file = Bytes::from(harmed(file, harms));
    let opened = within_bounds(file.len(), || SavedSession::from_bytes(Path::new("harmed"), file).ok())?;
    // A damaged file may open only if its contents are unchanged, for example because one change undid another.
    prop_assert!(opened.is_none_or(|opened| opened == saved), "the damage was not detected");
    Ok(())
}

/// The allocator counts for the whole process, so there is only one test.
#[test]
fn mutated_files_never_panic_or_overallocate() {
    // `PROPTEST_CASES` can raise the number of cases above 2000.
    let cases = ProptestConfig::default().cases.max(2000);
    let config = || ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let harms = || prop::collection::vec(harm(), 1..4);
    proptest!(config(), |(harms in harms())| check_gguf(&harms)?);
    proptest!(config(), |(harms in harms())| check_session(&harms)?);
    let files = prop::sample::select(vec![
        ("hf", "model-00001-of-00002.safetensors"),
        ("hf", "model.safetensors.index.json"),
        ("hf", "config.json"),
        ("hf", "tokenizer.json"),
        ("mlx-q8", "model.safetensors"),
        ("mlx-q4", "config.json"),
        ("mlx-q8", "tokenizer.json"),
    ]);
    proptest!(config(), |((name, file) in files, harms in harms())| check_folder(name, file, &harms)?);
}

//! Session files: their contents, their checks, and the errors of those that are refused.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use bytes::Bytes;
use phase1_loading::{SavedSession, SessionHeader};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::json;
use twox_hash::XxHash3_64;

use crate::made;

fn small_session() -> SavedSession {
    let header = SessionHeader {
        model: "m".into(),
        rope: "exact".into(),
        cache: "f32".into(),
        engine: "phase 3".into(),
        tokens: vec![1, 2, 3],
        length: 2,
    };
    SavedSession { header, items: vec![Bytes::from_static(b"keys"), Bytes::from_static(b"values")] }
}

fn written(saved: &SavedSession) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("session");
    saved.write(&path).expect("written");
    std::fs::read(&path).expect("readable")
}

/// A session file, read and written with the safetensors crate.
struct Plain {
    texts: HashMap<String, String>,
    /// Type, shape and bytes by name.
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl Plain {
    fn of(file: &[u8]) -> Plain {
        let (_, header) = SafeTensors::read_metadata(file).expect("a safetensors file");
        let tensors = SafeTensors::deserialize(file).expect("a safetensors file").tensors().into_iter();
        Plain {
            texts: header.metadata().clone().expect("metadata"),
            tensors: tensors
                .map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
                .collect(),
        }
    }

    fn file(&self) -> Vec<u8> {
        let views = self.tensors.iter().map(|(name, (dtype, shape, data))| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), data).expect("as long as its shape"))
        });
        safetensors::serialize(views, Some(self.texts.clone())).expect("serializes")
    }
}

fn digits(bytes: &[u8]) -> String {
    format!("{:016x}", XxHash3_64::oneshot(bytes))
}

/// The bytes of [`small_session`] that the checksum of the header covers.
fn header_parts(contents_checksum: &str) -> Vec<u8> {
    let texts = ["gptoss session", "6", "m", "exact", "f32", "phase 3", "2", contents_checksum];
    let mut parts: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    parts.push(vec![1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]);
    for (name, length) in [("item.00000", 4u64), ("item.00001", 6)] {
        parts.push(name.as_bytes().to_vec());
        parts.push(length.to_le_bytes().to_vec());
    }
    parts.iter().flat_map(|part| [&(part.len() as u64).to_le_bytes()[..], part].concat()).collect()
}

/// A session can be read by any program that reads safetensors files.
#[test]
fn a_session_is_a_safetensors_file() {
    let file = written(&small_session());
    let Plain { texts, tensors } = Plain::of(&file);
    let contents = digits(b"keysvalues");
    let header = digits(&header_parts(&contents));
    let expected: [(&str, &str); 9] = [
        ("format", "gptoss session"),
        ("version", "6"),
        ("model", "m"),
        ("rope", "exact"),
        ("cache", "f32"),
        ("engine", "phase 3"),
        ("cached_tokens", "2"),
        ("header_checksum", &header),
        ("contents_checksum", &contents),
    ];
    assert_eq!(texts, HashMap::from(expected.map(|(key, text)| (key.to_owned(), text.to_owned()))));
    let expected = [
        ("item.00000", (Dtype::U8, vec![4], b"keys".to_vec())),
        ("item.00001", (Dtype::U8, vec![6], b"values".to_vec())),
        ("tokens", (Dtype::U32, vec![3], vec![1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0])),
    ];
    assert_eq!(tensors, BTreeMap::from(expected.map(|(name, tensor)| (name.to_owned(), tensor))));
    // The JSON is padded so that the tokens are aligned, and it is the same in every run.
    assert_eq!((file.len() - 22) % 8, 0);
    assert_eq!(written(&small_session()), file);
}

/// As many items as an engine with many layers writes, some of them empty, keep their order.
#[test]
fn saved_sessions_round_trip() {
    let mut saved = small_session();
    saved.items = (0..300).map(|number: u32| Bytes::from(vec![number as u8; number as usize % 7])).collect();
    let nothing = SavedSession {
        header: SessionHeader { tokens: Vec::new(), length: 0, model: "\"\\\n é".into(), ..saved.header.clone() },
        items: Vec::new(),
    };
    for saved in [small_session(), saved, nothing] {
        let file = written(&saved);
        assert_eq!(saved.file_bytes(), file.len() as u64);
        assert_eq!(SavedSession::from_bytes(Path::new("session"), file.into()).expect("opens"), saved);
    }
}

/// Other programs may write metadata and tensors in another order, and format JSON differently.
#[test]
fn session_file_order_does_not_matter() {
    let Plain { texts, .. } = Plain::of(&written(&small_session()));
    let rewritten = |names: [&str; 2]| {
        let json = json!({
            names[0]: { "shape": [6], "dtype": "U8", "data_offsets": [0, 6] },
            "tokens": { "dtype": "U32", "data_offsets": [10, 22], "shape": [3] },
            names[1]: { "data_offsets": [6, 10], "dtype": "U8", "shape": [4] },
            "__metadata__": &texts,
        });
        let json = serde_json::to_string_pretty(&json).expect("JSON");
        let length = (json.len() as u64).to_le_bytes();
        let file = [&length[..], json.as_bytes(), b"valueskeys", &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]].concat();
        SavedSession::from_bytes(Path::new("session"), file.into())
    };
    assert_eq!(rewritten(["item.00001", "item.00000"]).expect("opens"), small_session());
    // Swapped names of items are detected.
    rewritten(["item.00000", "item.00001"]).expect_err("refused");
}

/// The header can be read without the items, for listing files.
#[test]
fn session_header_is_read_without_items() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("session");
    let saved = small_session();
    saved.write(&path).expect("written");
    let file = std::fs::read(&path).expect("readable");
    assert_eq!(SessionHeader::open(&path).expect("opens"), saved.header);

    // The items are the last 10 bytes.
    let items = file.len() - 10;
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
    for at in items..file.len() {
        let mut damaged = file.clone();
        damaged[at] ^= 1;
        std::fs::write(&path, damaged).expect("written");
        assert_eq!(SessionHeader::open(&path).expect("opens"), saved.header);
        assert!(SavedSession::open(&path).is_err(), "byte {at}");
    }
}

fn refusal(file: Vec<u8>) -> String {
    SavedSession::from_bytes(Path::new("lying"), file.into()).expect_err("refused").to_string()
}

#[test]
fn other_files_are_refused_as_sessions() {
    let model = made::files("hf")["model-00001-of-00002.safetensors"].to_vec();
    let tensor = TensorView::new(Dtype::U8, vec![1], b"x").expect("a byte");
    let without_texts = safetensors::serialize([("a", tensor)], None).expect("serializes");
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 7\n";
    let cases: [(&[u8], &str); 9] = [
        (b"", "a session file, found 0 bytes (truncated?)"),
        (b"\x40\0\0", "a session file, found 3 bytes (truncated?)"),
        (b"[package]\nname = \"gptoss\"\n", "a session file, found another kind of file"),
        (b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0", "a session file, found a GGUF file"),
        (pointer, "a session file, found a Git LFS pointer to a file of 7 bytes; `git lfs pull` fetches it"),
        (&model, "a session file, found another safetensors file"),
        (&without_texts, "a session file, found another safetensors file"),
        (b"GPTOSSKV\x05\0\0\0\x01\0\0\0m", "version 6, found version 5 of another gptoss; begin a new file"),
        (b"GPTOSSKV\x05", "version 6, found version ? of another gptoss; begin a new file"),
    ];
    for (file, message) in cases {
        assert_eq!(refusal(file.to_vec()), format!("lying: header: expected {message}"));
    }
}

#[test]
fn inconsistent_sessions_are_refused_by_name() {
    let file = written(&small_session());
    let lie = |change: &dyn Fn(&mut Plain)| {
        let mut plain = Plain::of(&file);
        change(&mut plain);
        refusal(plain.file())
    };
    let text = |key: &str, text: &str| lie(&|plain| _ = plain.texts.insert(key.into(), text.into()));
    let no_text = |key: &str| lie(&|plain| _ = plain.texts.remove(key));
    let tensor = |name: &str, dtype: Dtype, shape: &[usize], data: &[u8]| {
        lie(&|plain| _ = plain.tensors.insert(name.into(), (dtype, shape.to_vec(), data.to_vec())))
    };
    let no_tensor = |name: &str| lie(&|plain| _ = plain.tensors.remove(name));
    let cases = [
        (text("version", "7"), "header: expected version 6, found version 7 of another gptoss; begin a new file"),
        (no_text("version"), "metadata `version`: expected a text, found none"),
        (no_text("rope"), "metadata `rope`: expected a text, found none"),
        (no_text("header_checksum"), "metadata `header_checksum`: expected a text, found none"),
        (no_text("contents_checksum"), "metadata `contents_checksum`: expected a text, found none"),
        (text("cached_tokens", "4"), "metadata `cached_tokens`: expected at most 3, the number of tokens, found 4"),
        (text("cached_tokens", "-1"), "metadata `cached_tokens`: expected at most 3, the number of tokens, found -1"),
        (text("cached_tokens", ""), "metadata `cached_tokens`: expected at most 3, the number of tokens, found "),
        (no_tensor("tokens"), "tensor `tokens`: expected a tensor of this name, found none"),
        (no_tensor("item.00000"), "tensor `item.00000`: expected a tensor of this name, found none"),
        (tensor("notes", Dtype::U8, &[1], b"x"), "tensor `item.00002`: expected a tensor of this name, found none"),
        (
            tensor("tokens", Dtype::I32, &[3], &[0; 12]),
            "tensor `tokens`: expected U32 of one dimension, found I32 of shape [3]",
        ),
        (
            tensor("tokens", Dtype::U32, &[3, 1], &[0; 12]),
            "tensor `tokens`: expected U32 of one dimension, found U32 of shape [3, 1]",
        ),
        (
            tensor("item.00001", Dtype::I8, &[6], b"values"),
            "tensor `item.00001`: expected U8 of one dimension, found I8 of shape [6]",
        ),
        (
            tensor("item.00001", Dtype::U8, &[2, 3], b"values"),
            "tensor `item.00001`: expected U8 of one dimension, found U8 of shape [2, 3]",
        ),
    ];
    for (found, message) in cases {
        assert_eq!(found, format!("lying: {message}"));
    }
    // More cached tokens than tokens.
    let mut saved = small_session();
    saved.header.length = 4;
    let found = refusal(written(&saved));
    assert_eq!(found, "lying: metadata `cached_tokens`: expected at most 3, the number of tokens, found 4");
}

/// Damage that leaves the structure valid is detected by the checksums.
#[test]
fn damaged_sessions_fail_their_checksum() {
    let file = written(&small_session());
    let (header, contents) = (digits(&header_parts(&digits(b"keysvalues"))), digits(b"keysvalues"));
    let damage = |key: &str, right: &str, wrong: &str| {
        format!("lying: metadata `{key}`: expected {right}, found {wrong} (a damaged file)")
    };

    let mut flipped = file.clone();
    *flipped.last_mut().expect("not empty") ^= 1;
    assert_eq!(refusal(flipped), damage("contents_checksum", &digits(b"keysvaluer"), &contents));

    // With a changed token or a changed checksum of the items, the header's checksum is wrong, since it covers both.
    let mut plain = Plain::of(&file);
    plain.tensors.get_mut("tokens").expect("there").2[0] = 7;
    let mut parts = header_parts(&contents);
    let tokens = parts.windows(12).position(|bytes| bytes == [1u8, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]).expect("there");
    parts[tokens] = 7;
    assert_eq!(refusal(plain.file()), damage("header_checksum", &digits(&parts), &header));
    let mut plain = Plain::of(&file);
    plain.texts.insert("contents_checksum".into(), "0".repeat(16));
    let right = digits(&header_parts(&"0".repeat(16)));
    assert_eq!(refusal(plain.file()), damage("header_checksum", &right, &header));
    // With the header's checksum corrected, that of the items is wrong.
    plain.texts.insert("header_checksum".into(), right);
    assert_eq!(refusal(plain.file()), damage("contents_checksum", &contents, &"0".repeat(16)));
    // Errors quote only the beginning of a long text.
    plain.texts.insert("header_checksum".into(), "x".repeat(10_000));
    assert!(refusal(plain.file()).ends_with(&format!("found {} (a damaged file)", "x".repeat(100))));
}

/// Lengths that exceed the file are refused, and nothing is read or allocated for them.
#[test]
fn claimed_sizes_beyond_a_session_file_are_refused() {
    let file = written(&small_session());
    let length = file.len();
    let longer = [&file[..], b"x"].concat();
    let mut huge = file.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let claims = |tensors: &str| {
        let json = format!("{{\"__metadata__\":{{\"format\":\"gptoss session\"}},{tensors}}}");
        [&(json.len() as u64).to_le_bytes()[..], json.as_bytes()].concat()
    };
    let end = 1u64 << 60;
    let many = format!("\"tokens\":{{\"dtype\":\"U32\",\"shape\":[{}],\"data_offsets\":[0,{end}]}}", end / 4);
    let overflow = "\"tokens\":{\"dtype\":\"U32\",\"shape\":[18446744073709551615],\"data_offsets\":[0,4]}";
    let cases = [
        (
            file[..length - 1].to_vec(),
            "tensor `item.00001`: expected data inside the file, found bytes 16 to 22 of 21 (truncated?)".to_owned(),
        ),
        (
            file[..100].to_vec(),
            format!(
                "header: expected a header inside the file, found a header of {} bytes in a file of 100 (truncated?)",
                length - 22 - 8
            ),
        ),
        (
            longer,
            "header: expected as much data as the header describes, found 23 bytes of data instead of 22".into(),
        ),
        (
            huge,
            format!(
                "header: expected a header inside the file, found a header of {} bytes in a file of {length} (truncated?)",
                u64::MAX
            ),
        ),
        (
            claims(&many),
            format!("tensor `tokens`: expected data inside the file, found bytes 0 to {end} of 0 (truncated?)"),
        ),
        (
            claims(overflow),
            "header: expected the names, types, shapes and offsets of tensors, found overflow computing buffer size from \
             shape and/or element type"
                .into(),
        ),
    ];
    for (file, message) in cases {
        assert_eq!(refusal(file), format!("lying: {message}"));
    }
}

//! A GGUF file that is split into parts like those of `llama-gguf-split`: tensors are distributed, metadata is in the first part.

use std::path::Path;

use crate::folders::{all_identical, compare};
use bytes::Bytes;
use gptoss_reference::Case;
use phase1_loading::Checkpoint;

/// Writes a part with some of the tensors, and with the whole file's metadata if it is the first part.
fn write(path: &Path, whole: &[u8], number: u16, count: u16) {
    // The whole file is version 3 with counts at offsets 8 and 16; its metadata is copied unchanged.
    let checkpoint = Checkpoint::from_bytes("whole", Bytes::copy_from_slice(whole)).expect("opens");
    let names: Vec<&String> = checkpoint.tensors.keys().skip(number.into()).step_by(count.into()).collect();
    let first_tensor = "token_embd.weight";
    let mut needle = (first_tensor.len() as u64).to_le_bytes().to_vec();
    needle.extend(first_tensor.bytes());
    let descriptions = whole.windows(needle.len()).position(|window| window == needle).expect("described first");
    let entries = u64::from_le_bytes(whole[16..24].try_into().expect("eight bytes"));
    let (metadata, entries) = if number == 0 { (&whole[24..descriptions], entries) } else { (&[][..], 0) };
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend((names.len() as u64).to_le_bytes());
    file.extend((entries + 3).to_le_bytes());
    file.extend(metadata);
    let tensors = checkpoint.tensors.len() as u16;
    for (key, value) in [("split.no", number), ("split.count", count), ("split.tensors.count", tensors)] {
        file.extend((key.len() as u64).to_le_bytes());
        file.extend(key.bytes());
        file.extend(2u32.to_le_bytes());
        file.extend(value.to_le_bytes());
    }
    let mut offset = 0u64;
    for name in &names {
        let tensor = checkpoint.tensor(name);
        file.extend((name.len() as u64).to_le_bytes());
        file.extend(name.bytes());
        file.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|&dim| file.extend((dim as u64).to_le_bytes()));
        file.extend(tensor.format.ggml_type().expect("a format of GGUF").to_le_bytes());
        file.extend(offset.to_le_bytes());
        offset += (tensor.bytes() as u64).next_multiple_of(32);
    }
    for name in &names {
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(&checkpoint.tensor(name).packed()[..]);
    }
    std::fs::write(path, file).expect("written");
}

#[test]
fn split_parts_open_as_one_model() {
    let whole = std::fs::read(Case::committed()[0].model()).expect("readable");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |number: u16| directory.path().join(format!("model-{:05}-of-00003.gguf", number + 1));
    (0..3).for_each(|number| write(&path(number), &whole, number, 3));
    let found = Checkpoint::open(&path(0)).expect("opens");
    let expected = Checkpoint::from_bytes("whole", whole.clone().into()).expect("opens");
    assert!(all_identical(&compare(&expected, &found)));

    // Any part may be named.
    for number in 1..3 {
        let found = Checkpoint::open(&path(number)).expect("opens");
        assert!(all_identical(&compare(&expected, &found)));
        assert_eq!(found.path, path(0));
    }

    let refusal = |path: &Path| Checkpoint::open(path).err().expect("refused").to_string();
    let first = std::fs::read(path(0)).expect("readable");
    let mut needle = b"split.tensors.count".to_vec();
    needle.extend(2u32.to_le_bytes());
    let at = first.windows(needle.len()).position(|window| window == needle).expect("the metadata has the key")
        + needle.len();
    let mut other = first.clone();
    other[at..at + 2].copy_from_slice(&999u16.to_le_bytes());
    std::fs::write(path(0), other).expect("written");
    let message = refusal(&path(2));
    assert!(message.contains("`split.tensors.count`: expected the ") && message.ends_with("found 999"), "{message}");
    std::fs::write(path(0), first).expect("written");
    std::fs::copy(path(1), path(2)).expect("copied");
    assert!(refusal(&path(0)).contains("`split.no`"), "{}", refusal(&path(0)));
    std::fs::remove_file(path(2)).expect("removed");
    assert!(refusal(&path(0)).contains("model-00003-of-00003.gguf cannot be read"), "{}", refusal(&path(0)));
    let renamed = directory.path().join("model.gguf");
    std::fs::rename(path(0), &renamed).expect("renamed");
    assert!(refusal(&renamed).contains("-00001-of-00003.gguf"), "{}", refusal(&renamed));
    assert!(refusal(&path(1)).contains("model-00001-of-00003.gguf cannot be read"), "{}", refusal(&path(1)));
}

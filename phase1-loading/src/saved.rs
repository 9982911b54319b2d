//! Session files: the tokens of a conversation and the engine's cache for them.
//!
//! A session file is a safetensors file. The tensor `tokens`, U32 `[tokens]`, holds the tokens. The engine's cache is a list of items, each
//! a tensor of bytes, U8 `[bytes]`, named `item.00000`, `item.00001` and so on. Only the engine interprets them: the cached engine of
//! phase 3 and the GPU engine of phase 5 write the keys and the values of each layer as two items, the CPU engine of phase 5 writes one
//! item per layer.
//!
//! `__metadata__` names the model, the YaRN ramp, the cache type and the engine with which the file can be used, and has two checksums,
//! XXH3 in 16 hexadecimal digits. `contents_checksum` covers the items' bytes in order. `header_checksum` covers the following, each part
//! preceded by its length in bytes (u64, little-endian): the metadata `format`, `version`, `model`, `rope`, `cache`, `engine`,
//! `cached_tokens` and `contents_checksum`; the bytes of `tokens`; the name and the length (u64, little-endian) of each item.
//!
//! The header and the tokens can be read and checked without the items, so that many files are listed quickly.

use std::hash::Hasher;
use std::io::Write;
use std::path::Path;

use bytes::Bytes;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use twox_hash::XxHash3_64;

use crate::error::{Defect, LoadError};
use crate::mapping::{map, write_whole};
use crate::mistaken::stand_in;
use crate::safetensors_file::{self, Parts, excerpt, title};

/// Distinguishes session files from other safetensors files.
const FORMAT: &str = "gptoss session";
/// The format's version. Since version 6, a session file is a safetensors file.
const VERSION: &str = "6";
/// Before version 6, a file began with these bytes, followed by its version as u32.
const MAGIC_BEFORE: &[u8; 8] = b"GPTOSSKV";
const TOKENS: &str = "tokens";

/// The header of a session file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionHeader {
    /// [`crate::Checkpoint::fingerprint`] of the model.
    pub model: String,
    /// The name of YaRN's ramp.
    pub rope: String,
    /// The name of the cache type.
    pub cache: String,
    /// The kind of engine that wrote the items.
    pub engine: String,
    /// Every token of the conversation so far.
    pub tokens: Vec<u32>,
    /// Number of tokens, from the first, that are in the cache.
    pub length: usize,
}

/// The contents of a session file.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedSession {
    pub header: SessionHeader,
    /// The items, as the engine returned them.
    pub items: Vec<Bytes>,
}

impl SessionHeader {
    /// Reads and checks the header and the tokens. The lengths of the items are checked, but not their contents; [`SavedSession::open`]
    /// checks these too.
    ///
    /// # Errors
    /// The file cannot be read, is not a session file, has another version, a damaged header, or another length than the header describes.
    pub fn open(path: &Path) -> Result<SessionHeader, LoadError> {
        let file = map(path, "a session file")?;
        let (saved, _) = SavedSession::with_unchecked_items(&file).map_err(|defect| defect.in_file(path))?;
        Ok(saved.header)
    }
}

impl SavedSession {
    /// Maps and checks a session file.
    ///
    /// # Errors
    /// The file cannot be read, is not a session file, has another version, or is damaged.
    pub fn open(path: &Path) -> Result<SavedSession, LoadError> {
        Self::from_bytes(path, map(path, "a session file")?)
    }

    /// As [`SavedSession::open`], for a file in memory; `path` names it in errors.
    ///
    /// # Errors
    /// As [`SavedSession::open`].
    pub fn from_bytes(path: &Path, file: Bytes) -> Result<SavedSession, LoadError> {
        Self::read(&file).map_err(|defect| defect.in_file(path))
    }

    /// Writes the file under a temporary name and renames it when it is complete.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), LoadError> {
        let contents = self.contents_checksum();
        let header = self.file_header(&self.header_checksum(&contents), &contents);
        let result = write_whole(path, |out| {
            out.write_all(&header)?;
            out.write_all(&token_bytes(&self.header.tokens))?;
            self.items.iter().try_for_each(|item| out.write_all(item))
        });
        result.map_err(|source| LoadError::Unwritten { path: path.to_owned(), source })
    }

    /// The size in bytes of the file that [`SavedSession::write`] writes.
    pub fn file_bytes(&self) -> u64 {
        // The length of a header does not depend on the checksums in it.
        let any = checksum_of(&[]);
        let items: usize = self.items.iter().map(Bytes::len).sum();
        (self.file_header(&any, &any).len() + 4 * self.header.tokens.len() + items) as u64
    }

    fn read(file: &Bytes) -> Result<SavedSession, Defect> {
        let (saved, contents) = Self::with_unchecked_items(file)?;
        check_sum("contents_checksum", &contents, &saved.contents_checksum())?;
        Ok(saved)
    }

    /// The contents of a file, and the checksum that the items must have. The items' bytes are not read.
    fn with_unchecked_items(file: &Bytes) -> Result<(SavedSession, String), Defect> {
        check_kind(file)?;
        let (metadata, mut parts) = safetensors_file::read(file)?;
        let texts = metadata.metadata().as_ref();
        let text = |key: &str| texts.and_then(|texts| texts.get(key)).map(String::as_str);
        if text("format") != Some(FORMAT) {
            return Err(Defect::new("header", "a session file", "another safetensors file"));
        }
        let text = |key: &str| text(key).ok_or_else(|| Defect::new(metadata_title(key), "a text", "none"));
        let version = text("version")?;
        if version != VERSION {
            return Err(other_version(version));
        }

        let tokens = take(&mut parts, TOKENS, Dtype::U32)?;
        let tokens: Vec<u32> = tokens.as_chunks().0.iter().map(|&token| u32::from_le_bytes(token)).collect();
        let mut items = Vec::new();
        for number in 0..parts.len() {
            items.push(take(&mut parts, &item_name(number), Dtype::U8)?);
        }
        let cached = text("cached_tokens")?;
        let length = cached.parse::<usize>().ok().filter(|&length| length <= tokens.len()).ok_or_else(|| {
            let expected = format!("at most {}, the number of tokens", tokens.len());
            Defect::new(metadata_title("cached_tokens"), expected, excerpt(cached))
        })?;
        let [model, rope, cache, engine] =
            [text("model")?, text("rope")?, text("cache")?, text("engine")?].map(str::to_owned);
        let header = SessionHeader { model, rope, cache, engine, tokens, length };

        let saved = SavedSession { header, items };
        let contents = text("contents_checksum")?;
        check_sum("header_checksum", text("header_checksum")?, &saved.header_checksum(contents))?;
        Ok((saved, contents.to_owned()))
    }

    /// The beginning of a file, up to the tokens: the length of the JSON, and the JSON, which ends in spaces so that the tokens are
    /// aligned.
    fn file_header(&self, header_checksum: &str, contents_checksum: &str) -> Vec<u8> {
        let SessionHeader { model, rope, cache, engine, tokens, length } = &self.header;
        let cached_tokens = length.to_string();
        let texts: [(&str, &str); 9] = [
            ("format", FORMAT),
            ("version", VERSION),
            ("model", model),
            ("rope", rope),
            ("cache", cache),
            ("engine", engine),
            ("cached_tokens", &cached_tokens),
            ("header_checksum", header_checksum),
            ("contents_checksum", contents_checksum),
        ];
        let texts = texts.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let items = self.items.iter().enumerate().map(|(number, item)| (item_name(number), Dtype::U8, item.len()));
        let tokens = (TOKENS.to_owned(), Dtype::U32, tokens.len());
        let mut end = 0;
        // The widest type comes first, as other programs write it, so that every tensor is aligned.
        let tensors = std::iter::once(tokens).chain(items).map(|(name, dtype, count)| {
            let start = end;
            end += count * dtype.bitsize() / 8;
            (name, TensorInfo { dtype, shape: vec![count], data_offsets: (start, end) })
        });
        let metadata = Metadata::new(Some(texts.into()), tensors.collect()).expect("the tensors are contiguous");
        let mut json = serde_json::to_value(&metadata).expect("texts and numbers");
        // Without sorting, the order of the metadata would differ from run to run.
        json.sort_all_objects();
        let mut json = json.to_string().into_bytes();
        json.resize(json.len().next_multiple_of(8), b' ');
        [&(json.len() as u64).to_le_bytes()[..], &json].concat()
    }

    /// `header_checksum`, as the module's documentation defines it.
    fn header_checksum(&self, contents_checksum: &str) -> String {
        let SessionHeader { model, rope, cache, engine, tokens, length } = &self.header;
        let cached_tokens = length.to_string();
        let texts: [&str; 8] = [FORMAT, VERSION, model, rope, cache, engine, &cached_tokens, contents_checksum];
        let mut parts: Vec<u8> = Vec::new();
        let mut add = |part: &[u8]| {
            parts.extend((part.len() as u64).to_le_bytes());
            parts.extend(part);
        };
        texts.iter().for_each(|text| add(text.as_bytes()));
        add(&token_bytes(tokens));
        for (number, item) in self.items.iter().enumerate() {
            add(item_name(number).as_bytes());
            add(&(item.len() as u64).to_le_bytes());
        }
        checksum_of(&[Bytes::from(parts)])
    }

    fn contents_checksum(&self) -> String {
        checksum_of(&self.items)
    }
}

fn item_name(number: usize) -> String {
    format!("item.{number:05}")
}

fn token_bytes(tokens: &[u32]) -> Vec<u8> {
    tokens.iter().flat_map(|token| token.to_le_bytes()).collect()
}

/// XXH3 of all parts in order.
fn checksum_of(parts: &[Bytes]) -> String {
    let mut sum = XxHash3_64::new();
    for part in parts {
        Hasher::write(&mut sum, part);
    }
    format!("{:016x}", sum.finish())
}

/// The name of a metadata entry in errors.
fn metadata_title(key: &str) -> String {
    format!("metadata `{key}`")
}

/// Takes the data of a tensor of one dimension.
fn take(parts: &mut Parts, name: &str, dtype: Dtype) -> Result<Bytes, Defect> {
    let part = parts.remove(name).ok_or_else(|| Defect::new(title(name), "a tensor of this name", "none"))?;
    match part.dtype == dtype && part.shape.len() == 1 {
        true => Ok(part.data),
        false => {
            let found = format!("{} of shape {:?}", part.dtype, part.shape);
            Err(Defect::new(title(name), format!("{dtype} of one dimension"), found))
        }
    }
}

/// Refuses a file that cannot be a safetensors file, with its actual kind in the error.
fn check_kind(file: &[u8]) -> Result<(), Defect> {
    if let Some(rest) = file.strip_prefix(MAGIC_BEFORE) {
        let version = rest.first_chunk::<4>().map(|&version| u32::from_le_bytes(version).to_string());
        return Err(other_version(version.as_deref().unwrap_or("?")));
    }
    let found = match file.get(8) {
        Some(b'{') => return Ok(()),
        None => format!("{} bytes (truncated?)", file.len()),
        Some(_) if file.starts_with(b"GGUF") => "a GGUF file".into(),
        Some(_) => stand_in(file).unwrap_or_else(|| "another kind of file".into()),
    };
    Err(Defect::new("header", "a session file", found))
}

fn other_version(version: &str) -> Defect {
    let found = format!("version {} of another gptoss; begin a new file", excerpt(version));
    Defect::new("header", format!("version {VERSION}"), found)
}

/// Compares the checksum `found` in the metadata with the computed one, `expected`.
fn check_sum(key: &str, found: &str, expected: &str) -> Result<(), Defect> {
    match found == expected {
        true => Ok(()),
        false => Err(Defect::new(metadata_title(key), expected, format!("{} (a damaged file)", excerpt(found)))),
    }
}

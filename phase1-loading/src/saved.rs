//! Session files: the tokens of a conversation and what an engine remembers of them.
//!
//! Little-endian: the magic bytes, a version, four texts (length as u32, bytes) that say what the file belongs to, the
//! tokens (count as u64, each u32), how many of them the engine has seen (u64), the engine's items (count as u32, the length
//! of each as u64, then their bytes), and an FNV-1a checksum of everything before it (u64).

use std::io::{self, Write};
use std::path::Path;

use bytes::Bytes;

use crate::cursor::Cursor;
use crate::error::{Defect, LoadError};
use crate::mapping::{map, write_whole};

const MAGIC: &[u8; 8] = b"GPTOSSKV";
/// 4: phase 5 saves pages.
const VERSION: u32 = 4;

/// What a session file holds.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedSession {
    /// [`crate::Checkpoint::fingerprint`] of the model.
    pub model: String,
    /// YaRN's ramp by name.
    pub rope: String,
    /// The cache's type by name.
    pub cache: String,
    /// The kind of engine whose items they are.
    pub form: String,
    /// Every token of the conversation so far.
    pub tokens: Vec<u32>,
    /// Tokens, from the first, that are in the cache.
    pub length: usize,
    /// The cache's contents, as the engine handed them over.
    pub items: Vec<Bytes>,
}

impl SavedSession {
    /// Maps and checks a session file.
    ///
    /// # Errors
    /// A file that cannot be read, is no session file, or is damaged.
    pub fn open(path: &Path) -> Result<SavedSession, LoadError> {
        Self::from_bytes(path, map(path, "a session file")?)
    }

    /// As [`SavedSession::open`], for a file in memory; `path` is what errors call it.
    ///
    /// # Errors
    /// As [`SavedSession::open`].
    pub fn from_bytes(path: &Path, file: Bytes) -> Result<SavedSession, LoadError> {
        Self::read(file).map_err(|defect| defect.in_file(path))
    }

    /// Writes the file under a temporary name and renames it when it is complete.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), LoadError> {
        let result = write_whole(path, |out| {
            let mut out = Summed { out, sum: Fnv::default() };
            out.write_all(MAGIC)?;
            out.write_all(&VERSION.to_le_bytes())?;
            for text in [&self.model, &self.rope, &self.cache, &self.form] {
                out.write_all(&(text.len() as u32).to_le_bytes())?;
                out.write_all(text.as_bytes())?;
            }
            out.write_all(&(self.tokens.len() as u64).to_le_bytes())?;
            for token in &self.tokens {
                out.write_all(&token.to_le_bytes())?;
            }
            out.write_all(&(self.length as u64).to_le_bytes())?;
            out.write_all(&(self.items.len() as u32).to_le_bytes())?;
            for item in &self.items {
                out.write_all(&(item.len() as u64).to_le_bytes())?;
            }
            for item in &self.items {
                out.write_all(item)?;
            }
            let sum = out.sum.0;
            out.out.write_all(&sum.to_le_bytes())
        });
        result.map_err(|source| LoadError::Unwritten { path: path.to_owned(), source })
    }

    fn read(file: Bytes) -> Result<SavedSession, Defect> {
        let mut cursor = Cursor::new(&file, "header");
        if cursor.take(8)? != MAGIC[..] {
            return Err(cursor.defect("the magic bytes `GPTOSSKV`", "other bytes"));
        }
        let version = cursor.u32()?;
        if version != VERSION {
            let found = format!("version {version} of another gptoss; begin a new file");
            return Err(cursor.defect(format!("version {VERSION}"), found));
        }
        let model = text(&mut cursor, "model")?;
        let rope = text(&mut cursor, "YaRN ramp")?;
        let cache = text(&mut cursor, "cache type")?;
        let form = text(&mut cursor, "kind of engine")?;
        cursor.part = "tokens".into();
        let count = cursor.u64()?;
        let tokens = cursor.take(count.saturating_mul(4))?;
        let tokens: Vec<u32> = tokens.as_chunks().0.iter().map(|&token| u32::from_le_bytes(token)).collect();
        cursor.part = "cached tokens".into();
        let length = cursor.u64()?;
        if length > count {
            return Err(cursor.defect(format!("at most the {count} tokens"), format!("{length}")));
        }
        cursor.part = "items".into();
        let count = cursor.u32()?;
        let lengths = cursor.take(u64::from(count) * 8)?;
        let mut items = Vec::new();
        for (number, &length) in lengths.as_chunks().0.iter().enumerate() {
            cursor.part = format!("item {number} of {count}");
            items.push(cursor.take(u64::from_le_bytes(length))?);
        }
        let end = cursor.position();
        cursor.part = "checksum".into();
        let found = cursor.u64()?;
        if cursor.left() > 0 {
            return Err(Defect::new("file", "its end behind the checksum", format!("{} more bytes", cursor.left())));
        }
        let mut sum = Fnv::default();
        sum.add(&file[..end]);
        if sum.0 != found {
            return Err(cursor.defect(format!("{:016x}", sum.0), format!("{found:016x} (a damaged file)")));
        }
        Ok(SavedSession { model, rope, cache, form, tokens, length: length as usize, items })
    }
}

/// A length and as many bytes of UTF-8.
fn text(cursor: &mut Cursor, part: &str) -> Result<String, Defect> {
    cursor.part = part.into();
    let len = cursor.u32()?;
    let bytes = cursor.take(len.into())?;
    String::from_utf8(bytes.to_vec()).map_err(|_| cursor.defect("text in UTF-8", "other bytes"))
}

/// The 64-bit FNV-1a hash: it finds damage, and tells models apart; it is no defence against malice.
pub(crate) struct Fnv(pub u64);

impl Default for Fnv {
    fn default() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    pub fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// Sums what passes.
struct Summed<'a, W> {
    out: &'a mut W,
    sum: Fnv,
}

impl<W: Write> Write for Summed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.sum.add(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

//! Session files: the tokens of a conversation and what an engine remembers of them.
//!
//! Little-endian. The header: the magic bytes, a version, four texts (length as u32, bytes) that say what the file belongs to, the
//! tokens (count as u64, each u32), how many of them the engine has seen (u64), and the lengths of the engine's items (count as u32,
//! each u64). Then XXH3 of the header (u64), the items' bytes, and XXH3 of everything before it (u64).
//!
//! A header can be read and checked without the items, so that many files are listed quickly.

use std::hash::Hasher;
use std::io::{self, Write};
use std::path::Path;

use bytes::Bytes;
use twox_hash::XxHash3_64;

use crate::cursor::Cursor;
use crate::error::{Defect, LoadError};
use crate::mapping::{map, write_whole};

const MAGIC: &[u8; 8] = b"GPTOSSKV";
/// 5: the header has a checksum of its own.
const VERSION: u32 = 5;
/// Of a checksum.
const SUM_BYTES: u64 = 8;

/// What a session file says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionHeader {
    /// [`crate::Checkpoint::fingerprint`] of the model.
    pub model: String,
    /// YaRN's ramp by name.
    pub rope: String,
    /// The cache's type by name.
    pub cache: String,
    /// The kind of engine whose items they are.
    pub engine: String,
    /// Every token of the conversation so far.
    pub tokens: Vec<u32>,
    /// Tokens, from the first, that are in the cache.
    pub length: usize,
}

/// What a session file holds.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedSession {
    pub header: SessionHeader,
    /// The cache's contents, as the engine handed them over.
    pub items: Vec<Bytes>,
}

impl SessionHeader {
    /// Reads and checks the header alone. The items are as long as it says; whether they are undamaged, [`SavedSession::open`] finds out.
    ///
    /// # Errors
    /// A file that cannot be read, is no session file, has a damaged header or another length.
    pub fn open(path: &Path) -> Result<SessionHeader, LoadError> {
        let file = map(path, "a session file")?;
        Self::read_alone(&file).map_err(|defect| defect.in_file(path))
    }

    fn read_alone(file: &Bytes) -> Result<SessionHeader, Defect> {
        let mut cursor = Cursor::new(file, "header");
        let (header, lengths) = Self::read(&mut cursor)?;
        let end = cursor.position();
        cursor.part = "checksum of the header".into();
        let sum = cursor.u64()?;
        check_sum(&cursor, sum, &file[..end])?;
        cursor.part = "items".into();
        let items = lengths.iter().fold(0u64, |sum, &length| sum.saturating_add(length));
        cursor.take(items)?;
        cursor.part = "checksum".into();
        cursor.take(SUM_BYTES)?;
        expect_end(&cursor)?;
        Ok(header)
    }

    /// The header, and the lengths of the items.
    fn read(cursor: &mut Cursor) -> Result<(SessionHeader, Vec<u64>), Defect> {
        if cursor.take(8)? != MAGIC[..] {
            return Err(cursor.defect("the magic bytes `GPTOSSKV`", "other bytes"));
        }
        let version = cursor.u32()?;
        if version != VERSION {
            let found = format!("version {version} of another gptoss; begin a new file");
            return Err(cursor.defect(format!("version {VERSION}"), found));
        }
        let model = text(cursor, "model")?;
        let rope = text(cursor, "YaRN ramp")?;
        let cache = text(cursor, "cache type")?;
        let engine = text(cursor, "kind of engine")?;
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
        let lengths = lengths.as_chunks().0.iter().map(|&length| u64::from_le_bytes(length)).collect();
        Ok((SessionHeader { model, rope, cache, engine, tokens, length: length as usize }, lengths))
    }

    fn write(&self, items: &[Bytes], out: &mut impl Write) -> io::Result<()> {
        out.write_all(MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        for text in [&self.model, &self.rope, &self.cache, &self.engine] {
            out.write_all(&(text.len() as u32).to_le_bytes())?;
            out.write_all(text.as_bytes())?;
        }
        out.write_all(&(self.tokens.len() as u64).to_le_bytes())?;
        for token in &self.tokens {
            out.write_all(&token.to_le_bytes())?;
        }
        out.write_all(&(self.length as u64).to_le_bytes())?;
        out.write_all(&(items.len() as u32).to_le_bytes())?;
        for item in items {
            out.write_all(&(item.len() as u64).to_le_bytes())?;
        }
        Ok(())
    }
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
            let mut header: Vec<u8> = Vec::new();
            self.header.write(&self.items, &mut header)?;
            let mut out = Summed { out, sum: XxHash3_64::new() };
            out.write_all(&header)?;
            out.write_all(&XxHash3_64::oneshot(&header).to_le_bytes())?;
            for item in &self.items {
                out.write_all(item)?;
            }
            let sum = out.sum.finish();
            out.out.write_all(&sum.to_le_bytes())
        });
        result.map_err(|source| LoadError::Unwritten { path: path.to_owned(), source })
    }

    /// The size in bytes of the file that [`SavedSession::write`] writes.
    pub fn file_bytes(&self) -> u64 {
        let SessionHeader { model, rope, cache, engine, tokens, .. } = &self.header;
        let texts: usize = [model, rope, cache, engine].iter().map(|text| 4 + text.len()).sum();
        let header = MAGIC.len() + 4 + texts + 8 + 4 * tokens.len() + 8 + 4 + 8 * self.items.len();
        let items: u64 = self.items.iter().map(|item| item.len() as u64).sum();
        header as u64 + SUM_BYTES + items + SUM_BYTES
    }

    fn read(file: Bytes) -> Result<SavedSession, Defect> {
        let mut cursor = Cursor::new(&file, "header");
        let (header, lengths) = SessionHeader::read(&mut cursor)?;
        // The last checksum counts the header in.
        cursor.part = "checksum of the header".into();
        cursor.take(SUM_BYTES)?;
        let mut items = Vec::new();
        for (number, &length) in lengths.iter().enumerate() {
            cursor.part = format!("item {number} of {}", lengths.len());
            items.push(cursor.take(length)?);
        }
        let end = cursor.position();
        cursor.part = "checksum".into();
        let sum = cursor.u64()?;
        expect_end(&cursor)?;
        check_sum(&cursor, sum, &file[..end])?;
        Ok(SavedSession { header, items })
    }
}

/// A length and as many bytes of UTF-8.
fn text(cursor: &mut Cursor, part: &str) -> Result<String, Defect> {
    cursor.part = part.into();
    let len = cursor.u32()?;
    let bytes = cursor.take(len.into())?;
    String::from_utf8(bytes.to_vec()).map_err(|_| cursor.defect("text in UTF-8", "other bytes"))
}

/// Whether `found`, which was just read, is the checksum of `bytes`.
fn check_sum(cursor: &Cursor, found: u64, bytes: &[u8]) -> Result<(), Defect> {
    let expected = XxHash3_64::oneshot(bytes);
    match found == expected {
        true => Ok(()),
        false => Err(cursor.defect(format!("{expected:016x}"), format!("{found:016x} (a damaged file)"))),
    }
}

fn expect_end(cursor: &Cursor) -> Result<(), Defect> {
    match cursor.left() {
        0 => Ok(()),
        left => Err(Defect::new("file", "its end behind the checksum", format!("{left} more bytes"))),
    }
}

/// Sums what passes.
struct Summed<'a, W> {
    out: &'a mut W,
    sum: XxHash3_64,
}

impl<W: Write> Write for Summed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        Hasher::write(&mut self.sum, &bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

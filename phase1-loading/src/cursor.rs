//! Reads a file sequentially and checks every length against the bytes that are left.

use std::ops::Range;

use bytes::Bytes;

use crate::error::Defect;

/// A position in a file, and the name of the part that is being read, for errors.
pub(crate) struct Cursor<'a> {
    file: &'a Bytes,
    at: usize,
    pub part: String,
}

impl<'a> Cursor<'a> {
    pub fn new(file: &'a Bytes, part: &str) -> Cursor<'a> {
        Cursor { file, at: 0, part: part.into() }
    }

    pub fn file(&self) -> &'a Bytes {
        self.file
    }

    /// Number of bytes already read.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Number of bytes left.
    fn left(&self) -> usize {
        self.file.len() - self.at
    }

    pub fn defect(&self, expected: impl Into<String>, found: impl Into<String>) -> Defect {
        Defect::new(self.part.clone(), expected, found)
    }

    /// The next `len` bytes, as a view of the file.
    pub fn take(&mut self, len: u64) -> Result<Bytes, Defect> {
        let place = self.advance(len)?;
        Ok(self.file.slice(place))
    }

    /// Passes over the next `len` bytes. For the hundreds of thousands of texts of a vocabulary, views would take tens of milliseconds.
    pub fn skip(&mut self, len: u64) -> Result<(), Defect> {
        self.advance(len).map(|_| ())
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Defect> {
        let place = self.advance(N as u64)?;
        Ok(self.file[place].try_into().expect("N bytes"))
    }

    /// Passes over the next `len` bytes and returns their place in the file.
    fn advance(&mut self, len: u64) -> Result<Range<usize>, Defect> {
        let left = self.left();
        if len > left as u64 {
            let found = format!("{left} bytes before the end of the file (truncated?)");
            return Err(self.defect(format!("{len} more bytes"), found));
        }
        let start = self.at;
        self.at += len as usize;
        Ok(start..self.at)
    }

    pub fn u32(&mut self) -> Result<u32, Defect> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Defect> {
        self.array().map(u64::from_le_bytes)
    }
}

//! Metadata values. Text and arrays are views of the file, checked once when the header is read.

use bytes::Bytes;

/// One metadata value. Integers of every width widen to 64 bits.
#[derive(Clone, Debug)]
pub enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(Bytes),
    Array(Array),
}

/// A homogeneous array, still packed as in the file.
#[derive(Clone, Debug)]
pub struct Array {
    pub(super) element: Element,
    pub(super) count: usize,
    pub(super) data: Bytes,
}

/// The types of values that are not arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    U64,
    I64,
    F64,
}

impl Element {
    pub const ARRAY: u32 = 9;

    pub fn from_number(number: u32) -> Option<Element> {
        use Element::*;
        Some(match number {
            0 => U8,
            1 => I8,
            2 => U16,
            3 => I16,
            4 => U32,
            5 => I32,
            6 => F32,
            7 => Bool,
            8 => Text,
            10 => U64,
            11 => I64,
            12 => F64,
            _ => return None,
        })
    }

    /// Bytes of one element; `None` for text, which has no fixed length.
    pub fn size(self) -> Option<usize> {
        use Element::*;
        match self {
            U8 | I8 | Bool => Some(1),
            U16 | I16 => Some(2),
            U32 | I32 | F32 => Some(4),
            U64 | I64 | F64 => Some(8),
            Text => None,
        }
    }

    /// Reads one fixed-size element from exactly [`Element::size`] bytes.
    pub fn read(self, bytes: &[u8]) -> Value {
        fn le<const N: usize>(bytes: &[u8]) -> [u8; N] {
            bytes.try_into().expect("as many bytes as the type has")
        }
        match self {
            Element::U8 => Value::Unsigned(bytes[0].into()),
            Element::I8 => Value::Signed((bytes[0] as i8).into()),
            Element::Bool => Value::Bool(bytes[0] != 0),
            Element::U16 => Value::Unsigned(u16::from_le_bytes(le(bytes)).into()),
            Element::I16 => Value::Signed(i16::from_le_bytes(le(bytes)).into()),
            Element::U32 => Value::Unsigned(u32::from_le_bytes(le(bytes)).into()),
            Element::I32 => Value::Signed(i32::from_le_bytes(le(bytes)).into()),
            Element::F32 => Value::Float(f32::from_le_bytes(le(bytes)).into()),
            Element::U64 => Value::Unsigned(u64::from_le_bytes(le(bytes))),
            Element::I64 => Value::Signed(i64::from_le_bytes(le(bytes))),
            Element::F64 => Value::Float(f64::from_le_bytes(le(bytes))),
            Element::Text => unreachable!("text is read by its length"),
        }
    }
}

impl Value {
    /// A non-negative integer of any width.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::Unsigned(v) => Some(v),
            Value::Signed(v) => v.try_into().ok(),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Text(text) => std::str::from_utf8(text).ok(),
            _ => None,
        }
    }

    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Value::Array(array) => Some(array),
            _ => None,
        }
    }

    /// The kind of this value, for error messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Unsigned(_) | Value::Signed(_) => "an integer",
            Value::Float(_) => "a float",
            Value::Bool(_) => "a boolean",
            Value::Text(_) => "text",
            Value::Array(_) => "an array",
        }
    }
}

impl Array {
    pub fn count(&self) -> usize {
        self.count
    }

    /// The elements of a text array as raw bytes; `None` for other arrays.
    pub fn texts(&self) -> Option<impl Iterator<Item = &[u8]>> {
        if self.element != Element::Text {
            return None;
        }
        let mut rest = &self.data[..];
        Some((0..self.count).map(move |_| {
            let (len, tail) = rest.split_first_chunk::<8>().expect("checked when read");
            let (text, tail) = tail.split_at(u64::from_le_bytes(*len) as usize);
            rest = tail;
            text
        }))
    }

    /// The elements of an array of numbers or booleans; `None` if the array holds text.
    pub fn scalars(&self) -> Option<impl Iterator<Item = Value>> {
        let size = self.element.size()?;
        Some(self.data.chunks_exact(size).map(|b| self.element.read(b)))
    }
}

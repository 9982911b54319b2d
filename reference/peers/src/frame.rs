//! Frames on a worker's pipes: a four-byte little-endian length, that many bytes of JSON and, in replies, a payload of f32.

use std::io::{ErrorKind, Read};

use crate::protocol::Header;

/// The largest accepted size of a reply's JSON part, in bytes.
const MAX_HEADER: u32 = 1 << 20;

pub(crate) struct Frame {
    pub header: Header,
    /// Has as many bytes as the header's field `bytes`.
    pub payload: Vec<u8>,
}

/// Why a frame could not be read.
#[derive(Debug, PartialEq)]
pub(crate) enum BadFrame {
    /// The worker closed its pipe between two frames.
    Ended,
    Invalid(String),
}

/// The bytes of a request.
pub(crate) fn encode(json: &[u8]) -> Vec<u8> {
    let length = u32::try_from(json.len()).expect("a step's tokens take less than 4 GiB");
    [&length.to_le_bytes()[..], json].concat()
}

/// Reads one reply, whose payload may have up to `most()` bytes. Memory grows with the bytes that arrive, not with the announced length.
///
/// # Errors
/// The pipe has ended or cannot be read, or the bytes are not a reply whose parts have the allowed sizes.
pub(crate) fn read(input: &mut impl Read, most: impl FnOnce() -> u64) -> Result<Frame, BadFrame> {
    let mut length = [0; 4];
    let found = fill(input, &mut length)?;
    if found == 0 {
        return Err(BadFrame::Ended);
    }
    if found < length.len() {
        return Err(BadFrame::Invalid("its reply broke off within a length".into()));
    }
    let length = u32::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err(BadFrame::Invalid(format!("its reply begins with a length of {length} bytes")));
    }
    let json = bytes(input, length.into())?;
    let header: Header = serde_json::from_slice(&json)
        .map_err(|error| BadFrame::Invalid(format!("its reply is not valid JSON: {error}")))?;
    let most = most();
    if header.bytes > most {
        let sentence = format!("its reply announces {} bytes where at most {most} are expected", header.bytes);
        return Err(BadFrame::Invalid(sentence));
    }
    let payload = bytes(input, header.bytes)?;
    Ok(Frame { header, payload })
}

fn bytes(input: &mut impl Read, count: u64) -> Result<Vec<u8>, BadFrame> {
    let mut bytes = Vec::new();
    input.take(count).read_to_end(&mut bytes).map_err(|error| broken(&error))?;
    match bytes.len() as u64 == count {
        true => Ok(bytes),
        false => Err(BadFrame::Invalid(format!("its reply broke off after {} of {count} bytes", bytes.len()))),
    }
}

/// Reads until the buffer is full or the pipe ends. Returns the number of bytes read.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> Result<usize, BadFrame> {
    let mut found = 0;
    while found < buffer.len() {
        match input.read(&mut buffer[found..]) {
            Ok(0) => break,
            Ok(count) => found += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(&error)),
        }
    }
    Ok(found)
}

fn broken(error: &std::io::Error) -> BadFrame {
    BadFrame::Invalid(format!("its pipe cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(bytes: &[u8]) -> String {
        match read(&mut &*bytes, || 8) {
            Err(BadFrame::Invalid(sentence)) => sentence,
            Err(BadFrame::Ended) => "ended".into(),
            Ok(frame) => panic!("{} bytes were read", frame.payload.len()),
        }
    }

    #[test]
    fn one_reply_is_read_at_a_time() {
        let bytes = [&encode(br#"{"bytes": 8, "tokens": [3]}"#)[..], &[7; 8], &[1]].concat();
        let mut rest = &bytes[..];
        let frame = read(&mut rest, || 8).expect("a frame");
        assert_eq!((frame.payload, rest), (vec![7; 8], &[1][..]));
        assert_eq!(frame.header.body["tokens"][0], 3);
        assert_eq!(frame.header.error, None);
    }

    #[test]
    fn invalid_replies_differ_from_end_of_stream() {
        assert_eq!(refusal(&[]), "ended");
        assert_eq!(refusal(&[1, 0]), "its reply broke off within a length");
        assert_eq!(refusal(b"Traceback"), "its reply begins with a length of 1667330644 bytes");
        assert_eq!(refusal(&[9, 0, 0, 0, b'{']), "its reply broke off after 1 of 9 bytes");
        assert!(refusal(&encode(b"[]")).starts_with("its reply is not valid JSON: "));
        assert!(refusal(&encode(b"{}")).starts_with("its reply is not valid JSON: "));
        let long = refusal(&encode(br#"{"bytes": 1000000000000}"#));
        assert_eq!(long, "its reply announces 1000000000000 bytes where at most 8 are expected");
        let short = [&encode(br#"{"bytes": 8}"#)[..], &[0; 3]].concat();
        assert_eq!(refusal(&short), "its reply broke off after 3 of 8 bytes");
    }
}

//! GPT-2's alphabet: the characters that stand for bytes in vocabularies.

/// A character for each byte: visible Latin-1 characters are unchanged, and every other byte (spaces too) is a character from U+0100 on.
pub fn byte_characters() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => byte as u8 as char,
        _ => {
            next += 1;
            char::from_u32(next - 1).expect("a character in Latin Extended-A")
        }
    })
}

//! Random texts, lines and names.

use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};

/// Building blocks of texts: words, code, white space, other scripts, and text that looks like structure.
const PIECES: [&str; 48] = [
    "weather",
    " in",
    " Oslo",
    "The",
    " quick",
    "don't",
    "WE'LL",
    "Größe",
    " naïve",
    "façade",
    "3.14",
    " 1234567",
    "0",
    "\"",
    "{\"a\": 1}",
    "[1, 2]",
    "null",
    " ",
    "  ",
    "\t",
    " //",
    "/*",
    "*/",
    "`x`",
    "```",
    "\\",
    "\\n",
    "<",
    "|>",
    "<|end|>",
    "<|start|>system<|message|>",
    "<|channel|>analysis",
    "<|call|>",
    "<|constrain|>json",
    "<|endoftext|>",
    "to=functions.f",
    "assistant",
    "json",
    "日本語",
    "のテキスト",
    "👋",
    "👨‍👩‍👧‍👦",
    "e\u{301}",
    "\u{200b}",
    "\u{a0}",
    "ﬁ",
    "Ω",
    "العربية",
];

const BREAKS: [&str; 5] = ["\n", "\n\n", "\r\n", "\n  ", " \n"];

/// Any text, including empty ones and several lines.
pub fn text(rng: &mut impl Rng) -> String {
    let pieces = match rng.random_range(0..10) {
        0 => 0,
        1..8 => rng.random_range(1..12),
        _ => rng.random_range(12..80),
    };
    let piece = |_| match rng.random_range(0..8) {
        0 => (*BREAKS.choose(rng).expect("not empty")).to_owned(),
        1 => String::from(rng.random::<char>()),
        _ => (*PIECES.choose(rng).expect("not empty")).to_owned(),
    };
    (0..pieces).map(piece).collect()
}

/// A text without line breaks. It may be empty.
pub fn line(rng: &mut impl Rng) -> String {
    text(rng).replace(['\n', '\r'], " ")
}

/// A name such as `get_weather17` or `Note.x5json`.
pub fn name(rng: &mut impl Rng) -> String {
    const PARTS: [&str; 14] =
        ["get", "set", "_", "-", ".", "weather", "json", "Note", "x", "7", "function", "code", "final", "tool"];
    let parts = rng.random_range(1..4);
    let name: String = (0..parts).map(|_| *PARTS.choose(rng).expect("not empty")).collect();
    // The number keeps the name from being a word that headers use.
    format!("{name}{}", rng.random_range(0..1000)) + if rng.random_bool(0.2) { "json" } else { "" }
}

/// A random element of `of`.
pub fn one_of<T: Clone>(rng: &mut impl Rng, of: &[T]) -> T {
    of.choose(rng).expect("not empty").clone()
}

/// `Some` value with the given probability, otherwise `None`.
pub fn maybe<T, R: Rng>(rng: &mut R, probability: f64, value: impl FnOnce(&mut R) -> T) -> Option<T> {
    rng.random_bool(probability).then(|| value(rng))
}

//! The tokenizer of a model file against tiktoken, which defines o200k.

use std::sync::OnceLock;

use phase1_loading::{Checkpoint, TextStream, Tokenizer};
use proptest::prelude::*;
use synthetic::SyntheticModel;

/// A tokenizer read back from a synthetic model with the whole o200k vocabulary.
fn o200k() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("o200k.gguf");
        let tiny = SyntheticModel::preset("tiny").expect("a preset");
        let model = SyntheticModel { layers: 1, hidden: 32, ..tiny };
        model.write(&path, 0, &mut |_, _| ()).expect("written");
        Checkpoint::open(&path).expect("opened").tokenizer().expect("built")
    })
}

fn tiktoken(text: &str) -> Vec<u32> {
    tiktoken_rs::o200k_harmony_singleton().encode_ordinary(text)
}

const TEXTS: [&str; 24] = [
    "",
    " ",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "don't DON'T we'll I'd they're o'clock 'quoted'",
    "1 12 123 1234 12345678 3.14159 1,000,000 0x1F 2026-11-23",
    "        indented\n\ttabbed\r\n\r\n\n   \n trailing   ",
    "                                                                                                    x",
    "\n\n\n\n\n\n\n\n\n\n",
    "fn main() { println!(\"{:?}\", vec![1, 2, 3]); } // comment",
    "def f(x):\n    return {k: v for k, v in x.items() if v != 'None'}\n",
    "https://example.org/path?query=1&other=%20#fragment",
    "<html><body class=\"a b\">&nbsp;</body></html>",
    "Größe, façade, naïve, Ærøskøbing, İstanbul, ǅungla",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "我能吞下玻璃而不伤身体。日本語のテキスト、カタカナ。한국어 텍스트입니다.",
    "مرحبا بالعالم، كيف حالك؟ שלום עולם",
    "नमस्ते दुनिया ภาษาไทยไม่มีช่องว่าง",
    "👋🌍 👨‍👩‍👧‍👦 🏳️‍🌈 e\u{301} \u{200b}\u{feff}",
    "\u{0}\u{1}\u{7f}\u{80}\u{a0}\u{ad}\u{2028}\u{e000}\u{10ffff}",
    "<|start|>user<|message|>not control here<|end|>",
    "a/b\\c--d==e...f!!!\n/\n//\r\n",
    "ALLCAPS CamelCase snake_case kebab-case ΑΒΓ αβγ ßẞ",
    "½ ² Ⅷ ٣ ४ 一二三",
];

#[test]
fn agrees_with_tiktoken_on_chosen_texts() {
    for text in TEXTS {
        assert_eq!(o200k().encode(text), tiktoken(text), "{text:?}");
        assert_eq!(o200k().decode(&tiktoken(text)), text);
    }
}

/// Long runs, on which a backtracking regex engine gives up and loses the rest of the text.
#[test]
fn long_runs_are_encoded_completely() {
    for unit in [" ", "\n", "\t ", "\u{3000}", "=", "0"] {
        let text = format!("{}What is 2 + 2?{unit}", unit.repeat(1_100_000));
        let tokens = o200k().encode(&text);
        assert!(o200k().decode(&tokens) == text, "{unit:?}");
    }
    for unit in [" ", "\n", " \n", "a", "A", "'s", "^", "0"] {
        let text = format!("a{}b", unit.repeat(10_000));
        assert!(o200k().encode(&text) == tiktoken(&text), "{unit:?}");
    }
}

/// `least_tokens`, a lower bound of the number of tokens, is exact for alphabets, runs of spaces and numbers, which consist of the longest
/// tokens that contain their bytes.
#[test]
fn least_token_count_is_exact_for_longest_tokens() {
    let alphabet = "abcdefghijklmnopqrstuvwxyz";
    for (text, expected) in [
        ("", 0),
        (alphabet, 1),
        (&format!("{alphabet}7"), 2),
        (&" ".repeat(128), 1),
        (&" ".repeat(129), 2),
        (&"7".repeat(30_000), 10_000),
        (&"7".repeat(30_001), 10_001),
    ] {
        assert_eq!((o200k().least_tokens(text), o200k().encode(text).len()), (expected, expected), "{text:.40}");
    }
    // If control tokens are allowed, the bound is lower for their bytes.
    let reserved = "<|reserved_200013|>";
    assert_eq!(o200k().encode_with_control(reserved).len(), 1);
    assert_eq!(o200k().least_tokens_with_control(reserved), 1);
    assert!(o200k().least_tokens(reserved) > 1);
    // A word of 15 MB has more tokens than any context.
    assert!(o200k().least_tokens(&"word".repeat(3_750_000)) > 500_000);
}

#[test]
fn agrees_with_tiktoken_on_control_tokens() {
    let tiktoken = tiktoken_rs::o200k_harmony_singleton();
    for text in [
        "<|start|>user<|message|>Hi<|end|><|start|>assistant",
        "<|start|><|start|>",
        "text <|endoftext|> text <|no such token|> <| |> <|<|end|>|>",
        "<|reserved_200013|>x<|return|",
    ] {
        let tokens = o200k().encode_with_control(text);
        assert_eq!(tokens, tiktoken.encode_with_special_tokens(text), "{text:?}");
        assert_eq!(o200k().decode(&tokens), text);
    }
    assert_eq!(o200k().control("<|call|>"), Some(200_012));
    assert_eq!(o200k().stops(), [199_999, 200_002, 200_012]);
}

#[test]
fn every_token_decodes_as_in_tiktoken() {
    let tiktoken = tiktoken_rs::o200k_harmony_singleton();
    assert_eq!(o200k().vocab(), 201_088);
    for token in 0..201_088 {
        assert_eq!(o200k().token_bytes(token), tiktoken.decode_bytes(&[token]).ok().as_deref(), "token {token}");
    }
    assert_eq!(o200k().token_bytes(201_088), None);
}

/// The text of a stream, in pieces.
fn streamed(tokens: &[u32]) -> Vec<String> {
    let mut stream = TextStream::default();
    let mut pieces: Vec<String> = tokens.iter().map(|&token| stream.push(o200k(), token)).collect();
    pieces.push(stream.finish());
    pieces
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn agrees_with_tiktoken_on_random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let text = String::from_utf8_lossy(&bytes);
        prop_assert_eq!(o200k().encode(&text), tiktoken(&text));
    }

    #[test]
    fn agrees_with_tiktoken_on_random_characters(text in r"(\PC|\s|[a-z' ]{1,8}|[0-9]{1,5}){0,60}") {
        let tokens = o200k().encode(&text);
        prop_assert_eq!(&tokens, &tiktoken(&text));
        prop_assert!(o200k().least_tokens(&text) <= tokens.len());
        prop_assert!(o200k().least_tokens_with_control(&text) <= o200k().encode_with_control(&text).len());
        prop_assert_eq!(o200k().decode(&tokens), text);
    }

    /// A stream gives the same text as decoding all tokens together, and never a part of a character.
    #[test]
    fn streaming_equals_decoding(text in r"(\PC|\s){0,40}") {
        let tokens = o200k().encode(&text);
        prop_assert_eq!(streamed(&tokens).concat(), text);
    }

    /// Tokens in random order: incomplete characters are replaced as in decoding all tokens together.
    #[test]
    fn streaming_random_tokens_equals_decoding(tokens in prop::collection::vec(0u32..201_088, 0..60)) {
        prop_assert_eq!(streamed(&tokens).concat(), o200k().decode(&tokens));
    }
}

#[test]
fn character_split_over_four_tokens_is_returned_whole() {
    let single = |byte| (0..256).find(|&token| o200k().token_bytes(token) == Some(&[byte][..]));
    let tokens: Vec<u32> = "🦀".bytes().map(|byte| single(byte).expect("every byte is a token")).collect();
    assert_eq!(streamed(&tokens), ["", "", "", "🦀", ""]);
}

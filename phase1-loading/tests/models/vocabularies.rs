//! Vocabularies that differ from gpt-oss's: which tokens are found in text, which end generation, and which vocabularies are refused.

use std::collections::BTreeMap;

use crate::made::{GoldenParts, files, golden_vocabulary, with_json};
use bytes::Bytes;
use phase1_loading::write::{CONTROL, MetadataValue, NORMAL};
use phase1_loading::{Checkpoint, Tokenizer};
use serde_json::{Value, json};

const UNKNOWN: i32 = 2;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
/// The id of `<|call|>` in the vocabulary of the goldens, which is also the last id.
const LAST: u32 = 298;

fn tokenizer(files: &BTreeMap<String, Bytes>) -> Tokenizer {
    Checkpoint::from_folder_bytes("folder", files).expect("opens").tokenizer().expect("builds")
}

fn id(name: &str) -> u32 {
    golden_vocabulary().0.tokens.iter().position(|token| token == name).expect("a token of that name") as u32
}

/// The golden folder with a different last added token.
fn added(content: &str, special: bool) -> BTreeMap<String, Bytes> {
    with_json("hf", "tokenizer.json", |json| {
        let vocab = json["model"]["vocab"].as_object_mut().expect("an object");
        vocab.retain(|_, id| *id != json!(LAST));
        let tokens = json["added_tokens"].as_array_mut().expect("a list");
        let last = tokens.iter_mut().find(|token| token["id"] == json!(LAST)).expect("listed");
        (last["content"], last["special"]) = (json!(content), json!(special));
    })
}

/// The golden file with a different last token of this type.
fn typed(content: &str, kind: i32) -> Tokenizer {
    let made = GoldenParts::of("even", |lists, _| {
        *lists.tokens.last_mut().expect("tokens") = content.into();
        *lists.kinds.last_mut().expect("kinds") = kind;
    });
    made.open().expect("opens").tokenizer().expect("builds")
}

/// Added tokens are found in any text. Control tokens are found only if the caller allows them.
#[test]
fn added_tokens_are_found_in_any_text() {
    for text in ["<think>", "[TOOL_CALLS]", "new token", "思考", "é"] {
        let around = format!("a{text}b");
        let (in_folder, in_file) = (tokenizer(&added(text, false)), typed(text, USER_DEFINED));
        for found in [&in_folder, &in_file] {
            for tokens in [found.encode(&around), found.encode_with_control(&around)] {
                assert_eq!(tokens.iter().filter(|&&token| token == LAST).count(), 1, "{text}");
                assert_eq!(found.decode(&tokens), around);
            }
        }
        for found in [&tokenizer(&added(text, true)), &typed(text, CONTROL), &typed(text, UNKNOWN)] {
            assert!(found.encode_with_control(&around).contains(&LAST), "{text}");
            assert!(!found.encode(&around).contains(&LAST), "{text}");
            assert_eq!(found.decode(&found.encode(&around)), around);
        }
    }
    // An id without a token is never found.
    let unused = typed("new token", UNUSED);
    assert!(!unused.encode_with_control("a new token").contains(&LAST));
}

/// Of the added tokens that begin at the earliest position, the longest is found.
#[test]
fn longest_added_token_wins() {
    let made = GoldenParts::of("even", |lists, _| {
        let last = LAST as usize;
        (lists.tokens[last], lists.tokens[last - 1]) = ("<tool_call>".into(), "<tool".into());
        (lists.kinds[last], lists.kinds[last - 1]) = (USER_DEFINED, USER_DEFINED);
    });
    let tokenizer = made.open().expect("opens").tokenizer().expect("builds");
    let tokens = tokenizer.encode("<tool_call><tool>");
    assert_eq!((tokens[0], tokens[1]), (LAST, LAST - 1));
}

/// A user's text is never encoded to a control token, even if the token's name is an ordinary word.
#[test]
fn user_text_never_encodes_to_control_tokens() {
    for name in ["end", "Hello there", "1"] {
        for found in [tokenizer(&added(name, true)), typed(name, CONTROL)] {
            assert!(!found.encode(&format!("{name} {name}")).contains(&LAST), "{name}");
            assert_eq!(found.control(name), Some(LAST));
        }
    }
}

/// Tokens with harmony's names are control tokens, whatever type the file gives them.
#[test]
fn harmony_token_names_are_control_tokens() {
    let text = "<|start|>user<|message|>Hello<|end|>";
    let expected = tokenizer(&files("hf")).encode_with_control(text);
    for kind in [NORMAL, USER_DEFINED, UNUSED] {
        let made = GoldenParts::of("even", |lists, _| {
            lists.kinds.iter_mut().filter(|of| **of == CONTROL).for_each(|of| *of = kind);
        });
        let found = made.open().expect("opens").tokenizer().expect("builds");
        assert_eq!(found.encode_with_control(text), expected, "type {kind}");
        let plain = found.encode(text);
        assert!(!plain.contains(&id("<|start|>")) && found.decode(&plain) == text, "type {kind}");
    }
}

#[test]
fn end_tokens_are_merged_without_message_end() {
    let names = |names: &[&str]| {
        let mut ids: Vec<u32> = names.iter().map(|name| id(name)).collect();
        ids.sort_unstable();
        ids
    };
    let usual = names(&["<|return|>", "<|call|>", "<|endoftext|>"]);
    let ended_by = |ends: Value| {
        let files = with_json("hf", "config.json", |config| config["eos_token_id"] = ends);
        tokenizer(&files).stops().to_vec()
    };
    let hello = id("Hello");
    assert_eq!(ended_by(json!(id("<|end|>"))), usual);
    let joined = names(&["<|return|>", "<|call|>", "<|endoftext|>", "Hello"]);
    assert_eq!(ended_by(json!([id("<|return|>"), hello])), joined);
    let mut generation = files("hf");
    generation.insert("generation_config.json".into(), format!(r#"{{"eos_token_id": [{hello}]}}"#).into_bytes().into());
    assert_eq!(tokenizer(&generation).stops(), joined);

    let in_file = |ends: Vec<i32>, eos: &str| {
        let mut made = GoldenParts::of("even", |_, special| special.eos = Some(id(eos)));
        made.set("tokenizer.ggml.eos_token_ids", MetadataValue::I32s(ends));
        made.open().expect("opens").tokenizer().expect("builds").stops().to_vec()
    };
    assert_eq!(in_file(vec![hello as i32, -1], "<|return|>"), joined);
    assert_eq!(in_file(vec![], "<|end|>"), usual);
    // If `<|return|>` is missing, a listed `<|end|>` counts.
    let made = GoldenParts::of("even", |lists, special| {
        special.eos = Some(id("<|end|>"));
        lists.tokens[id("<|return|>") as usize] = "<|other|>".into();
    });
    let stops = made.open().expect("opens").tokenizer().expect("builds").stops().to_vec();
    assert_eq!(stops, names(&["<|end|>", "<|call|>", "<|endoftext|>"]));
}

#[test]
fn conversion_keeps_all_end_tokens() {
    let files =
        with_json("hf", "config.json", |config| config["eos_token_id"] = json!([id("<|return|>"), id("Hello")]));
    let from = Checkpoint::from_folder_bytes("folder", &files).expect("opens");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("out.gguf");
    phase1_loading::convert(&from, &path, None, &mut |_, _| ()).expect("converted");
    let to = Checkpoint::open(&path).expect("opens").tokenizer().expect("builds");
    assert_eq!(to.stops(), from.tokenizer().expect("builds").stops());
    assert!(to.stops().contains(&id("Hello")));
}

/// A folder whose pre-tokenizer or normalizer differs would give other tokens without an error, so it is refused.
#[test]
fn unsupported_pre_tokenizers_are_refused() {
    let refusal = |change: &dyn Fn(&mut Value)| {
        let files = with_json("hf", "tokenizer.json", change);
        let checkpoint = Checkpoint::from_folder_bytes("other", &files).expect("opening reads no vocabulary");
        checkpoint.tokenizer().err().expect("refused").to_string()
    };
    let pattern = "/pre_tokenizer/pretokenizers/0/pattern/Regex";
    let llama = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    for refused in [
        refusal(&|json| *json.pointer_mut(pattern).expect("there") = json!(llama)),
        refusal(&|json| {
            json["pre_tokenizer"] = json!({ "type": "ByteLevel", "add_prefix_space": false, "use_regex": true });
        }),
        refusal(&|json| json["pre_tokenizer"]["pretokenizers"][1]["use_regex"] = json!(true)),
        refusal(&|json| json["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = json!(true)),
        refusal(&|json| json["pre_tokenizer"]["pretokenizers"][0]["behavior"] = json!("Removed")),
        refusal(&|json| _ = json["pre_tokenizer"]["pretokenizers"].as_array_mut().expect("a list").pop()),
        refusal(&|json| json["pre_tokenizer"] = json!({ "type": "Whitespace" })),
    ] {
        assert!(refused.starts_with("other: tokenizer.json: `pre_tokenizer`: expected o200k's pattern"), "{refused}");
    }
    for refused in [
        refusal(&|json| json["normalizer"] = json!({ "type": "NFC" })),
        refusal(&|json| json["normalizer"] = json!({ "type": "Sequence", "normalizers": [{ "type": "Lowercase" }] })),
    ] {
        assert!(refused.starts_with("other: tokenizer.json: `normalizer`: expected none"), "{refused}");
    }
    for key in ["lstrip", "rstrip", "single_word"] {
        let refused = refusal(&|json| json["added_tokens"][0][key] = json!(true));
        assert!(refused.contains(&format!("`{key}` of added token")), "{refused}");
    }
    // Pre-tokenizers and normalizers that are missing, empty or equivalent are accepted.
    let expected = tokenizer(&files("hf")).encode("I'M 1234567  DON'T");
    let accepted: [fn(&mut Value); 3] = [
        |json| json["pre_tokenizer"] = Value::Null,
        |json| json["normalizer"] = json!({ "type": "Sequence", "normalizers": [] }),
        |json| {
            let split = &mut json["pre_tokenizer"]["pretokenizers"][0];
            (split["behavior"], split["invert"]) = (json!("Removed"), json!(true));
        },
    ];
    for change in accepted {
        assert_eq!(tokenizer(&with_json("hf", "tokenizer.json", change)).encode("I'M 1234567  DON'T"), expected);
    }
}

/// A vocabulary without a token for some byte is refused, because text with that byte would be lost.
#[test]
fn vocabulary_without_a_byte_is_refused() {
    let made = GoldenParts::of("even", |lists, _| {
        let at = lists.tokens.iter().position(|token| token == "~").expect("a byte's token");
        lists.kinds[at] = UNUSED;
    });
    let error = made.open().expect("opens").tokenizer().err().expect("refused").to_string();
    assert_eq!(
        error,
        "made.gguf: metadata `tokenizer.ggml.tokens`: expected a token for every byte, found none for byte 126"
    );
}

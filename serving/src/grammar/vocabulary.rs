//! The parts shared by all constraints of a model: its tokens in the format of `llguidance`, and the tokens that structure a turn.

use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use phase1_loading::Tokenizer;

/// The largest number of lexer states of a grammar, at 1 to 2 KB each.
const MAX_LEXER_STATES: usize = 50_000;

pub(super) struct Vocabulary {
    /// Creates parsers. In their masks, `<|return|>` stands for the end of the text.
    pub factory: ParserFactory,
    pub control: Control,
    /// `<|start|>assistant`.
    pub generation_prompt: Vec<u32>,
    /// The mask of all text tokens.
    pub text: Vec<u32>,
}

/// The control tokens that structure a turn.
pub(super) struct Control {
    pub start: u32,
    pub channel: u32,
    pub constrain: u32,
    pub message: u32,
    pub end: u32,
    pub returns: u32,
    pub call: u32,
}

impl Control {
    fn new(tokenizer: &Tokenizer) -> Result<Control, String> {
        let find = |name: &str| {
            let token = tokenizer.control(name);
            token.ok_or_else(|| format!("the vocabulary lacks the control token {name} of harmony"))
        };
        Ok(Control {
            start: find("<|start|>")?,
            channel: find("<|channel|>")?,
            constrain: find("<|constrain|>")?,
            message: find("<|message|>")?,
            end: find("<|end|>")?,
            returns: find("<|return|>")?,
            call: find("<|call|>")?,
        })
    }
}

impl Vocabulary {
    /// `vocab` is the number of logits, and of bits in a mask.
    pub fn new(tokenizer: &Tokenizer, vocab: usize) -> Result<Vocabulary, String> {
        if tokenizer.vocab() > vocab {
            return Err(format!("the tokenizer has {} tokens for {vocab} logits", tokenizer.vocab()));
        }
        let control = Control::new(tokenizer)?;
        let mut text = vec![0; vocab.div_ceil(32)];
        let mut words: Vec<Vec<u8>> = Vec::with_capacity(tokenizer.vocab());
        for token in 0..tokenizer.vocab() as u32 {
            let bytes = tokenizer.token_bytes(token).unwrap_or_default();
            let is_control = std::str::from_utf8(bytes).is_ok_and(|name| tokenizer.control(name) == Some(token));
            if is_control {
                // This byte does not occur in UTF-8, so that no grammar matches a control token as text.
                words.push([&[TokTrie::SPECIAL_TOKEN_MARKER][..], bytes].concat());
            } else {
                allow(&mut text, token);
                words.push(bytes.to_vec());
            }
        }
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, control.returns), &words);
        drop(words);
        // This environment cannot reproduce how the tokenizer splits a text, so it forces no tokens: the model chooses the tokens even
        // where the grammar allows only one text.
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&env).map_err(|error| error.to_string())?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.verbose_errors = false;
        limits.max_lexer_states = MAX_LEXER_STATES;
        let generation_prompt = [vec![control.start], tokenizer.encode("assistant")].concat();
        Ok(Vocabulary { factory, control, generation_prompt, text })
    }
}

/// Sets the bit of a token in a mask.
pub(super) fn allow(mask: &mut [u32], token: u32) {
    mask[token as usize / 32] |= 1 << (token % 32);
}

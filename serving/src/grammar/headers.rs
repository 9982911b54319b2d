//! The headers that a constrained turn may have, and the content that may follow each.

use phase1_loading::Tokenizer;

use super::vocabulary::Control;

/// A header, from after `<|start|>assistant` to `<|message|>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Form {
    pub tokens: Vec<u32>,
    pub body: Body,
}

/// The body after a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Body {
    /// The index of the grammar that the body follows; without one, any text is allowed.
    pub grammar: Option<usize>,
    /// The token that ends the body.
    pub end: u32,
}

/// All headers of a turn. No header is a prefix of another, because each ends with `<|message|>`.
///
/// `answer` is `None` for a turn without a final answer. The grammars of the answer and of the arguments of each function in `calls` are
/// given by number (`None`: any text). Models write the recipient after the role or after the channel, and the content type as text, with a
/// control token, or not at all: all these forms are allowed, but an answer without a grammar has no content type.
pub(super) fn forms(
    tokenizer: &Tokenizer,
    control: &Control,
    answer: Option<Option<usize>>,
    calls: &[(&str, Option<usize>)],
) -> Vec<Form> {
    let channel = |name: &str| -> Vec<u32> { [vec![control.channel], tokenizer.encode(name)].concat() };
    let form = |parts: &[&[u32]], grammar: Option<usize>, end: u32| {
        let mut tokens: Vec<u32> = parts.concat();
        tokens.push(control.message);
        Form { tokens, body: Body { grammar, end } }
    };
    let constrained = [tokenizer.encode(" "), vec![control.constrain], tokenizer.encode("json")].concat();
    let kinds = [Vec::new(), tokenizer.encode(" json"), constrained];

    let mut forms = vec![form(&[&channel("analysis")], None, control.end)];
    if let Some(grammar) = answer {
        let kinds = if grammar.is_some() { &kinds[..] } else { &kinds[..1] };
        let final_channel = channel("final");
        forms.extend(kinds.iter().map(|kind| form(&[&final_channel, kind], grammar, control.returns)));
    }
    let commentary = channel("commentary");
    if !calls.is_empty() {
        // Text to the user before a call.
        forms.push(form(&[&commentary], None, control.end));
    }
    for &(name, grammar) in calls {
        let recipient = tokenizer.encode(&format!(" to=functions.{name}"));
        for kind in &kinds {
            forms.push(form(&[&recipient, &commentary, kind], grammar, control.call));
            forms.push(form(&[&commentary, &recipient, kind], grammar, control.call));
        }
    }
    forms
}

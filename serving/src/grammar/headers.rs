//! The headers that a constrained turn may have, and what follows each.

use phase1_loading::Tokenizer;

use super::vocabulary::Control;

/// A header, from behind `<|start|>assistant` to `<|message|>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Form {
    pub tokens: Vec<u32>,
    pub body: Body,
}

/// What follows a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Body {
    /// The number of the grammar that it follows; any text without one.
    pub grammar: Option<usize>,
    /// The token that ends it.
    pub end: u32,
}

/// All headers of a turn. No header is the beginning of another, since `<|message|>` ends each.
///
/// `answer` is `None` for a turn without a final answer. Its grammar, and those of the arguments of each function in `calls`, go by
/// their numbers. Models write the recipient behind the role or behind the channel, and the content type plainly, as a control token,
/// or not at all: all of that is left to them.
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
        // What is said to the user before a call.
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

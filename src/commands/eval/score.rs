//! Counts right answers.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// The results of one suite.
#[derive(Default)]
pub struct Score {
    questions: usize,
    right: usize,
    valid: usize,
    /// Questions that expect a function call, and those answered with a call whose arguments are JSON.
    calls: usize,
    json_calls: usize,
    loss: f64,
    loss_tokens: usize,
}

impl Score {
    /// Counts an answer: whether it is right, and whether it is valid harmony. `call` is whether the answer is a call with arguments in
    /// JSON; `None` if no call was expected.
    pub fn count_answer(&mut self, right: bool, valid: bool, call: Option<bool>) {
        self.questions += 1;
        self.right += usize::from(right);
        self.valid += usize::from(valid);
        self.calls += usize::from(call.is_some());
        self.json_calls += usize::from(call == Some(true));
    }

    pub fn count_loss(&mut self, loss: f64, tokens: usize) {
        self.questions += 1;
        self.loss += loss;
        self.loss_tokens += tokens;
    }

    fn asked(&self) -> bool {
        self.loss_tokens == 0
    }

    fn share(&self, count: usize) -> Option<f64> {
        self.asked().then(|| count as f64 / self.questions as f64)
    }

    fn json_share(&self) -> Option<f64> {
        (self.calls > 0).then(|| self.json_calls as f64 / self.calls as f64)
    }

    fn perplexity(&self) -> Option<f64> {
        (!self.asked()).then(|| (self.loss / self.loss_tokens as f64).exp())
    }

    pub fn to_json(&self) -> Value {
        json!({
            "questions": self.questions,
            "accuracy": self.share(self.right),
            "harmony_valid": self.share(self.valid),
            "calls_json": self.json_share(),
            "perplexity": self.perplexity(),
        })
    }
}

/// The scores as text.
pub fn table(scores: &BTreeMap<&str, Score>) -> String {
    let percent = |share: Option<f64>| share.map_or(String::new(), |share| format!("{:.1} %", share * 100.0));
    let mut text = format!(
        "{:16} {:>9} {:>9} {:>9} {:>11} {:>11}\n",
        "suite", "questions", "right", "harmony", "calls JSON", "perplexity"
    );
    for (suite, score) in scores {
        text += &format!(
            "{suite:16} {:>9} {:>9} {:>9} {:>11} {:>11}\n",
            score.questions,
            percent(score.share(score.right)),
            percent(score.share(score.valid)),
            percent(score.json_share()),
            score.perplexity().map_or(String::new(), |perplexity| format!("{perplexity:.4}")),
        );
    }
    text
}

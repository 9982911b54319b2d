//! Log probabilities of the model's own distribution: before adjustments, mask, temperature and filters.

/// The largest number of tokens reported besides the drawn one, as in OpenAI's API.
pub const MAX_LOGPROBS: usize = 20;

/// Log probabilities (natural logarithm).
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Log probability of the drawn token.
    pub token: f32,
    /// The most likely tokens with their log probabilities, most likely first; of equally likely tokens, the lower ID first.
    pub top: Vec<(u32, f32)>,
}

/// The part of [`Logprobs`] that is known before a token is drawn.
pub(super) struct Distribution {
    log_sum: f32,
    top: Vec<(u32, f32)>,
}

impl Logprobs {
    /// The distribution of `logits` and its `count` most likely tokens.
    pub(super) fn of(logits: &[f32], count: usize) -> Distribution {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
        let log_sum = (f64::from(largest) + sum.ln()) as f32;
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        // Adding 0 turns −0 into 0, which is equally likely.
        let logit = |token: u32| logits[token as usize] + 0.0;
        let by_rank = |&a: &u32, &b: &u32| logit(b).total_cmp(&logit(a)).then(a.cmp(&b));
        let count = count.min(order.len());
        if count > 0 && count < order.len() {
            order.select_nth_unstable_by(count - 1, by_rank);
        }
        order.truncate(count);
        order.sort_unstable_by(by_rank);
        let top = order.into_iter().map(|token| (token, logits[token as usize] - log_sum)).collect();
        Distribution { log_sum, top }
    }

    /// From a device's results: log Σ exp(logit), the drawn token's logit, and the largest logits in order.
    pub fn from_parts(log_sum: f32, drawn: f32, top: impl IntoIterator<Item = (u32, f32)>) -> Logprobs {
        let top = top.into_iter().map(|(token, logit)| (token, logit - log_sum)).collect();
        Logprobs { token: drawn - log_sum, top }
    }
}

impl Distribution {
    pub fn for_token(self, logit: f32) -> Logprobs {
        Logprobs { token: logit - self.log_sum, top: self.top }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_those_of_softmax() {
        let logits = [1.0f32, 3.0, 3.0, -2.0, f32::NEG_INFINITY];
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let expected = |logit: f32| (f64::from(logit) - sum.ln()) as f32;
        let found = Logprobs::of(&logits, 3).for_token(logits[3]);
        assert!((found.token - expected(-2.0)).abs() < 1e-6, "{found:?}");
        assert_eq!(found.top.iter().map(|top| top.0).collect::<Vec<_>>(), [1, 2, 0]);
        for (token, logprob) in found.top {
            assert!((logprob - expected(logits[token as usize])).abs() < 1e-6);
        }
        let zeros = Logprobs::of(&[-0.0, 0.0, -0.0, -1.0], 3).for_token(0.0);
        assert_eq!(zeros.top.iter().map(|top| top.0).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(Logprobs::of(&logits, 20).for_token(1.0).top.len(), 5);
        assert!(Logprobs::of(&logits, 0).for_token(1.0).top.is_empty());
    }
}

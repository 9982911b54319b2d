//! Aggregates the results of many answers.

use std::time::Duration;

use serde_json::{Value, json};

use super::answer::{Answer, Usage};
use super::http::Failure;

/// The results of a measurement with some number of clients.
#[derive(Default)]
pub struct Figures {
    pub clients: usize,
    pub answers: usize,
    pub failures: Vec<String>,
    /// Time from the first request to the end of the last answer.
    pub time: Duration,
    pub prompt_tokens: u64,
    /// `None` if no answer reported them.
    pub cached_tokens: Option<u64>,
    pub generated_tokens: u64,
    first: Vec<Duration>,
    gaps: Vec<Duration>,
}

impl Figures {
    pub fn new(clients: usize) -> Figures {
        Figures { clients, ..Figures::default() }
    }

    pub fn count(&mut self, result: Result<Answer, Failure>) {
        let answer = match result {
            Ok(answer) => answer,
            Err(failure) => return self.failures.push(failure.to_string()),
        };
        self.answers += 1;
        self.first.extend(answer.first);
        self.gaps.extend(answer.gaps);
        let Some(Usage { prompt, cached, generated }) = answer.usage else { return };
        self.prompt_tokens += prompt;
        self.generated_tokens += generated;
        if let Some(cached) = cached {
            *self.cached_tokens.get_or_insert(0) += cached;
        }
    }

    /// Adds the counts of another thread.
    pub fn join(&mut self, other: Figures) {
        self.answers += other.answers;
        self.failures.extend(other.failures);
        self.prompt_tokens += other.prompt_tokens;
        self.generated_tokens += other.generated_tokens;
        if let Some(cached) = other.cached_tokens {
            *self.cached_tokens.get_or_insert(0) += cached;
        }
        self.first.extend(other.first);
        self.gaps.extend(other.gaps);
    }

    /// Prompt tokens that were not cached, if the server reports that.
    pub fn read_tokens(&self) -> Option<u64> {
        self.cached_tokens.map(|cached| self.prompt_tokens.saturating_sub(cached))
    }

    fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.time.as_secs_f64().max(1e-9)
    }

    pub fn to_json(&self) -> Value {
        json!({
            "clients": self.clients,
            "answers": self.answers,
            "failures": self.failures.len(),
            "seconds": self.time.as_secs_f64(),
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "read_tokens": self.read_tokens(),
            "generated_tokens": self.generated_tokens,
            "requests_per_second": self.per_second(self.answers as u64),
            "prompt_tokens_per_second": self.per_second(self.prompt_tokens),
            "generated_tokens_per_second": self.per_second(self.generated_tokens),
            "first_token_ms": percentiles(&self.first),
            "between_tokens_ms": percentiles(&self.gaps),
        })
    }
}

const SHARES: [(&str, f64); 3] = [("p50", 0.50), ("p95", 0.95), ("p99", 0.99)];

/// The percentiles `SHARES` of times, in milliseconds (nearest rank); each is null if there are no times.
pub fn percentiles(times: &[Duration]) -> Value {
    let mut times = times.to_vec();
    times.sort_unstable();
    let of = |share: f64| {
        let rank = (share * times.len() as f64).ceil() as usize;
        times.get(rank.saturating_sub(1)).map(|time| time.as_secs_f64() * 1e3)
    };
    SHARES.iter().map(|&(name, share)| (name.to_owned(), json!(of(share)))).collect::<serde_json::Map<_, _>>().into()
}

/// The figures as text, one line per number of clients, and up to five of the failures.
pub fn table(all: &[Figures]) -> String {
    let mut text = format!(
        "{:>7} {:>8} {:>8} {:>9} {:>11} {:>11} {:>10}   {:<26} {:<26}\n",
        "clients",
        "answers",
        "failures",
        "seconds",
        "prompt",
        "read",
        "tokens/s",
        "first token, ms",
        "between tokens, ms"
    );
    text += &format!("{:71}   {:<26} {:<26}\n", "", "p50 / p95 / p99", "p50 / p95 / p99");
    for figures in all {
        let three = |times: &[Duration]| {
            let percentiles = percentiles(times);
            let shown =
                SHARES.map(|(name, _)| percentiles[name].as_f64().map_or("–".into(), |ms| format!("{ms:.1}")));
            shown.join(" / ")
        };
        let read = figures.read_tokens().map_or("unknown".into(), |read| read.to_string());
        text += &format!(
            "{:>7} {:>8} {:>8} {:>9.2} {:>11} {read:>11} {:>10.1}   {:<26} {:<26}\n",
            figures.clients,
            figures.answers,
            figures.failures.len(),
            figures.time.as_secs_f64(),
            figures.prompt_tokens,
            figures.per_second(figures.generated_tokens),
            three(&figures.first),
            three(&figures.gaps),
        );
    }
    let failures = all.iter().flat_map(|figures| &figures.failures).take(5);
    failures.fold(text, |text, failure| text + "failed: " + failure + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_use_nearest_rank() {
        let times: Vec<Duration> = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(percentiles(&times), json!({ "p50": 100.0, "p95": 190.0, "p99": 198.0 }));
        assert_eq!(percentiles(&times[199..]), json!({ "p50": 1.0, "p95": 1.0, "p99": 1.0 }));
        assert_eq!(percentiles(&[]), json!({ "p50": null, "p95": null, "p99": null }));
    }

    #[test]
    fn answers_are_counted() {
        let answer = |cached| {
            let usage = Some(Usage { prompt: 10, cached, generated: 3 });
            Ok(Answer { usage, first: Some(Duration::from_millis(5)), ..Answer::default() })
        };
        let mut figures = Figures::new(2);
        figures.count(answer(None));
        assert_eq!(figures.read_tokens(), None);
        let mut other = Figures::new(1);
        other.count(answer(Some(4)));
        other.count(Err(Failure::Busy));
        figures.join(other);
        figures.time = Duration::from_secs(2);
        let report = figures.to_json();
        assert_eq!((&report["answers"], &report["failures"], &report["clients"]), (&json!(2), &json!(1), &json!(2)));
        assert_eq!((&report["prompt_tokens"], &report["read_tokens"]), (&json!(20), &json!(16)));
        assert_eq!(report["generated_tokens_per_second"], 3.0);
        assert!(table(&[figures]).contains("failed: 429"));
    }
}

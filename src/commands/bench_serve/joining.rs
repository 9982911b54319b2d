//! A request that joins decoding ones: the time to its first token, compared with that on an idle server, and how long the decoding clients
//! wait for a token meanwhile.

use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::answer::Answer;
use super::figures::percentiles;
use super::http::{Failure, Target};
use super::prompt::{Scale, completion};
use super::random::Random;

/// Tokens per prompt and per answer of a decoding client. Its requests follow each other until the measurement ends.
const DECODING_PROMPT: usize = 32;
const DECODING_ANSWER: usize = 1024;
/// Average number of tokens that the decoding clients get before the next request joins.
const TOKENS_BETWEEN: usize = 16;
/// After these tokens, a request joins after a random time of up to this many microseconds: several steps, so that it may arrive at any
/// time within a step.
const LONGEST_PAUSE: usize = 30_000;

/// The parameters of the measurement.
pub struct Joining<'a> {
    pub target: &'a Target,
    pub model: &'a str,
    pub scale: Scale,
    /// Tokens per prompt of a joining request.
    pub prompt: usize,
    /// Number of joining requests, one after another. The same number is measured before, without other clients.
    pub requests: usize,
    pub seed: u64,
}

/// The results for a number of clients, of which all but one decode.
#[derive(Default)]
pub struct JoiningResults {
    pub clients: usize,
    /// Times to the first token of a request without other clients, and beside decoding ones.
    pub alone: Vec<Duration>,
    pub beside: Vec<Duration>,
    /// Times between tokens of the decoding clients while no request joined.
    pub gaps: Vec<Duration>,
    /// For every joining request, the longest time between tokens of any decoding client until the request's first token.
    pub waits: Vec<Duration>,
    pub failures: Vec<String>,
}

/// The arrival times of the tokens of an answer.
type Arrivals = Vec<Instant>;

impl Joining<'_> {
    /// Measures this many clients, at least two.
    pub fn run(&self, clients: usize) -> JoiningResults {
        let mut results = JoiningResults { clients, ..JoiningResults::default() };
        let mut random = Random::new(self.seed, (clients * 100_000) as u64);
        // The first request is not timed, because the server may compile kernels for it. An error is ignored: the next
        // requests report it.
        let _ = self.join(&mut random);
        for _ in 0..self.requests {
            match self.join(&mut random) {
                Ok((begin, first)) => results.alone.push(first - begin),
                Err(failure) => results.failures.push(failure.to_string()),
            }
        }
        let (is_over, tokens) = (AtomicBool::new(false), AtomicUsize::new(0));
        let (answers, failures) = (Mutex::new(Vec::<Arrivals>::new()), Mutex::new(Vec::new()));
        let mut joins = Vec::new();
        let decoding = clients.saturating_sub(1);
        thread::scope(|scope| {
            for client in 1..=decoding {
                let (is_over, tokens, answers, failures) = (&is_over, &tokens, &answers, &failures);
                scope.spawn(move || {
                    let mut random = Random::new(self.seed, (clients * 100_000 + client) as u64);
                    while !is_over.load(Ordering::Relaxed) {
                        match self.decode(&mut random, is_over, tokens) {
                            Ok(arrivals) => answers.lock().expect("no panic").push(arrivals),
                            Err(failure) => {
                                failures.lock().expect("no panic").push(failure.to_string());
                                is_over.store(true, Ordering::Relaxed);
                            }
                        }
                    }
                });
            }
            for _ in 0..self.requests {
                let enough = tokens.load(Ordering::Relaxed) + TOKENS_BETWEEN * decoding;
                while tokens.load(Ordering::Relaxed) < enough && !is_over.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(1));
                }
                thread::sleep(Duration::from_micros(random.below(LONGEST_PAUSE) as u64));
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                match self.join(&mut random) {
                    Ok(join) => joins.push(join),
                    Err(failure) => failures.lock().expect("no panic").push(failure.to_string()),
                }
            }
            is_over.store(true, Ordering::Relaxed);
        });
        results.failures.extend(failures.into_inner().expect("no panic"));
        results.beside = joins.iter().map(|&(begin, first)| first - begin).collect();
        (results.gaps, results.waits) = gaps_and_waits(&answers.into_inner().expect("no panic"), &joins);
        results
    }

    /// Sends a request; returns when it was sent and when its first token arrived. The answer is read to its end: if it were abandoned, the
    /// server might still compute it when the next request arrives.
    fn join(&self, random: &mut Random) -> Result<(Instant, Instant), Failure> {
        let (begin, mut first) = (Instant::now(), None);
        Answer::stream_while(self.target, "/v1/completions", &self.body(random, self.prompt, 4), |now| {
            first.get_or_insert(now);
            true
        })?;
        first.map(|first| (begin, first)).ok_or_else(no_token)
    }

    /// Streams an answer until it ends or the measurement is over.
    fn decode(&self, random: &mut Random, is_over: &AtomicBool, tokens: &AtomicUsize) -> Result<Arrivals, Failure> {
        let mut arrivals = Vec::new();
        let body = self.body(random, DECODING_PROMPT, DECODING_ANSWER);
        Answer::stream_while(self.target, "/v1/completions", &body, |now| {
            arrivals.push(now);
            tokens.fetch_add(1, Ordering::Relaxed);
            !is_over.load(Ordering::Relaxed)
        })?;
        // Reported as an error: the next joining request waits for tokens, and would wait forever.
        if arrivals.is_empty() {
            return Err(no_token());
        }
        Ok(arrivals)
    }

    fn body(&self, random: &mut Random, prompt: usize, generate: usize) -> Value {
        completion(self.model, self.scale, random, prompt, generate)
    }
}

fn no_token() -> Failure {
    Failure::Failed("an answer without a token".into())
}

/// The times between tokens that overlap no joining request, and for each joining request the longest one that overlaps it.
fn gaps_and_waits(answers: &[Arrivals], joins: &[(Instant, Instant)]) -> (Vec<Duration>, Vec<Duration>) {
    let mut gaps = Vec::new();
    let mut waits = vec![Duration::ZERO; joins.len()];
    for pair in answers.iter().flat_map(|arrivals| arrivals.windows(2)) {
        let (from, to) = (pair[0], pair[1]);
        let mut is_beside = false;
        for (wait, _) in waits.iter_mut().zip(joins).filter(|&(_, &(begin, first))| from < first && begin < to) {
            *wait = (*wait).max(to - from);
            is_beside = true;
        }
        if !is_beside {
            gaps.push(to - from);
        }
    }
    (gaps, waits)
}

impl JoiningResults {
    /// The median time to the first token beside decoding clients, divided by that without them.
    fn ratio(&self) -> Option<f64> {
        let median = |times: &[Duration]| percentiles(times)["p50"].as_f64();
        Some(median(&self.beside)? / median(&self.alone)?)
    }

    pub fn to_json(&self) -> Value {
        json!({
            "clients": self.clients,
            "requests": self.beside.len(),
            "failures": self.failures.len(),
            "first_token_alone_ms": percentiles(&self.alone),
            "first_token_ms": percentiles(&self.beside),
            "first_token_ratio": self.ratio(),
            "between_tokens_ms": percentiles(&self.gaps),
            "longest_wait_ms": percentiles(&self.waits),
        })
    }

    /// The results as text.
    pub fn text(&self) -> String {
        let medians = [&self.alone, &self.beside, &self.gaps, &self.waits]
            .map(|times| percentiles(times)["p50"].as_f64().map_or("–".to_owned(), |ms| format!("{ms:.1}")));
        let [alone, beside, gap, wait] = medians;
        let ratio = self.ratio().map_or("–".to_owned(), |ratio| format!("{ratio:.2}"));
        let mut text = format!(
            "{} clients, {} joining requests, medians in ms: first token {beside} beside others, {alone} alone, ratio {ratio}; \
             between tokens of the others {gap}, longest while a request joined {wait}\n",
            self.clients,
            self.beside.len(),
        );
        for failure in self.failures.iter().take(5) {
            let _ = writeln!(text, "failed: {failure}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_the_longest_gaps_that_overlap_a_join() {
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let ms = |times: &[Duration]| times.iter().map(|time| time.as_millis()).collect::<Vec<_>>();
        let answers = [vec![at(0), at(10), at(50), at(60)], vec![at(5), at(15), at(40), at(52), at(64)], vec![at(100)]];
        let (gaps, waits) = gaps_and_waits(&answers, &[(at(20), at(45)), (at(200), at(210))]);
        assert_eq!(ms(&gaps), [10, 10, 10, 12]);
        assert_eq!(ms(&waits), [40, 0]);
        assert_eq!(gaps_and_waits(&[], &[]), (Vec::new(), Vec::new()));
    }
}

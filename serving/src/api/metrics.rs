//! `/metrics`, for Prometheus. Names are vLLM's where the meaning is the same, so that its dashboards work.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::statistics::{Histogram, Statistics};

/// Why a run, the generation of one choice of an answer, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Stop,
    Length,
    /// The client disconnected, the answer took too long, the server is stopping, or another run of the request failed.
    Abort,
    Error,
}

impl Outcome {
    const ALL: [Outcome; 4] = [Outcome::Stop, Outcome::Length, Outcome::Abort, Outcome::Error];

    pub fn name(self) -> &'static str {
        match self {
            Outcome::Stop => "stop",
            Outcome::Length => "length",
            Outcome::Abort => "abort",
            Outcome::Error => "error",
        }
    }
}

const TOKENS: [f64; 15] =
    [1.0, 4.0, 16.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0, 65536.0, 131_072.0];

/// A histogram of numbers of tokens.
#[derive(Default)]
struct Lengths(Mutex<Counts>);

#[derive(Clone, Default)]
struct Counts {
    /// One bucket per bound in [`TOKENS`]: the number of values up to this bound and above the previous one. The last bucket counts larger
    /// values.
    buckets: [u64; TOKENS.len() + 1],
    sum: f64,
}

impl Lengths {
    fn add(&self, tokens: usize) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.buckets[TOKENS.partition_point(|&bound| bound < tokens as f64)] += 1;
        counts.sum += tokens as f64;
    }

    fn write(&self, name: &str, help: &str, labels: &str, out: &mut String) {
        let Counts { buckets, sum } = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let running = buckets.iter().scan(0, |total, count| {
            *total += count;
            Some(*total)
        });
        write_histogram(name, help, labels, TOKENS.into_iter().zip(running), buckets.iter().sum(), sum, out);
    }
}

/// A histogram of durations that several threads use.
#[derive(Default)]
struct Times(Mutex<Histogram>);

impl Times {
    fn add(&self, time: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).record(time);
    }

    fn read(&self) -> Histogram {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Writes a histogram. `cumulative` gives each bound with the number of values up to it.
fn write_histogram(
    name: &str,
    help: &str,
    labels: &str,
    cumulative: impl Iterator<Item = (f64, u64)>,
    count: u64,
    sum: f64,
    out: &mut String,
) {
    head(name, "histogram", help, out);
    for (bound, up_to) in cumulative {
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {up_to}");
    }
    let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
    let _ = writeln!(out, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}");
}

fn head(name: &str, kind: &str, help: &str, out: &mut String) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Counters of the HTTP layer. Those of the scheduler, which does not know endpoints, are in [`Statistics`].
#[derive(Default)]
pub struct Metrics {
    answered: AtomicU64,
    refused: AtomicU64,
    outcomes: [AtomicU64; 4],
    per_token: Times,
    prefill: Times,
    decode: Times,
    prompt_lengths: Lengths,
    answer_lengths: Lengths,
}

impl Metrics {
    /// Counts a response of any status.
    pub fn answer(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of responses so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    pub fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Records the first token of a run, with the time since its prompt was started.
    pub fn first_token(&self, since_started: Duration) {
        self.prefill.add(since_started);
    }

    /// Records the end of a run. `decode` is the time since the first token, if there was one.
    pub fn finished(&self, outcome: Outcome, prompt_tokens: usize, tokens: usize, decode: Option<Duration>) {
        self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
        self.prompt_lengths.add(prompt_tokens);
        self.answer_lengths.add(tokens);
        if let Some(decode) = decode {
            self.decode.add(decode);
            if tokens > 1 {
                self.per_token.add(decode / (tokens as u32 - 1));
            }
        }
    }

    /// All metrics as text. A page of the cache holds `positions` tokens.
    pub fn write(&self, model: &str, positions: usize, now: &Statistics) -> String {
        let escaped = model.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels = format!("model_name=\"{escaped}\",engine=\"0\"");
        let mut out = String::new();
        write_gauges(&labels, positions, now, &mut out);
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        #[rustfmt::skip]
        let counters = [
            ("vllm:prompt_tokens_total", "Tokens of prompts.", now.prompt_tokens),
            ("vllm:prompt_tokens_cached_total", "Tokens of prompts that were not computed again.", now.cached_tokens),
            ("vllm:prefix_cache_queries_total", "Tokens looked up in the prefix cache.", now.prompt_tokens),
            ("vllm:prefix_cache_hits_total", "Tokens found in the prefix cache.", now.cached_tokens),
            ("vllm:generation_tokens_total", "Tokens generated.", now.generated_tokens),
            ("vllm:num_preemptions_total", "Requests that were preempted because the cache was full.", now.preemptions),
            ("gptoss:spilled_tokens_total", "Tokens of sequences written to disk.", now.spilled.spilled_tokens),
            ("gptoss:spilled_bytes_total", "Bytes of sequences written to disk.", now.spilled.spilled_bytes),
            ("gptoss:restored_tokens_total", "Tokens of sequences read from disk.", now.spilled.restored_tokens),
            ("gptoss:restored_bytes_total", "Bytes of sequences read from disk.", now.spilled.restored_bytes),
            ("gptoss:steps_total", "Steps of the engine.", now.steps),
            ("gptoss:http_requests_total", "Requests of any kind that were answered.", self.answered()),
            ("gptoss:requests_refused_total", "Requests that were refused.", read(&self.refused)),
        ];
        for (name, help, value) in counters {
            head(name, "counter", help, &mut out);
            let _ = writeln!(out, "{name}{{{labels}}} {value}");
        }
        let name = "vllm:request_success_total";
        head(name, "counter", "Requests that have ended, by reason.", &mut out);
        for (outcome, count) in Outcome::ALL.into_iter().zip(&self.outcomes) {
            let _ = writeln!(out, "{name}{{{labels},finished_reason=\"{}\"}} {}", outcome.name(), read(count));
        }
        let (per_token, prefill, decode) = (self.per_token.read(), self.prefill.read(), self.decode.read());
        #[rustfmt::skip]
        let times = [
            ("vllm:time_to_first_token_seconds", "From a request to its first token.", &now.ttft),
            ("vllm:inter_token_latency_seconds", "Between two tokens.", &now.inter_token),
            ("vllm:request_time_per_output_token_seconds", "Mean time between an answer's tokens.", &per_token),
            ("vllm:e2e_request_latency_seconds", "From a request to the end of its answer.", &now.request_time),
            ("vllm:request_queue_time_seconds", "From a request to the start of its prompt.", &now.queue_time),
            ("vllm:request_prefill_time_seconds", "From the start of a prompt to the first token.", &prefill),
            ("vllm:request_decode_time_seconds", "From the first token to the last.", &decode),
        ];
        for (name, help, times) in times {
            write_histogram(name, help, &labels, times.cumulative(), times.count(), times.sum, &mut out);
        }
        self.prompt_lengths.write("vllm:request_prompt_tokens", "Tokens of a prompt.", &labels, &mut out);
        self.answer_lengths.write("vllm:request_generation_tokens", "Tokens of an answer.", &labels, &mut out);
        out
    }
}

fn write_gauges(labels: &str, positions: usize, now: &Statistics, out: &mut String) {
    // An engine that allocates memory as needed has no pages.
    let pages = if now.pages_total == usize::MAX { 0 } else { now.pages_total };
    let used = pages.saturating_sub(now.pages_free);
    let usage = if pages == 0 { 0.0 } else { used as f64 / pages as f64 };
    #[rustfmt::skip]
    let gauges = [
        ("vllm:num_requests_running", "Requests that are being computed.", now.running as f64),
        ("vllm:num_requests_waiting", "Requests that are waiting.", now.waiting as f64),
        ("vllm:kv_cache_usage_perc", "Share of the cache's pages in use; 1 is all.", usage),
        ("gptoss:cached_prefixes", "Sequences in the prefix cache.", now.prefixes as f64),
        ("gptoss:spilled_files", "Sequences on disk.", now.spilled.files as f64),
        ("gptoss:spilled_bytes", "Bytes of the sequences on disk.", now.spilled.bytes as f64),
    ];
    for (name, help, value) in gauges {
        head(name, "gauge", help, out);
        let _ = writeln!(out, "{name}{{{labels}}} {value}");
    }
    let name = "vllm:cache_config_info";
    head(name, "gauge", "Number of pages of the cache, and positions per page.", out);
    let _ = writeln!(out, "{name}{{{labels},block_size=\"{positions}\",num_gpu_blocks=\"{pages}\"}} 1");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_count_values_up_to_their_bound() {
        let lengths = Lengths::default();
        for tokens in [1, 2, 4, 200_000] {
            lengths.add(tokens);
        }
        let mut out = String::new();
        lengths.write("x", "Y.", "a=\"b\"", &mut out);
        let lines: Vec<&str> = out.lines().collect();
        let expected =
            ["# HELP x Y.", "# TYPE x histogram", "x_bucket{a=\"b\",le=\"1\"} 1", "x_bucket{a=\"b\",le=\"4\"} 3"];
        assert_eq!(lines[..4], expected);
        assert_eq!(
            lines[lines.len() - 3..],
            ["x_bucket{a=\"b\",le=\"+Inf\"} 4", "x_sum{a=\"b\"} 200007", "x_count{a=\"b\"} 4"]
        );
    }

    #[test]
    fn every_line_has_a_value() {
        let text = Metrics::default().write("a\"b", 64, &Statistics::default());
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let value = line.rsplit_once(' ').expect("a value").1;
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
        assert!(text.contains("vllm:num_requests_running{model_name=\"a\\\"b\",engine=\"0\"} 0\n"), "{text}");
    }
}

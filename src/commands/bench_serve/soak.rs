//! Random load for some time: every kind of request, short and long, and streams that clients abandon. It counts failed requests, and
//! records the server's memory.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::answer::Answer;
use super::http::{Failure, Target};
use super::prompt::{Scale, words};
use super::random::Random;

/// Interval between two measurements of memory.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// The largest number of failures whose messages are kept.
const MAX_MESSAGES: usize = 10;

/// The parameters of the load.
pub struct Soak<'a> {
    pub target: &'a Target,
    pub model: &'a str,
    pub scale: Scale,
    pub clients: usize,
    /// The most tokens of a prompt, and of an answer.
    pub prompt: usize,
    pub generate: usize,
    pub time: Duration,
    /// The process whose memory is recorded.
    pub pid: Option<u32>,
    pub seed: u64,
}

/// The results.
#[derive(Default)]
pub struct SoakResults {
    pub answers: u64,
    /// Answers that the client abandoned.
    pub left: u64,
    /// Requests that were refused with 429.
    pub busy: u64,
    pub failures: u64,
    /// The messages of the first failures.
    pub kept: Vec<String>,
    /// Resident bytes of memory, once per second.
    pub memory: Vec<u64>,
}

/// The kinds of requests. Responses are left out if the server does not support them.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Chat,
    Completion,
    Schema,
    Tools,
    Response,
}

impl Soak<'_> {
    /// Runs the load, and prints the state to stderr every minute.
    ///
    /// # Errors
    /// The process whose memory is recorded does not exist or ends meanwhile, or the system does not report its memory.
    pub fn run(&self) -> Result<SoakResults> {
        let memory = |pid: Option<u32>| pid.map(resident_bytes).transpose();
        memory(self.pid)?;
        let mut kinds = vec![Kind::Chat, Kind::Completion, Kind::Schema, Kind::Tools];
        let probe = json!({ "model": self.model, "input": "Hello", "max_output_tokens": 16 });
        if self.target.post("/v1/responses", &probe).is_ok() {
            kinds.push(Kind::Response);
        }
        let (over, results) = (AtomicBool::new(false), Mutex::new(SoakResults::default()));
        let (begin, mut minute) = (Instant::now(), 1);
        let watched = thread::scope(|scope| {
            for client in 0..self.clients {
                let (over, results, kinds) = (&over, &results, &kinds[..]);
                scope.spawn(move || self.client(client as u64, kinds, over, results));
            }
            let mut watch = || -> Result<()> {
                while begin.elapsed() < self.time {
                    thread::sleep(SAMPLE_INTERVAL.min(self.time));
                    let bytes = memory(self.pid)?;
                    let mut results = results.lock().expect("no client panics");
                    results.memory.extend(bytes);
                    if begin.elapsed().as_secs() >= 60 * minute {
                        eprintln!("minute {minute}: {}", results.line());
                        minute += 1;
                    }
                }
                Ok(())
            };
            let watched = watch();
            over.store(true, Ordering::Relaxed);
            watched
        });
        watched?;
        Ok(results.into_inner().expect("no client panics"))
    }

    fn client(&self, client: u64, kinds: &[Kind], over: &AtomicBool, results: &Mutex<SoakResults>) {
        let mut random = Random::new(self.seed, client);
        while !over.load(Ordering::Relaxed) {
            let kind = random.one_of(kinds);
            let result = self.ask(kind, &mut random);
            let is_refused = result.is_err();
            results.lock().expect("no client panics").count(kind, result);
            if is_refused {
                thread::sleep(Duration::from_millis(100));
            }
        }
    }

    /// Sends a random request of this kind. Returns whether the whole answer was read.
    fn ask(&self, kind: Kind, random: &mut Random) -> Result<bool, Failure> {
        let tokens = 1 + random.below(self.prompt);
        let text = words(random, self.scale.words(tokens));
        let most = 1 + random.below(self.generate);
        let mut body =
            json!({ "model": self.model, "temperature": random.one_of(&[0.0, 1.0]), "seed": random.below(1000) });
        let path = match kind {
            Kind::Completion => {
                body["prompt"] = text.into();
                body["n"] = random.one_of(&[1, 1, 2]).into();
                "/v1/completions"
            }
            Kind::Response => {
                body["input"] = text.into();
                "/v1/responses"
            }
            Kind::Chat | Kind::Schema | Kind::Tools => {
                body["messages"] = json!([{ "role": "user", "content": text }]);
                "/v1/chat/completions"
            }
        };
        match kind {
            // OpenAI requires at least 16.
            Kind::Response => body["max_output_tokens"] = most.max(16).into(),
            _ => body["max_tokens"] = most.into(),
        }
        let properties = json!({ "city": { "type": "string" } });
        let city =
            json!({ "type": "object", "properties": properties, "required": ["city"], "additionalProperties": false });
        match kind {
            Kind::Schema => {
                let schema = json!({ "name": "place", "strict": true, "schema": city });
                body["response_format"] = json!({ "type": "json_schema", "json_schema": schema });
            }
            Kind::Tools => {
                body["tools"] =
                    json!([{ "type": "function", "function": { "name": "get_weather", "parameters": city } }]);
                body["tool_choice"] = random.one_of(&["auto", "required"]).into();
            }
            Kind::Chat | Kind::Completion | Kind::Response => {}
        }
        // One in four requests is streamed and abandoned after at most 11 lines.
        match (random.below(4), kind) {
            (0, _) => {
                body["stream"] = true.into();
                let mut response = self.target.post(path, &body)?;
                for _ in 0..random.below(12) {
                    if response.line()?.is_none() {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            (1, _) | (_, Kind::Response) => self.target.post(path, &body)?.json().map(|_: Value| true),
            _ => Answer::stream(self.target, path, &body).map(|_| true),
        }
    }
}

impl SoakResults {
    fn count(&mut self, kind: Kind, result: Result<bool, Failure>) {
        match result {
            Ok(true) => self.answers += 1,
            Ok(false) => self.left += 1,
            Err(Failure::Busy) => self.busy += 1,
            Err(failure) => {
                self.failures += 1;
                if self.kept.len() < MAX_MESSAGES {
                    self.kept.push(format!("{kind:?}: {failure}"));
                }
            }
        }
    }

    /// Bytes of memory after a tenth of the time, at the end, and at most. Each of the first two is the median of a tenth of the
    /// measurements.
    pub fn memory_figures(&self) -> Option<[u64; 3]> {
        let tenth = (self.memory.len() / 10).max(1);
        let median = |looks: &[u64]| {
            let mut looks = looks.to_vec();
            looks.sort_unstable();
            looks.get(looks.len() / 2).copied()
        };
        let begin = median(self.memory.get(tenth..).unwrap_or_default().get(..tenth).unwrap_or(&self.memory))?;
        let end = median(&self.memory[self.memory.len().saturating_sub(tenth)..])?;
        Some([begin, end, self.memory.iter().copied().max()?])
    }

    /// The results in one line.
    pub fn line(&self) -> String {
        let SoakResults { answers, left, busy, failures, .. } = self;
        let memory = self.memory.last().map_or(String::new(), |bytes| format!(", {} MiB of memory", bytes >> 20));
        format!("{answers} answers, {left} abandoned, {busy} refused with 429, {failures} failures{memory}")
    }

    pub fn to_json(&self) -> Value {
        let memory =
            self.memory_figures().map(|[begin, end, most]| json!({ "begin": begin, "end": end, "most": most }));
        json!({
            "answers": self.answers,
            "left": self.left,
            "busy": self.busy,
            "failures": self.failures,
            "first_failures": self.kept,
            "memory_bytes": memory,
        })
    }
}

/// Resident memory of a process. Linux only.
fn resident_bytes(pid: u32) -> Result<u64> {
    let file = format!("/proc/{pid}/status");
    let Ok(status) = std::fs::read_to_string(&file) else {
        bail!("{file} cannot be read: the process has ended, or the system is not Linux, which --pid needs");
    };
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    match kilobytes {
        Some(kilobytes) => Ok(kilobytes * 1024),
        None => bail!("process {pid} has ended"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_growth_is_measured_after_warm_up() {
        let mut results = SoakResults { memory: (1..=100).collect(), ..SoakResults::default() };
        assert_eq!(results.memory_figures(), Some([16, 96, 100]));
        results.memory = vec![5];
        assert_eq!(results.memory_figures(), Some([5, 5, 5]));
        results.memory.clear();
        assert_eq!(results.memory_figures(), None);
    }

    #[test]
    fn results_are_classified() {
        let mut results = SoakResults::default();
        for result in [Ok(true), Ok(false), Err(Failure::Busy), Err(Failure::Failed("x".into()))] {
            results.count(Kind::Chat, result);
        }
        assert_eq!((results.answers, results.left, results.busy, results.failures), (1, 1, 1, 1));
        assert_eq!(results.kept, ["Chat: x"]);
        assert_eq!(results.to_json()["memory_bytes"], Value::Null);
    }
}

//! A record of `gptoss compare` as text: one line per figure, the engines side by side, each with the median of its turns (in each turn
//! every engine is measured once).

use serde_json::Value;

use crate::commands::bench::median;
use crate::commands::size;

/// The format of a figure.
#[derive(Clone, Copy)]
enum Unit {
    Milliseconds,
    TokensPerSecond,
    Bytes,
    /// A fraction of the logits' standard deviation.
    Error,
    Count,
}

struct Line {
    what: String,
    unit: Unit,
    /// Per engine, the figures of the turns that have one.
    figures: Vec<Vec<f64>>,
}

struct Table<'a> {
    engines: Vec<&'a str>,
    lines: Vec<Line>,
}

/// The figures, then the device, cache type and YaRN ramp of each engine that reported a device, then failures and skipped engines.
pub fn table(record: &Value) -> String {
    let runs = elements(&record["runs"]);
    let mut table = Table { engines: Vec::new(), lines: Vec::new() };
    for run in runs {
        let name = engine_of(run);
        if !table.engines.contains(&name) {
            table.engines.push(name);
        }
    }
    runs.iter().for_each(|run| table.add_run(run));
    let mut text = table.text();
    for &engine in &table.engines {
        if let Some(run) = runs.iter().find(|run| engine_of(run) == engine && run["device"].is_string()) {
            let word = |name: &str| run[name].as_str().unwrap_or("–");
            let (device, cache, rope) = (word("device"), word("kv"), word("rope"));
            text += &format!("{engine}: on {device}; keys and values in {cache}; YaRN's ramp {rope}\n");
        }
    }
    for run in runs {
        if let Some(error) = run["error"].as_str() {
            text += &format!("{} failed in turn {}: {error}\n", engine_of(run), run["turn"]);
        }
    }
    for skipped in elements(&record["skipped"]) {
        text += &format!("{} was skipped: {}\n", engine_of(skipped), skipped["reason"].as_str().unwrap_or_default());
    }
    text
}

fn elements(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn engine_of(run: &Value) -> &str {
    run["engine"].as_str().unwrap_or_default()
}

impl Unit {
    fn written(self, figure: f64) -> String {
        match self {
            Unit::Milliseconds => format!("{figure:.1} ms"),
            Unit::TokensPerSecond => format!("{figure:.2} tok/s"),
            Unit::Bytes => size(figure as u64),
            Unit::Error => format!("{figure:.1e}"),
            Unit::Count => format!("{figure}"),
        }
    }
}

impl Table<'_> {
    fn add_run(&mut self, run: &Value) {
        let engine = self.engines.iter().position(|&name| name == engine_of(run)).unwrap_or_default();
        let mut add = |what: String, unit: Unit, figure: &Value| self.add(engine, what, unit, figure);
        add("start".into(), Unit::Milliseconds, &run["start_ms"]);
        for first in elements(&run["first_tokens"]) {
            add(format!("first token after {}", first["prompt"]), Unit::Milliseconds, &first["ms"]);
        }
        for result in elements(&run["results"]) {
            let [tokens, depth, batch] = ["tokens", "depth", "batch"].map(|name| &result[name]);
            let what = match (result["what"].as_str(), batch.as_u64()) {
                (Some("prefill"), _) => format!("prompt of {tokens} at depth {depth}"),
                (_, Some(1)) => format!("decoding at depth {depth}"),
                _ => format!("{batch} sequences at depth {depth}, in all"),
            };
            add(what, Unit::TokensPerSecond, &result["tok_s"]);
        }
        for (what, name) in [
            ("peak resident memory", "peak_rss_bytes"),
            ("allocated memory", "anonymous_bytes"),
            ("memory on the device", "device_bytes"),
        ] {
            add(what.into(), Unit::Bytes, &run[name]);
        }
        // Compared with the reference that has the same YaRN ramp as the engine.
        let agreement = &run["agreement"][run["rope"].as_str().unwrap_or_default()];
        add("error of the logits, rms".into(), Unit::Error, &agreement["rms"]);
        for (what, of, name) in [("likeliest", "tokens", "likeliest_equal"), ("greedy", "greedy", "greedy_equal")] {
            add(format!("{what} tokens equal, of {}", agreement[of]), Unit::Count, &agreement[name]);
        }
    }

    /// Adds a figure to the line with its name. Values that are not numbers are ignored.
    fn add(&mut self, engine: usize, what: String, unit: Unit, figure: &Value) {
        let Some(figure) = figure.as_f64() else { return };
        let engines = self.engines.len();
        let line = match self.lines.iter().position(|line| line.what == what) {
            Some(line) => line,
            None => {
                self.lines.push(Line { what, unit, figures: vec![Vec::new(); engines] });
                self.lines.len() - 1
            }
        };
        self.lines[line].figures[engine].push(figure);
    }

    fn text(&self) -> String {
        let width = self.lines.iter().map(|line| line.what.len()).max().unwrap_or(0);
        let mut text = format!("{:width$}", "");
        for engine in &self.engines {
            text += &format!(" {engine:>16}");
        }
        text.push('\n');
        for Line { what, unit, figures } in &self.lines {
            text += &format!("{what:width$}");
            for turns in figures {
                let figure = if turns.is_empty() { "–".into() } else { unit.written(median(turns)) };
                text += &format!(" {figure:>16}");
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn table_shows_each_engines_median() {
        let ours = |turn: usize, tok_s: f64| {
            json!({
                "engine": "flash", "turn": turn, "device": "cpu", "kv": "f16", "rope": "exact", "start_ms": 20.0,
                "first_tokens": [{ "prompt": 1, "ms": 50.0 }],
                "results": [
                    { "what": "decode", "tokens": 8, "depth": 0, "batch": 1, "tok_s": tok_s },
                    { "what": "prefill", "tokens": 32, "depth": 0, "batch": 1, "tok_s": 90.0 },
                    { "what": "decode", "tokens": 8, "depth": 0, "batch": 10, "tok_s": 38.0 },
                ],
                "peak_rss_bytes": 12_700_000_000_u64, "anonymous_bytes": 607_000_000, "device_bytes": null,
                "agreement": {
                    "exact": { "rms": 8.3e-4, "tokens": 32, "likeliest_equal": 31, "greedy": 16, "greedy_equal": 16 },
                    "truncated": { "rms": 0.5, "tokens": 32, "likeliest_equal": 9, "greedy": 16, "greedy_equal": 1 },
                },
            })
        };
        let theirs = json!({
            "engine": "mlx", "turn": 1, "device": "NVIDIA H200 (vulkan) through MLX", "kv": "f32", "rope": "exact",
            "results": [{ "what": "decode", "tokens": 8, "depth": 0, "batch": 1, "tok_s": 10.0 }],
        });
        let failed = json!({ "engine": "mlx", "turn": 2, "error": "it ended" });
        let record = json!({
            "runs": [ours(1, 20.0), theirs, failed, ours(2, 22.0)],
            "skipped": [{ "engine": "llama.cpp", "reason": "llama.cpp is not installed" }],
        });
        let text = table(&record);
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "flash mlx",
                "start 20.0 ms –",
                "first token after 1 50.0 ms –",
                "decoding at depth 0 21.00 tok/s 10.00 tok/s",
                "prompt of 32 at depth 0 90.00 tok/s –",
                "10 sequences at depth 0, in all 38.00 tok/s –",
                "peak resident memory 12.70 GB –",
                "allocated memory 607.0 MB –",
                "error of the logits, rms 8.3e-4 –",
                "likeliest tokens equal, of 32 31 –",
                "greedy tokens equal, of 16 16 –",
                "flash: on cpu; keys and values in f16; YaRN's ramp exact",
                "mlx: on NVIDIA H200 (vulkan) through MLX; keys and values in f32; YaRN's ramp exact",
                "mlx failed in turn 2: it ended",
                "llama.cpp was skipped: llama.cpp is not installed",
            ]
        );
        // All lines of the table are equally long, because columns are aligned.
        let widths: Vec<usize> = text.lines().take(11).map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|&width| width == widths[0]), "{text}");
    }
}

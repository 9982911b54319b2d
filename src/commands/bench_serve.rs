//! `gptoss bench-serve`: measures a server as its clients see it.

mod agent;
mod answer;
mod figures;
mod http;
mod joining;
mod load;
mod prompt;
mod random;
mod report;
mod soak;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::args::BenchServe;
use crate::commands::print;
use agent::Agents;
use figures::Figures;
use http::Target;
use joining::{Joining, JoiningResults};
use load::Load;
use prompt::Scale;
use soak::{Soak, SoakResults};

pub fn run(args: &BenchServe) -> Result<ExitCode> {
    let key = args.api_key.clone().or_else(|| std::env::var("OPENAI_API_KEY").ok()).filter(|key| !key.is_empty());
    let target = Target::parse(&args.url, key)?;
    let model = match &args.model {
        Some(model) => model.clone(),
        None => first_model(&target).with_context(|| format!("no model of {}", args.url))?,
    };
    if let Some(minutes) = args.minutes {
        return random_load(args, &target, &model, Duration::from_secs_f64(60.0 * minutes));
    }
    if args.joining {
        return joining(args, &target, &model);
    }
    let measured: Vec<Figures> = if args.agent {
        let turns = args.turns;
        let agents = Agents { target: &target, model: &model, turns, generate: args.generate, seed: args.seed };
        args.clients.iter().map(|&clients| agents.run(clients)).collect()
    } else {
        let load = Load {
            target: &target,
            model: &model,
            scale: Scale::of(&target, &model)?,
            prompt: args.prompt,
            generate: args.generate,
            requests: args.requests.unwrap_or(4),
            seed: args.seed,
        };
        args.clients.iter().map(|&clients| load.run(clients)).collect()
    };
    if let Some(failure) = measured.iter().flat_map(|figures| &figures.failures).next()
        && measured.iter().all(|figures| figures.answers == 0)
    {
        bail!("every request failed: {failure}");
    }
    let report = match args.json {
        true => {
            let mut results = json!({ "generate": args.generate });
            let workload = if args.agent {
                results["turns"] = args.turns.into();
                "agent"
            } else {
                results["requests"] = args.requests.into();
                results["prompt"] = args.prompt.into();
                "load"
            };
            results["levels"] = measured.iter().map(Figures::to_json).collect();
            report::text(args, &target, &model, workload, &results)
        }
        false => figures::table(&measured),
    };
    print(&report)?;
    let has_failed = measured.iter().any(|figures| !figures.failures.is_empty());
    Ok(ExitCode::from(u8::from(has_failed)))
}

fn joining(args: &BenchServe, target: &Target, model: &str) -> Result<ExitCode> {
    let scale = Scale::of(target, model)?;
    let requests = args.requests.unwrap_or(11);
    let joining = Joining { target, model, scale, prompt: args.prompt, requests, seed: args.seed };
    let clients: Vec<usize> = args.clients.iter().copied().filter(|&clients| clients > 1).collect();
    if clients.is_empty() {
        bail!("--joining needs at least two clients; add --clients 10");
    }
    let measured: Vec<JoiningResults> = clients.into_iter().map(|clients| joining.run(clients)).collect();
    let report = match args.json {
        true => {
            let levels: Vec<Value> = measured.iter().map(JoiningResults::to_json).collect();
            let results = json!({ "requests": args.requests, "prompt": args.prompt, "levels": levels });
            report::text(args, target, model, "joining", &results)
        }
        false => measured.iter().map(JoiningResults::text).collect(),
    };
    print(&report)?;
    let has_failed = measured.iter().any(|results| !results.failures.is_empty());
    Ok(ExitCode::from(u8::from(has_failed)))
}

fn random_load(args: &BenchServe, target: &Target, model: &str, time: Duration) -> Result<ExitCode> {
    let soak = Soak {
        target,
        model,
        scale: Scale::of(target, model)?,
        clients: args.clients.iter().copied().max().unwrap_or(1),
        prompt: args.prompt,
        generate: args.generate,
        time,
        pid: args.pid,
        seed: args.seed,
    };
    let results = soak.run()?;
    let report = match args.json {
        true => {
            let mut results = results.to_json();
            results["minutes"] = (time.as_secs_f64() / 60.0).into();
            results["clients"] = soak.clients.into();
            results["prompt"] = args.prompt.into();
            results["generate"] = args.generate.into();
            report::text(args, target, model, "random", &results)
        }
        false => written(&results),
    };
    print(&report)?;
    Ok(ExitCode::from(u8::from(results.failures > 0)))
}

fn written(results: &SoakResults) -> String {
    let mut text = results.line() + "\n";
    if let Some(bytes) = results.memory_figures() {
        let [begin, end, most] = bytes.map(|bytes| bytes as f64 / f64::from(1 << 20));
        text += &format!(
            "memory: {begin:.1} MiB after a tenth of the time, {end:.1} MiB at its end, {most:.1} MiB at most\n"
        );
    }
    results.kept.iter().fold(text, |text, failure| text + "failed: " + failure + "\n")
}

fn first_model(target: &Target) -> Result<String> {
    let models = target.get("/v1/models")?;
    let id = models["data"][0]["id"].as_str().context("`/v1/models` lists no model; give its name with --model")?;
    Ok(id.to_owned())
}

//! `gptoss serve`: serves the HTTP API.

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use phase1_loading::{Checkpoint, Tokenizer};
use phase2_forward::Engine;
use serving::api::{App, Key, Model, Server, Settings};
use serving::grammar::Grammars;
use serving::spill::{Identity, Spill};
use serving::worker::{Handle, Options};
use tokio::runtime::{Builder, Runtime};

use crate::args::Serve;
use crate::embedded::{EMBEDDED, EMBEDDED_NAME};
use crate::model::{self, LoadedModel};

/// Writing conversations to disk when the server stops may take at least this long, even if `--grace` is shorter.
const MIN_SPILL_TIME: Duration = Duration::from_secs(10);

pub fn run(args: &Serve) -> Result<ExitCode> {
    let settings = settings(args)?;
    // The model is opened first, so that a missing one is refused before the server listens. It is loaded later, which may take minutes.
    let checkpoint = open(args)?;
    let is_open = settings.keys.is_empty();
    let app = Arc::new(App::new(settings));
    // The engine has its own threads; these only serve HTTP.
    let runtime =
        Builder::new_multi_thread().worker_threads(2).enable_all().build().context("no threads to serve with")?;
    let server = runtime
        .block_on(Server::bind(app.clone(), &args.host, args.port))
        .map_err(|error| cannot_listen(args, &error))?;
    let address = server.address()?;
    if is_open && !address.ip().is_loopback() {
        print_line(&format!(
            "warning: anyone who can reach {address} can use this server; require a key with --api-key-file"
        ));
    }
    // Installed before the address is printed, so that a signal sent after that is always handled.
    let mut interrupts = {
        let _inside = runtime.enter();
        Interrupts::listen()
    };
    print_line(&format!("listening on http://{address}"));

    // Until the model is loaded, `/health` and requests that need the model are answered with 503.
    let (grace, serving_app) = (Duration::from_secs(args.grace), app.clone());
    let serving = runtime.spawn(async move {
        let end = async move {
            interrupts.next().await;
            if serving_app.loaded().is_none() {
                std::process::exit(0);
            }
            print_line("stopping; a second signal stops at once");
            tokio::spawn(async move {
                interrupts.next().await;
                std::process::exit(130);
            });
        };
        server.run(end, grace).await;
    });
    let model = load(args, checkpoint)?;
    let name = model.name().to_owned();
    app.ready(model);
    print_line(&format!("serving {name}: chat page http://{address}, API http://{address}/v1"));
    let served = runtime.block_on(serving);
    if let Some(model) = app.loaded().filter(|_| args.cache_dir.is_some()) {
        model.handle.spill_all(grace.max(MIN_SPILL_TIME));
    }
    end(runtime, served.is_ok())
}

/// Writes a line to stderr. The server continues even if stderr is closed.
fn print_line(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Why the port cannot be used, and what to do if another program uses it.
fn cannot_listen(args: &Serve, error: &std::io::Error) -> anyhow::Error {
    let remedy = match error.kind() {
        ErrorKind::AddrInUse => "; choose another port with --port, or any free one with --port 0",
        _ => "",
    };
    anyhow!("cannot listen on {}:{}: {error}{remedy}", args.host, args.port)
}

/// Shuts the runtime down, and waits at most a second for its tasks.
fn end(runtime: Runtime, is_well: bool) -> Result<ExitCode> {
    runtime.shutdown_timeout(Duration::from_secs(1));
    if !is_well {
        bail!("the server failed");
    }
    Ok(ExitCode::SUCCESS)
}

fn settings(args: &Serve) -> Result<Settings> {
    let mut lines: Vec<String> = args.api_key.clone();
    lines.extend(std::env::var("GPTOSS_API_KEY").ok().filter(|key| !key.is_empty()));
    let mut keys: Vec<Key> =
        (1..).zip(lines).map(|(number, secret)| Key { name: format!("key{number}"), secret }).collect();
    if let Some(file) = &args.api_key_file {
        let text = std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
        let found = Key::parse_lines(&text, keys.len());
        if found.is_empty() {
            bail!("{} contains no API key", file.display());
        }
        keys.extend(found);
    }
    if keys.iter().any(|key| key.secret.is_empty()) {
        bail!("an API key is empty");
    }
    let max_body = usize::try_from(args.max_body).context("--max-body is too large for this platform")?;
    let (origins, max_connections) = (args.cors.clone(), args.max_connections);
    let answer_time = args.answer_time.map(Duration::from_secs);
    Ok(Settings { keys, origins, max_body, max_connections, answer_time, ..Settings::default() })
}

/// Opens the model's file, of which only the headers are read.
fn open(args: &Serve) -> Result<Checkpoint> {
    let checkpoint = model::open_with(&args.model, &args.engine)?;
    let own = checkpoint.config.context_length;
    if let Some(context) = args.context.filter(|&context| context > own) {
        bail!("--context {context} is more than the {own} tokens that this model was made for");
    }
    Ok(checkpoint)
}

fn load(args: &Serve, mut checkpoint: Checkpoint) -> Result<Model> {
    // Computed before `--context` changes the configuration, so that it does not depend on the flag.
    let fingerprint = checkpoint.fingerprint();
    if let Some(context) = args.context {
        checkpoint.config.context_length = context;
    }
    let bytes = checkpoint.weight_bytes();
    let (loaded, tokenizer): (LoadedModel, Tokenizer) = LoadedModel::start_with_tokenizer(&checkpoint, &args.engine)?;
    let (kind, cache) = (loaded.kind, loaded.cache.name());
    let mut engine: Box<dyn Engine> = loaded.engine.into_engine();
    let disk = match &args.cache_dir {
        Some(folder) => {
            let title = kind.title();
            let snapshots = engine.snapshots().with_context(|| {
                format!("{title} cannot save sequences: --cache-dir needs --engine cached or flash")
            })?;
            let identity = Identity {
                model: fingerprint.clone(),
                rope: checkpoint.config.rope.ramp.name().into(),
                cache: cache.into(),
                engine: snapshots.kind().into(),
            };
            Some(Spill::open(folder, args.cache_size, identity, print_line)?)
        }
        None => None,
    };
    let options = Options {
        max_running: args.parallel,
        max_waiting: args.queue,
        prompt_tokens_per_step: args.prompt_tokens_per_step,
        prefix_cache: !args.no_prefix_cache,
        warm_up: true,
    };
    let positions_per_page = engine.capacity().positions_per_page;
    let names = [name(&args.model)].into_iter().chain(args.alias.iter().cloned());
    Ok(Model {
        handle: Handle::start_with(engine, options, disk),
        tokenizer,
        grammars: Grammars::default(),
        names: names.collect(),
        fingerprint: format!("fp_{fingerprint}"),
        bytes,
        positions_per_page,
        date: args.date.clone(),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
    })
}

/// The model's name for clients: that of the embedded model, the name of a folder, or else the last part of a path or of a name such as
/// `hf:OWNER/NAME`, without an extension.
fn name(model: &Path) -> String {
    if model == Path::new(EMBEDDED) {
        return EMBEDDED_NAME.into();
    }
    let name = if model.is_dir() { model.file_name() } else { model.file_stem() };
    name.map_or_else(|| "gpt-oss".into(), |name| name.to_string_lossy().into_owned())
}

/// The signals that stop the process. A single listener receives all of them, so that none is missed.
struct Interrupts {
    #[cfg(unix)]
    signals: Option<[tokio::signal::unix::Signal; 2]>,
}

impl Interrupts {
    fn listen() -> Interrupts {
        Interrupts {
            #[cfg(unix)]
            signals: {
                use tokio::signal::unix::{SignalKind, signal};
                let both = [signal(SignalKind::terminate()), signal(SignalKind::interrupt())];
                match both {
                    [Ok(terminate), Ok(interrupt)] => Some([terminate, interrupt]),
                    _ => None,
                }
            },
        }
    }

    /// Completes at the next signal.
    async fn next(&mut self) {
        #[cfg(unix)]
        if let Some([terminate, interrupt]) = &mut self.signals {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            return;
        }
        let _ = tokio::signal::ctrl_c().await;
    }
}

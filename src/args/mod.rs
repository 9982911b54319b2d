//! All commands and flags, each defined once: commands by topic, and the groups of flags that they share.

mod compare;
mod engine;
mod files;
mod kind;
mod load;
mod measurements;
mod peers;
mod serving;
mod setup;
mod text;
mod values;

use clap::{Parser, Subcommand};

pub use compare::Compare;
pub use engine::{CacheSize, EngineArgs, FastArgs};
pub use files::{Convert, Inspect, MakeModel, Tokenize, Verify};
pub use kind::EngineKind;
pub use load::BenchServe;
pub use measurements::{Bench, DrawKind, Gates, Memory, Profile, Roofline, Tune};
pub use peers::{Peers, PeersAction};
pub use serving::Serve;
pub use setup::{Completions, Doctor, Man};
pub use text::{Chat, Eval, Generate, Logits};

/// GPT-OSS on your own machine. Without a command: a short demonstration with the model inside this program.
#[derive(Parser)]
#[command(version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
}

// In the order of `--help`. No doc comment: clap would show it as the program's description.
#[derive(Subcommand)]
pub enum Command {
    // To use a model.
    Chat(Chat),
    Generate(Generate),
    Serve(Serve),
    Doctor(Doctor),
    // To look inside a model, and to make one.
    Inspect(Inspect),
    Memory(Memory),
    Tokenize(Tokenize),
    Logits(Logits),
    Convert(Convert),
    Verify(Verify),
    MakeModel(MakeModel),
    // To measure and develop engines.
    Eval(Eval),
    Bench(Bench),
    BenchServe(BenchServe),
    Compare(Compare),
    Profile(Profile),
    Roofline(Roofline),
    Tune(Tune),
    Gates(Gates),
    Peers(Peers),
    // To install the program.
    Completions(Completions),
    Man(Man),
}

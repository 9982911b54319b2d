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

#[derive(Subcommand)]
pub enum Command {
    Doctor(Doctor),
    Inspect(Inspect),
    Tokenize(Tokenize),
    Logits(Logits),
    Generate(Generate),
    Chat(Chat),
    Serve(Serve),
    Eval(Eval),
    Gates(Gates),
    Convert(Convert),
    Verify(Verify),
    Profile(Profile),
    Roofline(Roofline),
    Tune(Tune),
    Memory(Memory),
    Bench(Bench),
    BenchServe(BenchServe),
    Compare(Compare),
    MakeModel(MakeModel),
    Peers(Peers),
    Completions(Completions),
    Man(Man),
}

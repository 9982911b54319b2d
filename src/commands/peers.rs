//! `gptoss peers`: installs and lists MLX and llama.cpp.

use std::process::ExitCode;

use anyhow::Result;
use peers::{Installation, Peer, install};
use serde_json::json;

use crate::args::{Peers, PeersAction};
use crate::commands::print;
use crate::peer;

pub fn run(args: &Peers) -> Result<ExitCode> {
    let folder = peer::folder()?;
    match &args.action {
        PeersAction::Install { name, python } => {
            let installed = install(*name, &folder, python)?;
            print(&format!("{}\n", installed.python.display()))?;
        }
        PeersAction::List { json } => {
            let found = Peer::ALL.map(|peer| (peer, Installation::find(peer, &folder)));
            let text = match json {
                true => format!("{:#}\n", found.iter().map(to_json).collect::<serde_json::Value>()),
                false => found.iter().map(to_text).collect(),
            };
            print(&text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

type Found = (Peer, Result<Installation, peers::InstallError>);

fn to_text((peer, found): &Found) -> String {
    match found {
        Ok(Installation { python, .. }) => {
            format!("{:10} {} ({})\n", peer.name(), python.display(), pins(*peer).join(", "))
        }
        Err(error) => format!("{:10} {error}\n", peer.name()),
    }
}

fn to_json((peer, found): &Found) -> serde_json::Value {
    let python = found.as_ref().ok().map(|found| found.python.display().to_string());
    let missing = found.as_ref().err().map(ToString::to_string);
    json!({ "name": peer.name(), "python": python, "pins": pins(*peer), "missing": missing })
}

/// The peer's packages with their pinned versions, such as `mlx-lm==0.32.2`.
fn pins(peer: Peer) -> Vec<&'static str> {
    let lines = peer.requirements().lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(|line| line.split(';').next().unwrap_or(line)).collect()
}

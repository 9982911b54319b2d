//! `gptoss make-model`: a model of any size with random weights.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use synthetic::SyntheticModel;

use crate::args::MakeModel;
use crate::commands::print;
use crate::model::bytes_bar;

pub fn run(args: &MakeModel) -> Result<ExitCode> {
    let mut model = match SyntheticModel::preset(&args.preset) {
        Some(model) => model,
        None => read_dimensions(Path::new(&args.preset))?,
    };
    model.rest = args.rest.unwrap_or(model.rest);
    let Some(out) = args.out.as_deref().filter(|_| !args.print) else {
        print(&(serde_json::to_string_pretty(&model)? + "\n"))?;
        return Ok(ExitCode::SUCCESS);
    };
    let start = Instant::now();
    let bar = bytes_bar("writing", 0);
    let mut total_bytes = 0;
    let mut progress = |done, total| {
        total_bytes = total;
        bar.set_length(total);
        bar.set_position(done);
    };
    let result = match args.folder {
        true => model.write_folder(out, args.seed, &mut progress),
        false => model.write(out, args.seed, &mut progress),
    };
    bar.finish_and_clear();
    result.with_context(|| format!("writing {}", out.display()))?;
    eprintln!("{}: {:.2} GB in {:.1} s", out.display(), total_bytes as f64 / 1e9, start.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

fn read_dimensions(file: &Path) -> Result<SyntheticModel> {
    let presets = SyntheticModel::PRESETS.join(", ");
    let what = || format!("`{}` is neither a preset ({presets}) nor a readable JSON file", file.display());
    let text = std::fs::read_to_string(file).with_context(what)?;
    serde_json::from_str(&text).with_context(|| format!("{} does not describe a model", file.display()))
}

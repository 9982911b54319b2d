//! Session files: `--session F`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use phase1_loading::{Checkpoint, SavedSession, SessionHeader};
use phase2_forward::{BadRequest, Engine, EngineError, Snapshot};

use crate::model::{LoadedModel, SEQUENCE};

/// A session file.
pub struct Saved {
    file: PathBuf,
    /// The properties that the file must have in common with this run.
    model: String,
    rope: String,
    cache: String,
}

impl Saved {
    /// Opens `file`, if it exists, and restores its sequence in the engine. Returns the file and its tokens, of which the engine then holds
    /// a prefix. An engine of another kind than the one that saved the file holds none, and must read all tokens again.
    ///
    /// # Errors
    /// The engine cannot save sequences; the file is damaged, or of another model, YaRN ramp or cache type; or the engine's cache has no
    /// room for the sequence.
    pub fn open(file: &Path, checkpoint: &Checkpoint, loaded: &mut LoadedModel) -> Result<(Saved, Vec<u32>)> {
        let title = loaded.kind.title();
        let snapshots = loaded
            .engine
            .snapshots()
            .with_context(|| format!("{title} cannot save sequences: --session needs --engine cached or flash"))?;
        let this = Saved {
            file: file.to_owned(),
            model: checkpoint.fingerprint(),
            rope: checkpoint.config.rope.ramp.name().into(),
            cache: loaded.cache.name().into(),
        };
        if !file.exists() {
            return Ok((this, Vec::new()));
        }
        let SavedSession { header, items } = SavedSession::open(file)?;
        let SessionHeader { model, rope, cache, engine, tokens, length } = header;
        // Compared before the model, whose fingerprint also depends on the ramp.
        for (flag, saved, now) in [("rope", &rope, &this.rope), ("kv", &cache, &this.cache)] {
            if saved != now {
                bail!("{} was saved with --{flag} {saved}, but this run has --{flag} {now}", file.display());
            }
        }
        if model != this.model {
            bail!("{} was saved with a model other than {}", file.display(), checkpoint.path.display());
        }
        match snapshots.restore(SEQUENCE, &Snapshot { engine, length, items }) {
            Ok(()) => {}
            Err(EngineError::BadRequest(BadRequest::OtherEngine { found, .. })) => {
                eprintln!("{}: saved by {found}; its {} tokens are read again", file.display(), tokens.len());
            }
            Err(error) => return Err(anyhow!("{}: {error}", file.display())),
        }
        Ok((this, tokens))
    }

    /// Writes all tokens, and the engine's cache of them.
    ///
    /// # Errors
    /// The engine cannot save sequences, the device was lost, or the file cannot be written.
    pub fn write(&self, tokens: &[u32], engine: &mut dyn Engine) -> Result<()> {
        let snapshots = engine.snapshots().context("this engine cannot save sequences")?;
        let Snapshot { engine, length, items } = snapshots.save(SEQUENCE).with_context(|| {
            format!("the cache could not be read from the device; {} is unchanged", self.file.display())
        })?;
        let (model, rope, cache) = (self.model.clone(), self.rope.clone(), self.cache.clone());
        let header = SessionHeader { model, rope, cache, engine, tokens: tokens.to_vec(), length };
        Ok(SavedSession { header, items }.write(&self.file)?)
    }
}

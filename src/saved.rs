//! Text that outlives the program: `--session F`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use phase1_loading::{Checkpoint, SavedSession, SessionHeader};
use phase2_forward::{BadRequest, Engine, EngineError, Snapshot};

use crate::model::{LoadedModel, SEQUENCE};

/// The file of a session.
pub struct Saved {
    file: PathBuf,
    /// What a file of this run says that it belongs to.
    model: String,
    rope: String,
    cache: String,
}

impl Saved {
    /// Opens what is in `file`, if it exists, and gives it to the engine. Returns it with the tokens so far, of which the
    /// engine then holds the first. An engine of another kind than saved them holds none, and has to read them again.
    ///
    /// # Errors
    /// An engine that saves nothing; a damaged file, or one of another model, YaRN ramp or cache type.
    pub fn open(file: &Path, checkpoint: &Checkpoint, loaded: &mut LoadedModel) -> Result<(Saved, Vec<u32>)> {
        let title = loaded.kind.title();
        let snapshots = loaded
            .engine
            .snapshots()
            .with_context(|| format!("{title} remembers nothing that could be saved: --session needs phase 3 or 5"))?;
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
        // Before the model, whose fingerprint differs with the ramp too.
        for (flag, saved, now) in [("rope", &rope, &this.rope), ("kv", &cache, &this.cache)] {
            if saved != now {
                bail!("{} was saved with --{flag} {saved}, and this run has --{flag} {now}", file.display());
            }
        }
        if model != this.model {
            bail!("{} was saved with another model than {}", file.display(), checkpoint.path.display());
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

    /// Writes all tokens and what the engine holds of them.
    ///
    /// # Errors
    /// A device that was lost, or a file that cannot be written.
    pub fn write(&self, tokens: &[u32], engine: &mut dyn Engine) -> Result<()> {
        let snapshots = engine.snapshots().context("this engine remembers nothing that could be saved")?;
        let Snapshot { engine, length, items } = snapshots.save(SEQUENCE).with_context(|| {
            format!("the device does not give back what it holds; {} stays as it was", self.file.display())
        })?;
        let (model, rope, cache) = (self.model.clone(), self.rope.clone(), self.cache.clone());
        let header = SessionHeader { model, rope, cache, engine, tokens: tokens.to_vec(), length };
        Ok(SavedSession { header, items }.write(&self.file)?)
    }
}

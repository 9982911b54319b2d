//! Conversations that outlive the program: `--session F`.

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use gptoss_reference::RopeMode;
use phase1_loading::{Checkpoint, SavedSession};
use phase2_forward::{Engine, SequenceId, Snapshot};

use crate::session::Session;

/// A conversation in a file.
pub struct Saved {
    /// Without tokens and items: what a file of this run says that it belongs to.
    identity: SavedSession,
    /// Every token so far.
    tokens: Vec<u32>,
}

impl Saved {
    /// Opens the conversation in `file`, if there is one, and gives it to the session's engine as `sequence`. Returns it with the tokens
    /// that the engine has yet to see, which come before any new prompt.
    ///
    /// # Errors
    /// A damaged file, or one of another model, RoPE mode or cache type.
    pub fn open(
        file: &Path,
        checkpoint: &Checkpoint,
        rope: RopeMode,
        session: &mut Session,
        sequence: SequenceId,
    ) -> Result<(Saved, Vec<u32>)> {
        let identity = SavedSession {
            model: checkpoint.fingerprint(),
            rope: rope.name().into(),
            cache: session.cache.name().into(),
            tokens: Vec::new(),
            length: 0,
            items: Vec::new(),
        };
        if !file.exists() {
            return Ok((Saved { identity, tokens: Vec::new() }, Vec::new()));
        }
        let SavedSession { model, rope, cache, tokens, length, items } = SavedSession::open(file)?;
        if model != identity.model {
            bail!("{} was saved with another model than {}", file.display(), checkpoint.path.display());
        }
        for (flag, saved, now) in [("rope", &rope, &identity.rope), ("kv", &cache, &identity.cache)] {
            if saved != now {
                bail!("{} was saved with --{flag} {saved}, and this run has --{flag} {now}", file.display());
            }
        }
        let unseen = tokens[length..].to_vec();
        if length > 0 {
            let snapshot = Snapshot { length, items };
            session.engine.restore(sequence, &snapshot).map_err(|error| anyhow!("{}: {error}", file.display()))?;
        }
        Ok((Saved { identity, tokens }, unseen))
    }

    /// Writes the conversation with further tokens, the prompt's and the generated ones.
    ///
    /// # Errors
    /// An engine that does not save, or a file that cannot be written.
    pub fn write(mut self, file: &Path, new: &[u32], engine: &dyn Engine, sequence: SequenceId) -> Result<()> {
        let Some(Snapshot { length, items }) = engine.save(sequence) else {
            bail!("this engine cannot save a conversation; phase 3 can");
        };
        self.tokens.extend(new);
        Ok(SavedSession { tokens: self.tokens, length, items, ..self.identity }.write(file)?)
    }
}

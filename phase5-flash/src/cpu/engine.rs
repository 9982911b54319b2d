//! The engine: it owns the sequences, their pages and the thread pool. A step is computed when it is submitted.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use burn::tensor::{Device, Tensor, TensorData};
use cpu_kernels::{CoarseMatrix, Isa, Pool};
use phase1_loading::{AttentionKind, Checkpoint, GptOssConfig};
use phase2_forward::plain::{PlainSteps, check_rewind, tokens_of};
use phase2_forward::{
    BadRequest, Capacity, Engine, EngineError, Inspect, NoProbe, Outcome, Probe, Rope, SequenceId, Snapshot, Snapshots,
    Ticket, Work, check_work,
};
use phase3_kvcache::{CacheType, ReadCache};

use super::cache::{Cache, PageList};
use super::forward::Forward;
use super::model::{CpuLoadError, Model, in_order_of_use};
use super::part::{NewTokens, Part};
use super::scratch::Scratch;
use super::threads;
use super::weight_check::WeightCheck;
use crate::pages::{POSITIONS, Pages, REWIND, Reuse};

/// The name of this kind of engine in its snapshots.
const NAME: &str = "phase 5 on the CPU";
/// How long loading waits for the check of the weights: long enough to refuse a small model at once.
const CHECK_WAIT: Duration = Duration::from_millis(20);
/// The kinds of layers. For each kind, a sequence has one list of pages, which all layers of the kind use.
const KINDS: [AttentionKind; 2] = [AttentionKind::Full, AttentionKind::Sliding];

/// Options of the engine. The default is the fast mode.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// Number of threads, capped at the processors that the process may use; by default one per physical core.
    pub threads: Option<usize>,
    /// Computes in f32 throughout, like the golden values.
    pub exact: bool,
    /// The instruction set; by default the fastest of this machine.
    pub isa: Option<Isa>,
    /// Format of the KV cache; by default f16, or f32 if `exact`.
    pub kv: Option<CacheType>,
    /// Size in bytes of the KV cache, which takes memory only where it is written; by default room for one full context and some short
    /// sequences, limited to half of the free memory.
    pub kv_bytes: Option<u64>,
}

impl CpuOptions {
    /// The format of the KV cache.
    pub fn cache_type(&self) -> CacheType {
        self.kv.unwrap_or(if self.exact { CacheType::F32 } else { CacheType::F16 })
    }

    /// Number of threads that compute on this machine.
    pub fn thread_count(&self) -> usize {
        threads::count(self.threads)
    }
}

/// Computes batches of sequences on the CPU, with weights read from the mapped file.
pub struct CpuEngine {
    pub(super) forward: Forward,
    pages: Pages,
    cache: Cache,
    pub(super) scratch: Scratch,
    /// The 4-bit copy of the head, from which greedy steps select the rows to compute, and the number of steps before it was made
    /// that could have used it.
    pub(super) shortlist: Option<Arc<CoarseMatrix>>,
    pub(super) greedy_steps: usize,
    /// The token that each sequence drew in its last step. Sequences that drew none there, forks that have not drawn yet, and
    /// sequences that were truncated or restored since have no entry.
    drawn: HashMap<SequenceId, u32>,
    steps: PlainSteps,
    weights: WeightCheck,
}

impl CpuEngine {
    /// Prepares a model to compute from its mapped file. A thread in the background looks for MXFP4 scale bytes of 255 and maps the
    /// pages of the weights in the order of their use. Loading waits at most 20 ms for this thread. If it finds such a byte later, every
    /// step after that fails with [`EngineError::Device`].
    ///
    /// # Errors
    /// A scale byte of 255 was found within these 20 ms, the kernels do not support a shape, or the system cannot map the cache.
    pub fn load(checkpoint: &Checkpoint, options: CpuOptions) -> Result<CpuEngine, CpuLoadError> {
        CpuEngine::load_within(checkpoint, options, CHECK_WAIT)
    }

    /// As [`CpuEngine::load`], waiting for the check of the weights for at most `check_wait`.
    fn load_within(
        checkpoint: &Checkpoint,
        options: CpuOptions,
        check_wait: Duration,
    ) -> Result<CpuEngine, CpuLoadError> {
        let config = checkpoint.config.clone();
        let kv = options.cache_type();
        // The kernels take vectors of 16 values.
        let unit = kv.granule().max(16);
        if !config.head_dim.is_multiple_of(unit) {
            let (path, head_dim) = (checkpoint.path.clone(), config.head_dim);
            return Err(CpuLoadError::HeadDim { path, head_dim, unit, kv: kv.name() });
        }
        let model = Model::load(checkpoint)?;
        let mut weights = WeightCheck::start(checkpoint.path.clone(), in_order_of_use(checkpoint));
        let page = Cache::bytes_per_page(&config, kv);
        let free = available_memory().map(|bytes| bytes / 2);
        // A pool cannot be empty. If it is too small for any sequence, the first step fails.
        let count = Pages::count(config.context_length, page as u64, options.kv_bytes, free).max(1);
        let cache = Cache::new(&config, kv, count).map_err(|source| {
            let (path, bytes) = (checkpoint.path.clone(), (page as u64).saturating_mul(count as u64));
            CpuLoadError::Cache { path, bytes, source }
        })?;
        let forward = Forward {
            rope: Rope::new(&config.rope, config.head_dim),
            model,
            pool: Pool::new(options.thread_count()),
            isa: options.isa.unwrap_or_else(Isa::best),
            exact: options.exact,
            config,
        };
        weights.wait(check_wait)?;
        let config = &forward.config;
        Ok(CpuEngine {
            pages: Pages::new(count, config.sliding_window, &config.attention, Reuse::AsLeft),
            cache,
            scratch: Scratch::default(),
            shortlist: None,
            greedy_steps: 0,
            drawn: HashMap::new(),
            steps: PlainSteps::default(),
            weights,
            forward,
        })
    }

    pub fn threads(&self) -> usize {
        self.forward.pool.threads()
    }

    pub fn isa(&self) -> Isa {
        self.forward.isa
    }

    fn check_rewind(&self, sequence: SequenceId, length: usize) -> Result<(), BadRequest> {
        let known = self.pages.contains(sequence).then(|| self.pages.length(sequence));
        check_rewind(sequence, known, length, || self.pages.reaches_back(sequence, length))
    }
}

impl Engine for CpuEngine {
    fn config(&self) -> &GptOssConfig {
        &self.forward.config
    }

    fn capacity(&self) -> Capacity {
        Capacity {
            pages_total: self.pages.total(),
            pages_free: self.pages.free(),
            positions_per_page: POSITIONS,
            rewind: REWIND,
            ..Capacity::UNBOUNDED
        }
    }

    fn length(&self, sequence: SequenceId) -> usize {
        self.pages.length(sequence)
    }

    fn submit(&mut self, work: &[Work<'_>]) -> Result<Ticket, EngineError> {
        self.steps.check_room()?;
        let outcomes = self.inspect(work, &mut NoProbe)?;
        Ok(self.steps.push(outcomes))
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Outcome>, EngineError> {
        Ok(self.steps.take(ticket)?)
    }

    fn fork(&mut self, from: SequenceId, to: SequenceId, length: usize) -> Result<(), EngineError> {
        if self.pages.contains(to) {
            return Err(BadRequest::SequenceExists(to).into());
        }
        self.check_rewind(from, length)?;
        self.pages.fork(from, to, length);
        Ok(())
    }

    fn truncate(&mut self, sequence: SequenceId, length: usize) -> Result<(), EngineError> {
        self.check_rewind(sequence, length)?;
        self.pages.truncate(sequence, length);
        self.drawn.remove(&sequence);
        Ok(())
    }

    fn release(&mut self, sequence: SequenceId) {
        self.pages.release(sequence);
        self.drawn.remove(&sequence);
    }

    fn snapshots(&mut self) -> Option<&mut dyn Snapshots> {
        Some(self)
    }
}

impl Inspect for CpuEngine {
    fn inspect(&mut self, work: &[Work<'_>], probe: &mut dyn Probe) -> Result<Vec<Outcome>, EngineError> {
        self.weights.result()?;
        check_work(self, work)?;
        let inputs = tokens_of(work, |sequence| self.drawn.get(&sequence).copied())?;
        let reached = |(item, input): (&Work<'_>, &Vec<u32>)| (item.sequence, self.length(item.sequence) + input.len());
        let lengths: Vec<(SequenceId, usize)> = work.iter().zip(&inputs).map(reached).collect();
        let updates = self.pages.extend(&lengths)?;
        self.cache.copy(&updates.copies);

        let mut first = 0;
        let new_tokens = |(item, input): (&Work<'_>, &Vec<u32>)| {
            first += input.len();
            NewTokens { first: first - input.len(), count: input.len(), start: self.length(item.sequence) }
        };
        let new: Vec<NewTokens> = work.iter().zip(&inputs).map(new_tokens).collect();
        let computed = catch_unwind(AssertUnwindSafe(|| {
            let part = |(item, &tokens): (&Work<'_>, &NewTokens)| {
                let [full, sliding] = KINDS.map(|kind| PageList::of(&self.pages, item.sequence, kind));
                Part { tokens, full, sliding }
            };
            let parts: Vec<Part<'_>> = work.iter().zip(&new).map(part).collect();
            self.forward.layers(&mut self.cache, &mut self.scratch, &inputs.concat(), &parts, probe);
            self.outcomes(work, &new, probe)
        }));
        let outcomes = computed.unwrap_or_else(|panic| {
            // The sequences are unchanged; data written past their ends is overwritten later.
            lengths.iter().for_each(|&(sequence, _)| self.pages.retract(sequence));
            resume_unwind(panic)
        });
        for (&(sequence, length), outcome) in lengths.iter().zip(&outcomes) {
            self.pages.advance(sequence, length);
            match outcome.drawn_id() {
                Some(token) => self.drawn.insert(sequence, token),
                None => self.drawn.remove(&sequence),
            };
        }
        Ok(outcomes)
    }
}

impl Snapshots for CpuEngine {
    fn kind(&self) -> &'static str {
        NAME
    }

    fn save(&mut self, sequence: SequenceId) -> Result<Snapshot, EngineError> {
        if !self.pages.contains(sequence) {
            return Err(BadRequest::UnknownSequence(sequence).into());
        }
        let length = self.length(sequence);
        let items = self.cache.save(|kind| PageList::of(&self.pages, sequence, kind), length);
        Ok(Snapshot { engine: NAME.into(), length, items })
    }

    fn restore(&mut self, sequence: SequenceId, snapshot: &Snapshot) -> Result<(), EngineError> {
        let length = snapshot.length;
        let sliding = self.cache.saved_pages(&snapshot.items, AttentionKind::Sliding);
        let count = |kind| self.pages.held_pages(length, kind, sliding);
        snapshot.check(NAME, self.forward.config.context_length, |_| self.cache.saved_bytes(count))?;
        let counts = KINDS.map(count);
        // Every new page is written completely.
        self.pages.replace(sequence, length, |kind| counts[usize::from(kind == AttentionKind::Sliding)])?;
        self.cache.restore(|kind| PageList::of(&self.pages, sequence, kind), &snapshot.items);
        self.drawn.remove(&sequence);
        Ok(())
    }
}

impl ReadCache for CpuEngine {
    fn read_cache(&self, sequence: SequenceId, layer: usize) -> Option<(Vec<usize>, Tensor<3>, Tensor<3>)> {
        if !self.pages.contains(sequence) {
            return None;
        }
        let list = PageList::of(&self.pages, sequence, self.cache.kind(layer));
        let (positions, keys, values) = self.cache.contents(layer, list, self.length(sequence));
        let config = &self.forward.config;
        let shape = [config.kv_heads, positions.len(), config.head_dim];
        let tensor = |values| Tensor::from_data(TensorData::new(values, shape), &Device::flex());
        Some((positions, tensor(keys), tensor(values)))
    }
}

/// Available memory in bytes, if the system reports it.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::mpsc;

    use phase1_loading::{HostTensor, LoadError, check_scales};
    use phase2_forward::Want;
    use synthetic::SyntheticModel;

    use super::*;

    const DAMAGED: &str = "blk.1.ffn_down_exps.weight";

    fn written() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("model.gguf");
        let model = SyntheticModel::preset("nano").expect("a preset");
        model.write(&path, 0, &mut |_, _| ()).expect("written");
        (directory, path)
    }

    /// The model with a scale byte of 255 in block 5 of a tensor.
    fn damaged(path: &Path) -> Checkpoint {
        let mut checkpoint = Checkpoint::open(path).expect("opens");
        let tensor = checkpoint.tensor(DAMAGED);
        let (format, shape, mut packed) = (tensor.format, tensor.shape.clone(), tensor.packed().to_vec());
        packed[17 * 5] = 255;
        checkpoint.tensors.insert(DAMAGED.into(), HostTensor::packed_rows(format, shape, packed.into()));
        checkpoint
    }

    fn assert_names_the_damage(error: &str, checkpoint: &Checkpoint) {
        let path = checkpoint.path.display().to_string();
        for part in [path.as_str(), DAMAGED, "255 in block 5", "again"] {
            assert!(error.contains(part), "{part} in: {error}");
        }
    }

    #[test]
    fn a_scale_of_255_is_refused_if_it_is_found_while_loading() {
        let (_directory, path) = written();
        let checkpoint = damaged(&path);
        let refused = CpuEngine::load_within(&checkpoint, CpuOptions::default(), Duration::from_secs(600));
        assert_names_the_damage(&refused.err().expect("refused").to_string(), &checkpoint);
    }

    #[test]
    fn steps_fail_after_a_scale_of_255_is_found_later() {
        let (_directory, path) = written();
        let whole = Checkpoint::open(&path).expect("opens");
        let mut engine = CpuEngine::load(&whole, CpuOptions::default()).expect("loads");
        let (sender, reports) = mpsc::channel::<Result<(), LoadError>>();
        engine.weights = WeightCheck::of(reports);
        let work = [Work::tokens(0, &[1, 2], Want::Nothing)];
        engine.step(&work).expect("nothing was found yet");
        let found = damaged(&path);
        sender.send(check_scales(&found.path, DAMAGED, found.tensor(DAMAGED))).expect("the engine still exists");
        for _ in 0..2 {
            match engine.step(&work) {
                Err(EngineError::Device(sentence)) => assert_names_the_damage(&sentence, &found),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(engine.length(0), 2);
    }
}

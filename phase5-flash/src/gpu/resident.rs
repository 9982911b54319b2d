//! Greedy generation that stays on the device: a step is captured once and replayed, its token chosen and fed back where it
//! was computed. The host reads a token while the device works on the next.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::pin::Pin;

use cubecl::bytes::Bytes;
use cubecl::client::{Client, Graph};
use cubecl::future::block_on;
use cubecl::server::ServerError;
use phase2_forward::{NoProbe, SequenceId};

use super::GpuError;
use super::engine::GpuEngine;
use super::kernels::greedy::{NO_TOKEN, greedy};
use super::rows::Row;

/// Tokens that room is made for at a time.
const STRETCH: usize = 256;
/// Steps that are under way at most: one computes, one waits its turn.
const QUEUED: usize = 2;

/// A captured step and what it was captured for.
pub(crate) struct CapturedStep {
    graph: Graph,
    /// The engine's count of moved buffers.
    moves: u64,
    /// Keys that attention was split for.
    keys: usize,
}

/// A readback under way.
type Pending<'a> = Pin<Box<dyn Future<Output = Result<Vec<Bytes>, ServerError>> + Send + 'a>>;

impl GpuEngine {
    /// What [`Engine::decode_greedy`](phase2_forward::Engine::decode_greedy) promises, in stretches that room is made for.
    pub(super) fn generate(
        &mut self,
        sequence: SequenceId,
        first: u32,
        count: usize,
        on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<(), GpuError> {
        let (mut token, mut left) = (first, count.min(self.config.context_length - self.caches.length(sequence)));
        while left > 0 {
            let stretch = left.min(STRETCH);
            match self.decode_stretch(sequence, token, stretch, on_token)? {
                ControlFlow::Continue(last) => token = last,
                ControlFlow::Break(()) => return Ok(()),
            }
            left -= stretch;
        }
        Ok(())
    }

    /// One stretch; the last token, to be fed next.
    fn decode_stretch(
        &mut self,
        sequence: SequenceId,
        first: u32,
        count: usize,
        on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<ControlFlow<(), u32>, GpuError> {
        let length = self.caches.length(sequence);
        let room = length + count;
        self.reserve_positions(sequence, room)?;
        self.reserve_rows(1);
        let keys = room.next_power_of_two();
        let row = Row { token: first, position: length as u32, slot: self.caches.slot(sequence) };
        self.capture(keys, row)?;
        self.gpu.write(&self.scratch.row_words, row.words().into());

        let client = self.gpu.client.clone();
        let mut pending: VecDeque<Pending<'_>> = VecDeque::new();
        let (mut queued, mut token) = (0, first);
        let mut outcome = Ok(ControlFlow::Continue(()));
        while queued < count || !pending.is_empty() {
            while queued < count && pending.len() < QUEUED && matches!(outcome, Ok(ControlFlow::Continue(()))) {
                pending.push_back(self.replay(&client)?);
                queued += 1;
            }
            // A readback is waited for even when its token no longer matters: its staging buffer is mapped until then.
            let Some(read) = pending.pop_front() else { break };
            let bytes = block_on(read).map_err(failed)?.pop();
            if !matches!(outcome, Ok(ControlFlow::Continue(()))) {
                continue;
            }
            token = bytes.as_deref().and_then(<[u8]>::first_chunk).map_or(NO_TOKEN, |word| u32::from_le_bytes(*word));
            self.caches.advance(sequence, 1);
            outcome = match token {
                NO_TOKEN => Err(GpuError::NotANumber { position: self.caches.length(sequence) }),
                _ => Ok(on_token(token)),
            };
        }
        Ok(match outcome? {
            ControlFlow::Continue(()) => ControlFlow::Continue(token),
            ControlFlow::Break(()) => ControlFlow::Break(()),
        })
    }

    /// Queues a step and the readback of its token.
    fn replay<'a>(&self, client: &'a Client) -> Result<Pending<'a>, GpuError> {
        let step = self.captured.as_ref().expect("captured before");
        // SAFETY: the engine owns every buffer of the step and captures anew when one moves; all work is on one stream.
        unsafe { step.graph.replay() }.map_err(failed)?;
        Ok(Box::pin(client.read_async(vec![self.scratch.token.handle.clone()])))
    }

    /// Captures the step for `keys` keys, unless it is. `row` is the step to come.
    fn capture(&mut self, keys: usize, row: Row) -> Result<(), GpuError> {
        if self.captured.as_ref().is_some_and(|step| step.moves == self.moves && step.keys == keys) {
            return Ok(());
        }
        self.captured = None;
        let client = self.gpu.client.clone();
        // The warm-up compiles every kernel. It takes the step to come, which then overwrites the keys that it appends.
        self.gpu.write(&self.scratch.row_words, row.words().into());
        client.graph_prepare().map_err(failed)?;
        self.launch_step(keys);
        client.start_capture().map_err(failed)?;
        self.launch_step(keys);
        let graph = client.stop_capture().map_err(failed)?;
        self.captured = Some(CapturedStep { graph, moves: self.moves, keys });
        Ok(())
    }

    /// One row through the model, and the choice of its successor.
    fn launch_step(&self, keys: usize) {
        let scratch = &self.scratch;
        self.layers(1, keys, None, &mut NoProbe);
        self.head(1, &scratch.first_row, &scratch.logits, &mut NoProbe);
        greedy(&self.gpu, &scratch.logits, self.config.vocab, &scratch.stripes, &scratch.row_words, &scratch.token);
    }
}

fn failed(error: ServerError) -> GpuError {
    GpuError::Device(format!("{error:?}"))
}

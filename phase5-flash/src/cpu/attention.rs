//! Rotary embedding, appending to the cache, and attention. A part is the new tokens of one sequence in a step.

use cpu_kernels::{Blocks, KeyBlock, Queries, Shared, attend, attend_share, merge_shares, rotate};

use super::cache::{Cache, PageList};
use super::forward::Forward;
use super::part::Part;
use super::scratch::{Scratch, grow};
use crate::pages::POSITIONS;

/// Query positions per task.
const QUERY_TILE: usize = 8;

/// The queries of a task: a few positions of one part, and the query heads of one key/value head.
struct Task<'a> {
    queries: Queries<'a>,
    /// Index of the task's first value in the queries of all tokens, and in the results of all tokens.
    first: usize,
    head: usize,
    pages: PageList<'a>,
}

impl Forward {
    /// Rotates queries and keys, scales queries by 1 / √head_dim, and appends keys and values to the cache. A task is one key/value head of
    /// one part.
    pub(super) fn append(&self, cache: &mut Cache, s: &mut Scratch, layer: usize, parts: &[Part<'_>]) {
        let (dim, kv_heads) = (self.config.head_dim, self.config.kv_heads);
        let (q_width, kv_width) = (self.config.heads * dim, kv_heads * dim);
        let group = self.config.heads / kv_heads;
        let scale = 1.0 / (dim as f32).sqrt();
        let Scratch { q, k, v, cosines, sines, .. } = s;
        let (q, k) = (Shared::new(q), Shared::new(k));
        let (format, kind) = (cache.format, cache.kind(layer));
        let (pool, bytes) = cache.pool_mut(layer);
        let pool = Shared::new(pool);
        self.pool.run(parts.len() * kv_heads, &|task, _| {
            let (part, head) = (&parts[task / kv_heads], task % kv_heads);
            let pages = part.pages(kind);
            for i in 0..part.tokens.count {
                let token = part.tokens.first + i;
                let angles = (&cosines[token * dim / 2..][..dim / 2], &sines[token * dim / 2..][..dim / 2]);
                // SAFETY: each task writes only its own part and head, in the buffers and in the pages. No other sequence holds the pages.
                unsafe {
                    let q = q.part(token * q_width + head * group * dim, group * dim);
                    for q in q.chunks_exact_mut(dim) {
                        rotate(q, angles.0, angles.1);
                        q.iter_mut().for_each(|q| *q *= scale);
                    }
                    let k = k.part(token * kv_width + head * dim, dim);
                    rotate(k, angles.0, angles.1);
                    let v = &v[token * kv_width + head * dim..][..dim];
                    let position = part.tokens.start + i;
                    let page = pages.at(position) as usize;
                    let block = pool.part((page * kv_heads + head) * bytes, bytes);
                    KeyBlock::write(block, format, position % POSITIONS, k, v);
                }
            }
        });
    }

    /// Attention of all new tokens. A task is a few positions of one part and one key/value head. If that gives fewer tasks than threads,
    /// as when one sequence decodes, each share of a long sequence's keys is a task instead; the results are bit-identical.
    pub(super) fn attention(&self, cache: &Cache, s: &mut Scratch, layer: usize, parts: &[Part<'_>]) {
        let (dim, kv_heads) = (self.config.head_dim, self.config.kv_heads);
        let (stride, width) = (self.config.heads * dim, self.config.heads / kv_heads * dim);
        let Scratch { q, attention_out, shares, threads, .. } = s;
        let tiles: usize = parts.iter().map(|part| part.tokens.count.div_ceil(QUERY_TILE)).sum();
        let q: &[f32] = q;
        let task_of = |task: usize| self.attention_task(cache, q, layer, parts, task);
        // Shares of a task are adjacent; every task has room for the largest number of shares.
        let (mut most_shares, mut room) = (1_usize, 0_usize);
        if tiles * kv_heads < self.pool.threads() {
            for tile in 0..tiles {
                let queries = task_of(tile * kv_heads).queries;
                most_shares = most_shares.max(queries.shares());
                room = room.max(queries.shares() * queries.share_len());
            }
        }
        grow(shares, tiles * kv_heads * room);
        let (attention_out, shares, threads) = (Shared::new(attention_out), Shared::new(shares), Shared::new(threads));

        if most_shares > 1 {
            self.pool.run(tiles * kv_heads * most_shares, &|number, thread| {
                let (task, share) = (number / most_shares, number % most_shares);
                let Task { queries, head, pages, .. } = task_of(task);
                if share >= queries.shares() {
                    return;
                }
                let at = |number: usize| cache.block(layer, pages.pages[number], head);
                let blocks = Blocks { start: pages.first * POSITIONS, count: pages.pages.len(), at: &at };
                // SAFETY: each thread has its own scratch, and each share writes its own result.
                unsafe {
                    let own = &mut threads.part(thread, 1)[0];
                    let result = shares.part(task * room + share * queries.share_len(), queries.share_len());
                    attend_share(self.isa, &queries, &blocks, share, result, &mut own.attention);
                }
            });
        }
        self.pool.run(tiles * kv_heads, &|task, thread| {
            let Task { queries, first, head, pages } = task_of(task);
            let at = |number: usize| cache.block(layer, pages.pages[number], head);
            let blocks = Blocks { start: pages.first * POSITIONS, count: pages.pages.len(), at: &at };
            // SAFETY: each thread has its own scratch, and each task writes its own results. The results of a task are rows of heads,
            // separated by rows of other heads, so they are first collected and then copied row by row.
            unsafe {
                let own = &mut threads.part(thread, 1)[0];
                let result = &mut own.tiles[0];
                grow(result, (queries.count - 1) * stride + width);
                if most_shares > 1 {
                    let of_shares = shares.part(task * room, queries.shares() * queries.share_len());
                    merge_shares(&queries, of_shares, result);
                } else {
                    attend(self.isa, &queries, &blocks, result, &mut own.attention);
                }
                for i in 0..queries.count {
                    let out = attention_out.part(first + i * stride, width);
                    out.copy_from_slice(&result[i * stride..][..width]);
                }
            }
        });
    }

    /// The queries of task `task` among those of all `parts`, in order of part, tile and head.
    fn attention_task<'a>(
        &'a self,
        cache: &Cache,
        q: &'a [f32],
        layer: usize,
        parts: &[Part<'a>],
        task: usize,
    ) -> Task<'a> {
        let (dim, kv_heads) = (self.config.head_dim, self.config.kv_heads);
        let (stride, group) = (self.config.heads * dim, self.config.heads / kv_heads);
        let (mut tile, head) = (task / kv_heads, task % kv_heads);
        let part = parts.iter().find(|part| {
            let own = part.tokens.count.div_ceil(QUERY_TILE);
            let found = tile < own;
            tile -= if found { 0 } else { own };
            found
        });
        let part = part.expect("a tile belongs to a part");
        let before = tile * QUERY_TILE;
        let first = (part.tokens.first + before) * stride + head * group * dim;
        let queries = Queries {
            q: &q[first..],
            stride,
            sinks: &self.model.layers[layer].sinks[head * group..(head + 1) * group],
            head_dim: dim,
            count: QUERY_TILE.min(part.tokens.count - before),
            start: part.tokens.start + before,
            window: cache.reach(cache.kind(layer)),
        };
        Task { queries, first, head, pages: part.pages(cache.kind(layer)) }
    }

    /// Number of keys that the queries of the step's last part attend to together.
    pub(super) fn visible_keys(&self, cache: &Cache, layer: usize, parts: &[Part<'_>]) -> usize {
        let Some(tokens) = parts.last().map(|part| &part.tokens) else { return 0 };
        let reach = cache.reach(self.model.layers[layer].attention);
        (tokens.start + tokens.count).min(reach.saturating_add(tokens.count.saturating_sub(1)))
    }
}

//! The keys and values of one sequence. Buffers of full-attention layers grow; sliding-window layers keep a ring buffer.

use std::ops::Range;

use burn::tensor::kind::Basic;
use burn::tensor::{Bytes, DType, Device, Float, Int, Tensor, TensorData};
use formats::CacheFormat;
use phase1_loading::{AttentionKind, GptOssConfig};
use phase2_forward::KvCache;

use crate::cache_layout::CacheLayout;
use crate::packing::{pack, unpack};

/// The cache of one sequence: keys (after RoPE) and values.
#[derive(Clone)]
pub(crate) struct SequenceCache {
    /// Number of positions of the sequence, including those that a ring has overwritten.
    length: usize,
    layout: CacheLayout,
    layers: Vec<LayerCache>,
}

/// The cached keys and values of one layer.
#[derive(Clone)]
struct LayerCache {
    attention: AttentionKind,
    keys: Rows,
    values: Rows,
}

impl SequenceCache {
    pub fn new(config: &GptOssConfig, kind: CacheFormat, device: &Device) -> SequenceCache {
        let layout = CacheLayout::new(config, kind);
        let layer = |&attention: &AttentionKind| {
            let rows = || Rows::new([layout.kv_heads, layout.reserved(attention, 0), layout.head_dim], kind, device);
            LayerCache { attention, keys: rows(), values: rows() }
        };
        let layers = layout.attention.iter().map(layer).collect();
        SequenceCache { length: 0, layout, layers }
    }

    pub fn length(&self) -> usize {
        self.length
    }

    /// Adds `new` to the length, after a forward pass has added as many positions to every layer.
    pub fn advance(&mut self, new: usize) {
        self.length += new;
    }

    /// Whether the sequence can be shortened. It can, as long as no ring has overwritten a position.
    pub fn can_rewind(&self) -> bool {
        self.length <= self.layout.window || self.layers.iter().all(|layer| layer.attention == AttentionKind::Full)
    }

    /// Removes all but the first `length` positions. [`SequenceCache::can_rewind`] must be true.
    pub fn truncate(&mut self, length: usize) {
        self.length = length;
    }

    /// A copy of the first `length` positions. [`SequenceCache::can_rewind`] must be true.
    pub fn prefix(&self, length: usize) -> SequenceCache {
        SequenceCache { length, ..self.clone() }
    }

    /// The cached positions of `layer`, and the keys and values `[kv_heads, positions, head_dim]` in the same order.
    pub fn contents(&self, layer: usize) -> (Vec<usize>, Tensor<3>, Tensor<3>) {
        let LayerCache { attention, keys, values } = &self.layers[layer];
        let positions = self.stored(*attention);
        let stored = positions.len();
        (positions, keys.first(stored), values.first(stored))
    }

    /// Bytes of all buffers on the device.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.keys.bytes() + layer.values.bytes()).sum()
    }

    /// The occupied slots of every layer as they are stored, first keys and then values, each `[kv_heads, slots, row bytes]`.
    pub fn save(&self) -> Vec<bytes::Bytes> {
        let save = |layer: &LayerCache| {
            let slots = self.occupied(layer.attention);
            [layer.keys.save(slots).into(), layer.values.save(slots).into()]
        };
        self.layers.iter().flat_map(save).collect()
    }

    /// Restores the data that [`SequenceCache::save`] returned for `length` positions, into a new cache of the same model and kind. The
    /// lengths must have been checked against [`SequenceCache::saved_bytes`].
    pub fn restore(&mut self, length: usize, saved: &[bytes::Bytes]) {
        self.length = length;
        for (layer, pair) in self.layers.iter_mut().zip(saved.chunks_exact(2)) {
            let slots = self.layout.occupied(layer.attention, length);
            layer.keys.restore(slots, &pair[0]);
            layer.values.restore(slots, &pair[1]);
        }
    }

    /// Bytes of each item that [`SequenceCache::save`] returns at `length` positions.
    pub fn saved_bytes(&self, length: usize) -> Vec<usize> {
        let bytes = |&attention: &AttentionKind| self.layout.key_bytes(self.layout.occupied(attention, length));
        self.layout.attention.iter().map(bytes).flat_map(|bytes| [bytes; 2]).collect()
    }

    fn occupied(&self, attention: AttentionKind) -> usize {
        self.layout.occupied(attention, self.length)
    }

    /// The positions in the occupied slots of a layer, in slot order.
    fn stored(&self, attention: AttentionKind) -> Vec<usize> {
        match attention {
            AttentionKind::Full => (0..self.length).collect(),
            AttentionKind::Sliding => {
                let newest_in = |slot: usize| {
                    let turns = (self.length - 1 - slot) / self.layout.window;
                    turns * self.layout.window + slot
                };
                (0..self.occupied(attention)).map(newest_in).collect()
            }
        }
    }
}

impl KvCache for SequenceCache {
    fn positions(&self, attention: AttentionKind, new: Range<usize>) -> Vec<usize> {
        let mut positions = self.stored(attention);
        positions.extend(new);
        positions
    }

    fn extend(&mut self, layer: usize, keys: Tensor<3>, values: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let LayerCache { attention, keys: stored_keys, values: stored_values } = &mut self.layers[layer];
        let placement = match attention {
            AttentionKind::Full => Placement::Append(self.length),
            AttentionKind::Sliding => Placement::Ring { length: self.length, window: self.layout.window },
        };
        (stored_keys.extend(placement, keys), stored_values.extend(placement, values))
    }
}

/// The slots for new rows.
#[derive(Clone, Copy)]
enum Placement {
    /// After the given number of earlier rows.
    Append(usize),
    /// Position p in slot p mod `window`, after `length` earlier positions.
    Ring { length: usize, window: usize },
}

/// The keys or the values of one layer: a buffer `[kv_heads, slots, row]`.
#[derive(Clone)]
enum Rows {
    Plain(Buffer<Float>),
    /// Packed words (see `packing`), which attention unpacks one layer at a time.
    Packed {
        words: Buffer<Int>,
        kind: CacheFormat,
        head_dim: usize,
    },
}

impl Rows {
    fn new([heads, slots, head_dim]: [usize; 3], kind: CacheFormat, device: &Device) -> Rows {
        match kind {
            CacheFormat::F32 => Rows::Plain(Buffer::new(Tensor::zeros([heads, slots, head_dim], device))),
            CacheFormat::F16 | CacheFormat::Q8_0 => {
                let shape = [heads, slots, kind.row_bytes(head_dim) / 4];
                let words = Tensor::zeros(shape, (device, DType::U32));
                Rows::Packed { words: Buffer::new(words), kind, head_dim }
            }
        }
    }

    /// Stores new rows and returns the rows that the new tokens may see. In a packed cache the new rows are returned rounded, as later
    /// steps see them, so that the result does not depend on how a sequence is cut into chunks.
    fn extend(&mut self, placement: Placement, new: Tensor<3>) -> Tensor<3> {
        match self {
            Rows::Plain(buffer) => buffer.extend(placement, new),
            Rows::Packed { words, kind, head_dim } => {
                unpack(words.extend(placement, pack(new, *kind)), *kind, *head_dim)
            }
        }
    }

    /// The first `count` slots, in f32.
    fn first(&self, count: usize) -> Tensor<3> {
        match self {
            Rows::Plain(buffer) => buffer.first(count),
            Rows::Packed { words, kind, head_dim } => unpack(words.first(count), *kind, *head_dim),
        }
    }

    fn shape(&self) -> [usize; 3] {
        match self {
            Rows::Plain(buffer) => buffer.tensor().dims(),
            Rows::Packed { words, .. } => words.tensor().dims(),
        }
    }

    /// Size in bytes. Rows of every format consist of 32-bit values or words.
    fn bytes(&self) -> usize {
        self.shape().iter().product::<usize>() * 4
    }

    fn save(&self, slots: usize) -> Vec<u8> {
        let data = match self {
            _ if slots == 0 => return Vec::new(),
            Rows::Plain(buffer) => buffer.first(slots).into_data(),
            Rows::Packed { words, .. } => words.first(slots).into_data(),
        };
        data.as_bytes().to_vec()
    }

    fn restore(&mut self, slots: usize, saved: &[u8]) {
        if slots == 0 {
            return;
        }
        let [heads, _, row] = self.shape();
        let data = |dtype| TensorData::from_bytes(Bytes::from_bytes_vec(saved.to_vec()), [heads, slots, row], dtype);
        match self {
            Rows::Plain(buffer) => {
                let device = buffer.tensor().device();
                buffer.append(0, Tensor::from_data(data(DType::F32), &device));
            }
            Rows::Packed { words, .. } => {
                let device = words.tensor().device();
                words.append(0, Tensor::from_data(data(DType::U32), (&device, DType::U32)));
            }
        }
    }
}

/// A tensor `[kv_heads, slots, row]` that is written in place. Clones share the tensor until one of them writes.
#[derive(Clone)]
struct Buffer<K: Basic> {
    /// `None` only during a write: the tensor is moved out of the buffer, so that Burn sees a single owner and does not copy it.
    tensor: Option<Tensor<3, K>>,
}

impl<K: Basic> Buffer<K> {
    fn new(tensor: Tensor<3, K>) -> Buffer<K> {
        Buffer { tensor: Some(tensor) }
    }

    fn tensor(&self) -> &Tensor<3, K> {
        self.tensor.as_ref().expect("the tensor is only taken inside write")
    }

    fn slots(&self) -> usize {
        self.tensor().dims()[1]
    }

    /// The first `count` slots.
    fn first(&self, count: usize) -> Tensor<3, K> {
        self.tensor().clone().narrow(1, 0, count)
    }

    fn write(&mut self, slot: usize, new: Tensor<3, K>) {
        let [heads, count, row] = new.dims();
        let tensor = self.tensor.take().expect("the tensor is only taken here");
        self.tensor = Some(tensor.slice_assign([0..heads, slot..slot + count, 0..row], new));
    }

    fn extend(&mut self, placement: Placement, new: Tensor<3, K>) -> Tensor<3, K> {
        match placement {
            Placement::Append(length) => self.append(length, new),
            Placement::Ring { length, window } => self.rotate(length, window, new),
        }
    }

    /// Makes room for `needed` slots, rounded up to a power of two but at most `most`, and keeps the first `length`.
    fn reserve(&mut self, needed: usize, most: usize, length: usize) {
        if needed <= self.slots() {
            return;
        }
        let [heads, _, row] = self.tensor().dims();
        let options = (&self.tensor().device(), self.tensor().dtype());
        let grown = Buffer::new(Tensor::zeros([heads, needed.next_power_of_two().min(most), row], options));
        let full = std::mem::replace(self, grown);
        // Burn does not support empty tensors.
        if length > 0 {
            self.write(0, full.first(length));
        }
    }

    /// Full layers, and a restored cache: appends `new` after the first `length` positions and returns all of them.
    fn append(&mut self, length: usize, new: Tensor<3, K>) -> Tensor<3, K> {
        let [_, count, _] = new.dims();
        self.reserve(length + count, usize::MAX, length);
        self.write(length, new);
        self.first(length + count)
    }

    /// Sliding layers: position p is in slot p mod W. Returns the stored rows in slot order, followed by `new`; then the new rows overwrite
    /// the oldest slots. So the first queries of a long chunk still see keys that the chunk's last rows overwrite.
    fn rotate(&mut self, length: usize, window: usize, new: Tensor<3, K>) -> Tensor<3, K> {
        let [_, count, _] = new.dims();
        let stored = length.min(window);
        // A ring smaller than its window has never wrapped.
        self.reserve((length + count).min(window), window, stored);
        let visible = match stored {
            0 => new.clone(),
            _ => Tensor::cat(vec![self.first(stored), new.clone()], 1),
        };
        let kept = count.min(window);
        let first_slot = (length + count - kept) % window;
        let before_wrap = kept.min(window - first_slot);
        let kept_new = new.narrow(1, count - kept, kept);
        self.write(first_slot, kept_new.clone().narrow(1, 0, before_wrap));
        if before_wrap < kept {
            self.write(0, kept_new.narrow(1, before_wrap, kept - before_wrap));
        }
        visible
    }
}

//! The keys and values of one sequence: full layers grow, sliding layers keep a ring.

use std::ops::Range;

use burn::tensor::{Device, Tensor};
use phase1_loading::{AttentionKind, GptOssConfig};
use phase2_forward::KeyValues;

/// Positions that a full layer's buffer holds at first; it doubles when it is full.
const FIRST_CAPACITY: usize = 256;

/// The cache of one sequence, in f32: keys after rotation, and values.
pub(crate) struct SequenceCache {
    /// Positions stored so far, or passed through where a ring has let them go.
    length: usize,
    window: usize,
    layers: Vec<LayerCache>,
}

/// The buffers of one layer, each `[kv_heads, slots, head_dim]`.
struct LayerCache {
    attention: AttentionKind,
    keys: Buffer,
    values: Buffer,
}

/// Positions that the buffers of one layer have room for when a sequence of `length` tokens has been cached.
pub fn slots(config: &GptOssConfig, attention: AttentionKind, length: usize) -> usize {
    match attention {
        AttentionKind::Sliding => config.sliding_window,
        AttentionKind::Full => FIRST_CAPACITY.max(length.next_power_of_two()),
    }
}

impl SequenceCache {
    pub fn new(config: &GptOssConfig, device: &Device) -> SequenceCache {
        let layer = |&attention: &AttentionKind| {
            let slots = slots(config, attention, 0);
            let buffer = || Buffer::new([config.kv_heads, slots, config.head_dim], device);
            LayerCache { attention, keys: buffer(), values: buffer() }
        };
        SequenceCache { length: 0, window: config.sliding_window, layers: config.attention.iter().map(layer).collect() }
    }

    pub fn length(&self) -> usize {
        self.length
    }

    /// Counts the positions that a forward pass has extended every layer by.
    pub fn advance(&mut self, new: usize) {
        self.length += new;
    }

    /// What `layer` remembers: positions, and the keys and values `[kv_heads, positions, head_dim]` in their order.
    pub fn contents(&self, layer: usize) -> (Vec<usize>, Tensor<3>, Tensor<3>) {
        let LayerCache { attention, keys, values } = &self.layers[layer];
        let positions = self.stored(*attention);
        let stored = positions.len();
        (positions, keys.first(stored), values.first(stored))
    }

    /// The position in each occupied slot.
    fn stored(&self, attention: AttentionKind) -> Vec<usize> {
        match attention {
            AttentionKind::Full => (0..self.length).collect(),
            AttentionKind::Sliding => {
                let newest_in = |slot: usize| {
                    let turns = (self.length - 1 - slot) / self.window;
                    turns * self.window + slot
                };
                (0..self.length.min(self.window)).map(newest_in).collect()
            }
        }
    }
}

impl KeyValues for SequenceCache {
    fn positions(&self, attention: AttentionKind, new: Range<usize>) -> Vec<usize> {
        let mut positions = self.stored(attention);
        positions.extend(new);
        positions
    }

    fn extend(&mut self, layer: usize, keys: Tensor<3>, values: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let length = self.length;
        let LayerCache { attention, keys: key_buffer, values: value_buffer } = &mut self.layers[layer];
        match attention {
            AttentionKind::Full => (key_buffer.append(length, keys), value_buffer.append(length, values)),
            AttentionKind::Sliding => (key_buffer.rotate(length, keys), value_buffer.rotate(length, values)),
        }
    }
}

/// A tensor `[kv_heads, slots, head_dim]` that is written in place.
struct Buffer {
    /// Taken out while it is written, so that Burn sees its only owner and need not copy it.
    tensor: Option<Tensor<3>>,
}

impl Buffer {
    fn new(shape: [usize; 3], device: &Device) -> Buffer {
        Buffer { tensor: Some(Tensor::zeros(shape, device)) }
    }

    fn tensor(&self) -> &Tensor<3> {
        self.tensor.as_ref().expect("the tensor is only taken inside write")
    }

    fn slots(&self) -> usize {
        self.tensor().dims()[1]
    }

    /// The first `count` slots.
    fn first(&self, count: usize) -> Tensor<3> {
        self.tensor().clone().narrow(1, 0, count)
    }

    fn write(&mut self, slot: usize, new: Tensor<3>) {
        let [heads, count, dim] = new.dims();
        let tensor = self.tensor.take().expect("the tensor is only taken here");
        self.tensor = Some(tensor.slice_assign([0..heads, slot..slot + count, 0..dim], new));
    }

    /// A full layer: puts `new` behind the first `length` positions and returns all of them.
    fn append(&mut self, length: usize, new: Tensor<3>) -> Tensor<3> {
        let [heads, count, dim] = new.dims();
        let needed = length + count;
        if needed > self.slots() {
            let slots = needed.next_power_of_two();
            let grown = Buffer::new([heads, slots, dim], &new.device());
            let full = std::mem::replace(self, grown);
            // Burn knows no empty tensors.
            if length > 0 {
                self.write(0, full.first(length));
            }
        }
        self.write(length, new);
        self.first(needed)
    }

    /// A sliding layer: position p lives in slot p mod W. Returns what was stored, in slot order, followed by `new`; then
    /// the new positions take the oldest ones' slots. A long chunk's first queries still see keys that its last evict.
    fn rotate(&mut self, length: usize, new: Tensor<3>) -> Tensor<3> {
        let [_, count, _] = new.dims();
        let window = self.slots();
        let stored = length.min(window);
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

//! The inputs of a product with tiles of weights. They are packed in groups of a few inputs, whose values are interleaved.

use formats::BLOCK;

use crate::isa::{Isa, Kernel};
use crate::pool::Shared;
use crate::simd::{LANES, Simd, round_block};

/// The number format of a panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanelFormat {
    F32,
    /// Blocks of 32 16-bit integers with one f32 scale. Rounding errors are about 1e-5 of a block's largest value, and an instruction
    /// computes twice as many products as in f32.
    I16,
}

/// Inputs `[inputs, columns]`, packed. Its buffers are reused by the next step.
pub struct Panel {
    pub(crate) format: PanelFormat,
    pub(crate) columns: usize,
    pub(crate) inputs: usize,
    groups: usize,
    /// A group of n inputs is `[columns, n]` floats in F32, and `[columns / 2, n]` words of two integers in I16.
    pub(crate) words: Vec<u32>,
    /// I16 only: a group of n inputs is `[columns / 32, n]`.
    pub(crate) scales: Vec<f32>,
}

/// Consecutive inputs that a panel interleaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub first: usize,
    pub count: usize,
}

/// A panel whose groups are being filled by several threads.
#[derive(Clone, Copy)]
pub struct Filling<'a> {
    isa: Isa,
    format: PanelFormat,
    columns: usize,
    inputs: usize,
    groups: usize,
    words: Shared<'a, u32>,
    scales: Shared<'a, f32>,
}

impl Default for Panel {
    fn default() -> Panel {
        Panel { format: PanelFormat::F32, columns: BLOCK, inputs: 0, groups: 0, words: Vec::new(), scales: Vec::new() }
    }
}

impl Panel {
    /// Makes room for `inputs` inputs of `columns` values. Each group must then be packed with `Filling::pack`.
    ///
    /// # Panics
    /// If `columns` is not a multiple of 32.
    pub fn begin(&mut self, isa: Isa, format: PanelFormat, columns: usize, inputs: usize) -> Filling<'_> {
        assert!(columns.is_multiple_of(BLOCK), "{columns} columns are not whole blocks");
        self.format = format;
        self.columns = columns;
        self.inputs = inputs;
        self.groups = inputs.div_ceil(isa.group_size());
        let (words, scales) = match format {
            PanelFormat::F32 => (inputs * columns, 0),
            PanelFormat::I16 => (inputs * columns / 2, inputs * columns / BLOCK),
        };
        grow(&mut self.words, words);
        grow(&mut self.scales, scales);
        Filling {
            isa,
            format,
            columns,
            inputs,
            groups: self.groups,
            words: Shared::new(&mut self.words),
            scales: Shared::new(&mut self.scales),
        }
    }

    pub fn inputs(&self) -> usize {
        self.inputs
    }

    pub(crate) fn groups(&self) -> impl Iterator<Item = Group> {
        (0..self.groups).map(|number| group(self.inputs, self.groups, number))
    }
}

fn grow<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
}

/// Group `number` of `groups` groups whose sizes differ by one at most.
pub(crate) fn group(inputs: usize, groups: usize, number: usize) -> Group {
    let (least, larger) = (inputs / groups, inputs % groups);
    Group { first: number * least + number.min(larger), count: least + usize::from(number < larger) }
}

impl Filling<'_> {
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Packs one group. `input(i)` returns input i, `[columns]`.
    ///
    /// # Safety
    /// No other thread packs this group.
    ///
    /// # Panics
    /// If there is no such group, or an input's length is not the panel's number of columns.
    pub unsafe fn pack<'b>(&self, number: usize, input: impl Fn(usize) -> &'b [f32]) {
        assert!(number < self.groups, "the panel has no such group");
        let Group { first, count } = group(self.inputs, self.groups, number);
        let columns = self.columns;
        // SAFETY: a group has its own words and scales, and the caller promises that no other thread packs it.
        let (words, scales) = unsafe {
            match self.format {
                PanelFormat::F32 => (self.words.part(first * columns, count * columns), &mut [][..]),
                PanelFormat::I16 => (
                    self.words.part(first * columns / 2, count * columns / 2),
                    self.scales.part(first * columns / BLOCK, count * columns / BLOCK),
                ),
            }
        };
        for place in 0..count {
            let input = input(first + place);
            assert_eq!(input.len(), columns, "the input must be as wide as the panel");
            match self.format {
                PanelFormat::F32 => {
                    for (word, value) in words[place..].iter_mut().step_by(count).zip(input) {
                        *word = value.to_bits();
                    }
                }
                // SAFETY: the slices have the lengths that the kernel asks for.
                PanelFormat::I16 => unsafe { self.isa.run(Round { input, words, scales, count, place }) },
            }
        }
    }
}

/// Rounds one input into place `place` of a group of `count`.
struct Round<'a> {
    input: &'a [f32],
    words: &'a mut [u32],
    scales: &'a mut [f32],
    count: usize,
    place: usize,
}

impl Kernel for Round<'_> {
    type Output = ();

    /// # Safety
    /// For each block of 32 values of the input, `words` has 16 · `count` words and `scales` has `count` scales.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Round { input, words, scales, count, place } = self;
        for (number, block) in input.as_chunks::<BLOCK>().0.iter().enumerate() {
            // SAFETY: a block holds two vectors of floats, and `pairs` holds one vector of words.
            unsafe {
                let (low, high) = (S::load(block.as_ptr()), S::load(block.as_ptr().add(LANES)));
                let (rounded, unit) = round_block::<S>(low, high);
                scales[number * count + place] = unit;
                let mut pairs = [0; LANES];
                S::store_words(pairs.as_mut_ptr(), rounded);
                for (i, pair) in pairs.into_iter().enumerate() {
                    words[(number * LANES + i) * count + place] = pair;
                }
            }
        }
    }
}

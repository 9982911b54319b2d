//! Compares the page allocator with a naive model, which keeps the tokens of each sequence and the values written into each page.

use proptest::prelude::*;

use super::*;

const WINDOW: usize = 100;
const TOTAL: usize = 40;

/// A call, with random arguments that are adjusted to the existing sequences.
#[derive(Clone, Debug)]
enum Action {
    Extend(Vec<(u64, usize)>),
    Fork { from: u64, to: u64, back: usize },
    Truncate { sequence: u64, back: usize },
    Release(u64),
}

fn action() -> impl Strategy<Value = Action> {
    let sequence = 0..6u64;
    prop_oneof![
        4 => prop::collection::vec((sequence.clone(), 1..200usize), 1..4).prop_map(Action::Extend),
        2 => (sequence.clone(), sequence.clone(), 0..150usize)
            .prop_map(|(from, to, back)| Action::Fork { from, to, back }),
        1 => (sequence.clone(), 0..150usize).prop_map(|(sequence, back)| Action::Truncate { sequence, back }),
        1 => sequence.prop_map(Action::Release),
    ]
}

/// Every sequence as the tokens that it was fed, and every page as the values that were written into it.
#[derive(Default)]
struct Model {
    tokens: BTreeMap<u64, Vec<u32>>,
    memory: BTreeMap<(u32, usize), u32>,
    /// The greatest length of each sequence so far, which limits how far it can be truncated.
    longest: BTreeMap<u64, usize>,
    next: u32,
}

impl Model {
    fn write(&mut self, pages: &Pages, kinds: &[AttentionKind], sequence: u64, length: usize) {
        let tokens = self.tokens.entry(sequence).or_default();
        let longest = self.longest.entry(sequence).or_default();
        *longest = length.max(*longest);
        for position in tokens.len()..length {
            self.next += 1;
            tokens.push(self.next);
            for &kind in kinds {
                let (first, held) = pages.held(sequence, kind);
                self.memory.insert((held[position / POSITIONS - first], position % POSITIONS), self.next);
            }
        }
    }

    /// The number of lists that contain each page.
    fn holders(&self, pages: &Pages, kinds: &[AttentionKind]) -> Vec<u32> {
        let mut holders = vec![0; TOTAL];
        for &sequence in self.tokens.keys() {
            let lists = kinds.iter().map(|&kind| pages.held(sequence, kind).1);
            lists.flatten().for_each(|&page| holders[page as usize] += 1);
        }
        holders
    }

    /// Number of pages that an extension takes: each sequence copies its partial last page if others still hold it, and appends new pages.
    fn taken(&self, pages: &Pages, kinds: &[AttentionKind], lengths: &[(u64, usize)]) -> usize {
        let mut holders = self.holders(pages, kinds);
        let mut taken = 0;
        for &(sequence, length) in lengths {
            let before = pages.length(sequence);
            taken += kinds.len() * (length.div_ceil(POSITIONS) - before.div_ceil(POSITIONS));
            for &kind in kinds.iter().filter(|_| !before.is_multiple_of(POSITIONS)) {
                let page = *pages.held(sequence, kind).1.back().expect("a partial page") as usize;
                if holders[page] > 1 {
                    holders[page] -= 1;
                    taken += 1;
                }
            }
        }
        taken
    }

    /// Asserts that every position that the next query can see is on its listed page, with the value that the sequence wrote.
    fn check(&self, pages: &Pages, kinds: &[AttentionKind]) -> Result<(), TestCaseError> {
        for (&sequence, tokens) in &self.tokens {
            prop_assert_eq!(pages.length(sequence), tokens.len());
            for &kind in kinds {
                let (first, held) = pages.held(sequence, kind);
                let oldest = match kind {
                    AttentionKind::Full => 0,
                    AttentionKind::Sliding => (tokens.len() + 1).saturating_sub(WINDOW),
                };
                for position in oldest..tokens.len() {
                    let page = held[position / POSITIONS - first];
                    prop_assert_eq!(self.memory[&(page, position % POSITIONS)], tokens[position]);
                }
            }
        }
        // Reference counts and the number of free pages are correct.
        let holders = self.holders(pages, kinds);
        prop_assert_eq!(&holders, &pages.pool.holders);
        prop_assert_eq!(pages.free(), holders.iter().filter(|&&count| count == 0).count());
        let slots: BTreeSet<u32> = self.tokens.keys().map(|&sequence| pages.slot(sequence)).collect();
        prop_assert_eq!(slots.len(), self.tokens.len());
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn pages_equal_a_naive_model(
        actions in prop::collection::vec(action(), 1..60),
        layers in prop_oneof![
            Just(vec![AttentionKind::Sliding, AttentionKind::Full]),
            Just(vec![AttentionKind::Full]),
            Just(vec![AttentionKind::Sliding]),
        ],
        reuse in prop::sample::select(vec![Reuse::AsLeft, Reuse::Cleared]),
    ) {
        let mut pages = Pages::new(TOTAL, WINDOW, &layers, reuse);
        let mut model = Model::default();
        for action in actions {
            match action {
                Action::Extend(lengths) => {
                    let lengths: BTreeMap<u64, usize> =
                        lengths.into_iter().map(|(sequence, more)| (sequence, pages.length(sequence) + more)).collect();
                    let lengths: Vec<_> = lengths.into_iter().collect();
                    let free = pages.free();
                    let needed = model.taken(&pages, &layers, &lengths);
                    match pages.extend(&lengths) {
                        Err(full) => {
                            prop_assert!(needed > free && pages.free() == free);
                            prop_assert_eq!(full, Full { needed, free });
                        }
                        Ok(updates) => {
                            prop_assert_eq!(free - pages.free(), needed);
                            prop_assert!(reuse == Reuse::Cleared || updates.cleared.is_empty());
                            model.memory.retain(|(page, _), _| !updates.cleared.contains(page));
                            let copied: Vec<u32> = updates.copies.iter().map(|copy| copy.to).collect();
                            for &(sequence, length) in &lengths {
                                for &kind in &layers {
                                    let (first, held) = pages.held(sequence, kind);
                                    let new = pages.length(sequence).div_ceil(POSITIONS).saturating_sub(first);
                                    for page in held.iter().skip(new) {
                                        let left = model.memory.keys().any(|(of, _)| of == page);
                                        let may_be = reuse == Reuse::AsLeft || !left;
                                        prop_assert!(may_be, "page {} of {} at {}", page, sequence, length);
                                    }
                                }
                            }
                            prop_assert!(copied.iter().all(|page| !updates.cleared.contains(page)));
                            for PageCopy { from, to } in updates.copies {
                                for place in 0..POSITIONS {
                                    if let Some(&value) = model.memory.get(&(from, place)) {
                                        model.memory.insert((to, place), value);
                                    }
                                }
                            }
                            for &(sequence, length) in &lengths {
                                model.write(&pages, &layers, sequence, length);
                            }
                            lengths.iter().for_each(|&(sequence, length)| pages.advance(sequence, length));
                        }
                    }
                }
                Action::Fork { from, to, back } => {
                    let length = pages.length(from).saturating_sub(back);
                    if length > 0 && !pages.contains(to) && pages.reaches_back(from, length) {
                        pages.fork(from, to, length);
                        let copy = model.tokens[&from][..length].to_vec();
                        model.tokens.insert(to, copy);
                        let longest = model.longest[&from];
                        model.longest.insert(to, longest);
                    }
                }
                Action::Truncate { sequence, back } => {
                    let length = pages.length(sequence).saturating_sub(back);
                    if length > 0 && pages.reaches_back(sequence, length) {
                        pages.truncate(sequence, length);
                        model.tokens.get_mut(&sequence).expect("known").truncate(length);
                    } else {
                        let far = |longest: &usize| longest - length > REWIND;
                        prop_assert!(length == 0 || model.longest.get(&sequence).is_some_and(far), "{} back", back);
                    }
                }
                Action::Release(sequence) => {
                    pages.release(sequence);
                    model.tokens.remove(&sequence);
                    model.longest.remove(&sequence);
                }
            }
            model.check(&pages, &layers)?;
        }
        for sequence in 0..6 {
            pages.release(sequence);
        }
        prop_assert_eq!(pages.free(), TOTAL);
    }
}

#[test]
fn pool_size_is_given_or_one_context_plus_a_margin() {
    let default = 1000 + EXTRA_PAGES;
    let context = 1000 * POSITIONS;
    for (given, free, expected) in [
        (Some(10_000), Some(50), 100),
        (Some(10_099), None, 100),
        (Some(99), None, 0),
        (None, None, default),
        (None, Some(u64::MAX), default),
        (None, Some(30_000), 300),
    ] {
        assert_eq!(Pages::count(context, 100, given, free), expected, "{given:?} {free:?}");
    }
    assert_eq!(Pages::count(1, 100, None, None), 1 + EXTRA_PAGES);
}

/// If both holders of a page write into it, only one gets a copy: one free page is enough.
#[test]
fn last_owner_of_a_shared_page_keeps_it() {
    let mut pages = Pages::new(2, 128, &[AttentionKind::Full], Reuse::Cleared);
    pages.extend(&[(1, 10)]).expect("room");
    pages.advance(1, 10);
    pages.fork(1, 2, 10);
    let updates = pages.extend(&[(1, 11), (2, 11)]).expect("room for one copy");
    assert_eq!((updates.copies.len(), pages.free()), (1, 0));
    let page = |sequence| pages.held(sequence, AttentionKind::Full).1[0];
    assert_ne!(page(1), page(2));
}

/// Sequences that exist one after another write no more pages than the longest of them.
#[test]
fn most_recently_freed_pages_are_reused_first() {
    let mut pages = Pages::new(100, 128, &[AttentionKind::Full], Reuse::AsLeft);
    for sequence in 1..10 {
        let updates = pages.extend(&[(sequence, 5 * POSITIONS)]).expect("room");
        assert!(updates.cleared.is_empty());
        assert!(pages.held(sequence, AttentionKind::Full).1.iter().all(|&page| page < 5));
        pages.release(sequence);
    }
}

/// A decoding sequence holds few pages of sliding layers, however long it is.
#[test]
fn sliding_layers_hold_a_window() {
    let mut pages = Pages::new(1000, 128, &[AttentionKind::Sliding], Reuse::Cleared);
    let mut most = 0;
    for length in 1..2000 {
        pages.extend(&[(1, length)]).expect("room");
        pages.advance(1, length);
        most = most.max(if length > 200 { pages.held(1, AttentionKind::Sliding).1.len() } else { 0 });
    }
    assert_eq!(most, 4);
    assert_eq!(pages.free(), 996 + 4 - pages.held(1, AttentionKind::Sliding).1.len());
}

//! Finds sequences in the engine that begin like a prompt: a radix tree over tokens (SGLang, Zheng et al., 2023, arXiv:2312.07104). It
//! contains only tokens and the numbers of sequences; the scheduler forks and releases the sequences in the engine.
//!
//! An entry is a sequence that the engine keeps after its request. A prompt that begins with the same tokens is forked from it, at any
//! length, not only at whole pages: a fork shares all pages, and the engine copies the last one before it is written.
//!
//! Sliding layers limit where an entry can be forked: a sequence of n tokens lacks keys before its window, so that forks are possible only
//! near n. [`PrefixIndex::find`] therefore returns several lengths, the longest first, each with the shortest entry that begins with so
//! many of the prompt's tokens.

use std::collections::{BTreeMap, HashMap};

use phase2_forward::SequenceId;

/// An index of entries by their tokens.
#[derive(Debug)]
pub struct PrefixIndex {
    /// The first is the root. Nodes in `free` are unused.
    nodes: Vec<Node>,
    free: Vec<usize>,
    entries: HashMap<SequenceId, Entry>,
    /// A counter that increases with each use of an entry.
    clock: u64,
}

/// The end of an edge. Every node except the root has an entry or at least two children.
#[derive(Debug, Default)]
struct Node {
    parent: usize,
    /// The tokens between the parent and this node.
    edge: Vec<u32>,
    /// Number of tokens between the root and this node.
    depth: usize,
    /// By the first token of their edge.
    children: BTreeMap<u32, usize>,
    entry: Option<SequenceId>,
}

#[derive(Debug)]
struct Entry {
    node: usize,
    used: u64,
}

/// The cached beginnings of a prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The most tokens at its beginning that the prompt shares with an entry, even if the entry cannot be forked at this length.
    pub shared: usize,
    /// The forks to try, longest first. Each leaves at least one token of the prompt to compute, because the logits after the last token
    /// are needed.
    pub hits: Vec<Hit>,
}

/// The first `length` tokens of `sequence` equal those of the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    pub sequence: SequenceId,
    pub length: usize,
}

const ROOT: usize = 0;

impl Default for PrefixIndex {
    fn default() -> PrefixIndex {
        PrefixIndex { nodes: vec![Node::default()], free: Vec::new(), entries: HashMap::new(), clock: 0 }
    }
}

impl PrefixIndex {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds `sequence`, which holds these tokens, as an entry. If an entry with these tokens exists, marks it as used and returns false.
    pub fn insert(&mut self, tokens: &[u32], sequence: SequenceId) -> bool {
        let (mut node, mut at) = (ROOT, 0);
        while at < tokens.len() {
            match self.nodes[node].children.get(&tokens[at]).copied() {
                None => {
                    node = self.add(node, &tokens[at..]);
                    at = tokens.len();
                }
                Some(child) => {
                    let common = common_length(&self.nodes[child].edge, &tokens[at..]);
                    node = if common < self.nodes[child].edge.len() { self.split(child, common) } else { child };
                    at += common;
                }
            }
        }
        if let Some(known) = self.nodes[node].entry {
            self.touch(known);
            return false;
        }
        self.nodes[node].entry = Some(sequence);
        self.clock += 1;
        self.entries.insert(sequence, Entry { node, used: self.clock });
        true
    }

    /// Marks an entry as used.
    pub fn touch(&mut self, sequence: SequenceId) {
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(&sequence) {
            entry.used = self.clock;
        }
    }

    /// The entry with exactly these tokens.
    pub fn exact(&self, tokens: &[u32]) -> Option<SequenceId> {
        let path = self.path(tokens);
        let &(node, matched) = path.last()?;
        (matched == tokens.len() && self.nodes[node].depth == matched).then_some(self.nodes[node].entry).flatten()
    }

    /// The least recently used entry.
    pub fn oldest(&self) -> Option<SequenceId> {
        self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(&oldest, _)| oldest)
    }

    /// All entries, the least recently used first.
    pub fn by_age(&self) -> Vec<SequenceId> {
        let mut ages: Vec<(u64, SequenceId)> =
            self.entries.iter().map(|(&sequence, entry)| (entry.used, sequence)).collect();
        ages.sort_unstable();
        ages.into_iter().map(|(_, sequence)| sequence).collect()
    }

    /// The tokens of an entry.
    pub fn tokens(&self, sequence: SequenceId) -> Option<Vec<u32>> {
        let mut node = self.entries.get(&sequence)?.node;
        let mut tokens = vec![0; self.nodes[node].depth];
        while node != ROOT {
            let Node { parent, edge, depth, .. } = &self.nodes[node];
            tokens[depth - edge.len()..*depth].copy_from_slice(edge);
            node = *parent;
        }
        Some(tokens)
    }

    /// The entries whose tokens are a prefix of these, the shortest first.
    pub fn prefixes_of(&self, tokens: &[u32]) -> Vec<Hit> {
        let ends = self.path(tokens).into_iter().filter(|&(node, matched)| self.nodes[node].depth == matched);
        ends.filter_map(|(node, length)| Some(Hit { sequence: self.nodes[node].entry?, length })).collect()
    }

    /// Removes an entry; false if it does not exist.
    pub fn remove(&mut self, sequence: SequenceId) -> bool {
        let Some(Entry { mut node, .. }) = self.entries.remove(&sequence) else { return false };
        self.nodes[node].entry = None;
        // Removes nodes that are no longer needed: first those without children, then a node with a single child.
        while node != ROOT && self.nodes[node].entry.is_none() && self.nodes[node].children.is_empty() {
            let Node { parent, edge, .. } = std::mem::take(&mut self.nodes[node]);
            self.nodes[parent].children.remove(&edge[0]);
            self.free.push(node);
            node = parent;
        }
        if node != ROOT && self.nodes[node].entry.is_none() && self.nodes[node].children.len() == 1 {
            self.join(node);
        }
        true
    }

    /// Finds entries that begin like `prompt`.
    pub fn find(&self, prompt: &[u32]) -> Found {
        let path = self.path(prompt);
        let shared = path.last().map_or(0, |&(_, matched)| matched);
        let mut hits: Vec<Hit> = Vec::new();
        for &(node, matched) in path.iter().rev() {
            let length = matched.min(prompt.len().saturating_sub(1));
            if length == 0 {
                break;
            }
            if let Some(sequence) = self.nearest(node)
                && hits.last().is_none_or(|hit| hit.sequence != sequence)
            {
                hits.push(Hit { sequence, length });
            }
            // An entry with exactly this length can always be forked.
            if self.nodes[node].entry.is_some() && self.nodes[node].depth == length {
                break;
            }
        }
        Found { shared, hits }
    }

    /// The nodes on the path of `tokens`, from the root on, each with the number of tokens that match up to it. The edge to the last node
    /// may match only in part.
    fn path(&self, tokens: &[u32]) -> Vec<(usize, usize)> {
        let (mut node, mut at) = (ROOT, 0);
        let mut path = vec![(ROOT, 0)];
        while let Some(&child) = tokens.get(at).and_then(|token| self.nodes[node].children.get(token)) {
            at += common_length(&self.nodes[child].edge, &tokens[at..]);
            path.push((child, at));
            if at < self.nodes[child].depth {
                break;
            }
            node = child;
        }
        path
    }

    /// The shortest entry at a node or below it.
    fn nearest(&self, node: usize) -> Option<SequenceId> {
        let mut open = vec![node];
        let mut best: Option<(usize, SequenceId)> = None;
        while let Some(node) = open.pop() {
            let Node { depth, entry, children, .. } = &self.nodes[node];
            if best.is_some_and(|(shortest, _)| *depth >= shortest) {
                continue;
            }
            match entry {
                Some(sequence) => best = Some((*depth, *sequence)),
                None => open.extend(children.values()),
            }
        }
        best.map(|(_, sequence)| sequence)
    }

    fn add(&mut self, parent: usize, edge: &[u32]) -> usize {
        let depth = self.nodes[parent].depth + edge.len();
        let node = self.place(Node { parent, edge: edge.to_vec(), depth, ..Node::default() });
        self.nodes[parent].children.insert(edge[0], node);
        node
    }

    /// Inserts a node into the edge to `child`, after its first `length` tokens.
    fn split(&mut self, child: usize, length: usize) -> usize {
        let rest = self.nodes[child].edge.split_off(length);
        let edge = std::mem::replace(&mut self.nodes[child].edge, rest);
        let parent = self.nodes[child].parent;
        let (first, next) = (edge[0], self.nodes[child].edge[0]);
        let depth = self.nodes[parent].depth + length;
        let children = BTreeMap::from([(next, child)]);
        let middle = self.place(Node { parent, edge, depth, children, entry: None });
        self.nodes[child].parent = middle;
        self.nodes[parent].children.insert(first, middle);
        middle
    }

    /// Removes a node with one child and joins its edges.
    fn join(&mut self, node: usize) {
        let Node { parent, mut edge, children, .. } = std::mem::take(&mut self.nodes[node]);
        for child in children.into_values() {
            self.nodes[parent].children.insert(edge[0], child);
            let rest = std::mem::take(&mut self.nodes[child].edge);
            edge.extend(rest);
            self.nodes[child].parent = parent;
            self.nodes[child].edge = std::mem::take(&mut edge);
        }
        self.free.push(node);
    }

    fn place(&mut self, node: Node) -> usize {
        match self.free.pop() {
            Some(place) => {
                self.nodes[place] = node;
                place
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        }
    }
}

/// The number of equal tokens at the beginning of two texts.
pub(crate) fn common_length(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Action {
        Insert(Vec<u32>),
        Remove(usize),
        Touch(usize),
        RemoveOldest,
        Find(Vec<u32>),
    }

    /// Few different tokens, so that texts have common beginnings.
    fn text() -> impl Strategy<Value = Vec<u32>> {
        prop_oneof![
            prop::collection::vec(0..2u32, 1..8),
            (0..6usize, prop::collection::vec(0..3u32, 1..4)).prop_map(|(zeros, end)| [vec![0; zeros], end].concat()),
        ]
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            5 => text().prop_map(Action::Insert),
            2 => any::<usize>().prop_map(Action::Remove),
            1 => any::<usize>().prop_map(Action::Touch),
            1 => Just(Action::RemoveOldest),
            5 => text().prop_map(Action::Find),
        ]
    }

    /// The entries as a list, the most recently used last.
    #[derive(Default)]
    struct Naive(Vec<(SequenceId, Vec<u32>)>);

    impl Naive {
        fn touch(&mut self, place: usize) {
            let entry = self.0.remove(place);
            self.0.push(entry);
        }

        fn check(&self, prompt: &[u32], found: &Found) -> Result<(), TestCaseError> {
            let most = prompt.len() - 1;
            let shared = self.0.iter().map(|(_, tokens)| common_length(tokens, prompt)).max().unwrap_or(0);
            prop_assert_eq!(found.shared, shared);
            prop_assert_eq!(found.hits.first().map_or(0, |hit| hit.length), shared.min(most));
            for hit in &found.hits {
                let (_, tokens) = self.0.iter().find(|(sequence, _)| *sequence == hit.sequence).expect("an entry");
                prop_assert!(hit.length > 0 && common_length(tokens, prompt) >= hit.length);
                // No shorter entry shares as much.
                let matched = common_length(tokens, prompt);
                let rivals = self.0.iter().filter(|(_, rival)| common_length(rival, prompt) >= matched);
                prop_assert_eq!(rivals.map(|(_, rival)| rival.len()).min(), Some(tokens.len()));
            }
            prop_assert!(found.hits.is_sorted_by(|a, b| a.length >= b.length));
            // The longest entry that is a prefix of the prompt can be forked by any engine, so it must be among the hits.
            let whole = self.0.iter().filter(|(_, tokens)| tokens.len() <= most && prompt.starts_with(tokens));
            if let Some((sequence, tokens)) = whole.max_by_key(|(_, tokens)| tokens.len()) {
                let sure = Hit { sequence: *sequence, length: tokens.len() };
                prop_assert!(found.hits.contains(&sure), "{found:?} without {sure:?}");
            }
            Ok(())
        }
    }

    /// Checks that the tree has no unneeded nodes, and that every entry is at the end of its tokens.
    fn check_nodes(index: &PrefixIndex, naive: &Naive) -> Result<(), TestCaseError> {
        for (number, node) in index.nodes.iter().enumerate().skip(1).filter(|(number, _)| !index.free.contains(number))
        {
            let parent = &index.nodes[node.parent];
            prop_assert!(node.entry.is_some() || node.children.len() > 1);
            prop_assert_eq!(node.depth, parent.depth + node.edge.len());
            prop_assert_eq!(parent.children.get(&node.edge[0]), Some(&number));
        }
        prop_assert_eq!(index.by_age(), naive.0.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>());
        for (sequence, tokens) in &naive.0 {
            prop_assert_eq!(index.exact(tokens), Some(*sequence));
            prop_assert_eq!(index.tokens(*sequence), Some(tokens.clone()));
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn entries_equal_a_naive_list(actions in prop::collection::vec(action(), 1..60)) {
            let (mut index, mut naive) = (PrefixIndex::default(), Naive::default());
            for (sequence, action) in (0..).zip(actions) {
                let count = naive.0.len();
                match action {
                    Action::Insert(tokens) => {
                        let known = naive.0.iter().position(|(_, known)| *known == tokens);
                        prop_assert_eq!(index.insert(&tokens, sequence), known.is_none());
                        match known {
                            Some(place) => naive.touch(place),
                            None => naive.0.push((sequence, tokens)),
                        }
                    }
                    Action::Remove(which) if count > 0 => {
                        let (gone, _) = naive.0.remove(which % count);
                        prop_assert!(index.remove(gone));
                        prop_assert!(!index.remove(gone));
                    }
                    Action::Touch(which) if count > 0 => {
                        index.touch(naive.0[which % count].0);
                        naive.touch(which % count);
                    }
                    Action::Remove(_) | Action::Touch(_) => {}
                    Action::RemoveOldest => {
                        let oldest = (count > 0).then(|| naive.0.remove(0).0);
                        prop_assert_eq!(index.oldest(), oldest);
                        if let Some(oldest) = oldest {
                            index.remove(oldest);
                        }
                    }
                    Action::Find(prompt) => {
                        naive.check(&prompt, &index.find(&prompt))?;
                        let is_beginning = |(_, tokens): &&(SequenceId, Vec<u32>)| prompt.starts_with(tokens);
                        let mut expected: Vec<Hit> = naive.0.iter().filter(is_beginning)
                            .map(|(sequence, tokens)| Hit { sequence: *sequence, length: tokens.len() })
                            .collect();
                        expected.sort_by_key(|hit| hit.length);
                        prop_assert_eq!(index.prefixes_of(&prompt), expected);
                    }
                }
                check_nodes(&index, &naive)?;
            }
            while let Some(oldest) = index.oldest() {
                index.remove(oldest);
            }
            prop_assert_eq!(index.nodes.len(), index.free.len() + 1);
        }
    }
}

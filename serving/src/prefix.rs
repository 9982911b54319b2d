//! Which sequences of the engine hold the beginning of a prompt: a radix tree over tokens (SGLang, Zheng et al., 2023,
//! arXiv:2312.07104). It holds numbers only; forks and releases are the scheduler's.
//!
//! An entry is a sequence that the engine keeps after its request. A prompt that begins with the same tokens is forked from it. Any
//! length is found, not only whole pages: a fork shares all pages and the engine copies the last one when it is written.
//!
//! Sliding layers make entries of different worth. A sequence of n tokens lacks keys before its window, so that it can be forked
//! near n and nowhere else. Lengths are therefore offered from the longest down, each with the entry that ends nearest behind it.

use std::collections::{BTreeMap, HashMap};

use phase2_forward::SequenceId;

/// Entries by their tokens.
#[derive(Debug)]
pub struct PrefixIndex {
    /// The first is the root. Those in `free` are of no account.
    nodes: Vec<Node>,
    free: Vec<usize>,
    entries: HashMap<SequenceId, Entry>,
    /// Counts uses.
    clock: u64,
}

/// Where an edge ends. Every node but the root has an entry or at least two children.
#[derive(Debug, Default)]
struct Node {
    parent: usize,
    /// The tokens between the parent and here.
    edge: Vec<u32>,
    /// Tokens between the root and here.
    depth: usize,
    /// By the first token of their edges.
    children: BTreeMap<u32, usize>,
    entry: Option<SequenceId>,
}

#[derive(Debug)]
struct Entry {
    node: usize,
    used: u64,
}

/// What is known of a prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Tokens that the prompt shares with any entry, whether one can be forked there or not.
    pub shared: usize,
    /// What to try, longest first. At least one token of the prompt is always left, since its logits are needed.
    pub hits: Vec<Hit>,
}

/// The first `length` tokens of `sequence` are those of the prompt.
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

    /// Makes `sequence`, which holds these tokens, an entry. If they have one already, that counts as used, and the result is false.
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

    /// Notes that an entry was used.
    pub fn touch(&mut self, sequence: SequenceId) {
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(&sequence) {
            entry.used = self.clock;
        }
    }

    /// The entry that ends exactly where these tokens do.
    pub fn exact(&self, tokens: &[u32]) -> Option<SequenceId> {
        let path = self.path(tokens);
        let &(node, matched) = path.last()?;
        (matched == tokens.len() && self.nodes[node].depth == matched).then_some(self.nodes[node].entry).flatten()
    }

    /// The entry that was used least recently.
    pub fn oldest(&self) -> Option<SequenceId> {
        self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(&oldest, _)| oldest)
    }

    /// All entries, that used least recently first.
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

    /// The entries whose tokens are all a beginning of these, the shortest first.
    pub fn beginnings(&self, tokens: &[u32]) -> Vec<Hit> {
        let ends = self.path(tokens).into_iter().filter(|&(node, matched)| self.nodes[node].depth == matched);
        ends.filter_map(|(node, length)| Some(Hit { sequence: self.nodes[node].entry?, length })).collect()
    }

    /// Takes out an entry; false if there is none.
    pub fn remove(&mut self, sequence: SequenceId) -> bool {
        let Some(Entry { mut node, .. }) = self.entries.remove(&sequence) else { return false };
        self.nodes[node].entry = None;
        // Nodes that say nothing any more go too: those without children, then one with a single child.
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

    /// What begins as `prompt` does.
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
            // An entry of this very length can always be forked.
            if self.nodes[node].entry.is_some() && self.nodes[node].depth == length {
                break;
            }
        }
        Found { shared, hits }
    }

    /// The nodes whose edges `tokens` enter, from the root on, with how many tokens match up to there.
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

    /// The shortest entry at a node or below.
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

    /// Puts a node into the edge to `child`, behind its first `length` tokens.
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

    /// Takes a node with one child out of the way to it.
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

/// How many tokens two texts begin with in common.
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

    /// Few tokens, so that texts share much.
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

    /// The entries in a list, that used last at its end.
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
                // None that shares as much is shorter.
                let matched = common_length(tokens, prompt);
                let rivals = self.0.iter().filter(|(_, rival)| common_length(rival, prompt) >= matched);
                prop_assert_eq!(rivals.map(|(_, rival)| rival.len()).min(), Some(tokens.len()));
            }
            prop_assert!(found.hits.is_sorted_by(|a, b| a.length >= b.length));
            // The longest entry that the prompt goes on from can be forked whatever the engine; it is among them.
            let whole = self.0.iter().filter(|(_, tokens)| tokens.len() <= most && prompt.starts_with(tokens));
            if let Some((sequence, tokens)) = whole.max_by_key(|(_, tokens)| tokens.len()) {
                let sure = Hit { sequence: *sequence, length: tokens.len() };
                prop_assert!(found.hits.contains(&sure), "{found:?} without {sure:?}");
            }
            Ok(())
        }
    }

    /// The tree has no more nodes than it needs, and every entry is where its tokens lead.
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
        fn entries_are_those_of_a_list(actions in prop::collection::vec(action(), 1..60)) {
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
                        prop_assert_eq!(index.beginnings(&prompt), expected);
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

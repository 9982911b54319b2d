//! Finds the files whose sequences begin like a prompt, and decides which files are deleted when space is needed. It does no I/O.

use std::collections::HashMap;

use crate::prefix::{Hit, PrefixIndex};

/// Identifies a file; numbers are never reused.
pub(super) type FileId = u64;

/// All files of the folder, including those being written.
#[derive(Debug)]
pub(super) struct FileIndex {
    /// The largest total size of the files, and their current total, in bytes.
    limit: u64,
    bytes: u64,
    files: HashMap<FileId, File>,
    /// Files that can be read.
    readable: PrefixIndex,
    /// A counter that increases with each use of a file.
    clock: u64,
}

#[derive(Debug)]
struct File {
    bytes: u64,
    /// 0 for a file that cannot be read, because it is of another model, is not complete yet, or has the same tokens as another file.
    tokens: usize,
    used: u64,
}

impl FileIndex {
    pub fn new(limit: u64) -> FileIndex {
        FileIndex { limit, bytes: 0, files: HashMap::new(), readable: PrefixIndex::default(), clock: 0 }
    }

    /// Number of files.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Total size of all files.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds a file that cannot be read yet, as the most recently used. Returns the files that must be deleted for it. If the file alone is
    /// larger than the limit, adds nothing and returns `None`.
    pub fn add(&mut self, id: FileId, bytes: u64) -> Option<Vec<FileId>> {
        let limit = self.limit.checked_sub(bytes)?;
        let mut gone = Vec::new();
        while self.bytes > limit {
            let (&oldest, _) = self.files.iter().min_by_key(|(_, file)| file.used)?;
            self.remove(oldest);
            gone.push(oldest);
        }
        self.clock += 1;
        self.bytes += bytes;
        self.files.insert(id, File { bytes, tokens: 0, used: self.clock });
        Some(gone)
    }

    /// Makes an added file readable for prompts that begin with these tokens. False if it was removed meanwhile, or if another file has the
    /// same tokens.
    pub fn complete(&mut self, id: FileId, tokens: &[u32]) -> bool {
        let Some(file) = self.files.get_mut(&id) else { return false };
        let is_new = self.readable.insert(tokens, id);
        file.tokens = if is_new { tokens.len() } else { 0 };
        is_new
    }

    /// Marks a file as used.
    pub fn touch(&mut self, id: FileId) {
        self.clock += 1;
        if let Some(file) = self.files.get_mut(&id) {
            file.used = self.clock;
        }
    }

    /// Removes a file; false if it does not exist.
    pub fn remove(&mut self, id: FileId) -> bool {
        let Some(file) = self.files.remove(&id) else { return false };
        self.bytes -= file.bytes;
        self.readable.remove(id);
        true
    }

    /// Whether a file with exactly these tokens can be read.
    pub fn holds(&self, tokens: &[u32]) -> bool {
        self.readable.exact(tokens).is_some()
    }

    /// The file that holds the most tokens of a prompt, and their number. A restored sequence can be truncated by up to `rewind` tokens;
    /// at least one token of the prompt is left to compute.
    pub fn longest(&self, prompt: &[u32], rewind: usize) -> Option<Hit> {
        let reaches = |hit: &Hit| self.files[&hit.sequence].tokens - hit.length <= rewind;
        self.readable.find(prompt).hits.into_iter().find(reaches)
    }

    /// The files whose tokens are a prefix of these, with at least `least` tokens.
    pub fn prefixes_of(&self, tokens: &[u32], least: usize) -> Vec<FileId> {
        let hits = self.readable.prefixes_of(tokens).into_iter();
        hits.filter(|hit| hit.length >= least).map(|hit| hit.sequence).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Action {
        Add { tokens: Vec<u32>, bytes: u64, is_complete: bool },
        Remove(usize),
        Touch(usize),
        Find { prompt: Vec<u32>, rewind: usize, least: usize },
    }

    const LIMIT: u64 = 100;

    /// Few different tokens, so that texts have common beginnings.
    fn text() -> impl Strategy<Value = Vec<u32>> {
        prop_oneof![
            prop::collection::vec(0..2u32, 1..8),
            (0..6usize, prop::collection::vec(0..3u32, 1..4)).prop_map(|(zeros, end)| [vec![0; zeros], end].concat()),
        ]
    }

    fn action() -> impl Strategy<Value = Action> {
        let add = (text(), prop_oneof![9 => 1..40u64, 1 => 90..120u64], prop::bool::weighted(0.8));
        prop_oneof![
            5 => add.prop_map(|(tokens, bytes, is_complete)| Action::Add { tokens, bytes, is_complete }),
            1 => any::<usize>().prop_map(Action::Remove),
            2 => any::<usize>().prop_map(Action::Touch),
            5 => (text(), 0..4usize, 0..4usize)
                .prop_map(|(prompt, rewind, least)| Action::Find { prompt, rewind, least }),
        ]
    }

    struct Naive {
        id: FileId,
        bytes: u64,
        /// Empty for a file that cannot be read.
        tokens: Vec<u32>,
    }

    /// The number of tokens of the prompt that a sequence restored from this file can provide, if it may be truncated by `rewind` tokens.
    fn usable(tokens: &[u32], prompt: &[u32], rewind: usize) -> Option<usize> {
        let shared = tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count().min(prompt.len() - 1);
        (shared > 0 && tokens.len() - shared <= rewind).then_some(shared)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        /// The files equal those of a list with the most recently used last.
        #[test]
        fn files_equal_a_naive_list(actions in prop::collection::vec(action(), 1..60)) {
            let mut index = FileIndex::new(LIMIT);
            let mut naive: Vec<Naive> = Vec::new();
            for (id, action) in (0..).zip(actions) {
                let count = naive.len();
                match action {
                    Action::Add { tokens, bytes, is_complete } => {
                        let gone = index.add(id, bytes);
                        if bytes > LIMIT {
                            prop_assert_eq!(gone, None);
                            continue;
                        }
                        let mut expected = Vec::new();
                        while naive.iter().map(|file| file.bytes).sum::<u64>() + bytes > LIMIT {
                            expected.push(naive.remove(0).id);
                        }
                        prop_assert_eq!(gone, Some(expected));
                        let is_known = naive.iter().any(|file| file.tokens == tokens);
                        prop_assert_eq!(index.holds(&tokens), is_known);
                        if is_complete {
                            prop_assert_eq!(index.complete(id, &tokens), !is_known);
                        }
                        let tokens = if is_complete && !is_known { tokens } else { Vec::new() };
                        naive.push(Naive { id, bytes, tokens });
                    }
                    Action::Remove(which) if count > 0 => {
                        let file = naive.remove(which % count);
                        prop_assert!(index.remove(file.id));
                        prop_assert!(!index.remove(file.id));
                        prop_assert!(!index.complete(file.id, &[1]));
                    }
                    Action::Touch(which) if count > 0 => {
                        let file = naive.remove(which % count);
                        index.touch(file.id);
                        naive.push(file);
                    }
                    Action::Remove(_) | Action::Touch(_) => {}
                    Action::Find { prompt, rewind, least } => {
                        let most = naive.iter().filter_map(|file| usable(&file.tokens, &prompt, rewind)).max();
                        let found = index.longest(&prompt, rewind);
                        prop_assert_eq!(found.map(|hit| hit.length), most);
                        if let Some(hit) = found {
                            let file = naive.iter().find(|file| file.id == hit.sequence).expect("a file");
                            prop_assert_eq!(usable(&file.tokens, &prompt, rewind), most);
                        }
                        let is_beginning = |file: &&Naive| {
                            !file.tokens.is_empty() && file.tokens.len() >= least && prompt.starts_with(&file.tokens)
                        };
                        let mut expected: Vec<&Naive> = naive.iter().filter(is_beginning).collect();
                        expected.sort_by_key(|file| file.tokens.len());
                        let expected: Vec<FileId> = expected.into_iter().map(|file| file.id).collect();
                        prop_assert_eq!(index.prefixes_of(&prompt, least), expected);
                    }
                }
                prop_assert_eq!(index.bytes(), naive.iter().map(|file| file.bytes).sum::<u64>());
                prop_assert_eq!(index.len(), naive.len());
                prop_assert!(index.bytes() <= LIMIT);
            }
        }
    }
}

//! Conversations on disk, on the fake engine, whose texts can be predicted: they are restored, also after a restart, and damage never
//! changes a text.

#[allow(dead_code, reason = "each test uses a part of it")]
mod fake;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use fake::run::{Run, seeded, text};
use fake::{Fake, KIND, POISON, request};
use phase1_loading::{SavedSession, SessionHeader};
use proptest::prelude::*;
use serving::request::{Finish, Request};
use serving::scheduler::Options;
use serving::spill::{Identity, Spill, SpillError};
use serving::statistics::Spilled;

/// Warnings about all folders.
static WARNINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn warn(sentence: &str) {
    WARNINGS.lock().unwrap_or_else(PoisonError::into_inner).push(sentence.to_owned());
}

/// Warnings about files in this folder.
fn warnings(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().expect("UTF-8");
    let all = WARNINGS.lock().unwrap_or_else(PoisonError::into_inner);
    all.iter().filter(|sentence| sentence.contains(folder)).cloned().collect()
}

fn identity() -> Identity {
    Identity { model: "a model".into(), rope: "exact".into(), cache: "f16".into(), engine: KIND.into() }
}

fn open(folder: &Path, limit: u64) -> Spill {
    Spill::open(folder, limit, identity(), warn).expect("a folder")
}

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// A server that spills to a folder, with an engine that has room for everything.
fn roomy(folder: &Path) -> Run {
    Run::roomy().spill_to(open(folder, 1 << 30))
}

/// A server that spills to a folder, with an engine that has room for about three of the conversations below.
fn crowded(folder: &Path) -> Run {
    Run::new(Fake::new(100, 2), Options::default()).spill_to(open(folder, 1 << 30))
}

impl Run {
    fn spilled(&self) -> Spilled {
        self.scheduler.statistics(&self.engine).spilled
    }

    /// Shuts the server down.
    fn stop(mut self) {
        self.scheduler.spill_all(&mut self.engine, Instant::now() + Duration::from_secs(60));
    }
}

/// The files with sequences in a folder, with their headers.
fn files(folder: &Path) -> Vec<(PathBuf, SessionHeader)> {
    let paths = fs::read_dir(folder).expect("readable").map(|entry| entry.expect("readable").path());
    let mut files: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|end| end == "kv")).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), SessionHeader::open(&path).expect("a header"))).collect()
}

fn lengths(folder: &Path) -> Vec<usize> {
    let mut lengths: Vec<usize> = files(folder).into_iter().map(|(_, header)| header.length).collect();
    lengths.sort_unstable();
    lengths
}

/// The next prompt of a chat whose last prompt was `prompt`; it does not repeat the generated answer.
fn next_prompt(prompt: &[u32], generated: &[u32], more: usize) -> Vec<u32> {
    let other = (generated[0] + 1) % POISON;
    [prompt, &vec![other; more]].concat()
}

#[test]
fn evicted_conversation_is_restored_from_disk() {
    let folder = temporary();
    let mut run = crowded(folder.path());
    let first = run.run(request(&text(0, 100), 5));
    for family in 1..7 {
        run.settle();
        let other = request(&text(family, 100), 5);
        assert_eq!(run.run(other.clone()).cached, Some(0));
        run.check(u64::from(family), &other);
    }
    run.settle();
    let Spilled { files, bytes, spilled_tokens, spilled_bytes, restored_tokens, .. } = run.spilled();
    // Three of the seven conversations are in memory; each of the others has a file for the end of its prompt and one for the end of its
    // text.
    assert!(files >= 8 && bytes >= spilled_bytes && spilled_bytes > 0, "{files} files");
    assert!(spilled_tokens >= 800 && restored_tokens == 0, "{spilled_tokens} tokens");

    let before = run.engine.computed();
    let next = request(&next_prompt(&text(0, 100), &first.tokens, 30), 5);
    assert_eq!(run.run(next.clone()).cached, Some(100));
    run.check(7, &next);
    // The tokens that were not cached, and all generated tokens except the last.
    assert_eq!(run.engine.computed() - before, 30 + 4);
    let now = run.spilled();
    assert_eq!(now.restored_tokens, 100);
    assert!(now.restored_bytes > 0);
    run.check_empty();
    assert_eq!(warnings(folder.path()), [""; 0]);
}

#[test]
fn conversation_is_restored_after_a_restart() {
    let folder = temporary();
    let mut run = roomy(folder.path());
    let first = run.run(request(&text(0, 100), 5));
    run.stop();
    // The prompt, and the text without its last token.
    assert_eq!(lengths(folder.path()), [100, 104]);

    let mut run = roomy(folder.path());
    let next = request(&next_prompt(&text(0, 100), &first.tokens, 30), 5);
    assert_eq!(run.run(next.clone()).cached, Some(100));
    run.check(0, &next);
    // A prompt that continues the generated text, as a tool's result does, uses the cache of that text.
    let result = request(&[text(0, 100), first.tokens.clone(), vec![7; 20]].concat(), 5);
    let mut run = {
        run.stop();
        roomy(folder.path())
    };
    assert_eq!(run.run(result.clone()).cached, Some(104));
    run.check(0, &result);
    // A repeated prompt is computed from its last token: the engine truncates the sequence by one.
    let mut run = {
        run.stop();
        roomy(folder.path())
    };
    let again = request(&text(0, 100), 5);
    assert_eq!(run.run(again.clone()).cached, Some(99));
    run.check(0, &again);
}

/// A file contains a whole sequence, so files of earlier turns of the chat are not needed.
#[test]
fn only_the_last_turn_of_a_chat_is_written() {
    let folder = temporary();
    let mut run = roomy(folder.path());
    let mut prompt = text(0, 100);
    for _ in 0..4 {
        let received = run.run(request(&prompt, 5));
        prompt = next_prompt(&prompt, &received.tokens, 40);
    }
    run.stop();
    assert_eq!(lengths(folder.path()), [220, 224]);
}

/// A chat with the same instructions shares only the beginning of the first one's prompt, and does not replace its file.
#[test]
fn other_chats_file_is_not_replaced() {
    let folder = temporary();
    let mut run = roomy(folder.path());
    run.run(request(&[text(0, 80), vec![1; 40]].concat(), 3));
    let other = request(&[text(0, 80), vec![2; 60]].concat(), 3);
    run.run(other.clone());
    run.run(request(&[text(0, 80), vec![3; 50]].concat(), 3));
    run.stop();
    assert_eq!(lengths(folder.path()), [80, 120, 122, 130, 132, 140, 142]);
}

#[test]
fn shared_instructions_are_written() {
    let folder = temporary();
    let chat = |user: u32| request(&[text(0, 80), vec![user; 40]].concat(), 3);
    let mut run = roomy(folder.path());
    for user in 1..4 {
        run.run(chat(user));
    }
    run.stop();
    assert!(lengths(folder.path()).contains(&80), "{:?}", lengths(folder.path()));
    let mut run = roomy(folder.path());
    assert_eq!(run.run(chat(4)).cached, Some(80));
    run.check(0, &chat(4));
}

#[test]
fn short_texts_are_computed_instead_of_read() {
    let folder = temporary();
    let mut run = roomy(folder.path());
    run.run(request(&text(0, 50), 5));
    run.stop();
    assert_eq!(lengths(folder.path()), [0usize; 0]);
}

/// The request arrives in one iteration, and in the next one it waits for its file.
#[test]
fn a_request_may_end_while_its_file_is_read() {
    for deadline in [false, true] {
        let folder = temporary();
        let mut run = roomy(folder.path());
        run.run(request(&text(0, 100), 5));
        run.stop();
        let mut run = roomy(folder.path());
        let late = deadline.then(|| run.now + Duration::from_millis(2));
        let id = run.add(Request { deadline: late, ..request(&[text(0, 100), vec![1; 9]].concat(), 5) });
        run.turn();
        assert_eq!((run.scheduler.statistics(&run.engine).waiting, run.scheduler.is_idle()), (1, false));
        if !deadline {
            run.scheduler.cancel(&mut run.engine, id);
        }
        run.turn();
        run.settle();
        let finished = run.scheduler.statistics(&run.engine).finished;
        assert_eq!((finished.cancelled, finished.deadline), (u64::from(!deadline), u64::from(deadline)));
        assert_eq!(run.engine.computed(), 0);
        run.check_empty();
    }
}

/// Two requests need the same file, and a third needs none.
#[test]
fn other_requests_do_not_wait_for_a_file() {
    let folder = temporary();
    let mut run = roomy(folder.path());
    let first = run.run(request(&text(0, 100), 5));
    run.stop();
    let mut run = roomy(folder.path());
    // Neither prompt repeats the token that was generated after the text.
    let requests = [1, 2].map(|user| request(&[text(0, 100), vec![(first.tokens[0] + user) % POISON; 9]].concat(), 5));
    let other = request(&text(3, 20), 5);
    for request in [&requests[0], &requests[1], &other] {
        run.add(request.clone());
    }
    run.finish();
    assert_eq!(run.started[0], 2);
    let cached: Vec<_> = (0..3).map(|id| run.received[&id].cached).collect();
    assert_eq!(cached, [Some(100), Some(100), Some(0)]);
    for (id, request) in (0..).zip([&requests[0], &requests[1], &other]) {
        run.check(id, request);
    }
    assert_eq!(run.spilled().restored_tokens, 100);
    run.check_empty();
}

/// The cache of a request that failed is not found after a restart either.
#[test]
fn failed_requests_cache_is_not_written() {
    let folder = temporary();
    let mut run = roomy(folder.path());
    run.run(request(&text(0, 100), 5));
    run.stop();
    let mut run = roomy(folder.path());
    let bad = request(&[text(0, 100), vec![POISON; 80]].concat(), 5);
    assert!(matches!(run.run(bad.clone()).finish, Some(Finish::Failed(_))));
    run.stop();
    let mut run = roomy(folder.path());
    assert_eq!(run.run(bad).cached, Some(0));
    run.stop();
    assert!(!lengths(folder.path()).contains(&180), "{:?}", lengths(folder.path()));
}

#[test]
fn a_folder_belongs_to_one_server() {
    let folder = temporary();
    let first = open(folder.path(), 1 << 30);
    let refused = Spill::open(folder.path(), 1 << 30, identity(), warn).expect_err("another server uses it");
    assert!(matches!(refused, SpillError::Taken { .. }), "{refused}");
    drop(first);
    open(folder.path(), 1 << 30);

    let file = folder.path().join("file");
    fs::write(&file, "x").expect("written");
    assert!(matches!(Spill::open(&file, 1 << 30, identity(), warn), Err(SpillError::Io { .. })));
}

#[test]
fn missing_folder_gives_one_warning() {
    let parent = temporary();
    let folder = parent.path().join("spilled");
    let mut run = crowded(&folder);
    fs::remove_dir_all(&folder).expect("removed");
    for family in 0..8 {
        let request = request(&text(family, 100), 5);
        run.run(request.clone());
        run.check(u64::from(family), &request);
        run.settle();
    }
    let logged = warnings(&folder);
    assert!(logged.len() == 1 && logged[0].contains("cannot be written"), "{logged:?}");
    assert_eq!((run.spilled().files, run.spilled().bytes), (0, 0));
    run.check_empty();
}

/// A way to damage a copy of the shorter of a conversation's two files: the one with its prompt, from which more tokens can be
/// reused than from the one with its whole text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    Flip(usize),
    Truncate(usize),
    Empty,
    OtherModel,
    OtherEngine,
    NotAllCached,
    /// One of the two items is missing, which no checksum detects.
    WrongShape,
    /// Opening it fails: it is a link to itself.
    #[cfg(unix)]
    Unreadable,
}

impl Harm {
    fn apply(self, path: &Path) {
        let mut bytes = fs::read(path).expect("readable");
        let mut saved = SavedSession::from_bytes(path, bytes.clone().into()).expect("a whole file");
        match self {
            Harm::Flip(at) => bytes[at] ^= 0x10,
            Harm::Truncate(length) => bytes.truncate(length),
            Harm::Empty => bytes.clear(),
            Harm::OtherModel => saved.header.model = "another".into(),
            Harm::OtherEngine => saved.header.engine = "another".into(),
            Harm::NotAllCached => saved.header.length -= 1,
            Harm::WrongShape => saved.items.truncate(1),
            #[cfg(unix)]
            Harm::Unreadable => {}
        }
        match self {
            #[cfg(unix)]
            Harm::Unreadable => {
                fs::remove_file(path).expect("removed");
                std::os::unix::fs::symlink(path, path).expect("linked");
            }
            Harm::Flip(_) | Harm::Truncate(_) | Harm::Empty => fs::write(path, bytes).expect("written"),
            _ => saved.write(path).expect("written"),
        }
    }
}

#[test]
fn damaged_and_foreign_files_are_not_used() {
    let folder = temporary();
    let mut run = roomy(folder.path());
    let first = run.run(request(&text(0, 100), 5));
    run.stop();
    let whole = files(folder.path());
    let (path, _) = whole.iter().find(|(_, header)| header.length == 100).expect("the prompt's file");
    let size = fs::metadata(path).expect("there").len() as usize;
    let name = path.file_name().expect("a name");

    let flips = (0..size).step_by(7).chain([size - 1]).map(Harm::Flip);
    let cuts = [1, 8, 100, size / 2, size - 1].map(Harm::Truncate);
    let others = [Harm::Empty, Harm::OtherModel, Harm::OtherEngine, Harm::NotAllCached, Harm::WrongShape];
    let next = request(&next_prompt(&text(0, 100), &first.tokens, 30), 5);
    let all = flips.chain(cuts).chain(others);
    #[cfg(unix)]
    let all = all.chain([Harm::Unreadable]);
    for harm in all {
        let copy = temporary();
        let harmed = copy.path().join(name);
        fs::copy(path, &harmed).expect("copied");
        harm.apply(&harmed);
        let mut run = roomy(copy.path());
        assert_eq!(run.run(next.clone()).cached, Some(0), "{harm:?}");
        run.check(0, &next);
        run.settle();
        let is_foreign = matches!(harm, Harm::OtherModel | Harm::OtherEngine);
        let is_unreadable = fs::symlink_metadata(&harmed).is_ok_and(|metadata| metadata.is_symlink());
        assert_eq!(harmed.exists(), is_foreign, "{harm:?}");
        #[cfg(unix)]
        assert_eq!(is_unreadable, harm == Harm::Unreadable, "{harm:?}");
        let logged = warnings(copy.path());
        assert_eq!(logged.len(), 1, "{harm:?}: {logged:?}");
        let names_it = logged[0].contains(name.to_str().expect("UTF-8"));
        let end = if is_unreadable { "it is not used" } else { "it is deleted" };
        assert!(is_foreign || names_it && logged[0].ends_with(end), "{harm:?}: {logged:?}");
    }
}

#[test]
fn unfinished_files_are_deleted_and_others_kept() {
    let folder = temporary();
    let part = folder.path().join("0000000000000007.kv.a8Xz.part");
    let notes = folder.path().join("notes.kv");
    for path in [&part, &notes] {
        fs::write(path, "half of a file").expect("written");
    }
    let mut run = roomy(folder.path());
    let logged = warnings(folder.path());
    assert!(logged.len() == 1 && logged[0].contains("0000000000000007.kv.a8Xz.part: incomplete"), "{logged:?}");
    assert!(!part.exists() && notes.exists());
    run.run(request(&text(0, 100), 5));
    run.stop();
    fs::remove_file(notes).expect("there");
    assert_eq!(lengths(folder.path()), [100, 104]);
}

/// The order of use is kept across restarts, and the size limit applies from the start.
#[test]
fn least_recently_used_files_are_deleted_first() {
    let folder = temporary();
    let mut run = roomy(folder.path());
    for family in 0..4 {
        run.run(request(&text(family, 100), 2));
    }
    run.stop();
    let all = files(folder.path());
    assert_eq!(all.len(), 8);
    let size = |path: &PathBuf| fs::metadata(path).expect("there").len();
    let total: u64 = all.iter().map(|(path, _)| size(path)).sum();
    // The first conversation is the most recently used; the others are ordered by the time of writing.
    for (path, header) in &all {
        let age = if header.tokens.starts_with(&text(0, 100)) { 10 } else { 100 };
        let file = fs::File::options().write(true).open(path).expect("there");
        file.set_modified(std::time::SystemTime::now() - Duration::from_secs(age)).expect("a time");
    }
    drop(open(folder.path(), total / 2));
    let left = files(folder.path());
    assert!(left.iter().map(|(path, _)| size(path)).sum::<u64>() <= total / 2);
    let families: Vec<u32> =
        (0..4).filter(|&family| left.iter().any(|(_, header)| header.tokens.starts_with(&text(family, 100)))).collect();
    assert_eq!(families, [0, 3]);
}

#[derive(Clone, Debug)]
struct Arrival {
    delay: usize,
    request: Request,
}

fn arrival() -> impl Strategy<Value = Arrival> {
    let prompt = (0..3u32, 60..110usize, prop::collection::vec(0..POISON, 1..10))
        .prop_map(|(family, shared, own)| [text(family, shared), own].concat());
    let max_tokens = prop_oneof![1..4usize, 1..40usize];
    (0..40usize, prompt, 0..3u64, max_tokens).prop_map(|(delay, prompt, seed, max_tokens)| {
        let request = Request { sampling: seeded(seed), ..request(&prompt, max_tokens) };
        Arrival { delay, request }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// With few pages and a small folder, over two servers: every text equals that of the request alone, and the folder keeps its limit.
    #[test]
    fn texts_do_not_depend_on_the_disk(
        arrivals in prop::collection::vec(arrival(), 1..10),
        pages in 60..200usize,
        steps_in_flight in 1..3usize,
        limit in prop_oneof![Just(5000u64), Just(1 << 20)],
        stops: bool,
    ) {
        let folder = temporary();
        for _ in 0..2 {
            let engine = Fake::new(pages, steps_in_flight);
            let mut run = Run::new(engine, Options::default()).spill_to(open(folder.path(), limit));
            for Arrival { delay, request } in &arrivals {
                (0..*delay).for_each(|_| run.turn());
                run.add(request.clone());
            }
            run.finish();
            for (id, Arrival { request, .. }) in (0..).zip(&arrivals) {
                run.check(id, request);
            }
            prop_assert!(run.spilled().bytes <= limit);
            if stops {
                run.stop();
            } else {
                run.settle();
                run.check_empty();
            }
        }
        let bytes: u64 = files(folder.path()).iter().map(|(path, _)| fs::metadata(path).expect("there").len()).sum();
        prop_assert!(bytes <= limit, "{bytes} bytes");
        prop_assert_eq!(warnings(folder.path()), Vec::<String>::new());
    }
}

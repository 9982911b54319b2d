//! Tests the parser with random and damaged streams, without a fuzzer:
//! `cargo run --release -p harmony --example fuzz_harmony -- --runs 10000000 --seed 1`.

mod property;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use property::{CALL, CHANNEL, CONSTRAIN, END, MESSAGE, RETURN, START, word};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The number after a command-line argument.
fn argument(name: &str) -> Option<u64> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name).skip(1);
    arguments.next().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} needs a number, not {value}")))
}

fn main() {
    let runs = argument("--runs").unwrap_or(100_000);
    let seed = argument("--seed").unwrap_or(1);
    let limit = argument("--seconds").map(Duration::from_secs);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut run, mut tokens, mut data) = (0, 0, Vec::new());
    let start = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        while run < runs && limit.is_none_or(|limit| run % 1000 != 0 || start.elapsed() < limit) {
            data = stream(&mut rng);
            tokens += property::check(&data);
            run += 1;
        }
    }));
    let seconds = start.elapsed().as_secs_f64();
    match outcome {
        Ok(()) => println!("seed {seed}: {run} streams of {tokens} tokens in {seconds:.1} s, nothing lost"),
        Err(panic) => {
            println!("seed {seed}, stream {run}: {data:?}");
            resume_unwind(panic);
        }
    }
}

/// Two bytes of settings and a stream. Half of the streams are well-formed turns, the others random bytes; then up to five places are
/// damaged.
fn stream(rng: &mut impl Rng) -> Vec<u8> {
    let mut data = if rng.random() { turn(rng) } else { anything(rng) };
    for _ in 0..rng.random_range(0..6) {
        damage(rng, &mut data);
    }
    let settings = [rng.random(), rng.random::<u8>() & rng.random::<u8>() & rng.random::<u8>()];
    data.splice(0..0, settings);
    data
}

fn one_of<T: Copy>(rng: &mut impl Rng, of: &[T]) -> T {
    of[rng.random_range(0..of.len())]
}

fn anything(rng: &mut impl Rng) -> Vec<u8> {
    let length = rng.random_range(0..40);
    // Among uniformly distributed bytes, control tokens would be rare.
    let byte = |_| if rng.random_bool(0.4) { rng.random_range(0..8) } else { rng.random() };
    (0..length).map(byte).collect()
}

/// A well-formed turn.
fn turn(rng: &mut impl Rng) -> Vec<u8> {
    let mut data = Vec::new();
    let count = rng.random_range(1..4);
    for index in 0..count {
        let is_last = index + 1 == count;
        if index > 0 {
            data.extend([START, word("assistant")]);
        }
        if is_last && rng.random() {
            let recipient = word(one_of(rng, &[" to=functions.f", " to=functions.get_json", " to=python"]));
            match rng.random() {
                true => data.extend([recipient, CHANNEL, word("commentary"), word(" json")]),
                false => data.extend([CHANNEL, word("commentary"), recipient, word(" "), CONSTRAIN, word("json")]),
            }
            data.push(MESSAGE);
            text(rng, &mut data);
            data.push(CALL);
        } else {
            let channel = if is_last { "final" } else { one_of(rng, &["analysis", "commentary"]) };
            data.extend([CHANNEL, word(channel), MESSAGE]);
            text(rng, &mut data);
            data.push(if is_last { RETURN } else { END });
        }
    }
    data
}

fn text(rng: &mut impl Rng, data: &mut Vec<u8>) {
    let words = ["Look", " it up", "{\"a\":1}", "é👋", "q", "\n", " ", "<|end|>", "日本", "to"];
    data.extend((0..rng.random_range(0..6)).map(|_| word(one_of(rng, &words))));
}

/// Inserts a byte or two, removes or replaces a byte, swaps one with the first, or repeats or removes a piece.
fn damage(rng: &mut impl Rng, data: &mut Vec<u8>) {
    let at = rng.random_range(0..=data.len());
    if at == data.len() || rng.random_bool(0.3) {
        // A control token, a word, half a character or any byte.
        let new = match rng.random_range(0..4) {
            0 => vec![rng.random_range(0..8)],
            1 => vec![rng.random_range(8..48)],
            2 => vec![48, rng.random_range(0x80..=0xff)],
            _ => vec![rng.random()],
        };
        data.splice(at..at, new);
        return;
    }
    match rng.random_range(0..5) {
        0 => _ = data.remove(at),
        1 => data[at] = rng.random(),
        2 => data.swap(at, 0),
        3 => {
            let end = rng.random_range(at..=data.len());
            let piece = data[at..end].to_vec();
            data.splice(at..at, piece);
        }
        _ => {
            let end = rng.random_range(at..=data.len());
            data.drain(at..end);
        }
    }
}

//! Runs random conversations and turns through this repository's `harmony` and OpenAI's `openai-harmony`: both must render the same tokens
//! and parse the same messages.

mod conversations;
mod schemas;
mod text;
mod turns;
mod vocabulary;

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use harmony::Harmony;
use openai_harmony::HarmonyEncoding;
use phase1_loading::Tokenizer;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

#[derive(Parser)]
struct Arguments {
    /// Number of conversations, and of turns
    #[arg(long, default_value_t = 10_000)]
    count: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run only this case
    #[arg(long)]
    case: Option<u64>,
}

/// Both implementations.
struct Pair<'a> {
    ours: Harmony<'a>,
    theirs: HarmonyEncoding,
    /// The token of each byte.
    bytes: [u32; 256],
}

impl Pair<'_> {
    fn new(tokenizer: &Tokenizer) -> Pair<'_> {
        let ours = Harmony::new(tokenizer).expect("harmony's control tokens");
        let byte = |byte: u8| (0..256).find(|&token| tokenizer.token_bytes(token) == Some(&[byte]));
        let bytes = std::array::from_fn(|value| byte(value as u8).expect("the first tokens are the bytes"));
        Pair { ours, theirs: vocabulary::theirs(), bytes }
    }

    fn byte(&self, byte: u8) -> u32 {
        self.bytes[usize::from(byte)]
    }

    /// Returns an error that shows where two lists of tokens differ.
    fn same_tokens(&self, what: &str, ours: &[u32], theirs: &[u32]) -> Result<(), String> {
        if ours == theirs {
            return Ok(());
        }
        let tokenizer = self.ours.tokenizer();
        let same = ours.iter().zip(theirs).take_while(|(ours, theirs)| ours == theirs).count();
        let from = same.saturating_sub(40);
        let show = |tokens: &[u32]| format!("{:?}", tokenizer.decode(&tokens[from..tokens.len().min(same + 40)]));
        let (ours, theirs) = (show(ours), show(theirs));
        Err(format!("{what} differs at token {same}\nours:   {ours}\ntheirs: {theirs}"))
    }
}

/// Each case has its own random numbers, so that it can be repeated alone.
fn random(seed: u64, case: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(case);
    rng
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let start = Instant::now();
    let tokenizer = vocabulary::ours();
    let pair = Pair::new(&tokenizer);
    println!("loaded the vocabularies in {:.1} s; seed {}", start.elapsed().as_secs_f64(), arguments.seed);

    type Check = fn(&Pair<'_>, &mut ChaCha8Rng) -> Result<usize, String>;
    let checks: [(&str, Check); 2] = [("conversations", conversations::check), ("turns", turns::check)];
    for (name, check) in checks {
        let start = Instant::now();
        let mut tokens = 0;
        let cases = match arguments.case {
            Some(case) => case..case + 1,
            None => 0..arguments.count,
        };
        for case in cases.clone() {
            match check(&pair, &mut random(arguments.seed, case)) {
                Ok(compared) => tokens += compared,
                Err(difference) => {
                    println!("{name}: --seed {} --case {case}: {difference}", arguments.seed);
                    return ExitCode::FAILURE;
                }
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        println!("{} {name} agree: {tokens} tokens, {seconds:.1} s", cases.end - cases.start);
    }
    ExitCode::SUCCESS
}

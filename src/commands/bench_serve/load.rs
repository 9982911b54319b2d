//! Clients that send each request as soon as the one before is answered. All prompts have the same length and share no long prefix, so
//! that a prefix cache does not help; all answers have the same length.

use std::thread;
use std::time::Instant;

use super::answer::Answer;
use super::figures::Figures;
use super::http::{Failure, Target};
use super::prompt::{Scale, completion};
use super::random::Random;

/// The parameters of the load.
pub struct Load<'a> {
    pub target: &'a Target,
    pub model: &'a str,
    pub scale: Scale,
    /// Tokens per prompt and per answer.
    pub prompt: usize,
    pub generate: usize,
    /// Requests per client, one after another.
    pub requests: usize,
    pub seed: u64,
}

impl Load<'_> {
    /// Measures the server with this many clients at the same time.
    pub fn run(&self, clients: usize) -> Figures {
        // A first request is not timed: it sets up connections and compiles kernels.
        let _ = self.ask(&mut Random::new(self.seed, u64::MAX - clients as u64));
        let begin = Instant::now();
        let mut figures = Figures::new(clients);
        thread::scope(|scope| {
            let asking: Vec<_> = (0..clients).map(|client| scope.spawn(move || self.client(clients, client))).collect();
            for client in asking {
                figures.join(client.join().expect("a client does not panic"));
            }
        });
        figures.time = begin.elapsed();
        figures
    }

    fn client(&self, clients: usize, client: usize) -> Figures {
        // Prompts of different clients, and of runs with different numbers of clients, differ.
        let mut random = Random::new(self.seed, (clients * 100_000 + client) as u64);
        let mut figures = Figures::default();
        for _ in 0..self.requests {
            figures.count(self.ask(&mut random));
        }
        figures
    }

    fn ask(&self, random: &mut Random) -> Result<Answer, Failure> {
        let body = completion(self.model, self.scale, random, self.prompt, self.generate);
        Answer::stream(self.target, "/v1/completions", &body)
    }
}

//! One command a file; each has a `run` that returns the exit status.

pub mod demo;
pub mod gates;
pub mod generate;
pub mod inspect;
pub mod logits;
pub mod make_model;
pub mod tokenize;

//! Tests of the command line: output, JSON and exit status. One module for each kind of command.

mod chat;
mod doctor;
mod generate;
mod inspect;
mod measurements;
mod models;
mod program;
mod refusals;
mod sessions;
mod shells;
mod tokens;

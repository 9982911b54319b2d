//! `gptoss chat`: a conversation in the terminal.

use std::io::{IsTerminal, stdout};
use std::ops::ControlFlow;
use std::process::ExitCode;

use anyhow::Result;
use harmony::{Effort, Message, Piece, Role};
use phase1_loading::Tokenizer;
use rustyline::error::ReadlineError;

use crate::answer;
use crate::args::Chat;
use crate::commands::print;
use crate::interrupt;
use crate::session::{self, Session};

const HELP: &str = "/reset forgets the conversation, /system TEXT gives instructions and begins anew, /quit ends. \
                    Ctrl-C stops an answer.";

pub fn run(args: &Chat) -> Result<ExitCode> {
    let checkpoint = session::open(&args.model)?;
    let (mut session, tokenizer) = Session::start_with_tokenizer(&checkpoint, &args.reply.engine)?;
    let mut conversation = Conversation::new(args.reply.reasoning, args.system.clone());
    let mut editor = rustyline::DefaultEditor::new()?;
    interrupt::catch()?;
    eprintln!("{HELP}\n");
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => return Ok(ExitCode::SUCCESS),
            Err(error) => return Err(error.into()),
        };
        let line = line.trim();
        let _ = editor.add_history_entry(line);
        match line.split_once(' ').unwrap_or((line, "")) {
            ("", _) => {}
            ("/quit", _) => return Ok(ExitCode::SUCCESS),
            ("/reset", _) => conversation = Conversation::new(args.reply.reasoning, conversation.instructions),
            ("/system", text) => {
                let instructions = (!text.is_empty()).then(|| text.to_owned());
                conversation = Conversation::new(args.reply.reasoning, instructions);
            }
            (command, _) if command.starts_with('/') => eprintln!("{HELP}"),
            _ => conversation.say(line, &mut session, &tokenizer, args)?,
        }
    }
}

struct Conversation {
    instructions: Option<String>,
    messages: Vec<Message>,
}

impl Conversation {
    fn new(effort: Effort, instructions: Option<String>) -> Conversation {
        Conversation { messages: answer::opening(effort, instructions.as_deref()), instructions }
    }

    /// Asks, shows the answer as it comes with its reasoning dimmed, and remembers both.
    fn say(&mut self, text: &str, session: &mut Session, tokenizer: &Tokenizer, args: &Chat) -> Result<()> {
        self.messages.push(Message::new(Role::User, text));
        let prompt = answer::prompt(&self.messages, tokenizer)?;
        let params = args.reply.params(tokenizer.stops());
        let mut screen = Screen { styled: stdout().is_terminal(), part: None };
        interrupt::clear();
        let mut on_piece = |piece: &Piece| match screen.show(piece) {
            Ok(()) if !interrupt::requested() => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        };
        let answered = answer::answer(&mut *session.engine, tokenizer, &prompt, &params, &mut on_piece);
        interrupt::clear();
        match answered {
            Ok((turn, _)) => {
                screen.end()?;
                self.messages.extend(turn.messages());
            }
            // The conversation outlives a question that did not fit.
            Err(error) => {
                self.messages.pop();
                eprintln!("{error:#}");
            }
        }
        Ok(())
    }
}

/// Where the answer appears.
struct Screen {
    styled: bool,
    /// What was shown last; parts stand on lines of their own.
    part: Option<Part>,
}

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Reasoning,
    Content,
    Call,
}

impl Screen {
    fn show(&mut self, piece: &Piece) -> std::io::Result<()> {
        let (part, text) = match piece {
            Piece::Reasoning(text) => (Part::Reasoning, text),
            Piece::Content(text) => (Part::Content, text),
            Piece::Arguments(text) => (Part::Call, text),
        };
        if self.part.is_some_and(|shown| shown != part) {
            print("\n")?;
        }
        self.part = Some(part);
        match self.styled && part != Part::Content {
            true => print(&format!("\x1b[2m{text}\x1b[0m")),
            false => print(text),
        }
    }

    fn end(&self) -> std::io::Result<()> {
        print("\n\n")
    }
}

//! `gptoss chat`: a conversation in the terminal.

use std::io::{IsTerminal, stdout};
use std::ops::ControlFlow;
use std::process::ExitCode;

use anyhow::Result;
use harmony::Piece;
use phase2_forward::Engine;
use phase3_kvcache::GenerationParams;
use rustyline::error::ReadlineError;

use crate::answer::Event;
use crate::args::Chat;
use crate::commands::print;
use crate::conversation::Conversation;
use crate::interrupt;
use crate::prompt_bar::PromptBar;
use crate::session::{self, Session};

const HELP: &str = "/reset forgets the conversation, /system TEXT gives instructions and begins anew, /quit ends. \
                    Ctrl-C stops an answer.";

pub fn run(args: &Chat) -> Result<ExitCode> {
    let checkpoint = session::open_with(&args.model, &args.reply.engine)?;
    let (mut session, tokenizer) = Session::start_with_tokenizer(&checkpoint, &args.reply.engine)?;
    let new = Conversation::begin(&tokenizer, args.reply.reasoning, args.system.as_deref());
    let mut conversation = match &args.reply.session {
        Some(file) => Conversation::in_file(file, &checkpoint, &mut session, new)?,
        None => new,
    };
    let params = args.reply.params(tokenizer.stops());
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
            ("/reset", _) => conversation.reset(None),
            ("/system", text) => conversation.reset(Some(text)),
            (command, _) if command.starts_with('/') => eprintln!("{HELP}"),
            _ => say(line, &mut conversation, &mut *session.engine, &params)?,
        }
    }
}

/// Asks, and shows the answer as it comes with its reasoning dimmed.
fn say(line: &str, conversation: &mut Conversation, engine: &mut dyn Engine, params: &GenerationParams) -> Result<()> {
    let mut screen = Screen { styled: stdout().is_terminal(), part: None, prompt: PromptBar::default() };
    interrupt::clear();
    let mut on_event = |event: Event<'_>| match screen.hear(event) {
        Ok(()) if !interrupt::requested() => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    };
    let answered = conversation.say(line, engine, params, &mut on_event);
    interrupt::clear();
    screen.prompt.clear();
    match answered {
        Ok(_) => screen.end()?,
        // The conversation outlives a question that did not fit.
        Err(error) => eprintln!("{error:#}"),
    }
    Ok(())
}

/// Where the answer appears.
struct Screen {
    styled: bool,
    /// What was shown last; parts stand on lines of their own.
    part: Option<Part>,
    prompt: PromptBar,
}

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Reasoning,
    Content,
    Call,
}

impl Screen {
    fn hear(&mut self, event: Event<'_>) -> std::io::Result<()> {
        match event {
            Event::Prompt { done, of } => self.prompt.show(done, of),
            Event::Piece(piece) => self.show(piece)?,
            Event::Silent => {}
        }
        Ok(())
    }

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

//! `gptoss chat`: a conversation in the terminal.

use std::io::{ErrorKind, IsTerminal, stdout};
use std::ops::ControlFlow;
use std::process::ExitCode;

use anyhow::{Result, bail};
use harmony::{Delta, Header, Message};
use phase2_forward::Engine;
use phase3_kvcache::{FinishReason, GenerationParams};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::answer::{self, Event};
use crate::args::Chat;
use crate::commands::print;
use crate::conversation::Conversation;
use crate::interrupt;
use crate::model::{self, LoadedModel};
use crate::prompt_bar::PromptBar;
use crate::tools;

const HELP: &str = "/reset forgets the conversation, /system TEXT gives instructions and starts again, /quit or Ctrl-D ends. \
                    Ctrl-C stops an answer; at the prompt it ends the chat.";

pub fn run(args: &Chat) -> Result<ExitCode> {
    if let Some(question) = question(args) {
        bail!("chat takes only a model; to ask one question: gptoss generate \"{question}\"");
    }
    let functions = args.tools.as_deref().map_or(Ok(Vec::new()), tools::read)?;
    let checkpoint = model::open_with(&args.model, &args.reply.engine)?;
    let (mut loaded, tokenizer) = LoadedModel::start_with_tokenizer(&checkpoint, &args.reply.engine)?;
    let harmony = answer::harmony(&tokenizer)?;
    let reply = &args.reply;
    let new = Conversation::begin(harmony, reply.reasoning, reply.day(), args.system.as_deref(), functions);
    let mut conversation = match &args.reply.session {
        Some(file) => Conversation::in_file(file, &checkpoint, &mut loaded, new)?,
        None => new,
    };
    let params = args.reply.params(tokenizer.stops());
    let mut editor = DefaultEditor::new()?;
    interrupt::catch()?;
    eprintln!("{HELP}\n");
    while let Some(line) = read_line(&mut editor, "> ")? {
        let line = line.trim();
        let _ = editor.add_history_entry(line);
        match line.split_once(' ').unwrap_or((line, "")) {
            ("", _) => {}
            ("/quit", _) => break,
            ("/reset", _) => conversation.reset(None),
            ("/system", text) => conversation.reset(Some(text)),
            (command, _) if command.starts_with('/') => eprintln!("{HELP}"),
            _ => talk(line, &mut conversation, &mut *loaded.engine, &params, &mut editor)?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The question, if the command line has one in place of the model's name.
fn question(args: &Chat) -> Option<String> {
    let model = args.model.to_string_lossy();
    let is_sentence = model.contains(' ') && model::is_bare_name(&args.model) && !args.model.exists();
    (is_sentence || !args.words.is_empty()).then(|| [&[model.into_owned()][..], &args.words].concat().join(" "))
}

/// The next line; `None` at the end of the input.
fn read_line(editor: &mut DefaultEditor, prompt: &str) -> Result<Option<String>> {
    loop {
        match editor.readline(prompt) {
            Ok(line) => return Ok(Some(line)),
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => return Ok(None),
            // The line was read but is not UTF-8.
            Err(ReadlineError::Io(error)) if error.kind() == ErrorKind::InvalidData => {
                eprintln!("(ignored a line that is not UTF-8)");
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends a question. Whenever the answer ends with a call, reads its result from the user and sends it too. If the input ends, the call
/// stays unanswered.
fn talk(
    line: &str,
    conversation: &mut Conversation<'_>,
    engine: &mut dyn Engine,
    params: &GenerationParams,
    editor: &mut DefaultEditor,
) -> Result<()> {
    let mut message = Message::user(line);
    while let Some(call) = send_message(message, conversation, engine, params)? {
        let prompt = format!("result of {}({})> ", called(call.recipient.as_deref()), call.content);
        let Some(result) = read_line(editor, &prompt)? else { break };
        message = Message::result_of(&call, result);
    }
    Ok(())
}

/// Sends one message and shows the answer as it arrives; on a terminal, reasoning and calls are dimmed. Returns the call at its end.
fn send_message(
    message: Message,
    conversation: &mut Conversation<'_>,
    engine: &mut dyn Engine,
    params: &GenerationParams,
) -> Result<Option<Message>> {
    let mut screen = Screen { styled: stdout().is_terminal(), part: None, prompt: PromptBar::default() };
    interrupt::clear();
    let mut on_event = |event: Event<'_>| match screen.show_event(event) {
        Ok(()) if !interrupt::requested() => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    };
    let answered = conversation.send(message, engine, params, &mut on_event);
    interrupt::clear();
    screen.prompt.clear();
    match answered {
        Ok(answer) => {
            screen.end()?;
            match answer.generated.finish {
                FinishReason::Length => {
                    eprintln!("(cut off after {} tokens; allow more with -n)", answer.generated.tokens.len());
                }
                FinishReason::Interrupted => eprintln!("(stopped)"),
                FinishReason::Stop | FinishReason::StopString(_) => {}
            }
            Ok(answer.turn.call().cloned())
        }
        // The conversation continues after an error, such as a message that did not fit.
        Err(error) => {
            eprintln!("{error:#}");
            Ok(None)
        }
    }
}

/// The name of the called function without its prefix `functions.`, or of another recipient.
fn called(recipient: Option<&str>) -> &str {
    let recipient = recipient.unwrap_or_default();
    recipient.strip_prefix("functions.").unwrap_or(recipient)
}

/// The terminal that shows the answer.
struct Screen {
    styled: bool,
    /// The part that was shown last; each part is on its own lines.
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
    fn show_event(&mut self, event: Event<'_>) -> std::io::Result<()> {
        match event {
            Event::Prompt { done, of } => self.prompt.show(done, of),
            Event::Delta(Delta::Begin(header)) => self.begin(header)?,
            Event::Delta(Delta::Text(text)) => self.show(text)?,
            Event::Delta(Delta::End { complete }) if self.part == Some(Part::Call) => {
                self.show(if *complete { ")" } else { " …" })?;
            }
            Event::Delta(Delta::End { .. } | Delta::Warning(_)) | Event::Silent => {}
        }
        Ok(())
    }

    fn begin(&mut self, header: &Header) -> std::io::Result<()> {
        if self.part.is_some() {
            print("\n")?;
        }
        if header.is_visible() {
            self.part = Some(Part::Content);
        } else if header.recipient.is_some() {
            self.part = Some(Part::Call);
            self.show(&format!("{}(", called(header.recipient.as_deref())))?;
        } else {
            self.part = Some(Part::Reasoning);
        }
        Ok(())
    }

    fn show(&self, text: &str) -> std::io::Result<()> {
        match self.styled && self.part != Some(Part::Content) {
            true => print(&format!("\x1b[2m{text}\x1b[0m")),
            false => print(text),
        }
    }

    fn end(&self) -> std::io::Result<()> {
        print("\n\n")
    }
}

//! The property that the parser must have for any stream of tokens: it never panics, and up to a stop string it loses no byte: each is part
//! of a message, of a header or of a warning, or is white space between messages. Shared by the example `fuzz_harmony` and the fuzz target
//! `harmony`.

use std::collections::BTreeMap;
use std::mem::take;
use std::sync::LazyLock;

use harmony::{Delta, Function, Harmony, Header, Message, Parser, Role};
use phase1_loading::{Checkpoint, Tokenizer};

/// A small vocabulary with harmony's control tokens.
static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let file = |name: &str, text: &'static [u8]| (name.to_owned(), bytes::Bytes::from_static(text));
    let files = BTreeMap::from([
        file("config.json", include_bytes!("../../../reference/goldens/folders/mlx-q8/config.json")),
        file("tokenizer.json", include_bytes!("../../../reference/goldens/folders/mlx-q8/tokenizer.json")),
        file("model.safetensors", include_bytes!("../../../reference/goldens/folders/mlx-q8/model.safetensors")),
    ]);
    Checkpoint::from_folder_bytes("mlx-q8", &files).expect("opens").tokenizer().expect("builds")
});

/// The control tokens that the parser handles.
const CONTROL: [&str; 8] =
    ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>", "<|constrain|>", "<|endoftext|>"];

/// Words of headers and texts.
const WORDS: [&str; 40] = [
    "assistant",
    "analysis",
    "commentary",
    "final",
    " to=functions.f",
    " json",
    "Look",
    " it up",
    "{\"a\":1}",
    "é👋",
    "q",
    "\n",
    " ",
    "json",
    " code",
    "to=",
    " to=f",
    " to=functions.fjson",
    " to=functions.get_json",
    " to=python",
    " to=browser.search",
    " to=all",
    " to=assistant",
    " to=user",
    "user",
    "system",
    "developer",
    "tool",
    "functions.f",
    "functions.f to=assistant",
    ":ann",
    "?",
    "–",
    "<|end|>",
    "<|channel|>",
    "<|constrain|>json",
    "\u{a0}",
    "\u{2003}x",
    "日本",
    "to",
];

/// Possible stop strings; each bit of the second byte of the settings selects one.
const STOPS: [&str; 8] = ["q", "é", "it u", "Lo", "}", "json", "👋q", "\n\n"];

/// The bytes that stand for control tokens in a stream. Programs that generate streams use these names instead of numbers.
pub const START: u8 = 0;
pub const CHANNEL: u8 = 1;
pub const MESSAGE: u8 = 2;
pub const END: u8 = 3;
pub const CALL: u8 = 4;
pub const RETURN: u8 = 5;
pub const CONSTRAIN: u8 = 6;
const FIRST_WORD: u8 = 8;
const FIRST_BYTE: u8 = FIRST_WORD + WORDS.len() as u8;
const FIRST_TOKEN: u8 = 128;
const FIRST_UNKNOWN: u8 = 250;

/// The byte that stands for a word.
pub fn word(text: &str) -> u8 {
    let index = WORDS.iter().position(|&word| word == text).expect("a word of the list");
    FIRST_WORD + index as u8
}

struct Vocabulary {
    control: [u32; CONTROL.len()],
    words: Vec<Vec<u32>>,
    bytes: Vec<u32>,
}

static VOCABULARY: LazyLock<Vocabulary> = LazyLock::new(|| {
    let tokenizer = &*TOKENIZER;
    let of_byte = |byte: u8| (0..tokenizer.vocab() as u32).find(|&token| tokenizer.token_bytes(token) == Some(&[byte]));
    Vocabulary {
        control: CONTROL.map(|name| tokenizer.control(name).expect("a control token")),
        words: WORDS.iter().map(|word| tokenizer.encode(word)).collect(),
        bytes: (0..=255).map(|byte| of_byte(byte).expect("every byte is a token")).collect(),
    }
});

impl Vocabulary {
    /// The name of a control token.
    fn control(&self, token: u32) -> Option<&'static str> {
        self.control.iter().zip(CONTROL).find_map(|(&control, name)| (control == token).then_some(name))
    }

    /// The tokens that the bytes of a stream stand for: control tokens, words, single bytes, any tokens, and invalid ones.
    fn tokens(&self, data: &[u8]) -> Vec<u32> {
        let vocabulary = TOKENIZER.vocab() as u32;
        let mut tokens = Vec::new();
        let mut data = data.iter().copied();
        while let Some(byte) = data.next() {
            match byte {
                0..FIRST_WORD => tokens.push(self.control[usize::from(byte)]),
                FIRST_WORD..FIRST_BYTE => tokens.extend(&self.words[usize::from(byte - FIRST_WORD)]),
                FIRST_BYTE..FIRST_TOKEN => tokens.push(self.bytes[usize::from(data.next().unwrap_or_default())]),
                FIRST_TOKEN..FIRST_UNKNOWN => {
                    let token = u32::from(byte) << 8 | u32::from(data.next().unwrap_or_default());
                    tokens.push(token % vocabulary);
                }
                FIRST_UNKNOWN.. => tokens.push(vocabulary + u32::from(byte)),
            }
        }
        tokens
    }

    /// The same stream with some tokens split into tokens of one byte. `number` is the seed of the choice.
    fn cut(&self, tokens: &[u32], mut number: u64) -> Vec<u32> {
        let mut cut = Vec::with_capacity(tokens.len());
        for &token in tokens {
            number = number.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            match TOKENIZER.token_bytes(token) {
                Some(bytes) if number >> 63 == 0 && self.control(token).is_none() => {
                    cut.extend(bytes.iter().map(|&byte| self.bytes[usize::from(byte)]));
                }
                _ => cut.push(token),
            }
        }
        cut
    }
}

/// The settings of the parser.
struct Settings {
    functions: Vec<Function>,
    stops: Vec<String>,
}

impl Settings {
    fn parser(&self) -> Parser<'static> {
        let harmony = Harmony::new(&TOKENIZER).expect("harmony's control tokens");
        harmony.parser().with_functions(&self.functions).with_stop_strings(self.stops.clone())
    }
}

/// Parses `data`, two bytes of settings and a stream, and panics if the parser loses part of the stream. Returns the number of tokens.
pub fn check(data: &[u8]) -> usize {
    let (&[declares, stops], data) = data.split_first_chunk().unwrap_or((&[0, 0], data));
    let function = |name: &str| Function { name: name.into(), description: None, parameters: None };
    let declared = ["f", "get_json"].map(function);
    let settings = Settings {
        functions: if declares & 1 == 0 { declared.to_vec() } else { Vec::new() },
        // Most streams have no stop strings.
        stops: match declares & 2 {
            0 => Vec::new(),
            _ => (0..8).filter(|bit| stops >> bit & 1 == 1).map(|bit| STOPS[bit].to_owned()).collect(),
        },
    };
    let tokens = VOCABULARY.tokens(data);
    let whole = ParseResult::of(&settings, &tokens);
    let number =
        data.iter().fold(u64::from(stops), |number, &byte| number.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let cut = ParseResult::of(&settings, &VOCABULARY.cut(&tokens, number));
    assert_eq!(whole, cut, "the result depends on how the text is cut into tokens");

    // Read as a conversation, the stream is parsed if it begins with `<|start|>`, otherwise refused.
    let harmony = Harmony::new(&TOKENIZER).expect("harmony's control tokens");
    let begins = tokens.first() == Some(&VOCABULARY.control[usize::from(START)]);
    assert_eq!(harmony.parse_conversation(&tokens).is_ok(), begins);
    tokens.len()
}

/// The parser's results for a stream.
#[derive(Debug, PartialEq)]
struct ParseResult {
    messages: Vec<Message>,
    warnings: Vec<String>,
    stop_string: Option<String>,
    has_ended: bool,
}

impl ParseResult {
    /// Parses a stream and accounts for each of its bytes.
    fn of(settings: &Settings, tokens: &[u32]) -> ParseResult {
        let mut account = Account::default();
        let mut parser = settings.parser();
        for &token in tokens {
            let was_open = parser.open_header().is_some();
            let deltas = parser.push(token);
            account.apply_deltas(&deltas);
            match VOCABULARY.control(token) {
                None => account.text(TOKENIZER.token_bytes(token).unwrap_or_default(), &deltas),
                name => account.control(name, was_open, &deltas, &parser),
            }
            if parser.stop_string().is_some() {
                break;
            }
        }
        if parser.stop_string().is_none() {
            let was_open = parser.open_header().is_some();
            let deltas = parser.finish();
            account.apply_deltas(&deltas);
            account.control(None, was_open, &deltas, &parser);
        }
        account.close(&parser, &settings.stops);
        assert!(parser.open_header().is_none() && parser.finish().is_empty());
        ParseResult {
            messages: parser.messages().to_vec(),
            warnings: parser.warnings().to_vec(),
            stop_string: parser.stop_string().map(str::to_owned),
            has_ended: parser.has_ended(),
        }
    }
}

/// The parser's warning about text without a header, which it reads as a message.
const BARE_CONTENT: &str = "a message without a header";

/// Tracks where each byte of a stream's text goes, using only the public state of the parser.
#[derive(Default)]
struct Account {
    /// Bytes after the last control token.
    segment: Vec<u8>,
    /// Whether words without a header began a message in this segment.
    is_bare_content: bool,
    /// The open header, including the names of control tokens in it.
    header: String,
    /// Number of text bytes in `header`.
    header_text: usize,
    /// The expected content of each message.
    contents: Vec<String>,
    /// Messages assembled from the deltas.
    messages: Vec<Message>,
    warned: Vec<String>,
    is_open: bool,
    /// Number of bytes of text in the stream, after lossy decoding to UTF-8.
    read: usize,
    /// How many of the bytes in `read` were not content: headers, and white space between messages. If the name of a control token becomes
    /// content, its length is subtracted, since it is content that is not counted in `read`.
    structure: isize,
}

impl Account {
    /// Checks that messages begin and end alternately, with text in between.
    fn apply_deltas(&mut self, deltas: &[Delta]) {
        for delta in deltas {
            match delta {
                Delta::Begin(header) => {
                    assert!(!self.is_open, "a message begins inside another");
                    self.is_open = true;
                    let Header { role, name, recipient, channel, content_type } = header.clone();
                    let content = String::new();
                    self.messages.push(Message { role, name, recipient, channel, content_type, content });
                }
                Delta::Text(text) => {
                    assert!(self.is_open && !text.is_empty(), "text outside of a message");
                    self.messages.last_mut().expect("a message has begun").content += text;
                }
                Delta::End { .. } => {
                    assert!(self.is_open, "a message ends that has not begun");
                    self.is_open = false;
                }
                Delta::Warning(warning) => self.warned.push(warning.clone()),
            }
        }
    }

    /// Records a token of text.
    fn text(&mut self, bytes: &[u8], deltas: &[Delta]) {
        self.segment.extend(bytes);
        self.is_bare_content |= warnings(deltas).any(|warning| warning == BARE_CONTENT);
    }

    /// A control token, or the end of the stream, ends a segment of text.
    fn control(&mut self, control: Option<&str>, was_open: bool, deltas: &[Delta], parser: &Parser<'_>) {
        // Before a control token, the parser releases an incomplete character that it held back. It may have shown that the text is not a
        // header.
        self.is_bare_content |= !was_open && warnings(deltas).any(|warning| warning == BARE_CONTENT);
        let is_open = was_open || self.is_bare_content;
        self.segment_ends(is_open);
        match control {
            // A stop string ended the message before this token.
            _ if is_open && parser.stop_string().is_some() => {}
            Some("<|channel|>") if is_open => self.header = "<|channel|>".into(),
            _ if is_open => {}
            Some(name @ ("<|channel|>" | "<|constrain|>")) => self.header += name,
            Some("<|message|>") => {
                let Some(Delta::Begin(header)) = deltas.last() else { panic!("no message begins") };
                self.check_header(header, deltas);
                self.contents.push(String::new());
                self.header_ends(0);
            }
            _ => self.abandoned(control, deltas, parser.stop_string()),
        }
    }

    fn segment_ends(&mut self, is_open: bool) {
        let text = String::from_utf8_lossy(&take(&mut self.segment)).into_owned();
        self.read += text.len();
        if take(&mut self.is_bare_content) {
            self.contents.push(take(&mut self.header) + &text);
            self.header_text = 0;
        } else if is_open {
            self.contents.last_mut().expect("a message is open").push_str(&text);
        } else {
            self.header_text += text.len();
            self.header += &text;
        }
    }

    /// Clears the header and counts its text bytes as structure, except `content` bytes, which became content.
    fn header_ends(&mut self, content: usize) {
        self.structure += take(&mut self.header_text) as isize - content as isize;
        self.header.clear();
    }

    fn is_quoted(&self, deltas: &[Delta]) -> bool {
        warnings(deltas).any(|warning| warning.contains(&format!("`{}`", self.header)))
    }

    /// A header without a message, unless it is only white space, must be quoted in a warning. Text in it may also become a message.
    fn abandoned(&mut self, control: Option<&str>, deltas: &[Delta], stop: Option<&str>) {
        let is_quoted = self.is_quoted(deltas);
        assert!(is_quoted || self.header.trim().is_empty(), "header {:?} is lost", self.header);
        if !is_quoted && control == Some("<|endoftext|>") {
            // Before `<|endoftext|>`, white space between messages stays in the open header.
            return;
        }
        if !deltas.iter().any(|delta| matches!(delta, Delta::Begin(_))) {
            return self.header_ends(0);
        }
        let parsed = &self.messages.last().expect("a message has begun").content;
        let through = format!("{parsed}{}", stop.unwrap_or_default());
        let at = match stop {
            Some(_) => self.header.find(&through),
            None => self.header.len().checked_sub(parsed.len()).filter(|_| self.header.ends_with(parsed)),
        };
        let content = self.header[at.unwrap_or_else(|| panic!("{parsed:?} is not in {:?}", self.header))..].to_owned();
        self.header_ends(content.len());
        self.contents.push(content);
    }

    /// Each character of a header other than white space must be in one of its fields, or a warning must quote the header.
    fn check_header(&self, header: &Header, deltas: &[Delta]) {
        if self.is_quoted(deltas) {
            return;
        }
        let Header { role, name, recipient, channel, content_type } = header;
        assert!(
            *role == Role::Assistant && channel.is_some(),
            "no warning about {:?}, parsed as {header:?}",
            self.header
        );
        let mut fields = String::new();
        // The role of the first header is in the prompt, before the stream.
        if self.header.trim_start().starts_with(role.name()) {
            fields += role.name();
            fields.extend(name.iter().map(|name| format!(":{name}")));
        }
        match recipient {
            Some(recipient) => fields += &format!("to={recipient}"),
            None if self.header.contains("to=all") => fields += "to=all",
            None => {}
        }
        fields.extend(channel.iter().map(|channel| format!("<|channel|>{channel}")));
        fields.extend(content_type.clone());
        let sorted = |text: &str| {
            let mut characters: Vec<char> = text.chars().filter(|character| !character.is_whitespace()).collect();
            characters.sort_unstable();
            characters
        };
        assert_eq!(sorted(&fields), sorted(&self.header), "{:?} as {header:?}", self.header);
    }

    /// Checks the totals at the end.
    fn close(mut self, parser: &Parser<'_>, stops: &[String]) {
        assert!(!self.is_open, "the last message does not end");
        assert_eq!(self.messages, parser.messages(), "the deltas give other messages than the parser");
        assert_eq!(self.warned, parser.warnings());
        for message in parser.messages().iter().filter(|message| message.is_visible()) {
            let leaks = stops.iter().any(|stop| message.content.contains(stop.as_str()));
            assert!(!leaks, "a stop string in {message:?}");
        }
        match parser.stop_string() {
            Some(stop) => self.stopped(parser, stop, stops),
            None => {
                let parsed: usize = parser.messages().iter().map(|message| message.content.len()).sum();
                assert_eq!(parsed.checked_add_signed(self.structure), Some(self.read), "bytes are lost");
            }
        }
        let parsed: Vec<&str> = parser.messages().iter().map(|message| message.content.as_str()).collect();
        assert_eq!(parsed, self.contents);
    }

    /// A stop string must end the last message at the first position where any stop string is complete.
    fn stopped(&mut self, parser: &Parser<'_>, stop: &str, stops: &[String]) {
        if !self.segment.is_empty() {
            self.segment_ends(true);
        }
        let parsed = &parser.messages().last().expect("a message").content;
        let content = self.contents.last_mut().expect("a message");
        let through = format!("{parsed}{stop}");
        assert!(content.starts_with(&through), "{content:?} ends before {stop:?} as {parsed:?}");
        let before = &through[..through.len() - stop.chars().next_back().map_or(0, char::len_utf8)];
        assert!(
            !stops.iter().any(|stop| before.contains(stop.as_str())),
            "{through:?} contains an earlier stop string"
        );
        content.clone_from(parsed);
    }
}

fn warnings(deltas: &[Delta]) -> impl Iterator<Item = &str> {
    deltas.iter().filter_map(|delta| match delta {
        Delta::Warning(warning) => Some(warning.as_str()),
        _ => None,
    })
}

//! The messages before the first question: system and developer message.

use serde_json::Value;

use crate::builtin;
use crate::message::{Message, ReasoningEffort, Role};
use crate::schema;

/// The system message, in the form that GPT-OSS was trained with. Parts that are `None` are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemPrompt {
    pub identity: Option<String>,
    pub knowledge_cutoff: Option<String>,
    /// `YYYY-MM-DD`. Use the same date throughout a conversation; a new date changes the beginning of the prompt.
    pub date: Option<String>,
    pub effort: ReasoningEffort,
    /// Whether the model may search and read the web.
    pub browser: bool,
    /// Whether the model may run Python while it thinks.
    pub python: bool,
    /// Whether the developer message declares functions.
    pub functions: bool,
}

impl Default for SystemPrompt {
    fn default() -> Self {
        SystemPrompt {
            identity: Some("You are ChatGPT, a large language model trained by OpenAI.".into()),
            knowledge_cutoff: Some("2024-06".into()),
            date: None,
            effort: ReasoningEffort::default(),
            browser: false,
            python: false,
            functions: false,
        }
    }
}

impl SystemPrompt {
    pub fn message(&self) -> Message {
        let lines = [
            self.identity.clone(),
            self.knowledge_cutoff.as_ref().map(|month| format!("Knowledge cutoff: {month}")),
            self.date.as_ref().map(|date| format!("Current date: {date}")),
        ];
        let head: Vec<String> = lines.into_iter().flatten().collect();
        let mut parts = Vec::new();
        parts.extend(Some(head).filter(|head| !head.is_empty()).map(|head| head.join("\n")));
        parts.push(format!("Reasoning: {}", self.effort));
        let tools = [(self.browser, builtin::BROWSER), (self.python, builtin::PYTHON)];
        let tools: Vec<&str> = tools.into_iter().filter(|(offered, _)| *offered).map(|(_, text)| text).collect();
        if !tools.is_empty() {
            parts.push(format!("# Tools\n\n{}", tools.join("\n\n")));
        }
        let mut channels =
            "# Valid channels: analysis, commentary, final. Channel must be included for every message.".to_owned();
        if self.functions {
            channels.push_str("\nCalls to these tools must go to the commentary channel: 'functions'.");
        }
        parts.push(channels);
        Message::new(Role::System, parts.join("\n\n"))
    }
}

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Without the prefix `functions.`.
    pub name: String,
    pub description: Option<String>,
    /// A JSON schema, usually of an object; `None` for a function without parameters.
    pub parameters: Option<Value>,
}

/// A format that the final answer can be required to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseFormat {
    pub name: String,
    pub description: Option<String>,
    pub schema: Value,
}

/// The developer message: instructions, functions as TypeScript types, and response formats.
///
/// Functions are written as `openai-harmony` 0.0.8 does, character for character, except where that package loses information of the
/// schema: all lines of a description are comment lines, `anyOf` is a union, `null` is a type, a `$ref` inside the schema is replaced by
/// its target, a type that contains the word `null` can still be `nullable`, and the description of a property is kept even if its first
/// variant repeats it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeveloperPrompt {
    pub instructions: Option<String>,
    pub functions: Vec<Function>,
    pub response_formats: Vec<ResponseFormat>,
}

impl DeveloperPrompt {
    /// Whether the message would be empty. It should then be left out.
    pub fn is_empty(&self) -> bool {
        self.instructions.is_none() && self.functions.is_empty() && self.response_formats.is_empty()
    }

    pub fn message(&self) -> Message {
        let mut parts = Vec::new();
        parts.extend(self.instructions.as_ref().map(|text| format!("# Instructions\n\n{text}")));
        if !self.functions.is_empty() {
            let functions: Vec<String> = self.functions.iter().map(Function::declaration).collect();
            parts.push(format!(
                "# Tools\n\n## functions\n\nnamespace functions {{\n\n{}\n\n}} // namespace functions",
                functions.join("\n\n")
            ));
        }
        if !self.response_formats.is_empty() {
            let formats: Vec<String> = self.response_formats.iter().map(ResponseFormat::declaration).collect();
            parts.push(format!("# Response Formats\n\n{}", formats.join("\n\n")));
        }
        Message::new(Role::Developer, parts.join("\n\n"))
    }
}

impl Function {
    /// `type NAME = (_: PARAMETERS) => any;`, preceded by its description.
    fn declaration(&self) -> String {
        let parameters = self.parameters.as_ref().filter(|schema| !schema.is_null());
        let arguments = parameters.map_or(String::new(), |schema| format!("_: {}", schema::typescript(schema)));
        let description = schema::comment(self.description.as_deref().unwrap_or_default(), "");
        format!("{description}type {} = ({arguments}) => any;", self.name)
    }
}

impl ResponseFormat {
    /// The schema on one line, preceded by the name and the description.
    fn declaration(&self) -> String {
        let description = schema::comment(self.description.as_deref().unwrap_or_default(), "");
        format!("## {}\n\n{description}{}", self.name, self.schema)
    }
}

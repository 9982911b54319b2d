//! What stands before the first question: the system message and the developer's.

use serde_json::Value;

use crate::builtin;
use crate::message::{Message, ReasoningEffort, Role};
use crate::schema;

/// The system message that GPT-OSS was trained with. A part that is `None` is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemPrompt {
    pub identity: Option<String>,
    pub knowledge_cutoff: Option<String>,
    /// `YYYY-MM-DD`. Keep it through a conversation, or its beginning changes at midnight.
    pub date: Option<String>,
    pub effort: ReasoningEffort,
    /// Whether the model may search and read the web.
    pub browser: bool,
    /// Whether the model may run Python while it thinks.
    pub python: bool,
    /// Whether a developer message declares functions.
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
    /// Without `functions.` in front.
    pub name: String,
    pub description: Option<String>,
    /// A JSON schema, usually of an object; `None` if it takes nothing.
    pub parameters: Option<Value>,
}

/// A form that the final answer may have to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseFormat {
    pub name: String,
    pub description: Option<String>,
    pub schema: Value,
}

/// The developer message: instructions, functions as TypeScript types, and formats of answers.
///
/// Functions are written as `openai-harmony` 0.0.8 does, character for character, with these exceptions, in which that package
/// loses what a schema says: every line of a comment is one, `anyOf` is a union, `null` is a type, a `$ref` into the schema
/// stands for what it names, a type that has the word `null` in it may still be `nullable`, and a property's description stays where
/// its first variant repeats it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeveloperPrompt {
    pub instructions: Option<String>,
    pub functions: Vec<Function>,
    pub response_formats: Vec<ResponseFormat>,
}

impl DeveloperPrompt {
    /// Whether there is nothing to say. Leave the message out then.
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
    /// `type NAME = (_: PARAMETERS) => any;`, under its description.
    fn declaration(&self) -> String {
        let parameters = self.parameters.as_ref().filter(|schema| !schema.is_null());
        let arguments = parameters.map_or(String::new(), |schema| format!("_: {}", schema::typescript(schema)));
        let description = schema::comment(self.description.as_deref().unwrap_or_default(), "");
        format!("{description}type {} = ({arguments}) => any;", self.name)
    }
}

impl ResponseFormat {
    /// The schema on one line, under the name and the description.
    fn declaration(&self) -> String {
        let description = schema::comment(self.description.as_deref().unwrap_or_default(), "");
        format!("## {}\n\n{description}{}", self.name, self.schema)
    }
}

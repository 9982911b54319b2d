//! The tools that GPT-OSS was trained to use. Names, arguments and the form of citations are those of the training; the descriptions are
//! this project's.

/// The declaration of the web browser. The program that runs the conversation returns search results, pages and matches, each with a cursor
/// in brackets.
pub const BROWSER: &str = "\
## browser

// A web browser.
// Each result begins with its cursor in brackets: `[{cursor}]`.
// Cite a result by its cursor and lines: `【{cursor}†L{line_start}(-L{line_end})?】`, such as `【6†L9-L11】` or `【8†L3】`.
// Quote no more than 10 words of a result.
namespace browser {

// Searches the web for `query` and lists `topn` results.
type search = (_: {
query: string,
topn?: number, // default: 10
source?: string,
}) => any;

// Opens the link `id` of the result `cursor`, or the URL `id`, and shows `num_lines` lines from `loc` on.
// Links are shown as `【{id}†.*】`. Without `cursor` the last result is meant; without `id` it is scrolled to `loc`.
type open = (_: {
id?: number | string, // default: -1
cursor?: number, // default: -1
loc?: number, // default: -1
num_lines?: number, // default: -1
view_source?: boolean, // default: false
source?: string,
}) => any;

// Finds `pattern` in the result `cursor`, or in the last one.
type find = (_: {
pattern: string,
cursor?: number, // default: -1
}) => any;

} // namespace browser";

/// The declaration of the Python interpreter. The model sends code to it in the channel `analysis`, as plain text.
pub const PYTHON: &str = "\
## python

Runs Python code as part of your reasoning; the user does not see the code. Code that the user should see belongs in your answer.

A message to python is run in a notebook that keeps its state, and its output comes back.";

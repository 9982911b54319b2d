//! Shows how much of a prompt has been read, if that takes more than one step.

use indicatif::{ProgressBar, ProgressStyle};

/// A progress bar over a prompt's tokens, on stderr if that is a terminal.
#[derive(Default)]
pub struct PromptBar {
    bar: Option<ProgressBar>,
}

impl PromptBar {
    /// Shows that `done` tokens have been read. After the last token the bar disappears.
    pub fn show(&mut self, done: usize, of: usize) {
        if done == of {
            self.clear();
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {per_sec} {eta}");
            let style = style.expect("the template is constant");
            ProgressBar::new(of as u64).with_style(style).with_message("reading the prompt")
        });
        bar.set_position(done as u64);
    }

    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

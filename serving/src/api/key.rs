//! Keys of clients.

/// A key that requests are let in by.
#[derive(Clone)]
pub struct Key {
    /// What logs call it.
    pub name: String,
    pub secret: String,
}

impl Key {
    /// Keys from lines `SECRET` or `NAME SECRET`; empty lines and those that begin with `#` are skipped. Keys without a name are
    /// called by their number.
    pub fn parse_lines(text: &str) -> Vec<Key> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys = lines.enumerate().map(|(index, line)| match line.split_once(char::is_whitespace) {
            Some((name, secret)) => Key { name: name.into(), secret: secret.trim().into() },
            None => Key { name: format!("key{}", index + 1), secret: line.into() },
        });
        keys.collect()
    }
}

//! API keys of clients.

/// A key that allows requests.
#[derive(Clone)]
pub struct Key {
    /// Its name in logs.
    pub name: String,
    pub secret: String,
}

impl Key {
    /// Parses lines `SECRET` or `NAME SECRET`. Empty lines and those that begin with `#` are skipped. A key without a name is called `key`
    /// and its number. Numbers start after `before`, the number of keys that were parsed earlier, so that no two of these names are equal.
    pub fn parse_lines(text: &str, before: usize) -> Vec<Key> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys = lines.enumerate().map(|(index, line)| match line.split_once(char::is_whitespace) {
            Some((name, secret)) => Key { name: name.into(), secret: secret.trim().into() },
            None => Key { name: format!("key{}", before + index + 1), secret: line.into() },
        });
        keys.collect()
    }
}

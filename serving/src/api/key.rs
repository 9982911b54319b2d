//! API keys of clients.

/// A key that allows requests.
#[derive(Clone)]
pub struct Key {
    /// Its name in logs.
    pub name: String,
    pub secret: String,
}

impl Key {
    /// Parses lines `SECRET` or `NAME SECRET`. Empty lines and those that begin with `#` are skipped. Keys without a name are named by
    /// their number.
    pub fn parse_lines(text: &str) -> Vec<Key> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys = lines.enumerate().map(|(index, line)| match line.split_once(char::is_whitespace) {
            Some((name, secret)) => Key { name: name.into(), secret: secret.trim().into() },
            None => Key { name: format!("key{}", index + 1), secret: line.into() },
        });
        keys.collect()
    }
}

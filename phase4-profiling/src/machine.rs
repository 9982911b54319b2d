//! The machine's name, today's date, and the directory in which measurements are stored.

use std::path::PathBuf;
use std::process::Command;
use std::thread::available_parallelism;

use directories::ProjectDirs;
use time::OffsetDateTime;

/// The processor's name and how many hardware threads this process may use.
pub fn machine() -> String {
    let threads = available_parallelism().map_or(1, usize::from);
    format!("{} ({threads} threads)", processor().unwrap_or_else(|| std::env::consts::ARCH.into()))
}

/// Today's date in UTC, such as `2026-11-23`.
pub fn today() -> String {
    let now = OffsetDateTime::now_utc();
    format!("{:04}-{:02}-{:02}", now.year(), u8::from(now.month()), now.day())
}

/// The directory in which measurements of this machine are stored: `gptoss` in `$XDG_CACHE_HOME` or `~/.cache` on Linux and in
/// `~/Library/Caches` on macOS, and `gptoss\cache` in `%LOCALAPPDATA%` on Windows. `None` if the user has no home directory.
pub fn cache_directory() -> Option<PathBuf> {
    Some(ProjectDirs::from("", "", "gptoss")?.cache_dir().to_owned())
}

/// The processor's name, if the system reports it.
pub(crate) fn processor() -> Option<String> {
    if cfg!(target_os = "linux") {
        let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
        let line = info.lines().find(|line| line.starts_with("model name"))?;
        return Some(line.split_once(':')?.1.trim().into());
    }
    if cfg!(target_vendor = "apple") {
        let brand = Command::new("sysctl").args(["-n", "machdep.cpu.brand_string"]).output().ok()?;
        return Some(String::from_utf8(brand.stdout).ok()?.trim().into());
    }
    std::env::var("PROCESSOR_IDENTIFIER").ok()
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    /// Environment variables belong to a whole process, so the test runs itself in a child process for each value.
    #[test]
    fn the_cache_directory_follows_xdg() {
        const CHILD: &str = "GPTOSS_TEST_PRINTS_CACHE_DIRECTORY";
        const MARK: &str = "cache directory: ";
        if std::env::var_os(CHILD).is_some() {
            println!("{MARK}{}", cache_directory().expect("there is a home").display());
            return;
        }
        let with = |cache_home: Option<&str>| {
            let mut command = Command::new(std::env::current_exe().expect("this test's program"));
            command.args(["--exact", "machine::tests::the_cache_directory_follows_xdg", "--nocapture"]);
            command.env(CHILD, "1").env("HOME", "/home/somebody").env_remove("XDG_CACHE_HOME");
            command.envs(cache_home.map(|directory| ("XDG_CACHE_HOME", directory)));
            let output = command.output().expect("it runs");
            let text = String::from_utf8(output.stdout).expect("UTF-8");
            let line = text.lines().find_map(|line| Some(line.split_once(MARK)?.1.to_owned()));
            line.unwrap_or_else(|| panic!("no directory in {text}"))
        };
        assert_eq!(with(Some("/var/caches")), "/var/caches/gptoss");
        // The XDG specification: an empty or relative path is ignored.
        for unset in [None, Some(""), Some("caches"), Some("./caches")] {
            assert_eq!(with(unset), "/home/somebody/.cache/gptoss", "{unset:?}");
        }
    }
}

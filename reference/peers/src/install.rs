//! The virtual environment of each peer, `FOLDER/NAME/venv`, with the package versions pinned by this crate.

use std::io::{self, stderr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use crate::peer::Peer;

/// A Python with a peer's packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    pub peer: Peer,
    pub python: PathBuf,
}

/// Why a peer cannot be used or installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("{title} is not installed; `gptoss peers install {name}` installs it")]
    Missing { title: &'static str, name: &'static str },
    #[error("{title} is installed in other versions than this program needs; run `gptoss peers install {name}`")]
    Outdated { title: &'static str, name: &'static str },
    #[error("{0}, given by {1}, does not exist")]
    NoSuchPython(PathBuf, &'static str),
    #[error("{command} cannot be run: {error}; --python names another Python")]
    NoPython { command: String, error: io::Error },
    #[error("{command} failed ({status}); see its output above")]
    Failed { command: String, status: ExitStatus },
    #[error("{path}: {error}")]
    Files { path: PathBuf, error: io::Error },
}

impl Installation {
    /// The Python given by the peer's environment variable, or the one in `folder` if it was installed with the current pins.
    ///
    /// # Errors
    /// There is no such Python, or the one in `folder` was installed with other pins.
    pub fn find(peer: Peer, folder: &Path) -> Result<Installation, InstallError> {
        let named = std::env::var_os(peer.python_variable()).filter(|value| !value.is_empty());
        Installation::named_or_in(peer, named.map(PathBuf::from), folder)
    }

    fn named_or_in(peer: Peer, named: Option<PathBuf>, folder: &Path) -> Result<Installation, InstallError> {
        if let Some(python) = named {
            return match python.is_file() {
                true => Ok(Installation { peer, python }),
                false => Err(InstallError::NoSuchPython(python, peer.python_variable())),
            };
        }
        let (title, name) = (peer.title(), peer.name());
        let python = python_in(peer, folder);
        if !python.is_file() {
            return Err(InstallError::Missing { title, name });
        }
        // The file of pins is written last, so that an interrupted installation does not have it.
        match std::fs::read_to_string(pins_in(peer, folder)) {
            Ok(pins) if pins == peer.requirements() => Ok(Installation { peer, python }),
            _ => Err(InstallError::Outdated { title, name }),
        }
    }
}

/// Creates a virtual environment with `python` and installs the peer's packages in it, unless they are installed with the current pins. The
/// output of pip goes to stderr.
///
/// # Errors
/// `python` cannot be run or has no `venv`, packages cannot be downloaded or built, or the folder cannot be written.
pub fn install(peer: Peer, folder: &Path, python: &Path) -> Result<Installation, InstallError> {
    match Installation::named_or_in(peer, None, folder) {
        Ok(found) => Ok(found),
        Err(_) => make(peer, folder, python),
    }
}

fn make(peer: Peer, folder: &Path, python: &Path) -> Result<Installation, InstallError> {
    let own = folder.join(peer.name());
    let (pins, wanted) = (pins_in(peer, folder), own.join("wanted.txt"));
    std::fs::create_dir_all(&own).map_err(|error| InstallError::Files { path: own.clone(), error })?;
    let at_wanted = |error| InstallError::Files { path: wanted.clone(), error };
    std::fs::write(&wanted, peer.requirements()).map_err(at_wanted)?;
    run(Command::new(python).args(["-m", "venv", "--clear"]).arg(own.join("venv")))?;
    let inside = python_in(peer, folder);
    let pip = ["-m", "pip", "install", "--disable-pip-version-check", "--requirement"];
    run(Command::new(&inside).args(pip).arg(&wanted))?;
    std::fs::rename(&wanted, &pins).map_err(at_wanted)?;
    Ok(Installation { peer, python: inside })
}

fn run(command: &mut Command) -> Result<(), InstallError> {
    let name = format!("{command:?}");
    let status = command.stdin(Stdio::null()).stdout(stderr()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(InstallError::Failed { command: name, status }),
        Err(error) => Err(InstallError::NoPython { command: name, error }),
    }
}

fn python_in(peer: Peer, folder: &Path) -> PathBuf {
    let inside = if cfg!(windows) { "venv/Scripts/python.exe" } else { "venv/bin/python" };
    folder.join(peer.name()).join(inside)
}

fn pins_in(peer: Peer, folder: &Path) -> PathBuf {
    folder.join(peer.name()).join("requirements.txt")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that claims an installation with these pins.
    fn installed(peer: Peer, pins: Option<&str>) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let python = python_in(peer, folder.path());
        std::fs::create_dir_all(python.parent().expect("it has one")).expect("made");
        std::fs::write(&python, "").expect("written");
        pins.into_iter().for_each(|pins| std::fs::write(pins_in(peer, folder.path()), pins).expect("written"));
        folder
    }

    #[test]
    fn installation_with_other_pins_is_outdated() {
        let find = |peer, folder: &Path| Installation::named_or_in(peer, None, folder);
        for peer in Peer::ALL {
            let folder = installed(peer, Some(peer.requirements()));
            let python = python_in(peer, folder.path());
            assert_eq!(find(peer, folder.path()).expect("found"), Installation { peer, python });
            for pins in [None, Some("mlx==0.1")] {
                let folder = installed(peer, pins);
                let found = find(peer, folder.path());
                assert!(matches!(found, Err(InstallError::Outdated { .. })), "{found:?}");
            }
            let found = find(peer, Path::new("no-such-folder"));
            assert!(matches!(found, Err(InstallError::Missing { .. })), "{found:?}");
        }
    }

    #[test]
    fn invalid_python_is_reported() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        for peer in Peer::ALL {
            let named = Installation::named_or_in(peer, Some("no-such-python".into()), folder.path());
            assert!(matches!(named, Err(InstallError::NoSuchPython(..))), "{named:?}");
            let error = install(peer, folder.path(), Path::new("no-such-python")).expect_err("no Python");
            assert!(error.to_string().starts_with("\"no-such-python\" \"-m\" \"venv\""), "{error}");
        }
    }
}

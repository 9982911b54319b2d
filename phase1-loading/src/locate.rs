//! Finds a model by the name that another program gives it, or by the folder that holds it.

mod ollama;

use std::env;
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::error::{Defect, LoadError};

/// Where other programs keep models, in search order.
struct Places {
    ollama: Vec<PathBuf>,
    hub: Vec<PathBuf>,
    lm_studio: Vec<PathBuf>,
}

impl Places {
    fn of_this_machine() -> Places {
        let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = env::home_dir().filter(|home| home.is_absolute());
        let at_home = |path: &str| home.as_ref().map(|home| home.join(path));
        let cache = variable("XDG_CACHE_HOME").or_else(|| at_home(".cache"));
        let hub = [
            variable("HF_HUB_CACHE"),
            variable("HF_HOME").map(|home| home.join("hub")),
            cache.map(|cache| cache.join("huggingface").join("hub")),
        ];
        // The variable replaces the default folders, as in Ollama itself.
        let ollama = match variable("OLLAMA_MODELS") {
            Some(models) => [Some(models), None],
            // Ollama's Linux service uses the second folder.
            None => [at_home(".ollama/models"), Some(PathBuf::from("/usr/share/ollama/.ollama/models"))],
        };
        let lm_studio = [at_home(".lmstudio/models"), at_home(".cache/lm-studio/models")];
        Places {
            ollama: ollama.into_iter().flatten().collect(),
            hub: hub.into_iter().flatten().collect(),
            lm_studio: lm_studio.into_iter().flatten().collect(),
        }
    }
}

/// The file or folder of a model name: a path; `ollama:gpt-oss:20b`, by Ollama's manifest; `hf:openai/gpt-oss-20b`, in Hugging Face's
/// cache; `lmstudio:PUBLISHER/NAME`; or a folder that contains a model, such as `models--openai--gpt-oss-20b` of that cache or a folder
/// with one GGUF file. A path that does not exist is returned unchanged.
///
/// # Errors
/// The name is invalid, the program has no model of that name, the folder contains several models, a repository of Hugging Face's cache has
/// no revision or several of which `refs/main` names none, Ollama's manifest or blob is invalid or missing, or a folder cannot be read.
pub fn locate(name: &Path) -> Result<PathBuf, LoadError> {
    locate_in(name, &Places::of_this_machine())
}

/// Whether a name has the prefix of another program, such as `ollama:`.
pub fn is_foreign_name(name: &str) -> bool {
    ["ollama:", "hf:", "lmstudio:"].iter().any(|prefix| name.starts_with(prefix))
}

fn locate_in(name: &Path, places: &Places) -> Result<PathBuf, LoadError> {
    if name.exists() {
        return inside(name);
    }
    let text = name.to_str().unwrap_or_default();
    if let Some(model) = text.strip_prefix("ollama:") {
        return ollama::blob(name, model, &places.ollama);
    }
    match text.split_once(':') {
        Some(("hf", model)) => in_hub(name, model, &places.hub),
        Some(("lmstudio", model)) => in_lm_studio(name, model, &places.lm_studio),
        _ => Ok(name.to_owned()),
    }
}

/// A model in Hugging Face's cache, `OWNER/REPOSITORY[/FILE]`. Errors call it `name`.
fn in_hub(name: &Path, model: &str, hubs: &[PathBuf]) -> Result<PathBuf, LoadError> {
    // The cache joins owner and name; the rest is a path in the repository.
    let mut parts = model.splitn(3, '/');
    let mut next = || parts.next().unwrap_or_default();
    let (owner, repository, file) = (next(), next(), next());
    if owner.is_empty() || repository.is_empty() || !is_plain(model) {
        let found = format!("`{model}`");
        return Err(Defect::new("model", "a name such as hf:openai/gpt-oss-20b", found).in_file(name));
    }
    match existing(hubs, &format!("models--{owner}--{repository}")) {
        Some(folder) if file.is_empty() => inside(&folder),
        Some(folder) => inside(&snapshot(&folder)?.unwrap_or(folder).join(file)),
        None => {
            let remedy = format!("download it first: hf download {owner}/{repository} {file}");
            Err(LoadError::not_downloaded(name, "Hugging Face's cache", hubs, remedy.trim_end().to_owned()))
        }
    }
}

/// A model in LM Studio's folder, `PUBLISHER/NAME`. Errors call it `name`.
fn in_lm_studio(name: &Path, model: &str, folders: &[PathBuf]) -> Result<PathBuf, LoadError> {
    if model.is_empty() || !is_plain(model) {
        let found = format!("`{model}`");
        return Err(Defect::new("model", "a name such as lmstudio:openai/gpt-oss-20b", found).in_file(name));
    }
    match existing(folders, model) {
        Some(folder) => inside(&folder),
        None => {
            let remedy = "download it in LM Studio first".to_owned();
            Err(LoadError::not_downloaded(name, "LM Studio's folder", folders, remedy))
        }
    }
}

/// Whether a relative path stays below the folder that it is joined to.
fn is_plain(path: &str) -> bool {
    Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

/// `path` in the first of the places in which it exists.
fn existing(places: &[PathBuf], path: &str) -> Option<PathBuf> {
    places.iter().map(|place| place.join(path)).find(|path| path.exists())
}

/// The model inside a folder, if the folder is not a model itself. A path that is not a folder, or a folder without a model, is returned
/// unchanged.
fn inside(path: &Path) -> Result<PathBuf, LoadError> {
    if !path.is_dir() || path.join("config.json").exists() {
        return Ok(path.to_owned());
    }
    if let Some(snapshot) = snapshot(path)? {
        return inside(&snapshot);
    }
    let mut models = ggufs(path)?;
    match models.len() {
        1 => Ok(models.remove(0)),
        0 => {
            // The only folder that OpenAI's own instructions download.
            let original = path.join("original");
            Ok(if original.join("config.json").exists() { original } else { path.to_owned() })
        }
        _ => {
            let names = models.iter().filter_map(|model| Some(model.file_name()?.to_string_lossy().into_owned()));
            let found = format!("{}; name one of them", names.collect::<Vec<_>>().join(", "));
            Err(Defect::new("folder", "one model", found).in_file(path))
        }
    }
}

/// The downloaded revision of a repository in Hugging Face's cache: the one that `refs/main` names, or the only one. `None` if the folder
/// is not such a repository.
fn snapshot(repository: &Path) -> Result<Option<PathBuf>, LoadError> {
    let snapshots = repository.join("snapshots");
    if !snapshots.is_dir() {
        return Ok(None);
    }
    let main = fs::read_to_string(repository.join("refs").join("main")).unwrap_or_default();
    let main = snapshots.join(main.trim());
    if main != snapshots && main.is_dir() {
        return Ok(Some(main));
    }
    let mut revisions: Vec<PathBuf> = entries(&snapshots)?.into_iter().filter(|entry| entry.is_dir()).collect();
    match revisions.len() {
        1 => Ok(revisions.pop()),
        count => {
            let found = format!("{count} of them, and `refs/main` names none of these");
            Err(Defect::new("snapshots", "one revision", found).in_file(repository))
        }
    }
}

/// The models among a folder's GGUF files. Of a split model only the first file is listed; image projectors are left out.
fn ggufs(folder: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let is_model = |path: &PathBuf| {
        let name = path.file_name().map_or(String::new(), |name| name.to_string_lossy().to_ascii_lowercase());
        let stem = name.strip_suffix(".gguf");
        stem.is_some_and(|stem| !name.starts_with("mmproj") && !is_later_part(stem)) && path.is_file()
    };
    Ok(entries(folder)?.into_iter().filter(is_model).collect())
}

/// Whether a name ends like those of the second and later files of a split model, such as `-00002-of-00003`.
fn is_later_part(stem: &str) -> bool {
    let Some((rest, count)) = stem.rsplit_once("-of-") else { return false };
    let number = rest.rsplit_once('-').map_or("", |(_, number)| number);
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number(number) && is_number(count) && number != "00001"
}

/// The entries of a folder, sorted by name.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let io = |source| LoadError::Io { path: folder.to_owned(), source };
    let entries = fs::read_dir(folder).map_err(io)?;
    let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(io)?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these files, each given as (path, content).
    fn made(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().expect("in the directory")).expect("created");
            fs::write(path, text).expect("written");
        }
        directory
    }

    fn places(directory: &Path) -> Places {
        let all = vec![directory.join("nowhere"), directory.to_owned()];
        Places { ollama: all.clone(), hub: all.clone(), lm_studio: all }
    }

    fn found(directory: &Path, name: &str) -> String {
        let found = locate_in(Path::new(name), &places(directory)).expect("found");
        found.strip_prefix(directory).expect("in the directory").to_str().expect("UTF-8").replace('\\', "/")
    }

    fn refusal(directory: &Path, name: &str) -> String {
        let error = locate_in(Path::new(name), &places(directory)).expect_err("refused").to_string();
        error.replace(directory.to_str().expect("UTF-8"), "HERE").replace('\\', "/")
    }

    #[test]
    fn ollama_names_resolve_to_blobs() {
        let digest = "ab".repeat(32);
        let manifest = |digest: &str| {
            format!(
                r#"{{"layers": [{{"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:00"}},
                    {{"mediaType": "application/vnd.ollama.image.model", "digest": "{digest}"}}]}}"#
            )
        };
        let good = manifest(&format!("sha256:{digest}"));
        let blob = format!("blobs/sha256-{digest}");
        let directory = made(&[
            ("manifests/registry.ollama.ai/library/gpt-oss/20b", &good),
            ("manifests/registry.ollama.ai/library/gpt-oss/latest", &good),
            ("manifests/registry.ollama.ai/somebody/tuned/v1", &good),
            ("manifests/hf.co/unsloth/gpt-oss-20b-GGUF/Q4_K_M", &good),
            ("manifests/registry.ollama.ai/library/bad/digest", &manifest("sha256:../../x")),
            ("manifests/registry.ollama.ai/library/bad/layers", r#"{"layers": []}"#),
            ("manifests/registry.ollama.ai/library/bad/blob", &manifest(&format!("sha256:{}", "cd".repeat(32)))),
            (&blob, "GGUF"),
        ]);
        let path = directory.path();
        for name in ["gpt-oss:20b", "gpt-oss", "somebody/tuned:v1", "hf.co/unsloth/gpt-oss-20b-GGUF:Q4_K_M"] {
            assert_eq!(found(path, &format!("ollama:{name}")), blob, "{name}");
        }
        let missing = refusal(path, "ollama:gpt-oss:120b");
        assert!(
            missing.starts_with("ollama:gpt-oss:120b is not in Ollama's store (HERE/nowhere); it has "),
            "{missing}"
        );
        assert!(missing.contains("gpt-oss:20b") && missing.contains("somebody/tuned:v1"), "{missing}");
        assert!(missing.ends_with("; to fetch this one: ollama pull gpt-oss:120b"), "{missing}");
        let empty = refusal(&path.join("none"), "ollama:gpt-oss:20b");
        let expected =
            "ollama:gpt-oss:20b is not in Ollama's store (HERE/nowhere); fetch it first: ollama pull gpt-oss:20b";
        assert_eq!(empty, expected);
        for (name, found) in [
            ("bad:digest", "a digest"),
            ("bad:layers", "the layer of a model"),
            ("bad:blob", "cannot be read"),
            ("../../etc:passwd", "model: expected a name such as ollama:gpt-oss:20b, found `../../etc:passwd`"),
            ("", "model: expected a name such as ollama:gpt-oss:20b, found ``"),
        ] {
            let refused = refusal(path, &format!("ollama:{name}"));
            assert!(refused.contains(found), "{name}: {refused}");
        }
    }

    #[test]
    fn folders_resolve_to_the_model_inside() {
        let directory = made(&[
            ("lm/publisher/one/gpt-oss.gguf", ""),
            ("lm/publisher/one/mmproj-model.gguf", ""),
            ("lm/publisher/split/m-00001-of-00002.gguf", ""),
            ("lm/publisher/split/m-00002-of-00002.gguf", ""),
            ("lm/publisher/two/a.gguf", ""),
            ("lm/publisher/two/b.gguf", ""),
            ("hf/config.json", "{}"),
            ("hf/x.gguf", ""),
            ("openai/original/config.json", "{}"),
            ("nothing/readme", ""),
        ]);
        let path = directory.path();
        let inside = |name: &str| found(path, path.join(name).to_str().expect("UTF-8"));
        assert_eq!(inside("lm/publisher/one"), "lm/publisher/one/gpt-oss.gguf");
        assert_eq!(inside("lm/publisher/split"), "lm/publisher/split/m-00001-of-00002.gguf");
        assert_eq!(inside("lm/publisher/split/m-00002-of-00002.gguf"), "lm/publisher/split/m-00002-of-00002.gguf");
        assert_eq!(inside("hf"), "hf");
        assert_eq!(inside("openai"), "openai/original");
        assert_eq!(inside("nothing"), "nothing");
        assert_eq!(found(path, "lmstudio:lm/publisher/one"), "lm/publisher/one/gpt-oss.gguf");
        let two = refusal(path, path.join("lm/publisher/two").to_str().expect("UTF-8"));
        assert!(two.ends_with("folder: expected one model, found a.gguf, b.gguf; name one of them"), "{two}");
        let missing = refusal(path, "lmstudio:publisher/none");
        let expected =
            "lmstudio:publisher/none is not in LM Studio's folder (HERE/nowhere); download it in LM Studio first";
        assert_eq!(missing, expected);
        for name in ["lmstudio:", "lmstudio:../lm"] {
            assert!(refusal(path, name).contains("model: expected a name such as lmstudio:"), "{name}");
        }
        // A path that does not exist is not an error here, but when it is opened.
        let nowhere = locate_in(Path::new("no/such.gguf"), &places(path)).expect("returned unchanged");
        assert_eq!(nowhere, Path::new("no/such.gguf"));
    }

    #[test]
    fn repositories_resolve_to_their_snapshot() {
        let directory = made(&[
            ("models--openai--gpt-oss-20b/refs/main", "bbb\n"),
            ("models--openai--gpt-oss-20b/snapshots/aaa/config.json", "{}"),
            ("models--openai--gpt-oss-20b/snapshots/bbb/config.json", "{}"),
            ("models--ggml-org--gpt-oss-20b-GGUF/snapshots/ccc/m.gguf", ""),
            ("models--many--m/snapshots/aaa/a-Q4.gguf", ""),
            ("models--many--m/snapshots/aaa/a-Q8.gguf", ""),
            ("models--unclear--m/snapshots/aaa/config.json", "{}"),
            ("models--unclear--m/snapshots/bbb/config.json", "{}"),
        ]);
        let path = directory.path();
        let openai = "models--openai--gpt-oss-20b/snapshots/bbb";
        assert_eq!(found(path, path.join("models--openai--gpt-oss-20b").to_str().expect("UTF-8")), openai);
        assert_eq!(found(path, "hf:openai/gpt-oss-20b"), openai);
        let gguf = "models--ggml-org--gpt-oss-20b-GGUF/snapshots/ccc/m.gguf";
        assert_eq!(found(path, "hf:ggml-org/gpt-oss-20b-GGUF"), gguf);
        assert_eq!(found(path, "hf:many/m/a-Q8.gguf"), "models--many--m/snapshots/aaa/a-Q8.gguf");
        assert!(refusal(path, "hf:many/m").contains("a-Q4.gguf, a-Q8.gguf; name one of them"));
        assert!(refusal(path, "hf:unclear/m").contains("snapshots: expected one revision, found 2 of them"));
        for (model, download) in [("openai/none", "openai/none"), ("openai/none/a.gguf", "openai/none a.gguf")] {
            let expected = format!(
                "hf:{model} is not in Hugging Face's cache (HERE/nowhere); download it first: hf download {download}"
            );
            assert_eq!(refusal(path, &format!("hf:{model}")), expected);
        }
        for name in ["hf:", "hf:gpt-oss-20b", "hf:../x", "hf:a/../b"] {
            let refused = refusal(path, name);
            assert!(refused.contains("model: expected a name such as hf:openai/gpt-oss-20b, found `"), "{refused}");
        }
    }
}

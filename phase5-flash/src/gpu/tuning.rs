//! Kernel choices for a device: how products are split, and which kernel is used for how many rows. The defaults suit an H100.
//!
//! [`tune`](super::tune) measures the choices, and a file keeps them for one adapter, driver and shape of model.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use gpu_kernels::MatrixUnits;
use gpu_kernels::matmul::{PlaneLayout, RowSplit};
use gpu_kernels::matvec::{MatvecChoice, RowLoop};
use phase1_loading::{Checkpoint, write_whole};
use phase2_forward::ComputeDevice;
use serde::{Deserialize, Serialize};

/// The most new tokens in a step: a prompt chunk of 512 and 128 decoding sequences.
pub(crate) const MAX_ROWS: usize = 640;
/// A number of rows that no step reaches.
pub(crate) const NEVER: usize = MAX_ROWS + 1;

/// The kernel choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    pub(crate) project: RowLoop,
    pub(crate) gate_up: RowLoop,
    pub(crate) down: RowLoop,
    /// The most inputs that are multiplied per read of a dense matrix.
    pub(crate) inputs_per_read: usize,
    /// The least cubes of a mat-vec launch: a cube handles several groups of rows only if at least this many cubes remain.
    pub(crate) product_cubes: u32,
    /// Target number of cubes of attention: keys are split until there are as many.
    pub(crate) attention_cubes: usize,
    /// How units share the blocks of a row in small batches.
    pub(crate) small_batch: RowSplit,
    /// Up to this many rows, each row is multiplied with dense matrices by separate cubes. Weights that one row's cubes have read are then
    /// in the device's cache for the other rows.
    pub(crate) single_rows: usize,
    /// From this many rows on, dense products are tiled. With fewer rows, weights are read from memory to registers for a few rows at a
    /// time.
    pub(crate) tiled_rows: usize,
    /// As [`Tuning::single_rows`], for products with experts.
    pub(crate) single_expert_rows: usize,
    /// Up to this many rows, if more than [`Tuning::single_expert_rows`], pairs of slots that chose the same expert share its weights.
    pub(crate) pair_rows: usize,
    /// From this average number of rows per expert on, products of experts are in tiles of 64 rows.
    pub(crate) tiled_slots: usize,
    /// From this many rows on, products of experts are tiled for any average number of rows per expert, on matrix units: in tiles of 16, 32
    /// or 64 rows.
    pub(crate) low_tile_rows: usize,
    /// How planes share a tile on matrix units: of dense matrices and of experts, in tiles of 64 rows and in lower ones.
    pub(crate) dense_tile: PlaneLayout,
    pub(crate) low_dense_tile: PlaneLayout,
    pub(crate) expert_tile: PlaneLayout,
    pub(crate) low_expert_tile: PlaneLayout,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            project: RowLoop { vectors: 4, steps: 4 },
            gate_up: RowLoop { vectors: 1, steps: 8 },
            down: RowLoop { vectors: 2, steps: 6 },
            inputs_per_read: 2,
            product_cubes: 640,
            // On an H100, 32 splits for 8 key/value heads were the fastest at depths 4096 and 16384.
            attention_cubes: 256,
            small_batch: RowSplit { shares: 8, ahead: 2 },
            single_rows: 15,
            tiled_rows: 24,
            single_expert_rows: 15,
            pair_rows: 1,
            tiled_slots: 16,
            low_tile_rows: NEVER,
            dense_tile: PlaneLayout { planes: 4, splits: 2, squares: 1, step: 2, steps: 1 },
            low_dense_tile: PlaneLayout { planes: 4, splits: 4, squares: 1, step: 2, steps: 2 },
            expert_tile: PlaneLayout { planes: 2, splits: 1, squares: 2, step: 1, steps: 1 },
            low_expert_tile: PlaneLayout { planes: 4, splits: 1, squares: 1, step: 2, steps: 4 },
        }
    }
}

impl Tuning {
    /// Defaults for a device that was not measured. With matrix units tiles begin at fewer rows. Tokens/s in total on an H200, gpt-oss-20b's
    /// shape: 8 sequences 1,103 with single rows and 1,155 with dense tiles, 10 sequences 1,125 and 1,259; 12 sequences 986 with tiles for
    /// experts and 1,342 without. With products in pairs of 16-bit floats, experts by pairs of slots and without: 10 sequences 1,335 and
    /// 1,458, 16 sequences 1,724 and 1,735; by pairs of slots and by tiles: 20 sequences 1,702 and 1,499, 24 sequences 2,048 and 1,773.
    pub(crate) fn unmeasured(units: Option<MatrixUnits>) -> Tuning {
        let default = Tuning::default();
        match units {
            Some(_) => Tuning {
                single_rows: 7,
                tiled_rows: 8,
                single_expert_rows: 16,
                pair_rows: 31,
                tiled_slots: NEVER,
                low_tile_rows: 32,
                ..default
            },
            None => default,
        }
    }

    /// The same, with every product of more than one row in tiles.
    pub(crate) fn tiled_always(self) -> Tuning {
        Tuning {
            single_rows: 1,
            tiled_rows: 2,
            single_expert_rows: 1,
            pair_rows: 1,
            tiled_slots: NEVER,
            low_tile_rows: 2,
            ..self
        }
    }

    /// The same for an engine that does not use the device's matrix units: without thresholds that were measured with them.
    pub(crate) fn without_matrix_units(self) -> Tuning {
        let Tuning { single_rows, tiled_rows, single_expert_rows, pair_rows, tiled_slots, low_tile_rows, .. } =
            Tuning::default();
        Tuning { single_rows, tiled_rows, single_expert_rows, pair_rows, tiled_slots, low_tile_rows, ..self }
    }

    /// The same, with every product of more than one row in small batches.
    pub(crate) fn small_always(self) -> Tuning {
        Tuning {
            single_rows: 1,
            tiled_rows: NEVER,
            single_expert_rows: 1,
            pair_rows: 1,
            tiled_slots: NEVER,
            low_tile_rows: NEVER,
            ..self
        }
    }

    /// The choices of a mat-vec kernel with this row loop.
    pub(crate) fn matvec(&self, row_loop: RowLoop) -> MatvecChoice {
        MatvecChoice { row_loop, inputs_per_read: self.inputs_per_read, least_cubes: self.product_cubes }
    }

    pub(crate) const PRODUCT_CUBES: [u32; 4] = [160, 320, 640, 1280];
    pub(crate) const ATTENTION_CUBES: [usize; 5] = [32, 64, 128, 256, 512];
    pub(crate) const INPUTS_PER_READ: [usize; 3] = [1, 2, 4];
    /// The layouts of tiles that are worth measuring.
    pub(crate) const TILES: [PlaneLayout; 7] = [
        PlaneLayout::PAIRS,
        PlaneLayout { planes: 4, splits: 1, squares: 1, step: 2, steps: 1 },
        PlaneLayout { planes: 4, splits: 2, squares: 1, step: 2, steps: 1 },
        PlaneLayout { planes: 2, splits: 1, squares: 2, step: 1, steps: 1 },
        PlaneLayout { planes: 4, splits: 1, squares: 1, step: 2, steps: 4 },
        PlaneLayout { planes: 4, splits: 4, squares: 1, step: 2, steps: 2 },
        PlaneLayout { planes: 8, splits: 4, squares: 1, step: 1, steps: 2 },
    ];

    /// Whether the kernels support these choices.
    pub(super) fn is_possible(&self) -> bool {
        let row_loops = [self.project, self.gate_up, self.down];
        row_loops.into_iter().all(|row_loop| RowLoop::all().any(|known| known == row_loop))
            && Tuning::INPUTS_PER_READ.contains(&self.inputs_per_read)
            && Tuning::PRODUCT_CUBES.contains(&self.product_cubes)
            && Tuning::ATTENTION_CUBES.contains(&self.attention_cubes)
            && RowSplit::ALL.contains(&self.small_batch)
            && [self.dense_tile, self.low_dense_tile, self.expert_tile, self.low_expert_tile]
                .iter()
                .all(PlaneLayout::is_possible)
            && [self.single_rows, self.single_expert_rows, self.pair_rows]
                .iter()
                .all(|most| (1..=MAX_ROWS).contains(most))
            && self.low_tile_rows > 1
            && [self.tiled_rows, self.tiled_slots, self.low_tile_rows].iter().all(|most| (1..=NEVER).contains(most))
    }
}

/// The model, device and version that a tuning was measured for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TunedFor {
    /// The version of gptoss.
    pub version: String,
    /// The adapter's name and its graphics API.
    pub adapter: String,
    pub driver: String,
    /// The shader language that kernels are compiled to: `wgsl` or `spirv`.
    pub shaders: String,
    /// Widths, heads, experts and storage formats.
    pub shape: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    tuned_for: TunedFor,
    tuning: Tuning,
}

/// Why a stored tuning cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TuningError {
    #[error("{}: {reason}; run `gptoss tune` to write it again", path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error("{} was measured for {what} {found}, but this is {expected}; run `gptoss tune` to measure again", path.display())]
    Other { path: PathBuf, what: &'static str, found: String, expected: String },
    #[error("{} cannot be written: {source}", path.display())]
    Unwritten { path: PathBuf, source: io::Error },
}

impl TunedFor {
    pub fn new(checkpoint: &Checkpoint, device: &ComputeDevice) -> TunedFor {
        let config = &checkpoint.config;
        let format = |name: &str| checkpoint.tensor(name).format.name();
        TunedFor {
            version: env!("CARGO_PKG_VERSION").into(),
            adapter: device.name.clone(),
            driver: device.driver.clone(),
            shaders: device.shaders().into(),
            shape: format!(
                "{} wide, {} of {} heads of {}, {} of {} experts {} wide, {}, {}",
                config.hidden,
                config.kv_heads,
                config.heads,
                config.head_dim,
                config.experts_per_token,
                config.experts,
                config.expert_width,
                format("blk.0.attn_q.weight"),
                format("blk.0.ffn_gate_exps.weight"),
            ),
        }
    }

    /// The file of this adapter and shape.
    fn path(&self, directory: &Path) -> PathBuf {
        let name = format!("tuning-{}-{}", self.adapter, self.shape);
        let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        directory.join(plain + ".json")
    }

    /// Reads the tuning from `directory`; `None` if no file exists.
    ///
    /// # Errors
    /// The file cannot be read, is not a tuning, or was measured for another model, device or version.
    pub fn read(&self, directory: &Path) -> Result<Option<Tuning>, TuningError> {
        let path = self.path(directory);
        let unreadable = |reason: String| TuningError::Unreadable { path: path.clone(), reason };
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(error.to_string())),
        };
        let File { tuned_for, tuning } =
            serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))?;
        for (what, found, expected) in [
            ("gptoss", &tuned_for.version, &self.version),
            ("the adapter", &tuned_for.adapter, &self.adapter),
            ("the driver", &tuned_for.driver, &self.driver),
            ("shaders in", &tuned_for.shaders, &self.shaders),
            ("a model", &tuned_for.shape, &self.shape),
        ] {
            if found != expected {
                let (found, expected) = (found.clone(), expected.clone());
                return Err(TuningError::Other { path, what, found, expected });
            }
        }
        match tuning.is_possible() {
            true => Ok(Some(tuning)),
            false => Err(unreadable("it has choices that no kernel supports".into())),
        }
    }

    /// Writes a tuning to `directory` and returns the file's path.
    ///
    /// # Errors
    /// The file cannot be written; an existing file is unchanged.
    pub fn write(&self, directory: &Path, tuning: Tuning) -> Result<PathBuf, TuningError> {
        let path = self.path(directory);
        let text =
            serde_json::to_string_pretty(&File { tuned_for: self.clone(), tuning }).expect("numbers and strings");
        let written = fs::create_dir_all(directory).and_then(|()| write_whole(&path, |out| writeln!(out, "{text}")));
        match written {
            Ok(()) => Ok(path),
            Err(source) => Err(TuningError::Unwritten { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuned_for() -> TunedFor {
        let [version, adapter, driver, shaders, shape] =
            ["1.0", "GPU (vulkan)", "driver 3", "wgsl", "32 wide"].map(str::to_owned);
        TunedFor { version, adapter, driver, shaders, shape }
    }

    fn other() -> Tuning {
        Tuning {
            project: RowLoop { vectors: 8, steps: 1 },
            single_rows: 3,
            tiled_slots: MAX_ROWS + 1,
            ..Tuning::default()
        }
    }

    #[test]
    fn saved_tuning_is_loaded() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let nested = directory.path().join("not").join("there");
        assert_eq!(tuned_for().read(&nested).expect("a missing file is not an error"), None);
        for tuning in [other(), Tuning::default()] {
            let path = tuned_for().write(&nested, tuning).expect("written");
            assert!(path.starts_with(&nested));
            assert_eq!(tuned_for().read(&nested).expect("readable"), Some(tuning));
        }
        assert_eq!(fs::read_dir(&nested).expect("a directory").count(), 1, "nothing unfinished is left");
        let elsewhere = TunedFor { shape: "64 wide".into(), ..tuned_for() };
        assert_eq!(elsewhere.read(&nested).expect("a missing file is not an error"), None);
    }

    #[test]
    fn mismatched_tuning_is_refused_by_name() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        tuned_for().write(directory.path(), other()).expect("written");
        for (now, named) in [
            (TunedFor { version: "2.0".into(), ..tuned_for() }, "gptoss 1.0, but this is 2.0"),
            (TunedFor { driver: "driver 4".into(), ..tuned_for() }, "the driver driver 3, but this is driver 4"),
            (TunedFor { shaders: "spirv".into(), ..tuned_for() }, "shaders in wgsl, but this is spirv"),
            // Different adapter names may give the same file name.
            (
                TunedFor { adapter: "GPU [vulkan]".into(), ..tuned_for() },
                "the adapter GPU (vulkan), but this is GPU [vulkan]",
            ),
        ] {
            let error = now.read(directory.path()).expect_err("measured for something else").to_string();
            assert!(error.contains(named) && error.contains("`gptoss tune`"), "{error}");
        }
    }

    #[test]
    fn invalid_tuning_files_are_refused() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = tuned_for().write(directory.path(), Tuning::default()).expect("written");
        let good = fs::read_to_string(&path).expect("readable");
        let lies = [
            ("{", "~"),
            ("\"steps\": 4", "\"steps\": 0"),
            ("\"steps\": 4", "\"steps\": 1000000"),
            ("\"vectors\": 4", "\"vectors\": 3"),
            ("\"shares\": 8", "\"shares\": 4"),
            ("\"single_rows\": 15", "\"single_rows\": 0"),
            ("\"single_rows\": 15", "\"single_rows\": -1"),
            ("\"tiled_rows\": 24", "\"tiled_rows\": 99999999999"),
            ("\"attention_cubes\": 256", "\"attention_cubes\": 0"),
            ("\"product_cubes\": 640", "\"product_cubes\": 0"),
            ("\"planes\": 4", "\"planes\": 3"),
            ("\"splits\": 4", "\"splits\": 16"),
            ("\"tiled_slots\"", "\"tiled_slot\""),
        ];
        for (from, to) in lies {
            assert!(good.contains(from), "{from} in {good}");
            fs::write(&path, good.replacen(from, to, 1)).expect("written");
            assert!(tuned_for().read(directory.path()).is_err(), "{to}");
        }
        // Truncated at any length.
        for end in 0..good.trim_end().len() {
            fs::write(&path, &good[..end]).expect("written");
            assert!(tuned_for().read(directory.path()).is_err(), "{end} bytes");
        }
        fs::remove_file(&path).expect("removed");
        fs::create_dir(&path).expect("a directory in its place");
        assert!(tuned_for().read(directory.path()).is_err());
        assert!(tuned_for().write(directory.path(), Tuning::default()).is_err());
    }
}

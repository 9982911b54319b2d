//! Searches MXFP4 scale bytes for 255 while the engine already runs. In GGUF's layout every page of these weights contains scales, so the
//! check also maps the pages before a token needs them: 12 GB cost about 3 s of page faults, which would otherwise slow down the first
//! tokens.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use phase1_loading::{Format, HostTensor, LoadError, check_scales, map_pages};
use phase2_forward::EngineError;

/// A check of weights in a background thread. Dropping it ends the thread at the next tensor.
pub(super) struct WeightCheck {
    /// One report per tensor, up to the first damaged one.
    reports: Receiver<Result<(), LoadError>>,
    /// The first failure, which every later step returns again.
    failure: Option<String>,
}

impl WeightCheck {
    /// Begins to check the tensors of the model at `path`, in the order given.
    ///
    /// # Panics
    /// If the system cannot start a thread.
    pub fn start(path: PathBuf, tensors: Vec<(String, HostTensor)>) -> WeightCheck {
        let (sender, reports) = mpsc::channel();
        let work = move || {
            for (name, tensor) in tensors {
                let report = check(&path, &name, &tensor);
                let damaged = report.is_err();
                if sender.send(report).is_err() || damaged {
                    break;
                }
            }
        };
        // `check_scales` is parallel. Its own pool of one thread leaves the other processors to the engine.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).thread_name(|_| "gptoss-check".into()).build();
        pool.expect("the system can start a thread").spawn(work);
        WeightCheck { reports, failure: None }
    }

    /// Waits for the end of the check, but not longer than `patience`.
    ///
    /// # Errors
    /// A damaged tensor was found in this time.
    pub fn wait(&mut self, patience: Duration) -> Result<(), LoadError> {
        let start = Instant::now();
        while let Ok(report) = self.reports.recv_timeout(patience.saturating_sub(start.elapsed())) {
            report?;
        }
        Ok(())
    }

    /// The result so far, without waiting.
    ///
    /// # Errors
    /// A damaged tensor was found since the engine was loaded.
    pub fn result(&mut self) -> Result<(), EngineError> {
        if self.failure.is_none() {
            self.failure = self.reports.try_iter().find_map(Result::err).map(|error| error.to_string());
        }
        self.failure.clone().map_or(Ok(()), |failure| Err(EngineError::Device(failure)))
    }

    /// A check with reports sent by a test.
    #[cfg(test)]
    pub fn of(reports: Receiver<Result<(), LoadError>>) -> WeightCheck {
        WeightCheck { reports, failure: None }
    }
}

fn check(path: &Path, name: &str, tensor: &HostTensor) -> Result<(), LoadError> {
    check_scales(path, name, tensor)?;
    // The check has already read the pages of MXFP4. Tensors that are not contiguous, or in formats that kernels do not support, were
    // copied when the model was loaded. The engine reads the copies, so the pages of these tensors need not be mapped.
    if tensor.format != Format::Mxfp4 && tensor.format.storage().is_some() && tensor.is_contiguous() {
        map_pages(&tensor.packed());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than any check takes.
    const FOREVER: Duration = Duration::from_secs(600);

    /// Two rows of two blocks of MXFP4, all zeros.
    fn tensor(damaged_block: Option<usize>) -> HostTensor {
        let mut packed = vec![0u8; 4 * 17];
        damaged_block.iter().for_each(|block| packed[block * 17] = 255);
        HostTensor::packed_rows(Format::Mxfp4, vec![2, 64], packed.into())
    }

    fn check_of(tensors: &[(&str, HostTensor)]) -> WeightCheck {
        let tensors = tensors.iter().map(|(name, tensor)| ((*name).into(), tensor.clone())).collect();
        WeightCheck::start("model.gguf".into(), tensors)
    }

    #[test]
    fn undamaged_weights_pass() {
        let plain = HostTensor::packed_rows(Format::F32, vec![1, 32], vec![255u8; 128].into());
        let mut check = check_of(&[("a", tensor(None)), ("b", plain)]);
        check.wait(FOREVER).expect("the weights are undamaged");
        check.result().expect("the weights are undamaged");
    }

    #[test]
    fn the_first_damaged_tensor_is_named() {
        let mut check = check_of(&[("a", tensor(None)), ("b", tensor(Some(3))), ("c", tensor(Some(1)))]);
        let error = check.wait(FOREVER).expect_err("damaged").to_string();
        assert!(error.starts_with("model.gguf: tensor `b`: "), "{error}");
        assert!(error.contains("255 in block 3") && error.contains("again"), "{error}");
    }

    /// A failure found after the wait is reported by every later call.
    #[test]
    fn late_failure_is_reported_by_every_later_call() {
        let (sender, reports) = mpsc::channel();
        let mut late = WeightCheck::of(reports);
        late.wait(Duration::ZERO).expect("nothing was found yet");
        late.result().expect("nothing was found yet");
        sender.send(Ok(())).expect("the check is still running");
        late.result().expect("the tensor is undamaged");
        sender.send(check(Path::new("m.gguf"), "w", &tensor(Some(2)))).expect("the check is still running");
        drop(sender);
        for _ in 0..2 {
            let error = late.result().expect_err("damaged");
            assert!(matches!(&error, EngineError::Device(sentence) if sentence.contains("255 in block 2")), "{error}");
        }
    }
}

//! Advice for each problem that was found, and last a command to try next.

use std::path::Path;

use super::findings::{Findings, Fit};

pub(super) fn advice(findings: &Findings) -> Vec<String> {
    let mut advice = Vec::new();
    let mut add = |sentence: String| advice.push(sentence);
    let plan = &findings.plan;

    if let Err(error) = &findings.choice {
        add(format!("{error}."));
    }
    for model in findings.models.iter().filter(|model| model.opened.is_err()) {
        add(format!("{} cannot be opened, for the reason above; download it again.", model.name));
    }
    match plan.on_cpu {
        Some(Fit::No) => {
            add(format!("{} needs more memory than this machine has; choose a smaller model.", plan.model));
        }
        Some(Fit::FromDisk) => add(format!(
            "{} does not fit into memory: parts of it are read from the disk for every token, which is slow.",
            plan.model
        )),
        Some(Fit::Yes) | None => {}
    }
    let available = findings.memory.available.filter(|_| plan.on_cpu != Some(Fit::No));
    if available.is_some_and(|available| available < plan.own) {
        add("Other programs use memory that this model needs; close some.".into());
    }

    let mut gpus = findings.gpus().peekable();
    if gpus.peek().is_none() && Path::new("/proc/driver/nvidia/version").exists() {
        add(
            "This machine has an NVIDIA GPU, but Vulkan does not list it: install the Vulkan part of its driver; in a \
             container, set NVIDIA_DRIVER_CAPABILITIES=all."
                .into(),
        );
    }
    if findings.adapters.is_empty() && cfg!(target_os = "linux") {
        add("No Vulkan driver was found. The CPU needs none; the tests do (Debian: apt install mesa-vulkan-drivers)."
            .into());
    }
    for gpu in gpus {
        let is_short = gpu.memory.is_some_and(|memory| plan.on_gpu <= memory && memory < plan.for_auto);
        if is_short {
            add(format!(
                "{} has memory for the model, but not for a cache of its whole context; try --kv-memory 1GiB.",
                gpu.name
            ));
        }
    }
    if findings.kernels == ["portable"] && cfg!(target_arch = "x86_64") {
        add("This processor has no AVX2 with FMA and F16C: only the plain Rust kernels run, which are slow.".into());
    }
    if findings.processors.quota.is_some_and(|quota| quota < 1.0) {
        add("The CPU quota is below one processor: answers will be slow.".into());
    }

    add(match findings.models.iter().find(|model| model.opened.is_ok()) {
        Some(model) => format!("Next: gptoss chat {0}, or gptoss serve {0}.", model.name),
        None => "Next: gptoss chat talks with the model inside the program. For gpt-oss-20b: hf download \
                 ggml-org/gpt-oss-20b-GGUF, then gptoss chat hf:ggml-org/gpt-oss-20b-GGUF."
            .into(),
    });
    advice
}

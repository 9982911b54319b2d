//! What a person can do about what was found, one sentence each, the most useful first.

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
        add(format!("{} is there and cannot be opened; fetch it again, or see the reason above.", model.name));
    }
    match plan.on_cpu {
        Some(Fit::No) => add(format!("{} needs more memory than this machine has; take a smaller model.", plan.model)),
        Some(Fit::FromDisk) => add(format!(
            "Not all of {} fits into memory: parts are read from the disk for every token, which is slow.",
            plan.model
        )),
        Some(Fit::Yes) | None => {}
    }
    let available = findings.memory.available.filter(|_| plan.on_cpu != Some(Fit::No));
    if available.is_some_and(|available| available < plan.own) {
        add("Other programs hold memory that this model needs; end some.".into());
    }

    let mut gpus = findings.gpus().peekable();
    if gpus.peek().is_none() && Path::new("/proc/driver/nvidia/version").exists() {
        add("An NVIDIA GPU is here and Vulkan does not show it: install the Vulkan part of its driver; in a container, set \
             NVIDIA_DRIVER_CAPABILITIES=all."
            .into());
    }
    if findings.adapters.is_empty() && cfg!(target_os = "linux") {
        add("No Vulkan driver was found. The CPU needs none; the tests do (Debian: apt install mesa-vulkan-drivers)."
            .into());
    }
    for gpu in gpus {
        let is_short = gpu.memory.is_some_and(|memory| plan.on_gpu <= memory && memory < plan.for_auto);
        if is_short {
            add(format!(
                "{} holds the model, but no cache for its whole context; --kv-memory 1GiB makes that smaller.",
                gpu.name
            ));
        }
    }
    if findings.kernels == ["portable"] && cfg!(target_arch = "x86_64") {
        add("This processor has no AVX2 with FMA and F16C: the plain kernels are used, which are slow.".into());
    }
    if findings.processors.quota.is_some_and(|quota| quota < 1.0) {
        add("The CPU quota is below one processor: answers will come slowly.".into());
    }

    add(match findings.models.iter().find(|model| model.opened.is_ok()) {
        Some(model) => format!("Next: gptoss chat {0}, or gptoss serve {0}.", model.name),
        None => "Next: gptoss chat talks with the model inside the program. For gpt-oss-20b: hf download \
                 ggml-org/gpt-oss-20b-GGUF, then gptoss chat hf:ggml-org/gpt-oss-20b-GGUF."
            .into(),
    });
    advice
}

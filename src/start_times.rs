//! How long the stages of the program's start took: the tokenizer, the device, the weights, the kernels.

use std::time::Duration;

use phase5_flash::gpu::LoadTimes;
use serde_json::{Value, json};

/// The stages of a start, one after another, and its parts: work inside of a stage, or at the same time as the stages.
#[derive(Default)]
pub struct StartTimes {
    stages: Vec<Stage>,
    parts: Vec<Stage>,
}

struct Stage {
    name: &'static str,
    time: Duration,
    /// Bytes of weights that were processed.
    bytes: Option<u64>,
    /// Number of copies or launches.
    count: Option<usize>,
}

impl StartTimes {
    /// Adds the next stage.
    pub fn add(&mut self, name: &'static str, time: Duration) {
        self.stages.push(Stage { name, time, bytes: None, count: None });
    }

    /// Adds a stage that came before all others.
    pub fn add_first(&mut self, name: &'static str, time: Duration) {
        self.stages.insert(0, Stage { name, time, bytes: None, count: None });
    }

    /// Adds a part: work inside of a stage, or at the same time as the stages.
    pub fn add_part(&mut self, name: &'static str, time: Duration) {
        self.parts.push(Stage { name, time, bytes: None, count: None });
    }

    /// Adds the stages and parts of loading a GPU engine.
    pub fn add_gpu_load(&mut self, times: &LoadTimes) {
        let LoadTimes { probe, allocation, upload, warm_up_end, first_step, warm_up } = times;
        let bytes = Some(upload.bytes);
        self.add("probe", *probe);
        self.add("allocation", *allocation);
        self.stages.push(Stage { name: "weights", time: upload.total, bytes, count: Some(upload.chunks) });
        self.add("end of warm-up", *warm_up_end);
        self.add("first step", *first_step);
        self.add_part("weights: creating buffers", upload.creating);
        self.parts.push(Stage { name: "weights: packing", time: upload.packing, bytes, count: None });
        self.add_part("weights: reading, sum of threads", upload.threads_reading);
        self.add_part("weights: packing and writing, sum of threads", upload.threads_writing);
        self.add_part("weights: submitting copies", upload.submitting);
        self.add_part("weights: waiting for copies", upload.waiting);
        let name = if warm_up.is_complete { "warm-up, complete" } else { "warm-up, cut short" };
        self.parts.push(Stage { name, time: warm_up.time, bytes: None, count: Some(warm_up.launches) });
    }

    pub fn to_json(&self) -> Value {
        let list = |stages: &[Stage]| stages.iter().map(Stage::to_json).collect::<Value>();
        json!({ "stages": list(&self.stages), "parts": list(&self.parts) })
    }
}

impl Stage {
    fn gb_per_second(&self) -> Option<f64> {
        let rate = self.bytes? as f64 / 1e9 / self.time.as_secs_f64();
        rate.is_finite().then_some(rate)
    }

    fn to_json(&self) -> Value {
        let mut object = json!({ "name": self.name, "ms": self.time.as_secs_f64() * 1e3 });
        if let Some(bytes) = self.bytes {
            object["bytes"] = json!(bytes);
            object["gb_s"] = json!(self.gb_per_second());
        }
        if let Some(count) = self.count {
            object["count"] = json!(count);
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_of_a_gpu_are_in_order_with_their_rates() {
        let ms = Duration::from_millis;
        let mut load = LoadTimes { probe: ms(1), allocation: ms(2), warm_up_end: ms(3), ..LoadTimes::default() };
        load.first_step = ms(4);
        (load.upload.total, load.upload.packing) = (ms(2000), ms(1000));
        (load.upload.bytes, load.upload.chunks) = (12_000_000_000, 375);
        let mut times = StartTimes::default();
        times.add("device", ms(5));
        times.add_gpu_load(&load);
        times.add_first("file", ms(6));
        let object = times.to_json();
        let stages = json!([
            { "name": "file", "ms": 6.0 },
            { "name": "device", "ms": 5.0 },
            { "name": "probe", "ms": 1.0 },
            { "name": "allocation", "ms": 2.0 },
            { "name": "weights", "ms": 2000.0, "bytes": 12_000_000_000u64, "gb_s": 6.0, "count": 375 },
            { "name": "end of warm-up", "ms": 3.0 },
            { "name": "first step", "ms": 4.0 },
        ]);
        assert_eq!(object["stages"], stages);
        let packing = json!({ "name": "weights: packing", "ms": 1000.0, "bytes": 12_000_000_000u64, "gb_s": 12.0 });
        assert_eq!(object["parts"][1], packing);
    }
}

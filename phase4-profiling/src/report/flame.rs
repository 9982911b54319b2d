//! The mean step as a flame graph with three levels: kinds of layers, operations, layers.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::text::{decimals, fixed, percent, plain};
use crate::Profile;

/// Folded stacks, the input format of flame graph tools: `step;layers of 128 keys;moe.down;layer 3 1200`, in nanoseconds of the mean step.
pub fn folded(profile: &Profile) -> String {
    let line = |(stack, seconds): &(Vec<String>, f64)| {
        let frames: Vec<String> = stack.iter().map(|frame| frame.replace(';', ":")).collect();
        format!("{} {}\n", frames.join(";"), (seconds * 1e9).round() as u64)
    };
    stacks(profile).iter().map(line).collect()
}

/// The flame graph as an SVG, 1200 pixels wide. The width of a frame is its time; hovering over a frame shows its name.
pub fn flame(profile: &Profile) -> String {
    let mut root = Frame { name: "step".into(), ..Frame::default() };
    for (stack, seconds) in stacks(profile) {
        root.add(&stack[1..], seconds);
    }
    let caption = format!(
        "{}, {}: phase {}, {}",
        plain(&profile.model),
        profile.device_label(),
        profile.phase,
        profile.workload.text()
    );
    let mut drawing =
        Drawing { svg: String::new(), total: root.seconds, floor: HEAD + (root.depth() - 1) as f64 * FRAME };
    drawing.frame(&root, 0.0, 0, "other");
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\">\n{STYLE}<rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\"/>\n\
         <text class=\"caption\" x=\"{MARGIN}\" y=\"24\">{}</text>\n{}</svg>\n",
        escaped(&caption),
        drawing.svg,
        height = drawing.floor + FRAME + MARGIN,
    )
}

const WIDTH: f64 = 1200.0;
const MARGIN: f64 = 12.0;
/// Height above the frames, for the caption.
const HEAD: f64 = 40.0;
/// Height of a frame.
const FRAME: f64 = 22.0;
/// Width of a letter in a frame, and padding on each side of a name.
const LETTER: f64 = 6.8;
const PADDING: f64 = 4.0;
/// Frames narrower than this are left out, since they would be invisible.
const HAIRLINE: f64 = 0.1;

const STYLE: &str = "<style>
text { font: 12px ui-monospace, Menlo, Consolas, monospace; fill: #16181d; pointer-events: none }
.caption { font: 14px system-ui, sans-serif }
.page { fill: #fff } g rect { stroke: #fff; stroke-width: .5; rx: 2px } g:hover rect { stroke: #16181d; stroke-width: 1.5 }
.attn rect { fill: #9dbdf0 } .moe rect { fill: #f3b184 } .head rect { fill: #97d3ae } .other rect { fill: #d5d9e0 }
@media (prefers-color-scheme: dark) {
  text { fill: #eef0f4 } .page { fill: #14161b } g rect { stroke: #14161b } g:hover rect { stroke: #eef0f4 }
  .attn rect { fill: #2f56a0 } .moe rect { fill: #9a4a1c } .head rect { fill: #23704a } .other rect { fill: #454b57 }
}
</style>
";

/// Stacks in the order of their first appearance in a step, with mean seconds per step.
fn stacks(profile: &Profile) -> Vec<(Vec<String>, f64)> {
    let kinds = kinds(profile);
    let mut stacks: Vec<(Vec<String>, f64)> = Vec::new();
    let mut index = BTreeMap::new();
    for span in profile.steps.iter().flat_map(|step| &step.spans) {
        let name = plain(&span.name);
        let stack = match span.layer {
            None => vec!["step".into(), name],
            Some(layer) => vec!["step".into(), kinds[&layer].clone(), name, format!("layer {layer}")],
        };
        let at = *index.entry(stack.clone()).or_insert(stacks.len());
        if at == stacks.len() {
            stacks.push((stack, 0.0));
        }
        stacks[at].1 += span.duration / profile.steps.len() as f64;
    }
    let rest = profile.unattributed();
    if rest > 0.0 {
        stacks.push((vec!["step".into(), "unattributed".into()], rest));
    }
    stacks
}

/// Layers with the same number of keys in their first step are taken to be of one kind: this separates sliding from full attention.
fn kinds(profile: &Profile) -> BTreeMap<usize, String> {
    let mut kinds = BTreeMap::new();
    for step in &profile.steps {
        let mut most: BTreeMap<usize, usize> = BTreeMap::new();
        for (layer, keys) in step.spans.iter().filter_map(|span| Some((span.layer?, span.keys))) {
            let most = most.entry(layer).or_default();
            *most = keys.max(*most);
        }
        for (layer, keys) in most {
            kinds.entry(layer).or_insert_with(|| format!("layers of {keys} keys"));
        }
    }
    kinds
}

#[derive(Default)]
struct Frame {
    name: String,
    seconds: f64,
    children: Vec<Frame>,
}

impl Frame {
    fn add(&mut self, stack: &[String], seconds: f64) {
        self.seconds += seconds;
        if let [name, rest @ ..] = stack {
            let known = self.children.iter().position(|child| child.name == *name);
            let child = known.unwrap_or_else(|| {
                self.children.push(Frame { name: name.clone(), ..Frame::default() });
                self.children.len() - 1
            });
            self.children[child].add(rest, seconds);
        }
    }

    fn depth(&self) -> usize {
        1 + self.children.iter().map(Frame::depth).max().unwrap_or(0)
    }
}

struct Drawing {
    svg: String,
    /// Seconds of the whole width.
    total: f64,
    /// Vertical position of the lowest frame.
    floor: f64,
}

impl Drawing {
    /// Draws a frame that begins at `start` seconds, and the frames above it. A frame has the colour of its family (`attn`, `moe` or
    /// `head`), or without one that of its parent.
    fn frame(&mut self, frame: &Frame, start: f64, level: usize, parent: &str) {
        let scale = (WIDTH - 2.0 * MARGIN) / self.total;
        let width = frame.seconds * scale;
        if !width.is_finite() || width < HAIRLINE {
            return;
        }
        let family = ["attn", "moe", "head"].into_iter().find(|family| frame.name.split('.').next() == Some(family));
        let family = family.unwrap_or(parent);
        let (x, y) = (MARGIN + start * scale, self.floor - level as f64 * FRAME);
        let (name, ms) = (escaped(&frame.name), fixed(frame.seconds * 1e3, decimals(self.total)));
        let share = percent(frame.seconds / self.total);
        let svg = &mut self.svg;
        let _ = write!(svg, "<g class=\"{family}\"><title>{name}: {ms} ms, {share} of the step</title>");
        let _ = write!(svg, "<rect x=\"{x:.2}\" y=\"{y}\" width=\"{width:.2}\" height=\"{FRAME}\"/>");
        let letters = ((width - 2.0 * PADDING) / LETTER) as usize;
        if letters >= 3 {
            let (x, y) = (x + PADDING, y + 15.0);
            let _ = write!(svg, "<text x=\"{x:.2}\" y=\"{y}\">{}</text>", escaped(&shortened(&frame.name, letters)));
        }
        svg.push_str("</g>\n");
        let mut at = start;
        for child in &frame.children {
            self.frame(child, at, level + 1, family);
            at += child.seconds;
        }
    }
}

fn shortened(name: &str, letters: usize) -> String {
    if name.chars().count() <= letters { name.into() } else { name.chars().take(letters - 1).chain(['…']).collect() }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

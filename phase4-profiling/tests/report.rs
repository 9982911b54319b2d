//! Tests the contents of the reports, and that they are valid for profiles with any names and numbers.

mod sample;

use phase2_forward::Operation;
use phase4_profiling::report::{compare, flame, folded, html, table, trace};
use phase4_profiling::{Ceiling, Clock, LAUNCH, Profile, READBACK, TimedSpan, TimedStep, Workload};
use proptest::prelude::*;
use serde_json::Value;

#[test]
fn tables() {
    let profiles = [sample::decode(1024, 1), sample::decode(1024, 8), sample::gpu(1024, 8), sample::prefill(128)];
    insta::assert_snapshot!(profiles.iter().map(table).collect::<Vec<_>>().join("\n\n"));
}

#[test]
fn ceiling_of_another_machine_is_reported() {
    let mut profile = sample::gpu(0, 1);
    profile.ceiling = sample::decode(0, 1).ceiling;
    assert!(
        table(&profile).contains("measured 2026-11-23 for cpu on 2-core Zen 4: percentages are misleading"),
        "{}",
        table(&profile)
    );
}

#[test]
fn unmeasured_rates_are_not_printed() {
    let mut profile = sample::decode(0, 1);
    profile.ceiling.packed_rate = 0.0;
    assert!(
        table(&profile).contains("ceiling: 27.0 GB/s, 180 GFLOP/s in f32, measured 2026-11-23\n"),
        "{}",
        table(&profile)
    );
}

#[test]
fn comparisons() {
    let cpu = sample::decode(1024, 8);
    let text = [compare(&cpu, &slowed(cpu.clone(), "moe.down", 2.0)), compare(&cpu, &sample::gpu(0, 8))];
    insta::assert_snapshot!(text.map(|comparison| comparison.to_string()).join("\n\n"));
    insta::assert_json_snapshot!(sides_and_first_change());
}

/// The same steps with every span of `name` taking `factor` times as long.
fn slowed(mut profile: Profile, name: &str, factor: f64) -> Profile {
    for step in &mut profile.steps {
        let mut late = 0.0;
        for span in &mut step.spans {
            span.start += late;
            if span.name == name {
                late += span.duration * (factor - 1.0);
                span.duration *= factor;
            }
        }
        step.wall += late;
    }
    profile
}

/// A comparison as JSON, with only the first change.
fn sides_and_first_change() -> Value {
    let comparison = compare(&sample::decode(0, 1), &sample::prefill(8));
    let mut json = serde_json::to_value(comparison).expect("serializes");
    json["changes"].as_array_mut().expect("an array").truncate(1);
    json
}

#[test]
fn doubled_operation_is_listed_first() {
    for (before, after) in [(sample::decode(1024, 8), sample::decode(1024, 8)), (sample::gpu(0, 4), sample::gpu(0, 4))]
    {
        for name in ["moe.down", "attn.rope", "head"] {
            let comparison = compare(&before, &slowed(after.clone(), name, 2.0));
            let first = &comparison.changes[0];
            assert_eq!(first.name, name);
            assert!((first.ratio.expect("in both profiles") - 2.0).abs() < 1e-9, "{first:?}");
            assert!(first.share > 0.99, "{first:?}");
            assert!(comparison.warnings.is_empty(), "{:?}", comparison.warnings);

            let back = compare(&slowed(after.clone(), name, 2.0), &before);
            assert_eq!(back.changes.last().expect("changes").name, name);
        }
    }
}

#[test]
fn folded_stacks() {
    let profile = sample::decode(1024, 2);
    insta::assert_snapshot!(folded(&profile));
    let total: u64 = folded(&profile)
        .lines()
        .map(|line| line.rsplit_once(' ').expect("a count").1.parse::<u64>().expect("a number"))
        .sum();
    assert!((total as f64 * 1e-9 - profile.wall()).abs() < 1e-6, "{total} ns of {} s", profile.wall());
}

#[test]
fn flame_graph_labels_wide_spans() {
    let svg = flame(&sample::gpu(1024, 2));
    well_formed(&svg);
    for name in ["launch", "layers of 128 keys", "layers of 1025 keys", "moe.gate_up", "head"] {
        assert!(svg.contains(&format!(">{name}</text>")), "{name} is not written in {svg}");
    }
}

#[test]
fn page_loads_nothing_from_the_network() {
    let page = html(&sample::decode(0, 1));
    let addresses: Vec<&str> = page.split("http").skip(1).map(|rest| &rest[..24]).collect();
    assert_eq!(addresses, ["://www.w3.org/2000/svg\",".get(..24).expect("long enough")]);
    assert!(!page.contains("url(//") && !page.contains("@import") && !page.contains("src="));
}

proptest! {
    #[test]
    fn any_profile_renders(profile in profiles(), other in profiles()) {
        let [table, comparison] = [table(&profile), compare(&profile, &other).to_string()];
        for text in [&table, &comparison] {
            no_strange_numbers(text);
            prop_assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
        }
        let svg = flame(&profile);
        well_formed(&svg);
        prop_assert!(!["=\"NaN", "=\"inf", "=\"-"].iter().any(|strange| svg.contains(strange)), "{svg}");
        for line in folded(&profile).lines() {
            prop_assert!(line.rsplit_once(' ').is_some_and(|(_, count)| count.parse::<u64>().is_ok()), "{line}");
        }
        let events: Value = serde_json::from_str(&trace(&profile)).expect("JSON");
        let operations = events["traceEvents"].as_array().expect("events").iter().filter(|event| event["cat"] == "operation");
        prop_assert_eq!(operations.count(), spans(&profile).count());
        prop_assert_eq!(names_on_page(&profile), spans(&profile).map(|span| span.name.clone()).collect::<Vec<_>>());
        serde_json::to_string(&compare(&profile, &other)).expect("JSON");
    }
}

fn spans(profile: &Profile) -> impl Iterator<Item = &TimedSpan> {
    profile.steps.iter().flat_map(|step| &step.spans)
}

/// The spans' names in the page's data, found as a browser finds it: up to the first `</script`.
fn names_on_page(profile: &Profile) -> Vec<String> {
    let page = html(profile);
    let (_, data) = page.split_once("<script type=\"application/json\" id=\"data\">").expect("data");
    let (data, _) = data.split_once("</script").expect("an end");
    let data: Value = serde_json::from_str(data).expect("JSON");
    let array = |value: &Value, key: &str| value[key].as_array().cloned().expect("an array");
    let lanes = array(&data, "steps").into_iter().flat_map(move |step| array(&step, "lanes"));
    lanes
        .flat_map(move |lane| array(&lane, "spans"))
        .map(|span| span["name"].as_str().expect("a name").into())
        .collect()
}

fn no_strange_numbers(text: &str) {
    let strange =
        |word: &str| ["nan", "inf"].contains(&word.trim_matches(|c: char| !c.is_alphabetic()).to_lowercase().as_str());
    assert!(!text.split_whitespace().any(strange), "{text}");
}

/// Tags are nested correctly; outside of them there is no `<`, and `&` only in an entity.
fn well_formed(xml: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = xml;
    while let Some((text, tail)) = rest.split_once('<') {
        for entity in text.split('&').skip(1) {
            assert!(["amp;", "lt;", "gt;"].iter().any(|known| entity.starts_with(known)), "&{entity}");
        }
        let (tag, tail) = tail.split_once('>').expect("a tag that ends");
        let name = tag.split([' ', '/']).find(|part| !part.is_empty()).expect("a tag's name");
        match (tag.starts_with('/'), tag.ends_with('/')) {
            (true, _) => assert_eq!(open.pop(), Some(name)),
            (false, false) => open.push(name),
            (false, true) => {}
        }
        rest = tail;
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} stay open, {rest:?} follows");
    assert!(!xml.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{fffe}' || c == '\u{ffff}'));
}

fn names() -> impl Strategy<Value = String> {
    let known = Operation::ALL.map(Operation::name).into_iter().chain([LAUNCH, READBACK]).collect::<Vec<_>>();
    let odd = vec![
        "",
        ";",
        " ",
        "a;b 7",
        "</script><script>",
        "<!--",
        "]]>",
        "&amp;",
        "\u{1b}[31m",
        "\"",
        "\\",
        "\u{2028}",
        "__proto__",
    ];
    prop_oneof![
        8 => prop::sample::select(known).prop_map(String::from),
        1 => prop::sample::select(odd).prop_map(String::from),
        1 => any::<String>(),
    ]
}

fn seconds() -> impl Strategy<Value = f64> {
    prop_oneof![2 => Just(0.0), 8 => 1e-9..1.0, 1 => Just(1e-300), 1 => Just(1e300)]
}

fn timed_span() -> impl Strategy<Value = TimedSpan> {
    let amount = || prop_oneof![Just(0u64), 0..1u64 << 40, Just(1 << 53)];
    let place = (prop::option::of(0..4usize), 0..9usize, 0..9usize);
    (names(), place, seconds(), seconds(), amount(), amount()).prop_map(
        |(name, (layer, tokens, keys), start, duration, bytes, operations)| TimedSpan {
            name,
            layer,
            tokens,
            keys,
            start,
            duration,
            bytes,
            operations,
        },
    )
}

prop_compose! {
    fn profiles()(
        model in names(), device in names(), machine in names(), date in names(), phase: u8,
        workload in prop_oneof![
            (any::<usize>(), 1..99usize).prop_map(|(depth, sequences)| Workload::Decode { depth, sequences }),
            any::<usize>().prop_map(|tokens| Workload::Prefill { tokens }),
        ],
        clock in prop::sample::select(vec![Clock::Host, Clock::DeviceTimestamps, Clock::Synchronized]),
        rates in prop::array::uniform3(prop_oneof![Just(0.0), 1.0..1e15, Just(1e300)]),
        steps in prop::collection::vec((seconds(), prop::collection::vec(timed_span(), 0..12)), 0..4),
    ) -> Profile {
        let [read_bandwidth, f32_rate, packed_rate] = rates;
        let ceiling = Ceiling {
            read_bandwidth, f32_rate, packed_rate, machine: machine.clone(), device: device.clone(), date: date.clone(),
        };
        let steps = steps.into_iter().map(|(wall, spans)| TimedStep { wall, spans }).collect();
        Profile { model, device, machine, date, phase, workload, clock, ceiling, steps }
    }
}

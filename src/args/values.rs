//! Parsers for the values of flags.

use std::hash::{BuildHasher, Hasher, RandomState};

use clap::builder::{PossibleValuesParser, TypedValueParser, ValueParser};
use gates::Gate;
use harmony::ReasoningEffort;
use peers::Peer;
use phase1_loading::DenseFormat;
use phase2_forward::DeviceChoice;
use phase3_kvcache::CacheType;
use phase5_flash::cpu::Isa;
use time::{Date, Month};

use super::kind::EngineKind;

/// Parses one of `choices` from its name; `--help` and errors list the names.
fn one_of<T>(choices: impl IntoIterator<Item = T>, name: fn(T) -> &'static str) -> ValueParser
where
    T: Copy + Send + Sync + 'static,
{
    let choices: Vec<T> = choices.into_iter().collect();
    let names: Vec<&'static str> = choices.iter().map(|&choice| name(choice)).collect();
    let find = move |found: String| choices.iter().copied().find(|&choice| name(choice) == found).ok_or("no such name");
    PossibleValuesParser::new(names).try_map(find).into()
}

pub fn device() -> ValueParser {
    one_of(DeviceChoice::ALL, DeviceChoice::name)
}

pub fn cache_type() -> ValueParser {
    one_of(CacheType::ALL, CacheType::name)
}

/// The engine with the given phase number.
pub fn phase() -> ValueParser {
    let find = |number: String| {
        let is_it = |kind: &EngineKind| kind.phase().is_some_and(|phase| phase.to_string() == number);
        EngineKind::ALL.into_iter().find(is_it)
    };
    PossibleValuesParser::new(["2", "3", "5"]).try_map(move |number| find(number).ok_or("no such engine")).into()
}

pub fn peer() -> ValueParser {
    one_of(Peer::ALL, Peer::name)
}

/// The gate (the comparison of an engine with MLX's golden values, or of loading with the gguf package's) with the given phase number.
pub fn gate() -> ValueParser {
    let find = |number: String| Gate::ALL.into_iter().find(|gate| gate.phase().to_string() == number);
    PossibleValuesParser::new(["1", "2", "3", "5"]).try_map(move |number| find(number).ok_or("no such gate")).into()
}

/// An instruction set of this machine.
pub fn isa() -> ValueParser {
    one_of(Isa::all(), Isa::name)
}

pub fn effort() -> ValueParser {
    one_of(ReasoningEffort::ALL, ReasoningEffort::name)
}

pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a whole number above 0".into()),
        Ok(number) => Ok(number),
    }
}

/// A positive number of minutes, at most a week.
pub fn minutes(text: &str) -> Result<f64, String> {
    let minutes = text.parse::<f64>().ok().filter(|&minutes| minutes > 0.0 && minutes <= 10_080.0);
    minutes.ok_or_else(|| "expected a number of minutes above 0 and up to 10080 (a week), such as 10 or 0.5".into())
}

/// A number of tokens; −1 is the rest of the context.
pub fn token_count(text: &str) -> Result<usize, String> {
    match text {
        "-1" => Ok(usize::MAX),
        _ => text.parse().map_err(|_| "expected a whole number, or -1 for the rest of the context".into()),
    }
}

/// A seed; −1 is a different one in every run.
pub fn seed(text: &str) -> Result<u64, String> {
    match text {
        "-1" => Ok(RandomState::new().build_hasher().finish()),
        _ => text.parse().map_err(|_| "expected a whole number, or -1 for a different seed in every run".into()),
    }
}

/// A date such as `2026-11-23`.
pub fn date(text: &str) -> Result<String, String> {
    let mut parts = text.splitn(3, '-');
    let mut next = |digits: usize| {
        let part = parts.next().filter(|part| part.len() == digits && part.bytes().all(|byte| byte.is_ascii_digit()));
        part.and_then(|part| part.parse::<u16>().ok())
    };
    let day = match (next(4), next(2), next(2)) {
        (Some(year), Some(month), Some(day)) => Month::try_from(month as u8)
            .ok()
            .and_then(|month| Date::from_calendar_date(year.into(), month, day as u8).ok()),
        _ => None,
    };
    day.map(|day| day.to_string()).ok_or_else(|| "expected a day such as 2026-11-23".into())
}

/// A number of bytes: a whole number with or without a unit.
pub fn memory_size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 8] = [
        ("", 1),
        ("B", 1),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
    ];
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit.trim()));
    let bytes = unit.and_then(|(_, unit)| number.parse::<u64>().ok()?.checked_mul(*unit));
    bytes
        .filter(|&bytes| bytes > 0)
        .ok_or_else(|| "expected a whole number of bytes above 0, such as 2GiB or 512MiB".into())
}

pub fn parse_rest(name: &str) -> Result<DenseFormat, String> {
    let found = DenseFormat::ALL.into_iter().find(|rest| rest.format().name().eq_ignore_ascii_case(name));
    found.ok_or_else(|| format!("expected one of {}", DenseFormat::ALL.map(|rest| rest.format().name()).join(", ")))
}

pub fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let (token, bias) = text.split_once('=').ok_or("expected TOKEN=BIAS, such as 42=-1.5")?;
    let token = token.parse().map_err(|_| format!("`{token}` is not a token id"))?;
    let bias = bias.parse().map_err(|_| format!("`{bias}` is not a number"))?;
    Ok((token, bias))
}

#[cfg(test)]
mod tests {
    use super::{date, memory_size, minutes, seed, token_count};

    #[test]
    fn minus_one_means_no_limit_or_a_random_seed() {
        assert_eq!((token_count("-1"), token_count("0"), token_count("12")), (Ok(usize::MAX), Ok(0), Ok(12)));
        assert_eq!((seed("0"), seed("18446744073709551615")), (Ok(0), Ok(u64::MAX)));
        // Two of 2⁶⁴ random seeds are practically never equal.
        assert_ne!(seed("-1"), seed("-1"));
        for text in ["-2", "", "1.5", "x"] {
            assert!(token_count(text).is_err() && seed(text).is_err(), "{text}");
        }
    }

    #[test]
    fn dates_are_parsed() {
        for text in ["2026-11-23", "2024-02-29", "0001-01-01"] {
            assert_eq!(date(text).as_deref(), Ok(text));
        }
        for text in
            ["", "today", "2026-1-2", "2026-13-01", "2025-02-29", "2026-11-00", "2026-11-23x", "26-11-23", "2026-11-+1"]
        {
            assert!(date(text).is_err(), "{text}");
        }
    }

    #[test]
    fn minutes_must_be_positive() {
        assert_eq!((minutes("10"), minutes("0.5")), (Ok(10.0), Ok(0.5)));
        for text in ["", "0", "-1", "nan", "inf", "1e9", "x"] {
            assert!(minutes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_parsed_with_units() {
        for (text, bytes) in [("4096", 4096), ("2GiB", 2 << 30), ("512 MiB", 512 << 20), ("3kb", 3000), ("7B", 7)] {
            assert_eq!(memory_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "0", "0GiB", "GiB", "-1", "1.5GiB", "2XB", "99999999999999GiB", "2 GiB more"] {
            assert!(memory_size(text).is_err(), "{text}");
        }
    }
}

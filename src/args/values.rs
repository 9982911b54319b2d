//! Values of flags.

use std::error::Error;
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser, ValueParser};
use gates::Gate;
use harmony::Effort;
use phase1_loading::DenseFormat;
use phase2_forward::DeviceChoice;
use phase3_kvcache::CacheType;
use phase5_flash::cpu::Isa;

use super::kind::EngineKind;

/// A value that is parsed from one of `names`, which `--help` and errors list.
pub fn one_of<T>(names: impl IntoIterator<Item = &'static str>) -> ValueParser
where
    T: FromStr<Err: Into<Box<dyn Error + Send + Sync>>> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| name.parse::<T>()).into()
}

pub fn device() -> ValueParser {
    one_of::<DeviceChoice>(DeviceChoice::NAMES)
}

pub fn cache_type() -> ValueParser {
    one_of::<CacheType>(CacheType::ALL.map(CacheType::name))
}

/// The engine of a phase, by its number.
pub fn phase() -> ValueParser {
    let find = |number: String| EngineKind::ALL.into_iter().find(|kind| kind.phase().to_string() == number);
    PossibleValuesParser::new(["2", "3", "5"]).try_map(move |number| find(number).ok_or("no such engine")).into()
}

/// The gate of a phase, by its number.
pub fn gate() -> ValueParser {
    let find = |number: String| Gate::ALL.into_iter().find(|gate| gate.phase().to_string() == number);
    PossibleValuesParser::new(["1", "2", "3", "5"]).try_map(move |number| find(number).ok_or("no such gate")).into()
}

/// Those of this machine.
pub fn isa() -> ValueParser {
    one_of::<Isa>(Isa::all().into_iter().map(Isa::name))
}

pub fn effort() -> ValueParser {
    one_of::<Effort>(Effort::ALL.map(Effort::name))
}

pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a whole number above 0".into()),
        Ok(number) => Ok(number),
    }
}

/// Bytes, as a whole number with or without a unit.
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
    use super::memory_size;

    #[test]
    fn sizes_take_units() {
        for (text, bytes) in [("4096", 4096), ("2GiB", 2 << 30), ("512 MiB", 512 << 20), ("3kb", 3000), ("7B", 7)] {
            assert_eq!(memory_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "0", "0GiB", "GiB", "-1", "1.5GiB", "2XB", "99999999999999GiB", "2 GiB more"] {
            assert!(memory_size(text).is_err(), "{text}");
        }
    }
}

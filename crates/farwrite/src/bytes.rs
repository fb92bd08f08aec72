//! Numbers of bytes and times for people.

use anyhow::Context;
use std::time::Duration;

/// "1.5 GB"-like text as bytes; decimal and binary units.
pub fn parse(text: &str) -> anyhow::Result<u64> {
    let t = text.trim().trim_end_matches("/s").trim();
    let at = t
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(t.len());
    let bad = || format!("not a number of bytes such as \"10 MB\": {text:?}");
    let number: f64 = t[..at].parse().ok().with_context(bad)?;
    let unit = match t[at..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => anyhow::bail!(bad()),
    };
    let bytes = number * unit;
    if !(1.0..1e18).contains(&bytes) {
        anyhow::bail!(bad());
    }
    Ok(bytes as u64)
}

/// Bytes with a unit: "0 B", "1.5 MB".
pub fn show(n: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{n} B")
    } else if value < 9.95 {
        format!("{value:.1} {}", UNITS[unit])
    } else {
        format!("{value:.0} {}", UNITS[unit])
    }
}

/// A time span with a unit: "12 ms", "3.4 s", "2 min", "5 h", "3 d".
pub fn span(d: Duration) -> String {
    let s = d.as_secs_f64();
    match s {
        s if s < 0.9995 => format!("{:.0} ms", s * 1e3),
        s if s < 99.5 => format!("{s:.1} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s if s < 48.0 * 3600.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} d", s / 86400.0),
    }
}

/// 1234567 as "1,234,567".
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_for_people() {
        assert_eq!(show(0), "0 B");
        assert_eq!(show(999), "999 B");
        assert_eq!(show(1500), "1.5 kB");
        assert_eq!(show(999_999), "1.0 MB");
        assert_eq!(show(123_000_000), "123 MB");
        assert_eq!(parse("10 MB").unwrap(), 10_000_000);
        assert_eq!(parse("1.5GiB/s").unwrap(), 1_610_612_736);
        assert!(parse("ten").is_err() && parse("0").is_err() && parse("5 parsecs").is_err());
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(span(Duration::from_millis(12)), "12 ms");
        assert_eq!(span(Duration::from_secs(120)), "2 min");
    }
}

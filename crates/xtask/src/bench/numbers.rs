//! Medians, ratios, and the table.

use std::fmt::Write as _;

use serde_json::Value;

/// A row of the table.
#[derive(Debug)]
pub(super) struct Row {
    what: String,
    leaf: String,
    other: String,
    ratio: Option<f64>,
    target: Option<Target>,
}

/// The target of a ratio or a figure.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl Row {
    /// Returns a row with a figure that is only reported.
    pub(super) fn report(what: impl Into<String>, leaf: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            leaf: leaf.into(),
            other: String::new(),
            ratio: None,
            target: None,
        }
    }

    /// Adds the figure that it is compared with, and the ratio.
    pub(super) fn against(mut self, other: impl Into<String>, ratio: f64) -> Self {
        self.other = other.into();
        self.ratio = Some(ratio);
        self
    }

    /// Adds the target of the ratio.
    pub(super) fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    /// Adds the target of a figure that is compared with nothing.
    pub(super) fn limit(mut self, figure: f64, target: Target) -> Self {
        self.ratio = Some(figure);
        self.target = Some(target);
        self
    }

    fn is_met(&self) -> Option<bool> {
        let figure = self.ratio?;
        Some(match self.target? {
            Target::AtMost(most) => figure <= most,
            Target::AtLeast(least) => figure >= least,
        })
    }
}

/// Returns the rows as Markdown.
pub(super) fn table(rows: &[Row]) -> String {
    let mut text =
        "| measured | leaf | compared with | ratio | target | |\n|---|---:|---:|---:|---:|---|\n".to_owned();
    for row in rows {
        let ratio = match row.ratio {
            Some(ratio) if !row.other.is_empty() => format!("{ratio:.2}"),
            _ => String::new(),
        };
        let target = match row.target {
            Some(Target::AtMost(most)) => format!("≤ {most}"),
            Some(Target::AtLeast(least)) => format!("≥ {least}"),
            None => String::new(),
        };
        let met = row
            .is_met()
            .map_or("", |met| if met { "met" } else { "**missed**" });
        let Row {
            what, leaf, other, ..
        } = row;
        let _ = writeln!(text, "| {what} | {leaf} | {other} | {ratio} | {target} | {met} |");
    }
    text
}

/// Returns the median of the figures.
pub(super) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// Returns a figure of a measurement's JSON.
pub(super) fn number(value: &Value, path: &[&str]) -> f64 {
    path.iter()
        .fold(value, |value, key| &value[*key])
        .as_f64()
        .unwrap_or(f64::NAN)
}

/// Returns the same figure of each round.
pub(super) fn each(value: &Value, list: &str, path: &[&str]) -> Vec<f64> {
    let rounds = value[list].as_array().map_or(&[][..], Vec::as_slice);
    rounds.iter().map(|round| number(round, path)).collect()
}

/// Returns seconds as a text in milliseconds.
pub(super) fn ms(seconds: f64) -> String {
    format!("{:.0} ms", seconds * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]).to_bits(), 2f64.to_bits());
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]).to_bits(), 2.5f64.to_bits());
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_row_says_whether_its_target_is_met() {
        let rows = [
            Row::report("a", "1 ms")
                .against("1 ms", 1.0)
                .target(Target::AtMost(1.3)),
            Row::report("b", "1/s")
                .against("2/s", 0.5)
                .target(Target::AtLeast(0.7)),
            Row::report("c", "9 MB").limit(9.0, Target::AtMost(20.0)),
            Row::report("d", "5 s"),
        ];
        let text = table(&rows);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "| a | 1 ms | 1 ms | 1.00 | ≤ 1.3 | met |",
                "| b | 1/s | 2/s | 0.50 | ≥ 0.7 | **missed** |",
                "| c | 9 MB |  |  | ≤ 20 | met |",
                "| d | 5 s |  |  |  |  |",
            ]
        );
    }
}

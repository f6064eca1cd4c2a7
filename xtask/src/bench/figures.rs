//! Medians and spreads of repeated measurements. Knows nothing of what was measured.

use serde_json::{Value, json};

/// The middle and the edges of some measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

impl Spread {
    /// `None` without measurements.
    pub(super) fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        } else {
            sorted[middle]
        };
        Some(Self { median, least, most })
    }

    /// `median (least to most)`.
    pub(super) fn text(&self, decimals: usize) -> String {
        let Self { median, least, most } = self;
        format!("{median:.decimals$} ({least:.decimals$} to {most:.decimals$})")
    }

    pub(super) fn json(&self) -> Value {
        json!({ "median": self.median, "least": self.least, "most": self.most })
    }
}

/// A table in Markdown, aligned so that it reads as text too.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cell = |(column, width): (usize, &usize)| {
            let cell = row.get(column).map_or("", String::as_str);
            format!("{cell:width$}")
        };
        text += &line(widths.iter().enumerate().map(cell).collect());
        if index == 0 {
            text += &line(widths.iter().map(|width| "-".repeat(*width)).collect());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(spread.text(1), "2.5 (1.0 to 4.0)");
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn a_table_is_aligned() {
        let rows = [
            vec!["way".to_owned(), "p50".to_owned()],
            vec!["no proxy".to_owned(), "1".to_owned()],
        ];
        let expected = "| way      | p50 |\n| -------- | --- |\n| no proxy | 1   |\n";
        assert_eq!(table(&rows), expected);
    }
}

//! Draws a program's output as a terminal window, for the README: `hawser demo --once | cargo xtask picture`.
//!
//! Text in, SVG out; what is drawn is what was read, nothing else.

use std::fmt::Write as _;
use std::io::Read;

use anyhow::{Result, ensure};

/// Pixels of a character cell in the font size that the SVG asks for.
const CELL: (f64, f64) = (8.0, 18.0);
const MARGIN: f64 = 16.0;
/// Height of the window's title bar.
const BAR: f64 = 28.0;

/// Reads standard input and writes `docs/demo.svg`-shaped text to standard output.
pub(crate) fn draw() -> Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    ensure!(
        !text.trim().is_empty(),
        "nothing to draw: pipe a program's output into this command"
    );
    std::io::Write::write_all(&mut std::io::stdout(), svg(&text).as_bytes())?;
    Ok(())
}

fn svg(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let columns = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
    let width = 2.0 * MARGIN + columns as f64 * CELL.0;
    let height = BAR + 2.0 * MARGIN + lines.len() as f64 * CELL.1;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" role=\"img\" aria-label=\"Output of the demo\">\n\
         <style>text {{ font: 13px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; fill: #d7dce2; \
         white-space: pre }} .ok {{ fill: #7fd18b }} .act {{ fill: #7ab8ff }} .note {{ fill: #f2c66d }}</style>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#16191f\"/>\n\
         <circle cx=\"18\" cy=\"15\" r=\"5\" fill=\"#e5655e\"/><circle cx=\"36\" cy=\"15\" r=\"5\" fill=\"#e2b340\"/>\
         <circle cx=\"54\" cy=\"15\" r=\"5\" fill=\"#5fb760\"/>\n"
    );
    for (row, line) in lines.iter().enumerate() {
        let y = BAR + MARGIN + (row as f64 + 0.7) * CELL.1;
        let class = match line.trim_start() {
            step if step.starts_with("ok ") => "ok",
            note if note.starts_with("->") || note.starts_with('$') => "note",
            _ if line.starts_with(' ') || line.is_empty() => "out",
            _ => "act",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "<text x=\"{MARGIN}\" y=\"{y:.1}\" class=\"{class}\" xml:space=\"preserve\">{}</text>",
            escape(line)
        );
    }
    out.push_str("</svg>\n");
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::svg;

    #[test]
    fn a_picture_holds_every_line_escaped() {
        let drawn = svg("a <b> & c\n  ok  done\n");
        assert!(
            drawn.contains("a &lt;b&gt; &amp; c</text>") && drawn.contains("class=\"ok\""),
            "{drawn}"
        );
    }
}

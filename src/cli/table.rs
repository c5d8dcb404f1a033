//! Tables: a header and rows, two spaces between columns, fitted to the terminal.
//!
//! Pure: [`Table::text`] makes the text for a width, `render` prints it. What is
//! piped is never cut.

use super::render::{self, Paint, Stream, printable};

const GAP: usize = 2;
const NARROWEST: usize = 6;

/// A table under construction.
#[derive(Debug, Clone)]
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<(Paint, String)>>,
}

impl Table {
    /// A table with these columns.
    pub fn new(header: &[&'static str]) -> Table {
        Table {
            header: header.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row of plain cells, one per column.
    pub fn row(&mut self, cells: Vec<String>) {
        self.painted(cells.into_iter().map(|cell| (Paint::Plain, cell)).collect());
    }

    /// Adds a row of painted cells, one per column.
    pub fn painted(&mut self, cells: Vec<(Paint, String)>) {
        assert_eq!(cells.len(), self.header.len(), "one cell per column");
        // A line break inside a cell would break the table.
        let clean = |text: String| printable(&text);
        let cells = cells.into_iter().map(|(paint, text)| (paint, clean(text)));
        self.rows.push(cells.collect());
    }

    /// Prints it on standard output.
    pub fn print(&self) {
        let width = render::columns(Stream::Out);
        render::out(&self.text(width, |paint, text| render::paint(Stream::Out, paint, text)));
    }

    /// The text for a terminal of this width; `None` means no limit.
    pub fn text(&self, width: Option<usize>, paint: impl Fn(Paint, &str) -> String) -> String {
        let widths = self.widths(width);
        let mut text = String::new();
        let header = self.header.iter().map(|name| (Paint::Dim, *name)).collect();
        line(&mut text, &widths, header, &paint);
        for row in &self.rows {
            let cells = row.iter().map(|(paint, cell)| (*paint, cell.as_str()));
            line(&mut text, &widths, cells.collect(), &paint);
        }
        text
    }

    fn widths(&self, limit: Option<usize>) -> Vec<usize> {
        let mut widths: Vec<usize> = self.header.iter().map(|name| length(name)).collect();
        for row in &self.rows {
            for (width, (_, cell)) in widths.iter_mut().zip(row) {
                *width = (*width).max(length(cell));
            }
        }
        let Some(limit) = limit else { return widths };
        let total = |widths: &[usize]| widths.iter().sum::<usize>() + GAP * (widths.len() - 1);
        while total(&widths) > limit {
            // The widest column gives; when all are narrow the terminal wraps.
            match widths.iter_mut().max() {
                Some(widest) if *widest > NARROWEST => *widest -= 1,
                _ => break,
            }
        }
        widths
    }
}

fn length(text: &str) -> usize {
    text.chars().count()
}

fn line(
    text: &mut String,
    widths: &[usize],
    cells: Vec<(Paint, &str)>,
    paint: &impl Fn(Paint, &str) -> String,
) {
    let last = cells.len().saturating_sub(1);
    for (index, ((colour, cell), width)) in cells.into_iter().zip(widths).enumerate() {
        let cell = cut(cell, *width);
        let padding = width - length(&cell) + GAP;
        text.push_str(&paint(colour, &cell));
        if index < last {
            text.push_str(&" ".repeat(padding));
        }
    }
    text.push('\n');
}

fn cut(cell: &str, width: usize) -> String {
    if length(cell) <= width {
        return cell.to_owned();
    }
    let kept: String = cell.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new(&["NAME", "SOURCE"]);
        table.row(vec![
            "debian-minimal".into(),
            "recipe of this program".into(),
        ]);
        table.row(vec!["x".into(), "y\nz".into()]);
        table
    }

    fn plain(_: Paint, text: &str) -> String {
        text.to_owned()
    }

    #[test]
    fn columns_are_aligned_and_lines_never_end_in_spaces() {
        assert_eq!(
            sample().text(None, plain),
            "NAME            SOURCE\ndebian-minimal  recipe of this program\nx               y z\n"
        );
    }

    #[test]
    fn a_narrow_terminal_cuts_the_widest_column() {
        let text = sample().text(Some(30), plain);
        assert!(
            text.lines().all(|line| line.chars().count() <= 30),
            "{text}"
        );
        assert!(text.contains('…'));
    }

    #[test]
    fn colour_does_not_shift_columns() {
        let painted = sample().text(None, |_, text| format!("<{text}>"));
        assert!(
            painted.starts_with("<NAME>            <SOURCE>\n"),
            "{painted}"
        );
    }
}

//! Text in columns.

use std::fmt;

/// A table for a terminal.
#[derive(Debug)]
pub struct Table {
    align: Vec<Align>,
    rows: Vec<Vec<String>>,
}

/// Where a column's text lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// For words.
    Left,
    /// For numbers.
    Right,
}

impl Table {
    /// A table of these columns.
    pub fn new(columns: impl IntoIterator<Item = (Align, impl Into<String>)>) -> Self {
        let (align, head) = columns.into_iter().map(|(align, head)| (align, head.into())).unzip();
        Self { align, rows: vec![head] }
    }

    /// Adds a row, a cell for each column.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let row: Vec<String> = cells.into_iter().collect();
        assert_eq!(row.len(), self.align.len(), "cells of {row:?}");
        self.rows.push(row);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chars = |text: &String| text.chars().count();
        let width = |column: usize| self.rows.iter().map(|row| chars(&row[column])).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.align.len()).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, align), &width) in row.iter().zip(&self.align).zip(&widths) {
                line += &match align {
                    Align::Left => format!("{cell:<width$}  "),
                    Align::Right => format!("{cell:>width$}  "),
                };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new([(Align::Left, "name"), (Align::Right, "ms"), (Align::Left, "kind")]);
        table.row(["a".to_owned(), "10.25".to_owned(), "µ".to_owned()]);
        table.row(["longer".to_owned(), "1".to_owned(), "norm".to_owned()]);
        assert_eq!(table.to_string(), "name       ms  kind\na       10.25  µ\nlonger      1  norm\n");
    }
}

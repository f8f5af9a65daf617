use std::ops::Range;

/// Columns of a terminal, for those who have none.
pub const DEFAULT_WIDTH: usize = 80;

/// Space between two columns.
const GAP: usize = 2;

/// One row of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    /// A line across all columns.
    Title(String),
    /// A label and a number for each further column.
    Cells(Vec<String>),
}

/// Labels to the left, numbers to the right, two spaces between, in at most `width` columns.
///
/// A table that is wider is folded: it goes on below itself, with its labels again. Labels and titles that are too long go
/// on in the next line. Only a single number that is wider than the terminal sticks out.
pub(crate) fn align(header: &[String], rows: &[Row], width: usize) -> String {
    let labels = std::iter::once(&header[0]).chain(rows.iter().filter_map(|row| match row {
        Row::Cells(cells) => cells.first(),
        Row::Title(_) => None,
    }));
    let widths = (1..header.len()).map(|column| column_width(header, rows, column)).collect::<Vec<_>>();
    let widest = widths.iter().max().map_or(0, |widest| widest + GAP);
    let longest = labels.map(|label| length(label)).max().unwrap_or(0);
    // Labels give way where they would leave no room for any number.
    let label_width = longest.min(width.saturating_sub(widest).max(width / 4));
    let mut text = String::new();
    let mut first = 0;
    loop {
        let mut last = first;
        let mut taken = label_width;
        while last < widths.len() && (last == first || taken + GAP + widths[last] <= width) {
            taken += GAP + widths[last];
            last += 1;
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&block(header, rows, label_width, first + 1..last + 1, &widths, width));
        first = last;
        if first >= widths.len() {
            return text;
        }
    }
}

/// The same numbers with rows and columns changed places, for tables of many numbers and few rows. Titles are lost.
pub(crate) fn transposed(header: &[String], rows: &[Row]) -> (Vec<String>, Vec<Row>) {
    let cells = rows.iter().filter_map(|row| match row {
        Row::Cells(cells) => Some(cells),
        Row::Title(_) => None,
    });
    let cells = cells.collect::<Vec<_>>();
    let turned = std::iter::once(header[0].clone()).chain(cells.iter().map(|cells| cells[0].clone())).collect();
    let of = |column: usize| {
        let values = cells.iter().map(|cells| cells.get(column).cloned().unwrap_or_default());
        Row::Cells(std::iter::once(header[column].clone()).chain(values).collect())
    };
    (turned, (1..header.len()).map(of).collect())
}

fn length(text: &str) -> usize {
    text.chars().count()
}

fn column_width(header: &[String], rows: &[Row], column: usize) -> usize {
    let cells = rows.iter().filter_map(|row| match row {
        Row::Cells(cells) => cells.get(column),
        Row::Title(_) => None,
    });
    cells.chain(header.get(column)).map(|cell| length(cell)).max().unwrap_or(0)
}

/// Some columns of a table, with the labels.
fn block(
    header: &[String],
    rows: &[Row],
    label_width: usize,
    columns: Range<usize>,
    widths: &[usize],
    width: usize,
) -> String {
    let of_cells = |cells: &[String]| {
        let mut lines = wrapped(cells.first().map_or("", String::as_str), label_width);
        let last = lines.last_mut().expect("a label has a line");
        last.push_str(&" ".repeat(label_width - length(last)));
        for column in columns.clone() {
            let cell = cells.get(column).map_or("", String::as_str);
            last.push_str(&" ".repeat(GAP + widths[column - 1] - length(cell)));
            last.push_str(cell);
        }
        last.truncate(last.trim_end().len());
        lines
    };
    let mut lines = of_cells(header);
    let all = label_width + columns.clone().map(|column| GAP + widths[column - 1]).sum::<usize>();
    lines.push("─".repeat(all.min(width)));
    for row in rows {
        match row {
            Row::Title(title) => lines.push(fold(title, width)),
            Row::Cells(cells) => lines.extend(of_cells(cells)),
        }
    }
    lines.join("\n") + "\n"
}

/// A text with its lines folded at spaces, so that none is wider.
pub(crate) fn fold(text: &str, width: usize) -> String {
    text.split('\n').flat_map(|line| wrapped(line, width)).collect::<Vec<_>>().join("\n")
}

/// One line folded at spaces; further lines are indented by two. A word that is too wide is broken.
fn wrapped(line: &str, width: usize) -> Vec<String> {
    const INDENT: &str = "  ";
    let width = width.max(2 * INDENT.len());
    let mut lines: Vec<String> = Vec::new();
    let mut current = String::new();
    let mut is_empty = true;
    for (number, word) in line.split(' ').enumerate() {
        let mut word = word;
        if number > 0 && (is_empty || length(&current) + 1 + length(word) <= width) {
            current.push(' ');
        } else if number > 0 {
            lines.push(std::mem::replace(&mut current, INDENT.to_owned()));
        }
        is_empty &= word.is_empty();
        while length(&current) + length(word) > width {
            let room = width - length(&current);
            let at = word.char_indices().nth(room).map_or(word.len(), |(at, _)| at);
            current.push_str(&word[..at]);
            word = &word[at..];
            lines.push(std::mem::replace(&mut current, INDENT.to_owned()));
        }
        current.push_str(word);
    }
    lines.push(current);
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split('|').map(str::to_owned).collect()
    }

    fn rows(lines: &[&str]) -> Vec<Row> {
        lines.iter().map(|line| Row::Cells(words(line))).collect()
    }

    #[test]
    fn a_table_that_fits_is_one_block() {
        let mut rows = rows(&["first|1.00|2", "second one|10.00|3"]);
        rows.insert(1, Row::Title("between".into()));
        insta::assert_snapshot!(align(&words("what|a|bb"), &rows, 80), @r"
        what            a  bb
        ─────────────────────
        first        1.00   2
        between
        second one  10.00   3
        ");
    }

    #[test]
    fn a_table_that_is_too_wide_goes_on_below_itself() {
        let rows = rows(&["first|1.00|2|3", "second one|10.00|3|4"]);
        insta::assert_snapshot!(align(&words("what|a|bb|ccccc"), &rows, 22), @r"
        what            a  bb
        ─────────────────────
        first        1.00   2
        second one  10.00   3

        what        ccccc
        ─────────────────
        first           3
        second one      4
        ");
    }

    #[test]
    fn labels_and_titles_that_are_too_long_go_on_in_the_next_line() {
        let mut rows = rows(&["fine-tuning on all clean images|1.00"]);
        rows.push(Row::Title("a title of many words".into()));
        insta::assert_snapshot!(align(&words("what|a"), &rows, 20), @r"
        what               a
        ────────────────────
        fine-tuning on
          all clean
          images        1.00
        a title of many
          words
        ");
    }

    #[test]
    fn no_line_is_wider_than_asked_for_unless_a_number_alone_is() {
        let header = words(&format!("what|{}", vec!["auc-intensity-adjusted"; 19].join("|")));
        let rows = rows(&[&format!("{}|{}", "a-very-long-word-".repeat(9), vec!["0.5000 ± 0.0123"; 19].join("|"))]);
        for width in [40, 60, 80, 200] {
            for line in align(&header, &rows, width).lines() {
                assert!(length(line) <= width, "{width}: {line}");
            }
        }
    }

    #[test]
    fn rows_and_columns_change_places() {
        let (header, turned) = transposed(&words("what|a|b"), &rows(&["first|1|2", "second|3|4"]));
        assert_eq!(header, ["what", "first", "second"]);
        assert_eq!(turned, rows(&["a|1|3", "b|2|4"]));
    }
}

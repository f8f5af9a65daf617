use maud::{Markup, html};

/// A table that can be sorted by its columns where scripts run, and filtered where a column has kinds.
pub(crate) struct Table {
    /// What it shows.
    pub(crate) caption: String,
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Vec<Cell>>,
}

/// One cell: a text, and the number that it is sorted by if it is one.
#[derive(Default)]
pub(crate) struct Cell {
    pub(crate) text: String,
    pub(crate) number: Option<f64>,
    /// Where the text leads.
    link: Option<String>,
    /// What rows can be picked by in this column.
    kind: Option<String>,
    /// Whether the text says why there is nothing.
    is_reason: bool,
    /// What is shown where a pointer rests on it; it stands elsewhere too, for those who have none.
    explanation: Option<String>,
}

impl Cell {
    /// A text.
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// A number, as it is shown.
    pub(crate) fn number(text: impl Into<String>, number: f64) -> Self {
        Self { text: text.into(), number: Some(number), ..Self::default() }
    }

    /// Nothing.
    pub(crate) fn empty() -> Self {
        Self::text("")
    }

    /// Why there is nothing.
    pub(crate) fn reason(text: impl Into<String>) -> Self {
        Self { text: text.into(), is_reason: true, ..Self::default() }
    }

    /// The same as a link, if there is a place that it leads to.
    #[must_use]
    pub(crate) fn linked(self, link: Option<String>) -> Self {
        Self { link, ..self }
    }

    /// The same in a column by whose kinds rows can be picked.
    #[must_use]
    pub(crate) fn of_kind(self, kind: impl Into<String>) -> Self {
        Self { kind: Some(kind.into()), ..self }
    }

    /// The same with an explanation, if there is one.
    #[must_use]
    pub(crate) fn explained(self, explanation: Option<String>) -> Self {
        Self { explanation, ..self }
    }

    fn content(&self) -> Markup {
        let title = &self.explanation;
        html! {
            @if let Some(link) = &self.link { a href=(link) title=[title] { (self.text) } }
            @else if self.is_reason { span.reason title=[title] { (self.text) } }
            @else { (self.text) }
        }
    }
}

impl Table {
    /// A table whose first column labels its rows.
    pub(crate) fn markup(&self) -> Markup {
        let is_number = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            let cells = cells.filter(|cell| !cell.text.is_empty()).collect::<Vec<_>>();
            !cells.is_empty() && cells.iter().any(|cell| cell.number.is_some())
        };
        let numbers = (0..self.header.len()).map(is_number).collect::<Vec<_>>();
        let class = |column: usize| (column > 0 && numbers[column]).then_some("number");
        html! {
            div.scroll role="region" tabindex="0" aria-label=(self.caption) {
                table {
                    caption { (self.caption) }
                    thead {
                        tr {
                            @for (column, heading) in self.header.iter().enumerate() {
                                th scope="col" class=[class(column)] { (heading) }
                            }
                        }
                    }
                    tbody {
                        @for row in &self.rows {
                            tr {
                                @for (column, cell) in row.iter().enumerate() {
                                    @if column == 0 {
                                        th scope="row" { (cell.content()) }
                                    } @else {
                                        td class=[class(column)] data-sort=[cell.number] data-kind=[&cell.kind] { (cell.content()) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_text_and_numbers_can_be_sorted_by() {
        let long = "x".repeat(5_000);
        let table = Table {
            caption: "\"><script>alert(1)</script>".into(),
            header: vec!["<b>what</b>".into(), "value".into()],
            rows: vec![vec![Cell::text(format!("<img src=x onerror=alert(1)>{long}")), Cell::number("50.00", 0.5)]],
        };
        let markup = table.markup().into_string();
        for hostile in ["<script", "<b>", "<img"] {
            assert!(!markup.contains(hostile), "{hostile} in {markup}");
        }
        assert!(markup.contains("aria-label=\"&quot;&gt;&lt;script&gt;"), "{markup}");
        assert!(markup.contains("<td class=\"number\" data-sort=\"0.5\">50.00</td>"), "{markup}");
        assert!(markup.contains(&long), "nothing is cut off");
    }
}

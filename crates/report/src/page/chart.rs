//! The only file that knows the library that draws charts.

use maud::{Markup, PreEscaped, html};
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::prelude::*;

/// Size of a chart in its own units; a page scales it.
const SIZE: (u32, u32) = (520, 320);
/// Size of letters, in the same.
const LETTERS: i32 = 17;
/// Colours, and shapes of marks, that differ; with more series they begin anew.
const COLOURS: usize = 6;

/// The look of pages, which begins with their colours.
pub(super) const STYLE: &str = include_str!("page.css");

/// Stands for the colour of text, whatever it is; see [`themed`].
const INK: RGBColor = RGBColor(1, 1, 1);
/// Stands for the colour of the lines behind.
const GRID: RGBColor = RGBColor(2, 2, 2);

/// A chart with numbers on both axes.
pub(crate) struct Chart {
    /// What it shows, above it.
    pub(crate) title: String,
    /// What there is to see, for those who do not see it.
    pub(crate) description: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) series: Vec<Series>,
}

/// One axis.
#[derive(Clone)]
pub(crate) struct Axis {
    pub(crate) label: String,
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// Whether equal ratios take equal space; only for numbers above zero.
    pub(crate) is_logarithmic: bool,
    /// Values with a tick; chosen where there are none.
    pub(crate) ticks: Vec<f64>,
    /// What stands at 0, 1 and so on instead of the number.
    pub(crate) names: Vec<String>,
}

/// Values that belong together.
pub(crate) struct Series {
    pub(crate) name: String,
    /// Which of the colours; series of one kind share it.
    pub(crate) colour: usize,
    pub(crate) look: Look,
    pub(crate) points: Vec<Point>,
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// A thick line with marks.
    Line,
    /// A thin line without marks, one of several of a kind.
    Thin,
    /// A broken line with marks.
    Broken,
    /// Marks alone.
    Marks,
}

/// A value and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
    /// Ends of its confidence interval along y.
    pub(crate) interval: Option<[f64; 2]>,
    /// What stands beside it, if anything.
    pub(crate) number: Option<usize>,
}

impl Point {
    /// A value without an interval.
    pub(crate) fn new(x: f64, y: f64) -> Self {
        Self { x, y, interval: None, number: None }
    }

    /// The same with a number beside it.
    #[must_use]
    pub(crate) fn marked(self, number: usize) -> Self {
        Self { number: Some(number), ..self }
    }
}

impl Axis {
    /// From 0 to 100 percent; values are shares.
    pub(crate) fn percent(label: &str) -> Self {
        let ticks = (0..=5).map(|fifth| f64::from(fifth) / 5.0).collect();
        Self {
            label: format!("{label}, percent"),
            low: 0.0,
            high: 1.0,
            is_logarithmic: false,
            ticks,
            names: Vec::new(),
        }
    }

    /// From zero to a little above the largest value.
    pub(crate) fn from_zero(label: &str, values: impl Iterator<Item = f64>) -> Self {
        let high = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
        let high = if high > 0.0 { high * 1.05 } else { 1.0 };
        Self {
            label: label.to_owned(),
            low: 0.0,
            high,
            is_logarithmic: false,
            ticks: even_ticks(0.0, high),
            names: Vec::new(),
        }
    }

    /// From the least value, or zero, to the largest.
    pub(crate) fn around(label: &str, values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values
            .filter(|value| value.is_finite())
            .fold((0.0f64, 0.0f64), |(low, high), value| (low.min(value), high.max(value)));
        let room = if high > low { (high - low) * 0.05 } else { 0.5 };
        let low = if low < 0.0 { low - room } else { low };
        let high = if high > 0.0 { high + room } else { high };
        Self {
            label: label.to_owned(),
            low,
            high,
            is_logarithmic: false,
            ticks: even_ticks(low, high),
            names: Vec::new(),
        }
    }

    /// With names side by side, at 0, 1 and so on.
    pub(crate) fn named(label: &str, names: Vec<String>) -> Self {
        let ticks = (0..names.len()).map(|number| number as f64).collect();
        let high = names.len() as f64 - 0.5;
        Self { label: label.to_owned(), low: -0.5, high: high.max(0.5), is_logarithmic: false, ticks, names }
    }

    /// With a tick at each of the values, as far as there is room.
    pub(crate) fn at(label: &str, values: &[f64], is_logarithmic: bool) -> Self {
        let mut ticks = values.to_vec();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        let (low, high) = (ticks.first().copied().unwrap_or(0.0), ticks.last().copied().unwrap_or(1.0));
        let mut axis = Self { label: label.to_owned(), low, high, is_logarithmic, ticks, names: Vec::new() };
        // Room at both ends for marks.
        let room = (axis.place(high) - axis.place(low)) * 0.06;
        let room = if room > 0.0 { room } else { 0.5 };
        let inverse = |place: f64| if is_logarithmic { 10_f64.powf(place) } else { place };
        (axis.low, axis.high) = (inverse(axis.place(low) - room), inverse(axis.place(high) + room));
        let apart = (axis.place(axis.high) - axis.place(axis.low)) / 9.0;
        let mut last = f64::NEG_INFINITY;
        let places = axis.ticks.iter().map(|&tick| (tick, axis.place(tick))).collect::<Vec<_>>();
        axis.ticks = places
            .into_iter()
            .filter(|&(_, place)| {
                let is_apart = place - last >= apart;
                last = if is_apart { place } else { last };
                is_apart
            })
            .map(|(tick, _)| tick)
            .collect();
        axis
    }

    /// Where a value lies before it is scaled.
    fn place(&self, value: f64) -> f64 {
        if self.is_logarithmic { value.log10() } else { value }
    }

    fn is_percent(&self) -> bool {
        self.label.ends_with("percent")
    }

    /// What stands at a tick.
    fn tick_text(&self, value: f64) -> String {
        if !self.names.is_empty() {
            return self.names.get(value as usize).cloned().unwrap_or_default();
        }
        let value = if self.is_percent() { 100.0 * value } else { value };
        // Enough digits for any tick of ours, without those that rounding adds.
        let text = format!("{value:.6}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let (low, high) = (self.place(self.low), self.place(self.high));
        let share = (self.place(*value) - low) / (high - low);
        from + (share * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        self.tick_text(*value)
    }
}

/// Round numbers from `low` to `high`, about five.
fn even_ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 5.0;
    let unit = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * unit).into_iter().find(|step| *step >= rough);
    let step = step.unwrap_or(rough);
    let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    (first..=last).map(|number| number as f64 * step).collect()
}

impl Chart {
    /// A figure with its caption, legend and picture. Values that are not finite are left out.
    pub(crate) fn markup(&self) -> Markup {
        let named = self.series.iter().filter(|series| !series.name.is_empty());
        html! {
            figure.chart {
                figcaption { (self.title) }
                ul.legend {
                    @for series in named {
                        li { (PreEscaped(swatch(series))) " " (series.name) }
                    }
                }
                (PreEscaped(self.svg()))
            }
        }
    }

    /// A picture for a file of its own, in colours that go with light and with dark surroundings.
    pub(crate) fn picture(&self) -> String {
        let palette = STYLE.split_once("* {").map_or(STYLE, |(palette, _)| palette);
        let style = format!("<style>\n{palette}svg {{ color: var(--ink); background: var(--paper); }}\n</style>");
        let svg = self.svg();
        let (tag, rest) = svg.split_once('>').unwrap_or((&svg, ""));
        format!("{tag}>\n{style}{rest}\n")
    }

    fn svg(&self) -> String {
        let mut text = String::new();
        self.draw(&mut text).expect("a chart is drawn into memory");
        let label = html! { (self.title) ". " (self.description) }.into_string();
        let start = text.find("<svg ").map_or(0, |at| at + "<svg ".len());
        format!("<svg role=\"img\" aria-label=\"{label}\" {}", themed(&text[start..]))
    }

    fn draw(&self, text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .margin_right(16)
            .x_label_area_size(3 * LETTERS)
            .y_label_area_size(4 * LETTERS)
            .build_cartesian_2d(self.x.clone(), self.y.clone())?;
        let letters = ("sans-serif", LETTERS).into_font().color(&INK);
        chart
            .configure_mesh()
            .axis_style(INK)
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .label_style(letters.clone())
            .axis_desc_style(letters.clone())
            .x_desc(self.x.label.as_str())
            .y_desc(self.y.label.as_str())
            .draw()?;
        for series in &self.series {
            let points = series.points.iter().filter(|point| point.x.is_finite() && point.y.is_finite());
            let points = points.collect::<Vec<_>>();
            let line = points.iter().map(|point| (point.x, point.y));
            let colour = colour(series.colour);
            match series.look {
                Look::Line => {
                    chart.draw_series(LineSeries::new(line.clone(), colour.stroke_width(2)))?;
                }
                Look::Thin => {
                    chart.draw_series(LineSeries::new(line.clone(), colour.mix(0.45).stroke_width(1)))?;
                }
                Look::Broken => {
                    chart.draw_series(DashedLineSeries::new(line.clone(), 6, 5, colour.stroke_width(2)))?;
                }
                Look::Marks => {}
            }
            let ends = points.iter().filter_map(|point| Some((point.x, point.interval?)));
            for (x, [low, high]) in ends {
                let ends = [low, high].map(|end| (x, end.clamp(self.y.low, self.y.high)));
                chart.draw_series([PathElement::new(ends.to_vec(), colour.stroke_width(1))])?;
                let caps = ends
                    .map(|end| EmptyElement::at(end) + PathElement::new(vec![(-4, 0), (4, 0)], colour.stroke_width(1)));
                chart.draw_series(caps)?;
            }
            for point in &points {
                let Some(number) = point.number else { continue };
                let text = Text::new(number.to_string(), (7, -LETTERS / 2), letters.clone());
                chart.draw_series([EmptyElement::at((point.x, point.y)) + text])?;
            }
            if series.look != Look::Thin {
                for at in line {
                    let mark = EmptyElement::at(at) + PathElement::new(mark(series.colour), colour.stroke_width(2));
                    let filled = EmptyElement::at(at) + Polygon::new(self::mark(series.colour), colour.filled());
                    chart.draw_series([mark])?;
                    chart.draw_series([filled])?;
                }
            }
        }
        area.present()?;
        drop(chart);
        drop(area);
        Ok(())
    }
}

/// The outline of a series' mark around its place, so that series can be told apart without colours.
fn mark(number: usize) -> Vec<(i32, i32)> {
    match number % COLOURS {
        0 => vec![(-3, -3), (3, -3), (3, 3), (-3, 3), (-3, -3)],
        1 => vec![(0, -5), (5, 0), (0, 5), (-5, 0), (0, -5)],
        2 => vec![(0, -5), (4, 3), (-4, 3), (0, -5)],
        3 => vec![(0, 5), (4, -3), (-4, -3), (0, 5)],
        4 => vec![(-5, -2), (5, -2), (5, 2), (-5, 2), (-5, -2)],
        _ => vec![(-2, -5), (2, -5), (2, 5), (-2, 5), (-2, -5)],
    }
}

/// Stands for the colour of that number.
fn colour(number: usize) -> RGBColor {
    RGBColor(3, 3, (number % COLOURS) as u8)
}

/// The mark of a series beside its name.
fn swatch(series: &Series) -> String {
    let colour = format!("var(--series-{})", series.colour % COLOURS);
    let line = match series.look {
        Look::Marks => String::new(),
        Look::Thin => format!("<path d=\"M0 7H24\" stroke=\"{colour}\" opacity=\"0.45\"/>"),
        Look::Line => format!("<path d=\"M0 7H24\" stroke=\"{colour}\" stroke-width=\"2\"/>"),
        Look::Broken => {
            format!("<path d=\"M0 7H24\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"6 3\"/>")
        }
    };
    let corners = mark(series.colour).into_iter().map(|(x, y)| format!("{},{}", 12 + x, 7 + y)).collect::<Vec<_>>();
    let mark = match series.look {
        Look::Thin => String::new(),
        _ => format!("<polygon points=\"{}\" fill=\"{colour}\"/>", corners.join(" ")),
    };
    format!("<svg class=\"swatch\" width=\"24\" height=\"14\" aria-hidden=\"true\">{line}{mark}</svg>")
}

/// The colours that stand for others become those of the page, which are light or dark.
fn themed(svg: &str) -> String {
    let mut text = svg.replace("#010101", "currentColor").replace("#020202", "var(--grid)");
    for number in 0..COLOURS {
        text = text.replace(&format!("#03030{number}"), &format!("var(--series-{number})"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(is_logarithmic: bool) -> Chart {
        let points = [0.01, 0.1, 1.0].map(|x| Point { interval: Some([0.25, 0.75]), ..Point::new(x, 0.5) });
        Chart {
            title: "<b>\"hostile\" & 'rude'</b>".into(),
            description: "rises".into(),
            x: Axis::at("<script>alert(1)</script>", &[0.01, 0.1, 1.0], is_logarithmic),
            y: Axis::percent("ASR"),
            series: vec![Series { name: "<i>".into(), colour: 0, look: Look::Line, points: points.to_vec() }],
        }
    }

    /// Places of the ticks along the lower edge, by their texts.
    fn tick_places(svg: &str, texts: &[&str]) -> Vec<f64> {
        let place = |text: &&str| {
            let before = svg.split(&format!("\n{text}\n")).next().expect("a first part");
            let tag = &before[before.rfind("<text ").expect("the tick is a text")..];
            let x = tag.split("x=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("it has a place");
            x.parse().expect("a number")
        };
        texts.iter().map(place).collect()
    }

    #[test]
    fn a_logarithmic_axis_gives_equal_ratios_equal_space() {
        let places = tick_places(&chart(true).svg(), &["0.01", "0.1", "1"]);
        assert!(((places[2] - places[1]) - (places[1] - places[0])).abs() <= 1.0, "{places:?}");
    }

    #[test]
    fn names_are_text_wherever_they_stand() {
        let markup = chart(true).markup().into_string();
        for hostile in ["<script", "<b>", "<i>"] {
            assert!(!markup.contains(hostile), "{hostile} in {markup}");
        }
        assert!(markup.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "{markup}");
        assert!(
            markup.contains("aria-label=\"&lt;b&gt;&quot;hostile&quot; &amp; 'rude'&lt;/b&gt;. rises\""),
            "{markup}"
        );
    }

    #[test]
    fn every_colour_is_one_of_the_page() {
        let markup = chart(false).markup().into_string();
        assert!(!markup.contains("=\"#"), "{markup}");
        assert!(markup.contains("var(--series-0)") && markup.contains("var(--grid)"), "{markup}");
    }

    #[test]
    fn a_picture_has_colours_of_its_own_for_light_and_dark() {
        let picture = chart(false).picture();
        assert!(picture.starts_with("<svg ") && picture.contains("xmlns=\"http://www.w3.org/2000/svg\""), "{picture}");
        for part in ["--series-0: #", "prefers-color-scheme: dark", "background: var(--paper)", "var(--grid)"] {
            assert!(picture.contains(part), "{part} in {picture}");
        }
        assert!(!picture.contains("box-sizing") && picture.matches("<style>").count() == 1, "{picture}");
    }

    #[test]
    fn names_stand_at_their_places_and_an_axis_goes_below_zero_only_where_values_do() {
        let axis = Axis::named("trigger", vec!["square".into(), "warp".into()]);
        assert_eq!(axis.ticks.iter().map(|&tick| axis.tick_text(tick)).collect::<Vec<_>>(), ["square", "warp"]);
        assert!(axis.low < 0.0 && axis.high > 1.0);
        let ends = |values: &[f64]| {
            let axis = Axis::around("share", values.iter().copied());
            (axis.low, axis.high)
        };
        assert_eq!(ends(&[0.5, 1.0]), (0.0, 1.05));
        let (low, high) = ends(&[-0.1, 0.9, f64::NAN]);
        assert!((-0.16..-0.1).contains(&low) && (0.9..1.0).contains(&high), "{low} {high}");
    }

    #[test]
    fn ticks_are_round_and_readable() {
        assert_eq!(even_ticks(0.0, 2.4), [0.0, 0.5, 1.0, 1.5, 2.0]);
        let axis = Axis::percent("ASR");
        assert_eq!(
            axis.ticks.iter().map(|&tick| axis.tick_text(tick)).collect::<Vec<_>>(),
            ["0", "20", "40", "60", "80", "100"]
        );
        let axis = Axis::at("rate", &[0.002, 0.02], true);
        assert_eq!(axis.ticks.iter().map(|&tick| axis.tick_text(tick)).collect::<Vec<_>>(), ["0.002", "0.02"]);
    }
}

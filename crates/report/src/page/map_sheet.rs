use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;

use maud::{Markup, PreEscaped, html};

use super::sheet::Sheet;
use crate::figures::Scale;

/// The colour between maps.
const BETWEEN: [u8; 3] = [0x88; 3];

/// Maps of experts in rows, a column for each expert.
pub(crate) struct Panel {
    /// A number for each patch by its scale, `[expert][patch]`.
    pub(crate) rows: Vec<(Scale, Vec<Vec<f64>>)>,
}

impl Panel {
    /// Rows of a [panel of selections](Self::selected).
    pub(crate) const SELECTED: usize = 3;

    /// The share of images in which each expert takes each patch, `[expert][patch]`: of untouched images, of triggered ones, and the
    /// difference.
    pub(crate) fn selected(clean: Vec<Vec<f64>>, triggered: Vec<Vec<f64>>) -> Self {
        let of_expert = |(clean, triggered): (&Vec<f64>, &Vec<f64>)| {
            clean.iter().zip(triggered).map(|(before, after)| after - before).collect()
        };
        let difference = clean.iter().zip(&triggered).map(of_expert).collect();
        Self { rows: vec![(Scale::Share, clean), (Scale::Share, triggered), (Scale::Difference, difference)] }
    }
}

/// Panels of maps in one small picture, a pixel for each patch; colours are those of the figures beside the page.
pub(crate) struct MapSheet {
    id: String,
    png: Vec<u8>,
    /// Columns and rows of a panel.
    panel: [usize; 2],
    panels: usize,
    /// Frames around patches under the trigger, for every map of a panel.
    frames: String,
}

impl MapSheet {
    /// Draws panels of maps of `grid` rows and columns; `framed` patches get a frame.
    ///
    /// # Errors
    /// If the picture cannot be encoded.
    pub(crate) fn draw(id: String, [rows, columns]: [usize; 2], panels: &[Panel], framed: &[bool]) -> io::Result<Self> {
        let maps = panels.iter().flat_map(|panel| &panel.rows).map(|(_, maps)| maps.len());
        let (experts, kinds) =
            (maps.max().unwrap_or(0), panels.iter().map(|panel| panel.rows.len()).max().unwrap_or(0));
        let panel = panel_size([rows, columns], experts, kinds);
        let [width, height] = panel;
        let mut picture = vec![BETWEEN; width * height * panels.len()];
        let corner = |row: usize, expert: usize| [1 + expert * (columns + 1), 1 + row * (rows + 1)];
        for (number, panel) in panels.iter().enumerate() {
            for (row, (scale, maps)) in panel.rows.iter().enumerate() {
                for (expert, map) in maps.iter().enumerate() {
                    let [left, top] = corner(row, expert);
                    for (patch, &value) in map.iter().enumerate().take(rows * columns) {
                        let (x, y) = (left + patch % columns, number * height + top + patch / columns);
                        picture[y * width + x] = scale.rgb(value);
                    }
                }
            }
        }
        let mut outlines = String::new();
        for (row, expert) in (0..kinds).flat_map(|row| (0..experts).map(move |expert| (row, expert))) {
            let [left, top] = corner(row, expert);
            for patch in framed.iter().enumerate().filter(|(_, framed)| **framed).map(|(patch, _)| patch) {
                let _ = write!(outlines, "M{} {}h1v1h-1z", left + patch % columns, top + patch / columns);
            }
        }
        let png = encode(&picture, [width, height * panels.len()])?;
        Ok(Self { id, png, panel, panels: panels.len(), frames: outlines })
    }

    fn sheet(&self) -> Sheet<'_> {
        let [width, height] = self.panel;
        Sheet { id: self.id.clone(), size: [width, height * self.panels], png: &self.png }
    }

    /// The picture itself; as [`Sheet::embedded`].
    pub(crate) fn embedded(&self) -> Markup {
        html! {
            (self.sheet().embedded())
            svg.hidden width="0" height="0" aria-hidden="true" {
                defs {
                    path id={ (self.id) "-frames" } fill="none" stroke="#e08214" stroke-width="0.2" d=(PreEscaped(&self.frames)) {}
                }
            }
        }
    }

    /// One panel with a text for those who do not see it.
    pub(crate) fn part(&self, number: usize, text: &str) -> Markup {
        let over = html! { use href={ "#" (self.id) "-frames" } {} };
        self.sheet().part(text, [0, number * self.panel[1]], self.panel, &over)
    }
}

/// Columns and rows of a panel of so many kinds of maps, a line of one pixel around each map.
pub(crate) fn panel_size([rows, columns]: [usize; 2], experts: usize, kinds: usize) -> [usize; 2] {
    [1 + experts * (columns + 1), 1 + kinds * (rows + 1)]
}

/// A PNG of few colours: a palette and a byte for each pixel.
fn encode(picture: &[[u8; 3]], [width, height]: [usize; 2]) -> io::Result<Vec<u8>> {
    let mut palette: BTreeMap<[u8; 3], u8> = BTreeMap::new();
    for &colour in picture {
        // 65 shades of shares, 129 of differences and two greys: a byte has room for all.
        let number = palette.len() as u8;
        palette.entry(colour).or_insert(number);
    }
    let mut colours = palette.iter().map(|(&colour, &number)| (number, colour)).collect::<Vec<_>>();
    colours.sort_unstable();
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width.max(1) as u32, height.max(1) as u32);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_palette(colours.iter().flat_map(|(_, colour)| *colour).collect::<Vec<u8>>());
    encoder.set_compression(png::Compression::High);
    encoder.set_filter(png::Filter::NoFilter);
    let mut pixels = picture.iter().map(|colour| palette[colour]).collect::<Vec<u8>>();
    pixels.resize(width.max(1) * height.max(1), 0);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&pixels)?;
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pixels of a PNG as red, green and blue.
    fn decoded(png: &[u8]) -> ([usize; 2], Vec<[u8; 3]>) {
        let mut decoder = png::Decoder::new(io::Cursor::new(png));
        decoder.set_transformations(png::Transformations::EXPAND);
        let mut reader = decoder.read_info().unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut bytes).unwrap();
        let pixels = bytes[..info.buffer_size()].chunks_exact(3).map(|pixel| [pixel[0], pixel[1], pixel[2]]);
        ([info.width as usize, info.height as usize], pixels.collect())
    }

    #[test]
    fn a_panel_has_a_column_for_each_expert_and_rows_clean_triggered_and_difference() {
        // Two experts, a map of one row and two columns; two panels, the second with a class without images.
        let panel = |clean: [[f64; 2]; 2], triggered: [[f64; 2]; 2]| {
            Panel::selected(clean.map(Vec::from).into(), triggered.map(Vec::from).into())
        };
        let panels =
            [panel([[0.0, 1.0], [0.5, 0.5]], [[1.0, 1.0], [0.5, 0.0]]), panel([[f64::NAN; 2]; 2], [[f64::NAN; 2]; 2])];
        let sheet = MapSheet::draw("maps".into(), [1, 2], &panels, &[false, true]).expect("it is encoded");
        let (size, pixels) = decoded(&sheet.png);
        // A line, then three pixels for each expert; a line, then two for each of three rows; two panels.
        assert_eq!(size, [7, 14]);
        let at = |x: usize, y: usize| pixels[y * 7 + x];
        assert_eq!([at(0, 0), at(3, 1), at(6, 13)], [BETWEEN; 3]);
        assert_eq!([at(1, 1), at(2, 1)], [Scale::Share.rgb(0.0), Scale::Share.rgb(1.0)], "expert 0, clean");
        assert_eq!([at(4, 3), at(5, 3)], [Scale::Share.rgb(0.5), Scale::Share.rgb(0.0)], "expert 1, triggered");
        assert_eq!([at(1, 5), at(5, 5)], [Scale::Difference.rgb(1.0), Scale::Difference.rgb(-0.5)], "differences");
        assert_eq!(at(1, 8), [0xcc; 3], "the second panel");
        // The second patch of the first map lies from 2, 1 on; six maps.
        assert!(sheet.frames.starts_with("M2 1h1v1h-1z"), "{}", sheet.frames);
        assert_eq!(sheet.frames.matches('M').count(), 6);
        let part = sheet.part(1, "\"quoted\" <b>").into_string();
        assert!(part.contains("y=\"-7\"") && part.contains("href=\"#maps-frames\"") && !part.contains("<b>"), "{part}");
    }

    #[test]
    fn every_colour_that_maps_may_have_fits_a_palette() {
        let steps = (0..=4000).map(|step| f64::from(step) / 4000.0);
        let mut colours = steps.clone().map(|value| Scale::Share.rgb(value)).collect::<Vec<_>>();
        colours.extend(steps.flat_map(|value| [value, -value]).map(|value| Scale::Difference.rgb(value)));
        colours.extend([BETWEEN, Scale::Share.rgb(f64::NAN)]);
        colours.sort_unstable();
        colours.dedup();
        assert!(colours.len() <= 256, "{}", colours.len());
        let (size, pixels) = decoded(&encode(&colours, [colours.len(), 1]).expect("it is encoded"));
        assert_eq!((size, pixels), ([colours.len(), 1], colours));
    }
}

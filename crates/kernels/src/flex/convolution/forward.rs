use super::correlation::{Class, Correlation, Divided, Steps};
use super::geometry::{Geometry, Operands, runs, taps};
use super::images::{self, Prepared};
use super::padded::Padded;
use super::winograd::{self, Winograd};
use crate::flex::buffer::Buffer;
use crate::flex::panels::{Panels, Unpacked};

pub(in crate::flex) fn forward(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    geometry: &Geometry,
    operands: Operands,
) -> Buffer {
    images::run(&Divided::of(correlation(weight, bias, geometry, operands, Around::default())), x)
}

/// A convolution in inference: its weight, its bias, its sizes, and what normalizes its input and its output.
pub(in crate::flex) struct Layer<'a> {
    pub(in crate::flex) weight: &'a [f32],
    pub(in crate::flex) bias: &'a [f32],
    pub(in crate::flex) geometry: Geometry,
    pub(in crate::flex) around: Around<'a>,
}

impl<'a> Layer<'a> {
    /// In the form that is faster.
    fn prepare(self, operands: Operands) -> Box<dyn Prepared + 'a> {
        let Self { weight, bias, geometry, around } = self;
        if winograd::is_faster(&geometry, operands) {
            Box::new(by_tiles(weight, bias, &geometry, operands, around))
        } else {
            Box::new(Divided::of(correlation(weight, bias, &geometry, operands, around)))
        }
    }
}

pub(in crate::flex) fn infer(x: &[f32], layer: Layer, operands: Operands) -> Buffer {
    images::run(&*layer.prepare(operands), x)
}

/// Adds a convolution to what the output holds.
pub(in crate::flex) fn add_inferred(x: &[f32], layer: Layer, operands: Operands, output: &mut [f32]) {
    images::add_to(&*layer.prepare(operands), x, output);
}

/// `second(first(x)) + shortcut(x)`.
pub(in crate::flex) fn residual(x: &[f32], layers: [Layer; 3], operands: Operands) -> Buffer {
    let layers = layers.map(|layer| layer.prepare(operands));
    images::residual(x, layers.each_ref().map(|layer| &**layer))
}

/// Scales and shifts that normalize the input of a convolution and its output.
#[derive(Clone, Copy, Default)]
pub(in crate::flex) struct Around<'a> {
    pub(in crate::flex) before: Option<[&'a [f32]; 2]>,
    pub(in crate::flex) after: Option<[&'a [f32]; 2]>,
}

fn correlation<'a>(
    weight: &[f32],
    bias: &[f32],
    geometry: &Geometry,
    operands: Operands,
    Around { before, after }: Around<'a>,
) -> Correlation<'a> {
    let Geometry { batch, groups, channels: all, out, kernel, options, .. } = *geometry;
    let [rows, columns] = geometry.output_size();
    let count = operands.channels_together(all);
    let channels = all / count;
    let source = Padded::input_of(geometry, count);
    let row = source.within[1] * source.channels;
    let panels = Panels::new(out);
    let area = kernel[0] * kernel[1];
    let offset = |[row, column, place]: [usize; 3]| place * count * area + row * kernel[1] + column;
    let offsets: Vec<usize> =
        taps((0..kernel[0]).collect(), &(0..kernel[1]).collect::<Vec<_>>(), channels).into_iter().map(offset).collect();
    let classes = (0..groups)
        .map(|group| Class {
            runs: runs(kernel[0], kernel[1], row, [channels, source.channels]),
            weights: panels.pack(
                &offsets,
                Unpacked {
                    values: &weight[group * out * all * area..],
                    stride: all * area,
                    partner: (count == 2).then_some(area),
                    scale: after.map(|[scale, _]| &scale[group * out..]),
                },
            ),
            depth: offsets.len(),
            bias: group * panels.padded(),
            rows,
            columns,
            source: Steps {
                start: group * channels,
                row: options.stride * row,
                column: options.stride * source.channels,
            },
            target: Steps { start: group * out, row: columns * groups * out, column: groups * out },
        })
        .collect();
    let biases = padded_biases(bias, panels, groups, after);
    let target_image = rows * columns * groups * out;
    let rectified = after.is_some();
    Correlation { batch, source, target_image, panels, biases, classes, normalization: before, rectified }
}

/// Every group's biases, with those that only fill its last vector.
fn padded_biases(bias: &[f32], panels: Panels, groups: usize, after: Option<[&[f32]; 2]>) -> Vec<f32> {
    let out = bias.len() / groups;
    let mut biases = vec![0.0; groups * panels.padded()];
    for (group, biases) in biases.chunks_exact_mut(panels.padded().max(1)).enumerate() {
        for (target, padded) in (group * out..).zip(&mut biases[..out]) {
            *padded = after.map_or(bias[target], |[scale, shift]| bias[target] * scale[target] + shift[target]);
        }
    }
    biases
}

fn by_tiles<'a>(
    weight: &[f32],
    bias: &[f32],
    geometry: &Geometry,
    operands: Operands,
    Around { before, after }: Around<'a>,
) -> Winograd<'a> {
    let Geometry { batch, groups, channels, out, .. } = *geometry;
    let together = operands.channels_together(channels);
    let panels = Panels::new(out);
    let area = 9;
    let weights = (0..groups).map(|group| {
        let values = Unpacked {
            values: &weight[group * out * channels * area..],
            stride: channels * area,
            partner: None,
            scale: after.map(|[scale, _]| &scale[group * out..]),
        };
        winograd::transformed_weights(panels, values, [channels, together])
    });
    Winograd {
        batch,
        groups,
        out,
        source: Padded::input_of(geometry, 1),
        size: geometry.output_size(),
        together,
        panels,
        weights: weights.collect(),
        biases: padded_biases(bias, panels, groups, after),
        normalization: before,
        rectified: after.is_some(),
    }
}

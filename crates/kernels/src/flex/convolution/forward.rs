use super::correlation::{self, Class, Correlation, Steps};
use super::geometry::{Geometry, Operands, runs, taps};
use super::padded::Padded;
use crate::flex::buffer::Buffer;
use crate::flex::panels::{Panels, Unpacked};

pub(in crate::flex) fn forward(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    geometry: &Geometry,
    operands: Operands,
) -> Buffer {
    correlation(weight, bias, geometry, operands, Around::default()).run(x)
}

/// A convolution in inference: its weight, its bias, its sizes, and what normalizes its input and its output.
pub(in crate::flex) struct Layer<'a> {
    pub(in crate::flex) weight: &'a [f32],
    pub(in crate::flex) bias: &'a [f32],
    pub(in crate::flex) geometry: Geometry,
    pub(in crate::flex) around: Around<'a>,
}

impl<'a> Layer<'a> {
    fn correlation(self, operands: Operands) -> Correlation<'a> {
        correlation(self.weight, self.bias, &self.geometry, operands, self.around)
    }
}

pub(in crate::flex) fn infer(x: &[f32], layer: Layer, operands: Operands) -> Buffer {
    layer.correlation(operands).run(x)
}

/// Adds a convolution to what the output holds.
pub(in crate::flex) fn add_inferred(x: &[f32], layer: Layer, operands: Operands, output: &mut [f32]) {
    layer.correlation(operands).add_to(x, output);
}

/// `second(first(x)) + shortcut(x)`.
pub(in crate::flex) fn residual(x: &[f32], layers: [Layer; 3], operands: Operands) -> Buffer {
    correlation::residual(x, layers.map(|layer| layer.correlation(operands)))
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
    let mut biases = vec![0.0; groups * panels.padded()];
    for (group, biases) in biases.chunks_exact_mut(panels.padded().max(1)).enumerate() {
        for (target, padded) in (group * out..).zip(&mut biases[..out]) {
            *padded = after.map_or(bias[target], |[scale, shift]| bias[target] * scale[target] + shift[target]);
        }
    }
    let target_image = rows * columns * groups * out;
    let rectified = after.is_some();
    Correlation { batch, source, target_image, panels, biases, classes, normalization: before, rectified }
}

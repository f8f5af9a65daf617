use super::correlation::{Class, Correlation, Divided, Steps};
use super::geometry::{Geometry, Operands, runs, taps};
use super::images;
use super::padded::Padded;
use crate::flex::buffer::Buffer;
use crate::flex::panels::{Panels, Unpacked};

pub(in crate::flex) fn input_gradient(
    weight: &[f32],
    gradient: &[f32],
    geometry: &Geometry,
    operands: Operands,
) -> Buffer {
    let Geometry { batch, size, groups, channels, out: all, kernel, options } = *geometry;
    let count = operands.channels_together(all);
    let out = all / count;
    let stride = options.stride;
    let output = geometry.output_size();
    // Along an axis, input `i` with `i + padding = stride * u + remainder` gets from output `u - j` through kernel
    // element `remainder + stride * j`.
    let axis = |axis: usize, remainder: usize| {
        let padding = options.padding[axis];
        let taps: Vec<usize> = (remainder..kernel[axis]).step_by(stride).rev().collect();
        let first = padding.saturating_sub(remainder).div_ceil(stride);
        let end = (size[axis] + padding).saturating_sub(remainder).div_ceil(stride);
        (taps, first, end.max(first), first * stride + remainder - padding)
    };
    let reach = kernel.map(|kernel| kernel.div_ceil(stride) - 1);
    let last = |index: usize| (0..stride).map(|remainder| axis(index, remainder).2).max().unwrap_or(0);
    let source = Padded {
        size: output,
        channels: groups * out,
        together: count,
        offset: reach,
        within: [0, 1].map(|index| reach[index] + output[index].max(last(index))),
    };
    let row = source.within[1] * source.channels;
    let area = kernel[0] * kernel[1];
    let panels = Panels::new(channels);
    let mut classes = Vec::new();
    for row_remainder in 0..stride {
        let (row_taps, first_row, end_row, target_row) = axis(0, row_remainder);
        for column_remainder in 0..stride {
            let (column_taps, first_column, end_column, target_column) = axis(1, column_remainder);
            if first_row == end_row || first_column == end_column {
                continue;
            }
            // The first tap in order is the last kernel element, which meets the earliest output.
            let start = |first: usize, reach: usize, taps: &[usize]| first + reach + 1 - taps.len().max(1);
            let start = start(first_row, reach[0], &row_taps) * row
                + start(first_column, reach[1], &column_taps) * source.channels;
            let offsets: Vec<usize> = taps(row_taps.clone(), &column_taps, out)
                .into_iter()
                .map(|[row, column, place]| place * count * channels * area + row * kernel[1] + column)
                .collect();
            for group in 0..groups {
                classes.push(Class {
                    runs: if offsets.is_empty() {
                        Vec::new()
                    } else {
                        runs(row_taps.len(), column_taps.len(), row, [out, source.channels])
                    },
                    weights: panels.pack(
                        &offsets,
                        Unpacked {
                            values: &weight[group * all * channels * area..],
                            stride: area,
                            partner: (count == 2).then_some(channels * area),
                            scale: None,
                        },
                    ),
                    depth: offsets.len(),
                    bias: 0,
                    rows: end_row - first_row,
                    columns: end_column - first_column,
                    source: Steps { start: start + group * out, row, column: source.channels },
                    target: Steps {
                        start: (target_row * size[1] + target_column) * groups * channels + group * channels,
                        row: stride * size[1] * groups * channels,
                        column: stride * groups * channels,
                    },
                });
            }
        }
    }
    let biases = vec![0.0; panels.padded()];
    let target_image = size[0] * size[1] * groups * channels;
    let (normalization, rectified) = (None, false);
    let correlation = Correlation { batch, source, target_image, panels, biases, classes, normalization, rectified };
    images::run(&Divided::of(correlation), gradient)
}

/// Mean of rows of one length.
pub(crate) fn mean_of(rows: &[&[f64]]) -> Vec<f64> {
    let length = rows.first().map_or(0, |row| row.len());
    (0..length).map(|j| rows.iter().map(|row| row[j]).sum::<f64>() / rows.len() as f64).collect()
}

/// The rows with their mean taken off.
pub(crate) fn centred(rows: &[&[f64]]) -> Vec<Vec<f64>> {
    let mean = mean_of(rows);
    rows.iter().map(|row| row.iter().zip(&mean).map(|(value, mean)| value - mean).collect()).collect()
}

/// The directions of largest variance of centred rows, the largest first, each of length one: the right singular vectors of the
/// matrix of rows. At most as many as a row has numbers.
///
/// By Jacobi's rotations of the matrix of inner products of columns, which has no random start. The largest coordinate of a
/// direction is positive.
pub(crate) fn principal_axes(rows: &[Vec<f64>], count: usize) -> Vec<Vec<f64>> {
    let length = rows.first().map_or(0, Vec::len);
    let mut products = vec![vec![0.0; length]; length];
    for row in rows {
        for (i, line) in products.iter_mut().enumerate() {
            for (product, value) in line[i..].iter_mut().zip(&row[i..]) {
                *product += row[i] * value;
            }
        }
    }
    for i in 1..length {
        let (above, below) = products.split_at_mut(i);
        for (product, line) in below[0].iter_mut().zip(above) {
            *product = line[i];
        }
    }
    let (values, vectors) = eigen(products);
    let mut order: Vec<usize> = (0..length).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    let axis = |&index: &usize| {
        let axis = vectors[index].clone();
        let largest =
            axis.iter().copied().fold(0.0, |most: f64, value| if value.abs() > most.abs() { value } else { most });
        axis.into_iter().map(|value| if largest < 0.0 { -value } else { value }).collect()
    };
    order.iter().take(count).map(axis).collect()
}

/// Eigenvalues and eigenvectors, vector by vector, of a symmetric matrix (Golub and Van Loan 2013, section 8.5).
pub(crate) fn eigen(mut matrix: Vec<Vec<f64>>) -> (Vec<f64>, Vec<Vec<f64>>) {
    /// Ten are plenty: the off-diagonal shrinks quadratically.
    const SWEEPS: usize = 60;
    let length = matrix.len();
    let mut vectors: Vec<Vec<f64>> =
        (0..length).map(|i| (0..length).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    let scale: f64 = matrix.iter().flatten().map(|value| value * value).sum();
    for _ in 0..SWEEPS {
        let outside: f64 =
            (0..length).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| matrix[i][j].powi(2)).sum();
        if outside <= 1e-26 * scale {
            break;
        }
        for p in 0..length {
            for q in p + 1..length {
                if matrix[p][q].abs() < f64::MIN_POSITIVE {
                    continue;
                }
                let ratio = (matrix[q][q] - matrix[p][p]) / (2.0 * matrix[p][q]);
                let tangent = ratio.signum() / (ratio.abs() + ratio.hypot(1.0));
                let cosine = 1.0 / tangent.hypot(1.0);
                let sine = tangent * cosine;
                for row in &mut matrix {
                    (row[p], row[q]) = (cosine * row[p] - sine * row[q], sine * row[p] + cosine * row[q]);
                }
                rotate(&mut matrix, (p, q), (cosine, sine));
                rotate(&mut vectors, (p, q), (cosine, sine));
            }
        }
    }
    ((0..length).map(|i| matrix[i][i]).collect(), vectors)
}

/// Turns two rows by an angle.
fn rotate(rows: &mut [Vec<f64>], (p, q): (usize, usize), (cosine, sine): (f64, f64)) {
    let (before, after) = rows.split_at_mut(q);
    for (a, b) in before[p].iter_mut().zip(&mut after[0]) {
        (*a, *b) = (cosine * *a - sine * *b, sine * *a + cosine * *b);
    }
}

/// Inner product.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use patchdoor_data::stream;
    use rand::RngExt;

    use super::*;

    #[test]
    fn the_first_axis_of_points_on_a_line_is_the_line() {
        // Points t (3, 4) / 5 with a little across: inner products [[9a + 16b, 12a - 12b], ..] / 25.
        let rows = [vec![6.0, 8.0], vec![-6.0, -8.0], vec![-0.8, 0.6], vec![0.8, -0.6]];
        let axes = principal_axes(&rows, 2);
        for (axis, expected) in axes.iter().zip([[0.6, 0.8], [0.8, -0.6]]) {
            assert!(axis.iter().zip(expected).all(|(value, expected)| (value - expected).abs() < 1e-12), "{axis:?}");
        }
    }

    #[test]
    fn axes_are_orthonormal_and_their_variances_fall() {
        let mut rng = stream(0, "rows");
        let rows: Vec<Vec<f64>> =
            (0..50).map(|_| (0..12).map(|j| f64::from(j) * rng.random_range(-1.0..1.0)).collect()).collect();
        let rows = centred(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let axes = principal_axes(&rows, 12);
        let variance = |axis: &[f64]| rows.iter().map(|row| dot(row, axis).powi(2)).sum::<f64>();
        let total: f64 = rows.iter().map(|row| dot(row, row)).sum();
        let along = axes.iter().map(|axis| variance(axis)).collect::<Vec<_>>();
        assert!((along.iter().sum::<f64>() - total).abs() < 1e-9 * total, "nothing is lost");
        assert!(along.windows(2).all(|pair| pair[0] >= pair[1]), "{along:?}");
        for (i, a) in axes.iter().enumerate() {
            for (j, b) in axes.iter().enumerate() {
                assert!((dot(a, b) - f64::from(u8::from(i == j))).abs() < 1e-12, "{i} and {j}");
            }
        }
    }
}

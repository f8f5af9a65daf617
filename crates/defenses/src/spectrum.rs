/// The largest singular value of a matrix, given row by row; 0 if it has no entries.
///
/// The root of the largest eigenvalue of the products of its columns, which Jacobi's rotations find to rounding: meant for many
/// rows and few columns, such as the taps of a kernel.
pub(crate) fn largest_singular_value(rows: &[Vec<f64>]) -> f64 {
    let columns = rows.first().map_or(0, Vec::len);
    let product = |a: usize, b: usize| rows.iter().map(|row| row[a] * row[b]).sum::<f64>();
    let products: Vec<Vec<f64>> = (0..columns).map(|a| (0..columns).map(|b| product(a, b)).collect()).collect();
    eigenvalues(products).into_iter().fold(0.0, f64::max).sqrt()
}

/// The eigenvalues of a symmetric matrix, in no order.
fn eigenvalues(mut matrix: Vec<Vec<f64>>) -> Vec<f64> {
    let size = matrix.len();
    let total = matrix.iter().flatten().map(|entry| entry * entry).sum::<f64>();
    // Convergence is quadratic: a matrix of nine columns takes about six sweeps.
    for _ in 0..50 {
        let pairs = (0..size).flat_map(|a| (a + 1..size).map(move |b| (a, b)));
        let beside = pairs.clone().map(|(a, b)| matrix[a][b].powi(2)).sum::<f64>();
        if beside <= 1e-30 * total {
            break;
        }
        for (a, b) in pairs {
            rotate(&mut matrix, a, b);
        }
    }
    (0..size).map(|index| matrix[index][index]).collect()
}

/// Turns the plane of two axes so that their entry beside the diagonal becomes zero.
fn rotate(matrix: &mut [Vec<f64>], a: usize, b: usize) {
    if matrix[a][b] == 0.0 {
        return;
    }
    let ratio = (matrix[b][b] - matrix[a][a]) / (2.0 * matrix[a][b]);
    let tangent = ratio.signum() / (ratio.abs() + ratio.hypot(1.0));
    let cosine = 1.0 / tangent.hypot(1.0);
    let sine = tangent * cosine;
    for row in matrix.iter_mut() {
        (row[a], row[b]) = (cosine * row[a] - sine * row[b], sine * row[a] + cosine * row[b]);
    }
    let (firsts, seconds) = (matrix[a].clone(), matrix[b].clone());
    let pairs = || firsts.iter().zip(&seconds);
    matrix[a] = pairs().map(|(first, second)| cosine * first - sine * second).collect();
    matrix[b] = pairs().map(|(first, second)| sine * first + cosine * second).collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn singular_values_worked_out_by_hand() {
        // [[3, 0], [4, 5]]: products [[25, 20], [20, 25]], eigenvalues 45 and 5.
        let value = largest_singular_value(&[vec![3.0, 0.0], vec![4.0, 5.0]]);
        assert!((value - 45.0f64.sqrt()).abs() < 1e-12, "{value}");
        // A single column is a vector.
        assert!((largest_singular_value(&[vec![3.0], vec![4.0]]) - 5.0).abs() < 1e-12);
        // u v' has |u| |v|: (1, 2, 2) and (2, 3, 6).
        let rank_one: Vec<Vec<f64>> =
            [1.0, 2.0, 2.0].iter().map(|u| [2.0, 3.0, 6.0].iter().map(|v| u * v).collect()).collect();
        assert!((largest_singular_value(&rank_one) - 21.0).abs() < 1e-12);
        assert!(
            largest_singular_value(&[vec![0.0; 9]]).abs() < f64::EPSILON
                && largest_singular_value(&[]).abs() < f64::EPSILON
        );
    }

    #[test]
    fn rotations_keep_the_sum_of_eigenvalues_and_of_their_squares() {
        // The trace and the sum of all squared entries are those of the eigenvalues and their squares.
        let matrix: Vec<Vec<f64>> = (0..9u8).map(|a| (0..9u8).map(|b| 1.0 / f64::from(1 + a + b)).collect()).collect();
        let trace = (0..9).map(|a| matrix[a][a]).sum::<f64>();
        let squares = matrix.iter().flatten().map(|entry| entry * entry).sum::<f64>();
        let found = eigenvalues(matrix);
        assert!((found.iter().sum::<f64>() - trace).abs() < 1e-12);
        assert!((found.iter().map(|value| value * value).sum::<f64>() - squares).abs() < 1e-12);
    }
}

use super::*;

#[test]
fn rms_norm_scales_each_row_by_its_own_size() {
    let rows = [3.0, 4.0, 0.0, 0.1, -0.2, 0.2];
    let mut normed = [0.0; 6];
    rms_norm(&rows, &[1.0, 2.0, 3.0], 0.01, &mut normed);
    for (row, mean) in [(0, 25.0f64 / 3.0), (1, 0.09 / 3.0)] {
        for (element, weight) in [1.0, 2.0, 3.0].into_iter().enumerate() {
            let at = row * 3 + element;
            let expected = f64::from(rows[at]) / (mean + 0.01).sqrt() * weight;
            assert!((f64::from(normed[at]) - expected).abs() < 1e-6, "{normed:?}");
        }
    }
}

#[test]
fn the_gate_is_silu_on_both_sides_of_zero() {
    let gates = [-200.0f32, -20.0, -1.5, -0.0, 0.7, 30.0, 200.0];
    let ups = [2.0f32, 3.0, -1.0, 4.0, 0.5, -0.25, 1.0];
    let mut found = gates;
    gate(&mut found, &ups);
    for ((found, gate), up) in found.into_iter().zip(gates).zip(ups) {
        let gate = f64::from(gate);
        let expected = gate / (1.0 + (-gate).exp()) * f64::from(up);
        assert!(
            (f64::from(found) - expected).abs() <= 1e-6 * expected.abs() + 1e-30,
            "silu({gate}): {found}"
        );
    }
}

#[test]
fn linear_multiplies_with_the_rows_of_the_file() {
    let weight = Tensor::new(&[[1.0f32, 2.0, 3.0], [0.0, -1.0, 0.5]], &Device::Cpu).unwrap();
    let linear = Linear::new(&weight).unwrap();
    assert_eq!(linear.apply(&[1.0, 1.0, 2.0, 0.5, 0.0, -1.0]).unwrap(), [9.0, 0.0, -2.5, -0.5]);
}

//! Which instruction sets the tests run on. None is skipped in silence.

use longwave_kernels::{Isa, Kernels};

/// The kernels of every instruction set that this processor has.
///
/// `LONGWAVE_REQUIRE_ISA` (`portable`, `avx2` or `avx512`) names the one that must be among them; without it that is AVX2 on
/// x86-64. Every test goes through here, so none can pass without having run on it.
pub fn every_isa() -> Vec<&'static Kernels> {
    let required = match std::env::var("LONGWAVE_REQUIRE_ISA").as_deref() {
        Ok("portable") => Isa::Portable,
        Ok("avx2") => Isa::Avx2,
        Ok("avx512") => Isa::Avx512,
        Ok(other) => panic!("LONGWAVE_REQUIRE_ISA is `{other}`: expected portable, avx2 or avx512"),
        Err(_) if cfg!(target_arch = "x86_64") => Isa::Avx2,
        Err(_) => Isa::Portable,
    };
    let available: Vec<&'static Kernels> = Isa::ALL.into_iter().filter_map(Kernels::of).collect();
    assert!(
        available.iter().any(|kernels| kernels.isa() == required),
        "{required} is required (LONGWAVE_REQUIRE_ISA), but this processor does not have it"
    );
    available
}

#[test]
fn the_required_instruction_set_runs_and_all_are_named() {
    for kernels in every_isa() {
        // A kernel of each table computes, so that the label stands for code that ran.
        let mut scores = [0.0];
        let row: Vec<f32> = (0..16).map(|i| i as f32).collect();
        kernels.scores(&[0.5; 16], 1, 16, longwave_kernels::Rows::F32(&row), &mut scores);
        assert_eq!(scores, [60.0]);
        println!("kernels tested on: {}", kernels.isa());
    }
    println!("kernels chosen by default: {}", Kernels::get().isa());
}

#[test]
fn tables_carry_the_label_they_were_asked_for() {
    for isa in Isa::ALL {
        assert_eq!(Kernels::of(isa).map(Kernels::isa), isa.is_available().then_some(isa));
    }
}

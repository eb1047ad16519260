//! Instruction sets, and the table of kernels that is chosen once.

use std::fmt;
use std::sync::OnceLock;

use half::{bf16, f16};

use crate::block::{Ahead, Block};
use crate::codec::{Laid, NewSketches, Records, Records8, ScanOf, ScanPlanes, SketchQuery, Summaries};
use crate::ladder::{
    ClusterWeights, Estimated, GainOf, Limits, Probed, Rest, RestSums, Risen, RowSums, Spread, Uncertain,
};
use crate::portable;
use crate::rows::Rows;
use crate::weigh::PerLane;

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// What every processor has.
    Portable,
    /// AVX2, FMA and F16C, on x86-64.
    Avx2,
    /// AVX-512 where sixteen lanes are faster, and AVX2 elsewhere, on x86-64.
    Avx512,
}

impl Isa {
    /// Every instruction set, the slowest first.
    pub const ALL: [Isa; 3] = [Isa::Portable, Isa::Avx2, Isa::Avx512];

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        Kernels::of(self).is_some()
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2+fma+f16c",
            Isa::Avx512 => "avx512f+avx2+fma+f16c",
        })
    }
}

/// `LONGWAVE_ISA` names an instruction set that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    /// The name is not one of an instruction set.
    #[error("LONGWAVE_ISA is `{0}`: expected portable, avx2 or avx512")]
    Unknown(String),
    /// The processor does not have it.
    #[error("LONGWAVE_ISA asks for {0}, which this processor does not have")]
    Unavailable(Isa),
}

/// Queries, a cluster's record, its rows, what is known of the cluster, the rows' planes, sums.
pub(crate) type Scan = fn(&SketchQuery, &[u8], usize, &ScanOf<'_>, &mut ScanPlanes<'_>, &mut [RowSums]);

/// The kernels of one instruction set.
///
/// The same inputs give the same bits on the same instruction set, always; instruction sets differ by rounding.
/// No kernel allocates.
pub struct Kernels {
    pub(crate) isa: Isa,
    /// Blocks from the one that is worked on to the one whose values are asked for in attention over rows that follow each other: as
    /// many as take the time that memory takes to answer.
    pub(crate) lead: usize,
    pub(crate) prefetch: fn(&[u8]),
    /// queries, heads, block of rows, rows to prefetch, scores `[row][head]`
    pub(crate) score: fn(&[f32], usize, &Block<'_>, Ahead<'_>, &mut [f32]),
    /// weights `[row][head]`, heads, block of rows, rows to prefetch, output `[head][dim]`
    pub(crate) accumulate: fn(&[f32], usize, &Block<'_>, Ahead<'_>, &mut [f32]),
    pub(crate) max_per_head: fn(&[f32], usize, &mut [f32]),
    pub(crate) exp_weights: fn(&mut [f32], usize, &[f32], &mut [f32]),
    /// scores `[row][head]`, heads, maxima and sums lane by lane; whether no score was larger
    pub(crate) weigh: fn(&mut [f32], usize, &PerLane, &mut PerLane) -> bool,
    pub(crate) softcap: fn(&mut [f32], f32),
    pub(crate) widen: fn(Rows<'_>, &mut [f32]),
    pub(crate) narrow_f16: fn(&[f32], &mut [f16]),
    pub(crate) narrow_bf16: fn(&[f32], &mut [bf16]),
    /// queries, heads, coded rows, scores `[row][head]`
    pub(crate) scores4: fn(&[f32], usize, Records<'_>, &mut [f32]),
    pub(crate) squared_norms4: fn(&[f32], &[f32], Records<'_>, &mut [f32]),
    /// weights `[row][head]`, heads, coded rows, output `[head][dim]`
    pub(crate) accumulate4: fn(&[f32], usize, Records<'_>, &mut [f32]),
    /// rows, scales, records
    pub(crate) encode_planes: fn(&[f32], &[f32], &mut [u8]),
    /// rows, record, what it decodes to, factors
    pub(crate) encode_sketch: fn(NewSketches<'_>, &mut [u8], &mut [f32], &mut [f32]),
    /// records of rows in 8 bits, rows
    pub(crate) decode8: fn(Records8<'_>, &mut [f32]),
    /// queries, a cluster's record, places from a head to the next, scores `[head][row]`, factors
    pub(crate) scores_sketch: fn(&SketchQuery, &[u8], usize, &mut [f32], &mut [f32]),
    /// queries, records, what is added for each head, places from a head to the next, scores `[head][record]`
    pub(crate) scores_summaries: fn(&Laid, Summaries<'_>, &[f32], usize, &mut [f32]),
    /// weights `[head][place]`, places from a head to the next, records, sums
    pub(crate) sum_summaries: fn(&[f32], usize, Summaries<'_>, &mut Laid),
    /// queries, heads, rows of 8-bit integers, scores `[row][head]`
    pub(crate) scores_i8: fn(&[f32], usize, &[i8], &mut [f32]),
    pub(crate) sum_masses: fn(&Spread<'_>, &Limits) -> f32,
    pub(crate) weigh_clusters: fn(&Spread<'_>, &Limits, &mut ClusterWeights<'_>),
    pub(crate) sum_rest: fn(&Spread<'_>, &Limits, &Rest<'_>) -> RestSums,
    pub(crate) raise_most: fn(&Spread<'_>, &Limits, f32, &mut [f32]),
    pub(crate) probe_gains: fn(&Probed<'_>, &Limits, &mut [f32]),
    pub(crate) cluster_noise: fn(&Estimated<'_>) -> f32,
    pub(crate) scan_sketch: Scan,
    /// scores, deviations, top, the most that a score counts above it
    pub(crate) weigh_rows: fn(&mut [f32], &[f32], f32, f32) -> RowSums,
    /// weights and deviations `[head][row]`, rows, places from a head to the next, sums
    pub(crate) sum_rows: fn(&[f32], &[f32], usize, usize, &mut [RowSums]),
    pub(crate) row_gains: fn(Uncertain<'_>, GainOf, &mut [f32]),
    pub(crate) sum_rises: fn(&Risen<'_>) -> [f32; 2],
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernels").field("isa", &self.isa).finish_non_exhaustive()
    }
}

impl Kernels {
    /// The kernels of the best instruction set that this processor has, chosen on the first call. The environment
    /// variable `LONGWAVE_ISA` (`portable`, `avx2` or `avx512`) forces one.
    ///
    /// # Panics
    /// If `LONGWAVE_ISA` names an instruction set that is unknown or not available; see [`Kernels::try_get`].
    pub fn get() -> &'static Kernels {
        match Kernels::try_get() {
            Ok(kernels) => kernels,
            Err(error) => panic!("{error}"),
        }
    }

    /// Like [`Kernels::get`], for who would rather report a wrong `LONGWAVE_ISA`.
    ///
    /// # Errors
    /// If `LONGWAVE_ISA` names an instruction set that is unknown or not available.
    pub fn try_get() -> Result<&'static Kernels, IsaError> {
        static CHOSEN: OnceLock<Result<&'static Kernels, IsaError>> = OnceLock::new();
        CHOSEN
            .get_or_init(|| {
                let forced = std::env::var_os("LONGWAVE_ISA").map(|name| name.to_string_lossy().into_owned());
                select(forced.as_deref())
            })
            .clone()
    }

    /// The kernels of `isa`, or `None` where this processor does not have it.
    pub fn of(isa: Isa) -> Option<&'static Kernels> {
        match isa {
            Isa::Portable => Some(portable::kernels()),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => crate::avx2::Avx2::detect().map(crate::avx2::kernels),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => crate::avx512::Avx512::detect().map(crate::avx512::kernels),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => None,
        }
    }

    /// Asks for bytes that are to be read soon, where the instruction set can: a hint that changes nothing but time.
    pub fn prefetch(&self, bytes: &[u8]) {
        (self.prefetch)(bytes);
    }

    /// The instruction set that these kernels use.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}

/// The kernels that `forced` names, or the best.
fn select(forced: Option<&str>) -> Result<&'static Kernels, IsaError> {
    let isa = match forced {
        None | Some("") => {
            let best = Isa::ALL.into_iter().rev().find_map(Kernels::of);
            return Ok(best.unwrap_or_else(portable::kernels));
        }
        Some("portable") => Isa::Portable,
        Some("avx2") => Isa::Avx2,
        Some("avx512") => Isa::Avx512,
        Some(other) => return Err(IsaError::Unknown(other.to_owned())),
    };
    Kernels::of(isa).ok_or(IsaError::Unavailable(isa))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_forces_an_instruction_set_or_is_an_error() {
        assert_eq!(select(Some("portable")).map(Kernels::isa), Ok(Isa::Portable));
        for (name, isa) in [("avx2", Isa::Avx2), ("avx512", Isa::Avx512)] {
            let expected = if isa.is_available() { Ok(isa) } else { Err(IsaError::Unavailable(isa)) };
            assert_eq!(select(Some(name)).map(Kernels::isa), expected);
        }
        let best = Isa::ALL.into_iter().rfind(|isa| isa.is_available());
        assert_eq!(select(None).map(Kernels::isa).ok(), best);
        let unknown = select(Some("avx3")).map(Kernels::isa);
        assert_eq!(unknown, Err(IsaError::Unknown("avx3".to_owned())));
    }
}

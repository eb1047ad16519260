//! Segments with the same identity and prefix are stored once: the first context that has committed one keeps its file,
//! and whoever seals the same rows afterwards names that file and removes its own.
//!
//! What keys and values are follows from the model, the engine's extra bytes and the token ids before them; they are not
//! compared. Settings have to be the same as well, so that the index is one that this context could have built,
//! and so has the form in which rows are kept.

use super::commit::Replaced;
use super::open::open_segment;
use super::{Context, Layer};
use crate::accuracy::{Calibration, Spending};
use crate::error::Error;
use crate::record;
use crate::sealing::Sealed;
use crate::store::References;
use longwave_storage::{
    LayerRecord, Manifest, SegmentRecord, context_dir, file_maker, read_durable_manifest,
};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A segment of this context, by layer and number, and the one of another that is to take its place.
type Adoption = (usize, usize, Sealed);

impl Context {
    /// Lets segments that no commit has named yet be those of another context that begins with the same tokens, if one has
    /// committed them. What is returned has to be held until a commit has named them. That there are none, or that they
    /// cannot be read, is no failure: the context goes on with its own.
    pub(super) fn adopt(&mut self) -> Option<References> {
        let fresh = |layer: &Layer| {
            let fresh = layer.rows.segments.iter().filter(|sealed| !sealed.committed.load(Ordering::Acquire));
            fresh.map(|sealed| sealed.segment.end()).max()
        };
        let end = self.layers.iter().flatten().filter_map(fresh).max()?;
        let ids = self.tokens.get(..end as usize)?;
        let adopted = || -> Result<Option<(References, Vec<Adoption>)>, Error> {
            let Some((name, length)) =
                self.store.holder_of(&self.model, &self.options.extra, ids, &self.id)?
            else {
                return Ok(None);
            };
            // Not waited for: whoever has it may be collecting, and the commit goes on.
            let Ok(references) = References::try_hold(&self.store) else { return Ok(None) };
            let theirs = read_durable_manifest(self.store.backend.as_ref(), &context_dir(&name))?;
            let adoptions = self.adoptions(&theirs, length)?;
            let makers: HashSet<[u8; 16]> = adoptions
                .iter()
                .filter_map(|(.., sealed)| Some(file_maker(&sealed.record.file)?.0))
                .collect();
            references.share(&makers)?;
            Ok(Some((references, adoptions)))
        };
        let (references, adoptions) = adopted().unwrap_or_else(|error| {
            tracing::warn!(context = self.name, %error, "segments of other contexts were not looked at");
            None
        })?;
        for (layer, number, sealed) in adoptions {
            self.take_over(layer, number, sealed);
        }
        Some(references)
    }

    /// The segments of another context's durable commit, the first `length` tokens of which are the same, that can stand
    /// for segments of this one.
    fn adoptions(&self, theirs: &Manifest, length: u64) -> Result<Vec<Adoption>, Error> {
        let mine = self.manifest();
        let missing = record::forgotten(theirs, &self.name)?;
        let same = theirs.context_id != self.id
            && (&theirs.model, &theirs.settings, &theirs.extra) == (&mine.model, &mine.settings, &mine.extra)
            && missing.iter().all(|memory| memory.dropped.is_empty());
        let mut adoptions = Vec::new();
        for (number, (layer, theirs)) in self.layers.iter().zip(&theirs.layers).enumerate() {
            let Some(layer) = layer.as_ref().filter(|layer| same && layer.rows.memory.dropped.is_empty())
            else {
                continue;
            };
            for (at, sealed) in layer.rows.segments.iter().enumerate() {
                let free = !sealed.committed.load(Ordering::Acquire) && sealed.segment.end() <= length;
                let Some(record) = twin(sealed, theirs).filter(|_| free) else { continue };
                // It may have been replaced since.
                let opened = open_segment(&self.store, &mine, number, record, (sealed.sealed_at, None));
                let form = sealed.segment.row_form();
                let opened = opened.ok().filter(|theirs| theirs.segment.row_form() == form);
                adoptions.extend(opened.map(|sealed| (number, at, sealed)));
            }
        }
        Ok(adoptions)
    }

    fn take_over(&mut self, layer: usize, number: usize, sealed: Sealed) {
        let layers = self.layers.len();
        let Some(mine) = self.layers.get_mut(layer).and_then(Option::as_mut) else { return };
        let new = [Arc::new(sealed)];
        mine.remember(&(number..number + 1), &new, None);
        let old: Vec<_> = mine.rows.segments.splice(number..number + 1, new).collect();
        if number == 0 {
            // Those of the first segment.
            mine.bases = Arc::default();
        }
        if !mine.rows.calibration.is_empty() {
            // What was learnt was about the other index.
            mine.marks.clear();
            mine.rows.calibration = Arc::new(Calibration::new(mine.rows.shape.query_heads));
            mine.rows.spending = Arc::new(Spending::new(&mine.rows.shape));
            self.audits.forget(layer, layers);
        }
        self.replaced.extend(old.into_iter().map(Replaced::segment));
    }
}

/// The segment of the same rows.
fn twin<'a>(sealed: &Sealed, theirs: &'a LayerRecord) -> Option<&'a SegmentRecord> {
    let SegmentRecord { first_position, rows, .. } = sealed.record;
    theirs.segments.iter().find(|record| record.first_position == first_position && record.rows == rows)
}

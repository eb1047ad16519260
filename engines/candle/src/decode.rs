//! Greedy decoding on any cache.

use crate::{KvCache, Model, Result};

/// Index of the largest logit; the first of equals. Nothing if there are none.
#[must_use]
pub fn top_token(logits: &[f32]) -> Option<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (id, &logit) in (0u32..).zip(logits) {
        if best.is_none_or(|(_, largest)| logit > largest) {
            best = Some((id, logit));
        }
    }
    best.map(|(id, _)| id)
}

/// Continues a context by `count` tokens, each the most likely one, and returns them.
///
/// `next` is the token to run first: it stands behind the cache's last token, and is not among those returned.
/// `observe` is called with each new token as it comes. The last token returned has not been run.
///
/// # Errors
/// If `next` is outside the vocabulary, or the cache or a matrix product fails.
pub fn greedy(
    model: &Model,
    cache: &mut dyn KvCache,
    next: u32,
    count: usize,
    observe: &mut dyn FnMut(u32),
) -> Result<Vec<u32>> {
    let (mut tokens, mut next) = (Vec::with_capacity(count), next);
    while tokens.len() < count {
        let logits = model.step(next, cache)?;
        let Some(token) = top_token(&logits) else { break };
        next = token;
        observe(next);
        tokens.push(next);
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_largest_wins() {
        assert_eq!(top_token(&[-3.0, 7.0, 2.0, 7.0]), Some(1));
        assert_eq!(top_token(&[-3.0, -1.0]), Some(1));
        assert_eq!(top_token(&[]), None);
    }
}

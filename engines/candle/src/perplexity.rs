//! Teacher-forced perplexity: how likely a model finds a given continuation, token by token, on any cache.

use crate::decode::top_token;
use crate::{Error, KvCache, Model, Result};

/// What the model thought of each scored token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Negative log-likelihood of each scored token, in nats.
    pub nll: Vec<f64>,
    /// The token that the model found most likely in its place.
    pub top: Vec<u32>,
}

impl Evaluation {
    /// `exp` of the mean negative log-likelihood; NaN if nothing was scored.
    #[must_use]
    pub fn perplexity(&self) -> f64 {
        (self.nll.iter().sum::<f64>() / self.nll.len() as f64).exp()
    }

    /// Share of positions, 0 to 1, at which both found the same token most likely; NaN if nothing was scored.
    #[must_use]
    pub fn top_agreement(&self, other: &Self) -> f64 {
        let same = self.top.iter().zip(&other.top).filter(|(mine, theirs)| mine == theirs).count();
        same as f64 / self.top.len().max(other.top.len()) as f64
    }
}

/// Runs `tokens` one by one behind what the cache holds, and scores all but the first: token `i + 1` by the logits
/// that token `i` led to. The last token is scored and not run. `progress` is told how many have been scored.
///
/// # Errors
/// If a token is outside the vocabulary, or the cache or a matrix product fails.
pub fn evaluate(
    model: &Model,
    cache: &mut dyn KvCache,
    tokens: &[u32],
    progress: &mut dyn FnMut(usize),
) -> Result<Evaluation> {
    let mut evaluation = Evaluation::default();
    for pair in tokens.windows(2) {
        let logits = model.step(pair[0], cache)?;
        evaluation.nll.push(negative_log_likelihood(&logits, pair[1])?);
        evaluation.top.extend(top_token(&logits));
        progress(evaluation.nll.len());
    }
    Ok(evaluation)
}

/// `-ln softmax(logits)[token]`.
///
/// # Errors
/// If the token is outside the vocabulary.
pub fn negative_log_likelihood(logits: &[f32], token: u32) -> Result<f64> {
    let Some(&logit) = logits.get(token as usize) else {
        return Err(Error::Token { id: token, vocabulary: logits.len() });
    };
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
    Ok(max + sum.ln() - f64::from(logit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likelihoods_are_those_of_the_softmax() {
        let logits = [1001.0, 1000.0, 998.0f32];
        let sum = 1.0 + (-1.0f64).exp() + (-3.0f64).exp();
        for (token, distance) in [(0, 0.0), (1, 1.0), (2, 3.0)] {
            let found = negative_log_likelihood(&logits, token).unwrap();
            assert!((found - (distance + sum.ln())).abs() < 1e-12, "{token}: {found}");
        }
        assert!(matches!(negative_log_likelihood(&logits, 3), Err(Error::Token { id: 3, vocabulary: 3 })));
    }

    #[test]
    fn perplexity_and_agreement() {
        let first = Evaluation { nll: vec![1.0, 3.0], top: vec![4, 5] };
        let second = Evaluation { nll: vec![0.0, 0.0], top: vec![4, 6] };
        assert!((first.perplexity() - 2.0f64.exp()).abs() < 1e-12);
        assert_eq!(second.perplexity(), 1.0);
        assert_eq!(first.top_agreement(&second), 0.5);
    }
}

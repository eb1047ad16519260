//! Borrowed tensors as engines hand them over.

use crate::error::Error;
use longwave_kernels::Rows;
use std::ops::Range;

/// `[tokens, heads, dim]` numbers that lie in the caller's memory. The elements of one row are contiguous; rows lie
/// anywhere, but have no more elements together than the data.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    data: Rows<'a>,
    tokens: usize,
    heads: usize,
    dim: usize,
    token_stride: usize,
    head_stride: usize,
}

impl<'a> TensorView<'a> {
    /// Rows ordered by token, then by head: `data[(token * heads + head) * dim + element]`.
    pub fn token_major(data: impl Into<Rows<'a>>, tokens: usize, heads: usize, dim: usize) -> Self {
        Self::with_strides(data, [tokens, heads, dim], [heads.saturating_mul(dim), dim])
    }

    /// Rows ordered by head, then by token: `data[(head * tokens + token) * dim + element]`.
    pub fn head_major(data: impl Into<Rows<'a>>, tokens: usize, heads: usize, dim: usize) -> Self {
        Self::with_strides(data, [tokens, heads, dim], [dim, tokens.saturating_mul(dim)])
    }

    /// Row `(token, head)` starts at element `token * strides[0] + head * strides[1]`; `shape` is
    /// `[tokens, heads, dim]`. Strides are in elements.
    pub fn with_strides(data: impl Into<Rows<'a>>, shape: [usize; 3], strides: [usize; 2]) -> Self {
        let [tokens, heads, dim] = shape;
        let [token_stride, head_stride] = strides;
        TensorView { data: data.into(), tokens, heads, dim, token_stride, head_stride }
    }

    /// Tokens, or query positions.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The element type.
    pub fn dtype(&self) -> longwave_kernels::Dtype {
        self.data.dtype()
    }

    /// Whether the view has the heads and the dimension asked for, and lies inside its data.
    pub(crate) fn check(&self, what: &'static str, heads: usize, dim: usize) -> Result<(), Error> {
        let found = || format!("[{}, {}, {}]", self.tokens, self.heads, self.dim);
        if (self.heads, self.dim) != (heads, dim) || self.tokens == 0 {
            return Err(Error::Shape {
                what,
                expected: format!("[1 or more, {heads}, {dim}]"),
                found: found(),
            });
        }
        let last = |count: usize, stride: usize| (count - 1).checked_mul(stride);
        let end = last(self.tokens, self.token_stride)
            .zip(last(heads, self.head_stride))
            .and_then(|(token, head)| token.checked_add(head)?.checked_add(dim));
        // A stride of 0 could make a small slice stand for more rows than memory holds.
        let elements = self.tokens.checked_mul(heads).and_then(|rows| rows.checked_mul(dim));
        match end.zip(elements).map(|(end, elements)| end.max(elements)) {
            Some(end) if end <= self.data.len() => Ok(()),
            end => Err(Error::Shape {
                what,
                expected: format!(
                    "at least {} elements for {} with strides [{}, {}]",
                    end.map_or("more than can be addressed".to_string(), |end| end.to_string()),
                    found(),
                    self.token_stride,
                    self.head_stride
                ),
                found: format!("{} elements", self.data.len()),
            }),
        }
    }

    /// Rows of a head, where they lie one behind the other. The view was checked.
    pub(crate) fn contiguous(&self, head: usize, tokens: Range<usize>) -> Option<Rows<'a>> {
        let start = head * self.head_stride + tokens.start * self.token_stride;
        let in_order = self.token_stride == self.dim || tokens.len() == 1;
        in_order.then(|| self.data.slice(start..start + tokens.len() * self.dim))
    }

    /// One row. The view was checked.
    pub(crate) fn row(&self, token: usize, head: usize) -> Rows<'a> {
        let start = token * self.token_stride + head * self.head_stride;
        self.data.slice(start..start + self.dim)
    }
}

//! Longwave.

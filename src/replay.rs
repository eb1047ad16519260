//! Reading a context's logs back into memory.

use crate::context::Layer;
use crate::error::Error;
use crate::model::ModelSpec;
use crate::rows::{Block, RowBuffer};
use crate::sample::QuerySample;
use crate::sealing::{Sealed, stored_rows};
use half::{bf16, f16};
use longwave_kernels::Dtype;
use longwave_query::Shape;
use longwave_storage::{
    Backend, Error as StorageError, Identity, LogHeader, LogReader, LogRecord, Manifest, Record, RecordKind,
    context_file,
};

/// Reads the logs of a context.
pub(crate) struct Replay<'a> {
    backend: &'a dyn Backend,
    name: &'a str,
    identity: Identity,
    shape: Shape,
}

impl<'a> Replay<'a> {
    pub(crate) fn of_logs(backend: &'a dyn Backend, name: &'a str, model: &ModelSpec) -> Self {
        Replay { backend, name, identity: model.digest(), shape: model.shape() }
    }

    /// Brings the sinks and the tail of every layer back; each layer must then have the length that the manifest
    /// says.
    pub(crate) fn rows(&self, manifest: &Manifest, layers: &mut [Option<Layer>]) -> Result<(), Error> {
        let mut file = context_file(self.name, longwave_storage::MANIFEST_FILE);
        let mut cuts: Vec<Vec<Block>> = Vec::with_capacity(layers.len());
        for layer in layers.iter() {
            let of_layer = layer.iter().flat_map(|layer| &layer.cuts);
            cuts.push(
                of_layer
                    .map(|(sealed, end)| cut_rows(sealed, &self.shape, *end))
                    .collect::<Result<_, _>>()?,
            );
        }
        let mut loaded = vec![0; layers.len()];
        for log in &manifest.row_logs {
            file = log.path(self.name);
            let mut reader = self.open(log)?;
            while let Some(record) = reader.next()? {
                self.rows_record(&record, log.end, &mut loaded, &mut (&mut *layers, &mut cuts))
                    .map_err(|(expected, found)| corrupt(&file, record.offset, expected, found))?;
            }
        }
        for (number, (layer, stored)) in layers.iter_mut().zip(&manifest.layers).enumerate() {
            let Some(layer) = layer else { continue };
            push_cuts(layer, &mut cuts[number]);
            if layer.rows.length() != stored.length || !layer.rows.tail.is_whole() {
                let expected = format!("{} rows of layer {number}, as committed", stored.length);
                return Err(corrupt(&file, 0, expected, format!("{} rows", layer.rows.length())));
            }
        }
        Ok(())
    }

    fn rows_record(
        &self,
        record: &Record,
        end: u64,
        loaded: &mut [u64],
        (layers, cuts): &mut (&mut [Option<Layer>], &mut Vec<Vec<Block>>),
    ) -> Result<(), (String, String)> {
        let number = record.header.layer as usize;
        let Some(layer) = layers.get_mut(number).and_then(Option::as_mut) else {
            return Err(("rows of a layer that keeps KV".into(), format!("layer {number}")));
        };
        let first = record.header.first_position;
        if record.header.kind == RecordKind::Rows && first >= end {
            return Ok(());
        }
        let next = layer.next_unsealed(loaded[number]);
        if record.header.kind != RecordKind::Rows || first != next {
            let found = format!("{:?} at {first}", record.header.kind);
            return Err((format!("rows of layer {number} at {next}"), found));
        }
        let mut block = self.block(record)?;
        block.truncate(&self.shape, usize::try_from(end - first).unwrap_or(usize::MAX));
        loaded[number] = block.end();
        if first >= layer.rows.tail.sinks() {
            push_cuts(layer, &mut cuts[number]);
        }
        layer.rows.tail.push(&block);
        Ok(())
    }

    /// Brings token ids and sampled queries back.
    pub(crate) fn meta(&self, manifest: &Manifest, layers: &mut [Option<Layer>]) -> Result<Vec<u32>, Error> {
        let empty = |layer: &mut Option<Layer>| layer.as_mut().map(|layer| layer.sample.take());
        let mut samples: Vec<Option<QuerySample>> = layers.iter_mut().map(empty).collect();
        let tokens = self.meta_logs(&manifest.meta_logs, &mut samples, true)?;
        for (layer, sample) in layers.iter_mut().zip(samples) {
            if let (Some(layer), Some(sample)) = (layer, sample) {
                layer.sample = sample;
            }
        }
        if tokens.len() as u64 != manifest.token_count {
            let expected = format!("{} token ids, as committed", manifest.token_count);
            let file = manifest.meta_logs.last().map(|log| log.path(self.name));
            let file = file.unwrap_or_else(|| context_file(self.name, longwave_storage::MANIFEST_FILE));
            return Err(corrupt(&file, 0, expected, format!("{}", tokens.len())));
        }
        Ok(tokens)
    }

    /// Takes the queries that the logs hold into samples.
    pub(crate) fn queries(
        &self,
        logs: &[LogRecord],
        samples: &mut [Option<QuerySample>],
    ) -> Result<(), Error> {
        self.meta_logs(logs, samples, false).map(|_| ())
    }

    /// The token ids that the logs hold.
    pub(crate) fn tokens(&self, logs: &[LogRecord]) -> Result<Vec<u32>, Error> {
        self.meta_logs(logs, &mut [], true)
    }

    fn meta_logs(
        &self,
        logs: &[LogRecord],
        samples: &mut [Option<QuerySample>],
        with_tokens: bool,
    ) -> Result<Vec<u32>, Error> {
        let mut tokens = Vec::new();
        for log in logs {
            let (file, mut reader) = (log.path(self.name), self.open(log)?);
            while let Some(record) = reader.next()? {
                let taken = match record.header.kind {
                    RecordKind::Tokens if with_tokens => take_tokens(&record, log.end, &mut tokens),
                    RecordKind::Queries if !samples.is_empty() => {
                        self.take_queries(&record, log.end, samples)
                    }
                    RecordKind::Rows | RecordKind::Prefix => {
                        Err(("token ids or queries".into(), format!("{:?}", record.header.kind)))
                    }
                    _ => Ok(()),
                };
                taken.map_err(|(expected, found)| corrupt(&file, record.offset, expected, found))?;
            }
        }
        Ok(tokens)
    }

    fn take_queries(
        &self,
        record: &Record,
        end: u64,
        samples: &mut [Option<QuerySample>],
    ) -> Result<(), (String, String)> {
        let (header, payload) = (&record.header, &record.payload);
        let elements = self.shape.query_heads * self.shape.key_dim;
        let sample = samples.get_mut(header.layer as usize).and_then(Option::as_mut);
        let Some(sample) = sample.filter(|_| payload.len() == elements * 2) else {
            let found = format!("{} bytes for layer {}", payload.len(), header.layer);
            return Err((format!("{elements} numbers of 16 bits for a layer that keeps KV"), found));
        };
        if header.first_position < end {
            sample.recall(header.first_position, bytemuck::pod_collect_to_vec::<u8, f16>(payload));
        }
        Ok(())
    }

    pub(crate) fn open(&self, log: &LogRecord) -> Result<LogReader, StorageError> {
        let header = LogHeader { log_id: log.id, identity: self.identity };
        LogReader::open(self.backend, &log.path(self.name), header, log.len)
    }

    pub(crate) fn block(&self, record: &Record) -> Result<Block, (String, String)> {
        let Shape { kv_heads, key_dim, value_dim, dtype, .. } = self.shape;
        let (rows, size) = (record.header.count as usize, dtype.size_of());
        let row_bytes = kv_heads * (key_dim + value_dim) * size;
        let expected = rows.checked_mul(row_bytes).filter(|bytes| *bytes == record.payload.len() && rows > 0);
        if expected.is_none() {
            return Err((
                format!("{rows} rows of {row_bytes} bytes"),
                format!("{} bytes", record.payload.len()),
            ));
        }
        let (keys, values) = record.payload.split_at(rows * kv_heads * key_dim * size);
        let buffers = |bytes: &[u8], dim: usize| {
            bytes.chunks_exact(rows * dim * size).map(|b| buffer(dtype, b)).collect()
        };
        Ok(Block {
            first_position: record.header.first_position,
            rows,
            keys: buffers(keys, key_dim),
            values: buffers(values, value_dim),
        })
    }
}

/// The rows of a segment up to position `end`.
pub(crate) fn cut_rows(sealed: &Sealed, shape: &Shape, end: u64) -> Result<Block, Error> {
    let mut rows = stored_rows(&sealed.segment, shape)?;
    rows.truncate(shape, usize::try_from(end - rows.first_position).unwrap_or(usize::MAX));
    Ok(rows)
}

/// Puts rows of cut segments behind the sealed ones. The first of them may be sealed again.
pub(crate) fn push_cuts(layer: &mut Layer, cuts: &mut Vec<Block>) {
    for rows in std::mem::take(cuts) {
        let held = layer.rows.length().max(layer.rows.sealed_end());
        let skip = (held.saturating_sub(rows.first_position) as usize).min(rows.rows);
        layer.rows.tail.push(&rows.slice(&layer.rows.shape, skip..rows.rows));
    }
}

/// Puts the token ids of a record before position `end` behind those that are there.
pub(crate) fn take_tokens(record: &Record, end: u64, tokens: &mut Vec<u32>) -> Result<(), (String, String)> {
    let (header, (ids, rest)) = (&record.header, record.payload.as_chunks::<4>());
    if ids.len() != header.count as usize || !rest.is_empty() {
        return Err((format!("{} token ids", header.count), format!("{} bytes", record.payload.len())));
    }
    let first = header.first_position;
    if first >= end {
        return Ok(());
    }
    if first != tokens.len() as u64 {
        return Err((format!("token ids at {}", tokens.len()), format!("some at {first}")));
    }
    let count = usize::try_from(end - first).unwrap_or(usize::MAX).min(ids.len());
    tokens.extend(ids[..count].iter().map(|&id| u32::from_le_bytes(id)));
    Ok(())
}

/// The payload may lie at any address, so it is copied element by element.
fn buffer(dtype: Dtype, bytes: &[u8]) -> RowBuffer {
    match dtype {
        Dtype::F16 => RowBuffer::F16(bytemuck::pod_collect_to_vec::<u8, f16>(bytes)),
        Dtype::Bf16 => RowBuffer::Bf16(bytemuck::pod_collect_to_vec::<u8, bf16>(bytes)),
        Dtype::F32 => RowBuffer::F32(bytemuck::pod_collect_to_vec::<u8, f32>(bytes)),
    }
}

fn corrupt(file: &str, offset: u64, expected: String, found: String) -> Error {
    StorageError::Corrupt { file: file.into(), column: None, offset, expected, found }.into()
}

//! Reading a context's logs back into memory.

use crate::context::Layer;
use crate::error::Error;
use crate::model::ModelSpec;
use crate::rows::{Block, RowBuffer};
use half::{bf16, f16};
use longwave_kernels::Dtype;
use longwave_query::Shape;
use longwave_storage::{
    Backend, Error as StorageError, LogHeader, LogReader, LogRecord, Manifest, Record, RecordKind,
    context_file,
};

/// The logs of one manifest.
pub(crate) struct Replay<'a> {
    backend: &'a dyn Backend,
    name: &'a str,
    manifest: &'a Manifest,
    shape: Shape,
}

impl<'a> Replay<'a> {
    pub(crate) fn new(
        backend: &'a dyn Backend,
        name: &'a str,
        manifest: &'a Manifest,
        model: &ModelSpec,
    ) -> Self {
        Replay { backend, name, manifest, shape: model.shape() }
    }

    /// Brings the sinks and the tail of every layer back; each layer must then have the length that the manifest
    /// says.
    pub(crate) fn rows(&mut self, layers: &mut [Option<Layer>]) -> Result<(), Error> {
        let mut file = context_file(self.name, longwave_storage::MANIFEST_FILE);
        if let Some(log) = &self.manifest.row_log {
            let mut reader = self.open(log)?;
            file = context_file(self.name, &log.file);
            let mut loaded = vec![0; layers.len()];
            while let Some(record) = reader.next()? {
                let fault = |expected: String, found: String| corrupt(&file, record.offset, expected, found);
                let number = record.header.layer as usize;
                let Some(layer) = layers.get_mut(number).and_then(Option::as_mut) else {
                    return Err(fault("rows of a layer that keeps KV".into(), format!("layer {number}")));
                };
                let next = layer.next_unsealed(loaded[number]);
                if record.header.kind != RecordKind::Rows || record.header.first_position != next {
                    let found = format!("{:?} at {}", record.header.kind, record.header.first_position);
                    return Err(fault(format!("rows of layer {number} at {next}"), found));
                }
                let block = self.block(&record).map_err(|(expected, found)| fault(expected, found))?;
                loaded[number] = block.end();
                layer.rows.tail.push(&block);
            }
        }
        for (number, (layer, stored)) in layers.iter().zip(&self.manifest.layers).enumerate() {
            let Some(layer) = layer else { continue };
            if layer.rows.length() != stored.length || !layer.rows.tail.is_whole() {
                let expected = format!("{} rows of layer {number}, as committed", stored.length);
                return Err(corrupt(&file, 0, expected, format!("{} rows", layer.rows.length())));
            }
        }
        Ok(())
    }

    /// Brings token ids and sampled queries back.
    pub(crate) fn meta(&mut self, layers: &mut [Option<Layer>]) -> Result<Vec<u32>, Error> {
        let mut tokens = Vec::new();
        let mut file = context_file(self.name, longwave_storage::MANIFEST_FILE);
        if let Some(log) = &self.manifest.meta_log {
            let mut reader = self.open(log)?;
            file = context_file(self.name, &log.file);
            while let Some(record) = reader.next()? {
                self.meta_record(&record, layers, &mut tokens)
                    .map_err(|(expected, found)| corrupt(&file, record.offset, expected, found))?;
            }
        }
        if tokens.len() as u64 != self.manifest.token_count {
            let expected = format!("{} token ids, as committed", self.manifest.token_count);
            return Err(corrupt(&file, 0, expected, format!("{}", tokens.len())));
        }
        Ok(tokens)
    }

    fn meta_record(
        &self,
        record: &Record,
        layers: &mut [Option<Layer>],
        tokens: &mut Vec<u32>,
    ) -> Result<(), (String, String)> {
        let (header, payload) = (&record.header, &record.payload);
        match header.kind {
            RecordKind::Tokens => {
                let (ids, rest) = payload.as_chunks::<4>();
                if header.first_position != tokens.len() as u64
                    || ids.len() != header.count as usize
                    || !rest.is_empty()
                {
                    let found = format!("{} bytes of them at {}", payload.len(), header.first_position);
                    return Err((format!("{} token ids at {}", header.count, tokens.len()), found));
                }
                tokens.extend(ids.iter().map(|&id| u32::from_le_bytes(id)));
                Ok(())
            }
            RecordKind::Queries => {
                let elements = self.shape.query_heads * self.shape.key_dim;
                let layer = layers.get_mut(header.layer as usize).and_then(Option::as_mut);
                let Some(layer) = layer.filter(|_| payload.len() == elements * 2) else {
                    let found = format!("{} bytes for layer {}", payload.len(), header.layer);
                    return Err((format!("{elements} numbers of 16 bits for a layer that keeps KV"), found));
                };
                layer.sample.insert(header.first_position, bytemuck::pod_collect_to_vec::<u8, f16>(payload));
                layer.sample.settle();
                layer.sample.settle_profile();
                Ok(())
            }
            RecordKind::Rows => Err(("token ids or queries".into(), "rows".into())),
        }
    }

    pub(crate) fn open(&self, log: &LogRecord) -> Result<LogReader, StorageError> {
        let header = LogHeader { log_id: log.id, identity: self.manifest.model.identity };
        LogReader::open(self.backend, &context_file(self.name, &log.file), header, log.len)
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

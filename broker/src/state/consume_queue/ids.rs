//! An ids file: the message ids one checkpoint found new, so that the window outlives a restart.
//!
//! | Offset | Bytes | Field |
//! |---|---|---|
//! | 0 | 8 | `LMQIDS01` |
//! | 8 | 8 | number of ids |
//! | 16 | 4 | CRC32C of the ids |
//! | 20 | 4 | CRC32C of bytes 0..20 |
//! | 24 | 40 × ids | oldest first: key u128, queue offset u64, store time u64 ms, queue u32, 0 u32 |
//!
//! The same 40 bytes stand for an id in a snapshot.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};
use ledgermq_common::clock::UnixMillis;

use crate::state::applied::window::WindowEntry;
use crate::state::command::wire::{FieldReader, MalformedField};

const MAGIC: [u8; 8] = *b"LMQIDS01";
const HEADER_BYTES: usize = 24;
pub(crate) const ID_BYTES: usize = 40;

pub(crate) fn put_id(out: &mut BytesMut, id: &WindowEntry) {
    out.put_u128_le(id.key);
    out.put_u64_le(id.offset);
    out.put_u64_le(id.stored_at.get());
    out.put_u32_le(id.queue);
    out.put_u32_le(0);
}

pub(crate) fn read_id(reader: &mut FieldReader<'_>) -> Result<WindowEntry, MalformedField> {
    let key = reader.u128("id key")?;
    let offset = reader.u64("id offset")?;
    let stored_at = UnixMillis(reader.u64("id store time")?);
    let queue = reader.u32("id queue")?;
    reader.u32("id padding")?;
    Ok(WindowEntry { key, queue, offset, stored_at })
}

/// Writes and syncs a new file. The caller syncs the directory.
pub(crate) fn write_ids_file(path: &Path, ids: &[WindowEntry]) -> io::Result<()> {
    let mut body = BytesMut::with_capacity(ids.len() * ID_BYTES);
    ids.iter().for_each(|id| put_id(&mut body, id));
    let mut header = BytesMut::with_capacity(HEADER_BYTES);
    header.put_slice(&MAGIC);
    header.put_u64_le(ids.len() as u64);
    header.put_u32_le(crc32c::crc32c(&body));
    let crc = crc32c::crc32c(&header);
    header.put_u32_le(crc);
    let mut file = File::create(path)?;
    file.write_all(&header)?;
    file.write_all(&body)?;
    file.sync_all()
}

pub(crate) fn read_ids_file(path: &Path) -> io::Result<Vec<WindowEntry>> {
    let damaged = |part: &'static str| {
        io::Error::new(io::ErrorKind::InvalidData, format!("ids file is damaged: {part}"))
    };
    let bytes = Bytes::from(std::fs::read(path)?);
    let mut reader = FieldReader::new(&bytes);
    let read = |_: MalformedField| damaged("length");
    let magic = reader.bytes(8, "magic").map_err(read)?;
    let count = reader.u64("count").map_err(read)?;
    let body_crc = reader.u32("crc").map_err(read)?;
    let header_crc = reader.u32("header crc").map_err(read)?;
    let fields = bytes.get(..HEADER_BYTES - 4).ok_or_else(|| damaged("length"))?;
    let body = bytes.get(HEADER_BYTES..).ok_or_else(|| damaged("length"))?;
    if magic.as_ref() != MAGIC || crc32c::crc32c(fields) != header_crc {
        return Err(damaged("header"));
    }
    if count.checked_mul(ID_BYTES as u64) != Some(body.len() as u64) || crc32c::crc32c(body) != body_crc {
        return Err(damaged("ids"));
    }
    let mut ids = Vec::with_capacity(body.len() / ID_BYTES);
    while reader.remaining() > 0 {
        ids.push(read_id(&mut reader).map_err(read)?);
    }
    Ok(ids)
}

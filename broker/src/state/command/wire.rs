//! Little-endian fields of commands, answers and stored records.
//!
//! Reading never panics, indexes or allocates by a length it has not compared with the bytes that
//! are there: a command may come from a disk or a peer that is wrong.

use bytes::{BufMut, Bytes, BytesMut};

/// The bytes do not hold what their kind says they do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {field} at byte {at}")]
pub struct MalformedField {
    pub field: &'static str,
    pub at: usize,
}

/// A cursor over shared bytes; slices it hands out share them.
#[derive(Debug)]
pub(crate) struct FieldReader<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl<'a> FieldReader<'a> {
    pub(crate) fn new(bytes: &'a Bytes) -> Self {
        Self { bytes, at: 0 }
    }

    pub(crate) fn position(&self) -> usize {
        self.at
    }

    pub(crate) fn malformed(&self, field: &'static str) -> MalformedField {
        MalformedField { field, at: self.at }
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(crate) fn end(&self, field: &'static str) -> Result<(), MalformedField> {
        if self.remaining() == 0 { Ok(()) } else { Err(self.malformed(field)) }
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, MalformedField> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    pub(crate) fn bool(&mut self, field: &'static str) -> Result<bool, MalformedField> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.malformed(field)),
        }
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, MalformedField> {
        self.array(field).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, MalformedField> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, MalformedField> {
        self.array(field).map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self, field: &'static str) -> Result<u128, MalformedField> {
        self.array(field).map(u128::from_le_bytes)
    }

    pub(crate) fn bytes(&mut self, len: usize, field: &'static str) -> Result<Bytes, MalformedField> {
        if len > self.remaining() {
            return Err(self.malformed(field));
        }
        let slice = self.bytes.slice(self.at..self.at + len);
        self.at += len;
        Ok(slice)
    }

    /// What was read since `start`, an earlier position of this reader.
    pub(crate) fn since(&self, start: usize) -> Bytes {
        self.bytes.slice(start..self.at)
    }

    /// Text with its length in two bytes before it.
    pub(crate) fn text(&mut self, field: &'static str) -> Result<String, MalformedField> {
        let len = usize::from(self.u16(field)?);
        let bytes = self.bytes(len, field)?;
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.malformed(field)),
        }
    }

    /// A count of items that take at least `item_bytes_min` each, so it bounds what is allocated.
    pub(crate) fn count(
        &mut self,
        item_bytes_min: usize,
        field: &'static str,
    ) -> Result<usize, MalformedField> {
        let count = self.u32(field)? as usize;
        match count.checked_mul(item_bytes_min) {
            Some(bytes) if bytes <= self.remaining() => Ok(count),
            _ => Err(self.malformed(field)),
        }
    }

    pub(crate) fn list<T>(
        &mut self,
        item_bytes_min: usize,
        field: &'static str,
        mut item: impl FnMut(&mut Self) -> Result<T, MalformedField>,
    ) -> Result<Vec<T>, MalformedField> {
        let count = self.count(item_bytes_min, field)?;
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], MalformedField> {
        match self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<N>()) {
            Some(chunk) => {
                self.at += N;
                Ok(*chunk)
            }
            None => Err(self.malformed(field)),
        }
    }
}

/// Text with its length in two bytes; longer text is a bug of the caller, who checked names.
pub(crate) fn put_text(out: &mut BytesMut, text: &str) {
    let len = u16::try_from(text.len()).expect("names and texts in commands are checked to be short");
    out.put_u16_le(len);
    out.put_slice(text.as_bytes());
}

pub(crate) fn put_count(out: &mut BytesMut, count: usize) {
    out.put_u32_le(u32::try_from(count).expect("lists in commands are bounded far below 2^32"));
}

pub(crate) fn put_list<T>(out: &mut BytesMut, items: &[T], mut put: impl FnMut(&mut BytesMut, &T)) {
    put_count(out, items.len());
    for item in items {
        put(out, item);
    }
}

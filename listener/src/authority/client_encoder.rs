//! The client's side of HPACK, for tests: with a table, name references and Huffman, as real
//! clients use them. The h2 client cannot be made to send a list as its authority.

use std::collections::VecDeque;

use bytes::{BufMut, BytesMut};

use super::hpack::write_integer;
use super::huffman;
use super::static_table::STATIC_TABLE;

pub struct ClientEncoder {
    table: VecDeque<(Vec<u8>, Vec<u8>)>,
    table_bytes: usize,
    table_bytes_max: usize,
    uses_huffman: bool,
    resized: Vec<usize>,
}

impl ClientEncoder {
    pub fn new(uses_huffman: bool) -> Self {
        Self {
            table: VecDeque::new(),
            table_bytes: 0,
            table_bytes_max: 4096,
            uses_huffman,
            resized: Vec::new(),
        }
    }

    /// Announced at the start of the next block.
    pub fn resize_table(&mut self, bytes: usize) {
        self.table_bytes_max = bytes;
        self.evict_down_to(bytes);
        self.resized.push(bytes);
    }

    pub fn encode(&mut self, fields: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
        let mut out = BytesMut::new();
        for bytes in std::mem::take(&mut self.resized) {
            write_integer(&mut out, 0x20, 5, bytes);
        }
        for (name, value) in fields {
            let name_index = self.position(|n, _| n == name);
            if let Some(index) = self.position(|n, v| n == name && v == value) {
                write_integer(&mut out, 0x80, 7, index);
            } else if name == b"authorization" {
                self.literal(&mut out, 0x10, 4, name_index, name, value);
            } else if name == b"content-length" {
                self.literal(&mut out, 0x00, 4, name_index, name, value);
            } else {
                self.literal(&mut out, 0x40, 6, name_index, name, value);
                self.insert(name, value);
            }
        }
        out.to_vec()
    }

    fn position(&self, is_it: impl Fn(&[u8], &[u8]) -> bool) -> Option<usize> {
        let fixed = STATIC_TABLE.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes()));
        let own = self.table.iter().map(|(n, v)| (n.as_slice(), v.as_slice()));
        fixed.chain(own).position(|(n, v)| is_it(n, v)).map(|place| place + 1)
    }

    fn literal(
        &self,
        out: &mut BytesMut,
        first: u8,
        prefix: u32,
        index: Option<usize>,
        name: &[u8],
        value: &[u8],
    ) {
        write_integer(out, first, prefix, index.unwrap_or(0));
        if index.is_none() {
            self.text(out, name);
        }
        self.text(out, value);
    }

    fn text(&self, out: &mut BytesMut, text: &[u8]) {
        let (first, bytes) =
            if self.uses_huffman { (0x80, huffman::encoded(text)) } else { (0x00, text.to_vec()) };
        write_integer(out, first, 7, bytes.len());
        out.put_slice(&bytes);
    }

    fn insert(&mut self, name: &[u8], value: &[u8]) {
        let bytes = name.len() + value.len() + 32;
        self.evict_down_to(self.table_bytes_max.saturating_sub(bytes));
        if bytes <= self.table_bytes_max {
            self.table.push_front((name.to_vec(), value.to_vec()));
            self.table_bytes += bytes;
        }
    }

    fn evict_down_to(&mut self, bytes: usize) {
        while self.table_bytes > bytes {
            let (name, value) = self.table.pop_back().unwrap();
            self.table_bytes -= name.len() + value.len() + 32;
        }
    }
}

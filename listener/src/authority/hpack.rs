//! HPACK (RFC 7541): a full decoder, and an encoder that keeps no state.
//!
//! | First byte | Representation | Effect on the table |
//! |---|---|---|
//! | `1xxxxxxx` | indexed field | none |
//! | `01xxxxxx` | literal, name indexed or new | inserted at the front |
//! | `001xxxxx` | size update, only at the start of a block | oldest entries leave |
//! | `0001xxxx` | literal, never indexed | none |
//! | `0000xxxx` | literal, not indexed | none |
//!
//! The encoder writes literals without index only, so the peer's table stays empty and there is
//! nothing to keep in step with it.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

use super::huffman;
use super::static_table::STATIC_TABLE;

/// What a client may use when the server announces nothing else (RFC 9113 section 6.5.2); ours
/// announces nothing else.
const TABLE_BYTES_DEFAULT: usize = 4096;

/// The largest table a client may ask for.
const TABLE_BYTES_MAX: usize = 64 * 1024;

/// Names, values and 32 bytes per field of one block. A few bytes of input can name the same table
/// entry thousands of times.
const LIST_BYTES_MAX: usize = 64 * 1024;

/// What the RFC adds to each entry (section 4.1).
const ENTRY_OVERHEAD_BYTES: usize = 32;

/// Continuation bytes of an integer; more cannot add to a number that fits into 32 bits.
const INTEGER_OCTETS_MAX: u32 = 5;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    pub name: Bytes,
    pub value: Bytes,
    /// The client forbids to put it into any table.
    pub never_indexed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HpackError {
    #[error("the block ends inside a field")]
    Truncated,
    #[error("an integer is too large")]
    IntegerTooLarge,
    #[error("index {0} is in neither table")]
    UnknownIndex(usize),
    #[error("a text is not valid in the Huffman code")]
    Huffman,
    #[error("a table size update stands after a field")]
    MisplacedSizeUpdate,
    #[error("a table of {0} bytes is asked for; the limit is {TABLE_BYTES_MAX}")]
    TableTooLarge(usize),
    #[error("the decoded fields take more than {LIST_BYTES_MAX} bytes")]
    ListTooLarge,
}

/// The decoding side of one direction of a connection.
#[derive(Debug)]
pub struct Decoder {
    /// Newest first.
    table: VecDeque<(Bytes, Bytes)>,
    table_bytes: usize,
    table_bytes_max: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { table: VecDeque::new(), table_bytes: 0, table_bytes_max: TABLE_BYTES_DEFAULT }
    }
}

impl Decoder {
    /// The fields of a complete block, in order. After an error the table is out of step with the
    /// client's and the connection cannot be decoded any more.
    pub fn decode(&mut self, block: &[u8]) -> Result<Vec<Field>, HpackError> {
        let mut rest = Reader(block);
        let mut fields = Vec::new();
        let mut list_bytes = 0usize;
        while let Some(&first) = rest.0.first() {
            let field = if first & 0x80 != 0 {
                let (name, value) = self.entry(rest.integer(7)?)?;
                Field { name, value, never_indexed: false }
            } else if first & 0xc0 == 0x40 {
                let (name, value) = self.literal(&mut rest, 6)?;
                self.insert(name.clone(), value.clone());
                Field { name, value, never_indexed: false }
            } else if first & 0xe0 == 0x20 {
                let size = rest.integer(5)?;
                if !fields.is_empty() {
                    return Err(HpackError::MisplacedSizeUpdate);
                }
                if size > TABLE_BYTES_MAX {
                    return Err(HpackError::TableTooLarge(size));
                }
                self.table_bytes_max = size;
                self.evict_down_to(size);
                continue;
            } else {
                let (name, value) = self.literal(&mut rest, 4)?;
                Field { name, value, never_indexed: first & 0x10 != 0 }
            };
            list_bytes += field.name.len() + field.value.len() + ENTRY_OVERHEAD_BYTES;
            if list_bytes > LIST_BYTES_MAX {
                return Err(HpackError::ListTooLarge);
            }
            fields.push(field);
        }
        Ok(fields)
    }

    fn literal(&self, rest: &mut Reader<'_>, prefix_bits: u32) -> Result<(Bytes, Bytes), HpackError> {
        let name = match rest.integer(prefix_bits)? {
            0 => rest.text()?,
            index => self.entry(index)?.0,
        };
        Ok((name, rest.text()?))
    }

    fn entry(&self, index: usize) -> Result<(Bytes, Bytes), HpackError> {
        let unknown = HpackError::UnknownIndex(index);
        let place = index.checked_sub(1).ok_or(unknown)?;
        match STATIC_TABLE.get(place) {
            Some((name, value)) => {
                Ok((Bytes::from_static(name.as_bytes()), Bytes::from_static(value.as_bytes())))
            }
            None => self.table.get(place - STATIC_TABLE.len()).cloned().ok_or(unknown),
        }
    }

    fn insert(&mut self, name: Bytes, value: Bytes) {
        let bytes = name.len() + value.len() + ENTRY_OVERHEAD_BYTES;
        // An entry larger than the whole table empties it and is not an error (section 4.4).
        self.evict_down_to(self.table_bytes_max.saturating_sub(bytes));
        if bytes <= self.table_bytes_max {
            self.table.push_front((name, value));
            self.table_bytes += bytes;
        }
        assert!(self.table_bytes <= self.table_bytes_max, "the table keeps to its size");
    }

    fn evict_down_to(&mut self, bytes: usize) {
        while self.table_bytes > bytes {
            let (name, value) = self.table.pop_back().expect("a table of more than 0 bytes has an entry");
            self.table_bytes -= name.len() + value.len() + ENTRY_OVERHEAD_BYTES;
        }
    }
}

/// Writes `field` as a literal that enters no table.
pub fn write_field(out: &mut BytesMut, field: &Field) {
    out.put_u8(if field.never_indexed { 0x10 } else { 0x00 });
    write_text(out, &field.name);
    write_text(out, &field.value);
}

fn write_text(out: &mut BytesMut, text: &[u8]) {
    write_integer(out, 0x00, 7, text.len());
    out.put_slice(text);
}

/// Writes `number` behind the bits of `first` (section 5.1).
pub fn write_integer(out: &mut BytesMut, first: u8, prefix_bits: u32, number: usize) {
    let prefix_max = (1usize << prefix_bits) - 1;
    if number < prefix_max {
        out.put_u8(first | number as u8);
        return;
    }
    out.put_u8(first | prefix_max as u8);
    let mut rest = number - prefix_max;
    while rest >= 0x80 {
        out.put_u8(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

/// What of the block is still to be read.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Result<u8, HpackError> {
        let (&byte, rest) = self.0.split_first().ok_or(HpackError::Truncated)?;
        self.0 = rest;
        Ok(byte)
    }

    fn integer(&mut self, prefix_bits: u32) -> Result<usize, HpackError> {
        let prefix_max = (1u64 << prefix_bits) - 1;
        let mut number = u64::from(self.byte()?) & prefix_max;
        if number < prefix_max {
            return Ok(number as usize);
        }
        for octet in 0..INTEGER_OCTETS_MAX {
            let byte = self.byte()?;
            number += u64::from(byte & 0x7f) << (7 * octet);
            if byte & 0x80 == 0 {
                return u32::try_from(number).map(|n| n as usize).map_err(|_| HpackError::IntegerTooLarge);
            }
        }
        Err(HpackError::IntegerTooLarge)
    }

    fn text(&mut self) -> Result<Bytes, HpackError> {
        let is_huffman = self.0.first().ok_or(HpackError::Truncated)? & 0x80 != 0;
        let length = self.integer(7)?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(HpackError::Truncated)?;
        self.0 = rest;
        if is_huffman {
            huffman::decoded(text).map(Bytes::from).ok_or(HpackError::Huffman)
        } else {
            Ok(Bytes::copy_from_slice(text))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    fn decoded(decoder: &mut Decoder, block: &str) -> Vec<(String, String)> {
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        decoder.decode(&hex(block)).unwrap().iter().map(|f| (text(&f.name), text(&f.value))).collect()
    }

    /// Blocks of one connection: encoded, its fields as `name: value` lines, the table's size after.
    fn check_connection(table_bytes_max: usize, blocks: &[(&str, &str, usize)]) {
        let mut decoder = Decoder { table_bytes_max, ..Decoder::default() };
        for (block, lines, table_bytes) in blocks {
            let fields: Vec<String> =
                decoded(&mut decoder, block).into_iter().map(|(n, v)| format!("{n}: {v}")).collect();
            assert_eq!(fields, lines.lines().map(str::trim).collect::<Vec<_>>());
            assert_eq!(decoder.table_bytes, *table_bytes);
        }
    }

    const REQUEST_1: &str = ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com";
    const REQUEST_2: &str =
        ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com\ncache-control: no-cache";
    const REQUEST_3: &str = ":method: GET\n:scheme: https\n:path: /index.html\n:authority: www.example.com\ncustom-key: custom-value";
    const RESPONSE_1: &str = ":status: 302\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:21 GMT\n\
        location: https://www.example.com";
    const RESPONSE_2: &str = ":status: 307\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:21 GMT\n\
        location: https://www.example.com";
    const RESPONSE_3: &str = ":status: 200\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:22 GMT\n\
        location: https://www.example.com\ncontent-encoding: gzip\n\
        set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";

    #[test]
    fn single_fields_of_appendix_c2() {
        let mut decoder = Decoder::default();
        let block = "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572";
        assert_eq!(decoded(&mut decoder, block), [("custom-key".into(), "custom-header".into())]);
        assert_eq!(decoder.table_bytes, 55);
        let block = "040c 2f73 616d 706c 652f 7061 7468";
        assert_eq!(decoded(&mut decoder, block), [(":path".into(), "/sample/path".into())]);
        let fields = decoder.decode(&hex("1008 7061 7373 776f 7264 0673 6563 7265 74")).unwrap();
        assert_eq!(&fields[0].name[..], b"password");
        assert!(fields[0].never_indexed);
        assert_eq!(decoded(&mut decoder, "82"), [(":method".into(), "GET".into())]);
        assert_eq!(decoder.table_bytes, 55);
    }

    #[test]
    fn requests_of_appendix_c3_and_c4() {
        check_connection(
            4096,
            &[
                ("8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d", REQUEST_1, 57),
                ("8286 84be 5808 6e6f 2d63 6163 6865", REQUEST_2, 110),
                ("8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65", REQUEST_3, 164),
            ],
        );
        check_connection(
            4096,
            &[
                ("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", REQUEST_1, 57),
                ("8286 84be 5886 a8eb 1064 9cbf", REQUEST_2, 110),
                ("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf", REQUEST_3, 164),
            ],
        );
    }

    #[test]
    fn responses_of_appendix_c5_and_c6_with_evictions() {
        check_connection(
            256,
            &[
                (
                    "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133
                     2032 303a 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70
                     6c65 2e63 6f6d",
                    RESPONSE_1,
                    222,
                ),
                ("4803 3330 37c1 c0bf", RESPONSE_2, 222),
                (
                    "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d
                     54c0 5a04 677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049
                     5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e
                     3d31",
                    RESPONSE_3,
                    215,
                ),
            ],
        );
        check_connection(
            256,
            &[
                (
                    "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6
                     2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
                    RESPONSE_1,
                    222,
                ),
                ("4883 640e ffc1 c0bf", RESPONSE_2, 222),
                (
                    "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab
                     77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f
                     9587 3160 65c0 03ed 4ee5 b106 3d50 07",
                    RESPONSE_3,
                    215,
                ),
            ],
        );
    }

    #[test]
    fn what_the_rfc_forbids_is_refused() {
        let cases = [
            ("80", HpackError::UnknownIndex(0)),
            ("be", HpackError::UnknownIndex(62)),
            ("40", HpackError::Truncated),
            ("400a 6375", HpackError::Truncated),
            ("8220", HpackError::MisplacedSizeUpdate),
            ("3fe2 ff03", HpackError::TableTooLarge(65_537)),
            ("ff80 8080 8010", HpackError::IntegerTooLarge),
            ("ffff ffff ffff ff", HpackError::IntegerTooLarge),
            ("0081 ff00", HpackError::Huffman),
        ];
        for (block, expected) in cases {
            assert_eq!(Decoder::default().decode(&hex(block)), Err(expected), "{block}");
        }
    }

    #[test]
    fn a_size_update_empties_the_table_and_a_large_entry_does_too() {
        let mut decoder = Decoder::default();
        decoder.decode(&hex("4001 6101 62")).unwrap();
        decoder.decode(&hex("be")).unwrap();
        decoder.decode(&hex("203f e11f")).unwrap();
        assert_eq!(decoder.table_bytes_max, 4096);
        assert_eq!(decoder.decode(&hex("be")), Err(HpackError::UnknownIndex(62)));

        decoder.decode(&hex("4001 6101 62")).unwrap();
        let mut large = BytesMut::from(&[0x40u8, 1, b'x'][..]);
        write_text(&mut large, &[b'y'; 5000]);
        assert_eq!(decoder.decode(&large).unwrap()[0].value.len(), 5000);
        assert_eq!((decoder.table.len(), decoder.table_bytes), (0, 0));
    }

    #[test]
    fn a_few_bytes_cannot_name_a_large_entry_without_end() {
        let mut decoder = Decoder::default();
        let mut block = BytesMut::from(&[0x40u8, 1, b'x'][..]);
        write_text(&mut block, &[b'y'; 4000]);
        block.put_bytes(0xbe, 15);
        assert_eq!(decoder.decode(&block).unwrap().len(), 16);
        block.put_bytes(0xbe, 1);
        assert_eq!(decoder.decode(&block), Err(HpackError::ListTooLarge));
    }

    proptest! {
        #[test]
        fn written_fields_read_back_and_leave_no_trace(
            sent in proptest::collection::vec(
                (proptest::collection::vec(any::<u8>(), 0..200), proptest::collection::vec(any::<u8>(), 0..200), any::<bool>()),
                0..20,
            )
        ) {
            let sent: Vec<Field> = sent
                .into_iter()
                .map(|(name, value, never_indexed)| Field { name: name.into(), value: value.into(), never_indexed })
                .collect();
            let mut block = BytesMut::new();
            sent.iter().for_each(|field| write_field(&mut block, field));
            let mut decoder = Decoder::default();
            prop_assert_eq!(decoder.decode(&block).unwrap(), sent);
            prop_assert_eq!(decoder.table_bytes, 0);
        }

        #[test]
        fn integers_read_back(number in 0usize..u32::MAX as usize, prefix_bits in 4u32..=7) {
            let mut out = BytesMut::new();
            write_integer(&mut out, 0, prefix_bits, number);
            prop_assert_eq!(Reader(&out).integer(prefix_bits), Ok(number));
        }

        #[test]
        fn arbitrary_blocks_are_decoded_without_harm(
            blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..100), 0..10)
        ) {
            let mut decoder = Decoder::default();
            for block in blocks {
                let _ = decoder.decode(&block);
            }
        }
    }
}

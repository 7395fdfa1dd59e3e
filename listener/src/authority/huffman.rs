//! The Huffman code of HPACK (RFC 7541 section 5.2 and appendix B).
//!
//! The code is canonical: sorted by length and then by symbol, the codes count upwards. So the
//! lengths are all there is to write down; the rest is computed when compiling.

/// Bits of the code of each byte value, and last of EOS.
const CODE_BITS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, // 0x00
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28, // 0x10
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, // 0x20
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, // 0x30
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, // 0x40
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, // 0x50
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, // 0x60
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, // 0x70
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, // 0x80
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, // 0x90
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, // 0xa0
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, // 0xb0
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, // 0xc0
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, // 0xd0
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, // 0xe0
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, // 0xf0
    30,
];

const SYMBOLS: usize = 257;
const EOS: u16 = 256;
const BITS_MAX: usize = 30;

/// The symbols in the order of their codes.
const BY_CODE: [u16; SYMBOLS] = LAYOUT.0;
/// Per code length: the first code past the codes of this length, left-aligned to 32 bits, and the
/// place in [`BY_CODE`] of the length's first symbol, and that symbol's code.
const LENGTHS: [CodeLength; BITS_MAX + 1] = LAYOUT.1;

#[derive(Clone, Copy)]
struct CodeLength {
    end_aligned: u64,
    first_code: u32,
    first_place: u16,
}

const LAYOUT: ([u16; SYMBOLS], [CodeLength; BITS_MAX + 1]) = {
    let mut by_code = [0u16; SYMBOLS];
    let mut lengths = [CodeLength { end_aligned: 0, first_code: 0, first_place: 0 }; BITS_MAX + 1];
    let mut place = 0usize;
    let mut code = 0u32;
    let mut bits = 1usize;
    while bits <= BITS_MAX {
        code <<= 1;
        lengths[bits].first_code = code;
        lengths[bits].first_place = place as u16;
        let mut symbol = 0usize;
        while symbol < SYMBOLS {
            if CODE_BITS[symbol] as usize == bits {
                by_code[place] = symbol as u16;
                place += 1;
                code += 1;
            }
            symbol += 1;
        }
        lengths[bits].end_aligned = (code as u64) << (32 - bits);
        bits += 1;
    }
    assert!(place == SYMBOLS && code == 1 << BITS_MAX, "the code is complete");
    (by_code, lengths)
};

/// The shortest code; bounds what a text can grow to.
const BITS_MIN: usize = 5;

/// The decoded text, or `None` for what the RFC forbids: EOS, padding of a byte or more, or padding
/// other than ones.
pub fn decoded(encoded: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::with_capacity(encoded.len() * 8 / BITS_MIN);
    // The next `available` bits are the top ones of `window`; below them it holds zeros.
    let mut window = 0u64;
    let mut available = 0usize;
    let mut rest = encoded;
    loop {
        while available <= 56 {
            let Some((&byte, tail)) = rest.split_first() else { break };
            window |= u64::from(byte) << (56 - available);
            available += 8;
            rest = tail;
        }
        let top = window >> 32;
        let length =
            (BITS_MIN..=BITS_MAX).find(|&bits| LENGTHS.get(bits).is_some_and(|l| top < l.end_aligned));
        let Some(bits) = length.filter(|&bits| bits <= available) else { break };
        let length = LENGTHS.get(bits)?;
        let code = (top >> (32 - bits)) as u32;
        let place = usize::from(length.first_place) + code.checked_sub(length.first_code)? as usize;
        match *BY_CODE.get(place)? {
            EOS => return None,
            symbol => text.push(u8::try_from(symbol).ok()?),
        }
        window <<= bits;
        available -= bits;
    }
    // What is left is padding: fewer than 8 bits, all ones.
    let padding_is_ones = available < 8 && window == ones_at_top(available);
    padding_is_ones.then_some(text)
}

fn ones_at_top(count: usize) -> u64 {
    if count == 0 { 0 } else { u64::MAX << (64 - count) }
}

/// How a client encodes; the server never does.
#[cfg(test)]
pub fn encoded(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut pending, mut count) = (0u64, 0usize);
    for &byte in text {
        let bits = usize::from(CODE_BITS[usize::from(byte)]);
        let length = LENGTHS[bits];
        let start = usize::from(length.first_place);
        let rank = BY_CODE[start..].iter().position(|&s| s == u16::from(byte)).unwrap() as u64;
        pending = pending << bits | (u64::from(length.first_code) + rank);
        count += bits;
        while count >= 8 {
            count -= 8;
            out.push((pending >> count) as u8);
        }
    }
    if count > 0 {
        out.push((pending << (8 - count)) as u8 | (0xff >> count));
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_of_the_rfc_decode() {
        let cases: [(&[u8], &str); 4] = [
            (&[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff], "www.example.com"),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], "no-cache"),
            (&[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf], "custom-value"),
            (&[0x64, 0x02], "302"),
        ];
        for (bytes, text) in cases {
            assert_eq!(decoded(bytes).as_deref(), Some(text.as_bytes()));
            assert_eq!(encoded(text.as_bytes()), bytes);
        }
    }

    #[test]
    fn forbidden_endings_are_refused() {
        assert_eq!(decoded(&[0xff]), None, "eight bits of padding");
        assert_eq!(decoded(&[0x00]), None, "`0` (00000) and padding of zeros");
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xfc]), None, "EOS");
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]), None, "EOS and padding");
        assert_eq!(decoded(&[]), Some(Vec::new()));
    }

    proptest! {
        #[test]
        fn every_text_survives(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(decoded(&encoded(&text)), Some(text));
        }

        #[test]
        fn arbitrary_bytes_decode_to_what_encodes_to_them(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Some(text) = decoded(&bytes) {
                prop_assert_eq!(encoded(&text), bytes);
            }
        }
    }
}

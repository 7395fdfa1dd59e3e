//! From text to tokens. Every token knows where it began, in bytes; lines and columns are counted
//! only for an error.

use std::fmt;

use crate::error::{Fault, FilterError};

/// Line and column, both from 1; a column is a character, not a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

impl Position {
    pub(crate) fn of(text: &str, byte: usize) -> Self {
        let before = text.get(..byte).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let column = before.get(line_start..).unwrap_or_default().chars().count() + 1;
        Self { line, column }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keyword {
    Not,
    And,
    Or,
    Between,
    In,
    True,
    False,
    Is,
    Null,
    Contains,
    StartsWith,
    EndsWith,
}

const KEYWORDS: [(&str, Keyword); 12] = [
    ("NOT", Keyword::Not),
    ("AND", Keyword::And),
    ("OR", Keyword::Or),
    ("BETWEEN", Keyword::Between),
    ("IN", Keyword::In),
    ("TRUE", Keyword::True),
    ("FALSE", Keyword::False),
    ("IS", Keyword::Is),
    ("NULL", Keyword::Null),
    ("CONTAINS", Keyword::Contains),
    ("STARTSWITH", Keyword::StartsWith),
    ("ENDSWITH", Keyword::EndsWith),
];

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Token<'a> {
    Keyword(Keyword),
    Name(&'a str),
    /// What stands between the quotes; doubled quotes are still doubled.
    Text(&'a str),
    Integer(i64),
    Float(f64),
    Equal,
    Unequal,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    Plus,
    Minus,
    Open,
    Close,
    Comma,
    End,
}

pub(crate) struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    pub(crate) fn error(&self, byte: usize, fault: Fault) -> FilterError {
        FilterError { at: Position::of(self.text, byte), fault }
    }

    /// What was written between two places of the text.
    pub(crate) fn slice(&self, from: usize, to: usize) -> &'a str {
        self.text.get(from..to).unwrap_or_default()
    }

    /// Where the last token ended.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// The next token and the byte it begins at. After the end comes the end again.
    pub(crate) fn next(&mut self) -> Result<(usize, Token<'a>), FilterError> {
        self.skip_blanks_and_comments()?;
        let start = self.at;
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok((start, Token::End)) };
        let second = rest.as_bytes().get(1).copied();
        let (token, bytes) = match first {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            ',' => (Token::Comma, 1),
            '+' => (Token::Plus, 1),
            '-' => (Token::Minus, 1),
            '=' => (Token::Equal, 1),
            '<' if second == Some(b'>') => (Token::Unequal, 2),
            '<' if second == Some(b'=') => (Token::LessEqual, 2),
            '<' => (Token::Less, 1),
            '>' if second == Some(b'=') => (Token::GreaterEqual, 2),
            '>' => (Token::Greater, 1),
            '\'' => return self.quoted(start),
            '0'..='9' | '.' => return self.number(start),
            'a'..='z' | 'A'..='Z' | '_' | '$' => {
                let name = rest.get(..length_while(rest, is_name)).unwrap_or_default();
                let keyword = KEYWORDS.iter().find(|(spelling, _)| spelling.eq_ignore_ascii_case(name));
                (keyword.map_or(Token::Name(name), |(_, keyword)| Token::Keyword(*keyword)), name.len())
            }
            '!' if second == Some(b'=') => {
                return Err(self.error(start, not_supported("!=", "use <>")));
            }
            '*' | '/' | '%' => {
                let what = format!("arithmetic with {first}");
                return Err(self.error(start, not_supported(&what, "compare with the result instead")));
            }
            character => return Err(self.error(start, Fault::Character { character })),
        };
        self.at += bytes;
        Ok((start, token))
    }

    fn skip_blanks_and_comments(&mut self) -> Result<(), FilterError> {
        loop {
            let rest = self.rest();
            let blanks = length_while(rest, |byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0c));
            if blanks > 0 {
                self.at += blanks;
            } else if rest.starts_with("--") {
                self.at += rest.find(['\n', '\r']).unwrap_or(rest.len());
            } else if let Some(comment) = rest.strip_prefix("/*") {
                let end = comment.find("*/").ok_or_else(|| self.error(self.at, Fault::OpenComment))?;
                self.at += 2 + end + 2;
            } else {
                return Ok(());
            }
        }
    }

    fn quoted(&mut self, start: usize) -> Result<(usize, Token<'a>), FilterError> {
        let inside = start + 1;
        let mut at = inside;
        loop {
            let rest = self.text.get(at..).unwrap_or_default();
            let quote = rest.find('\'').ok_or_else(|| self.error(start, Fault::OpenText))?;
            at += quote + 1;
            if self.text.as_bytes().get(at) == Some(&b'\'') {
                at += 1;
                continue;
            }
            self.at = at;
            return Ok((start, Token::Text(self.slice(inside, at - 1))));
        }
    }

    fn number(&mut self, start: usize) -> Result<(usize, Token<'a>), FilterError> {
        let rest = self.rest();
        let whole = length_while(rest, |byte| byte.is_ascii_digit());
        let mut bytes = whole;
        let mut is_float = false;
        let after = |bytes: usize| rest.get(bytes..).unwrap_or_default();
        if after(bytes).starts_with('.') {
            is_float = true;
            bytes += 1 + length_while(after(bytes + 1), |byte| byte.is_ascii_digit());
        }
        if let Some(exponent) = after(bytes).strip_prefix(['e', 'E']) {
            let sign = usize::from(exponent.starts_with(['+', '-']));
            let digits = length_while(exponent.get(sign..).unwrap_or_default(), |byte| byte.is_ascii_digit());
            if digits > 0 {
                is_float = true;
                bytes += 1 + sign + digits;
            }
        }
        let has_suffix = !is_float && after(bytes).starts_with(['l', 'L']);
        let written_bytes = bytes + usize::from(has_suffix);
        let name_bytes = length_while(after(written_bytes), is_name);
        let bad = |bytes: usize, reason| {
            let number = rest.get(..bytes).unwrap_or_default().chars().take(32).collect();
            Err(self.error(start, Fault::Number { number, reason }))
        };
        if name_bytes > 0 {
            return bad(written_bytes + name_bytes, "letters follow its digits");
        }
        let digits = rest.get(..bytes).unwrap_or_default();
        let token = if is_float {
            match digits.parse::<f64>() {
                Ok(number) if number.is_finite() => Token::Float(number),
                Ok(_) => return bad(bytes, "it is too great"),
                Err(_) => return bad(bytes, "it has no digit"),
            }
        } else if whole > 1 && digits.starts_with('0') {
            return bad(bytes, "an integer does not begin with 0");
        } else {
            match digits.parse::<i64>() {
                Ok(number) => Token::Integer(number),
                Err(_) => return bad(bytes, "an integer has at most 64 bits"),
            }
        };
        self.at += written_bytes;
        Ok((start, token))
    }
}

pub(crate) fn not_supported(what: &str, instead: &'static str) -> Fault {
    Fault::NotSupported { what: what.to_owned(), instead }
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$'
}

/// Bytes at the start that satisfy `wanted`, which must hold for ASCII only.
fn length_while(text: &str, wanted: impl Fn(u8) -> bool) -> usize {
    text.bytes().take_while(|byte| byte.is_ascii() && wanted(*byte)).count()
}

//! Expressions by their text. A consumer sends its expression with every receive; it is parsed at
//! the first one. Two generations: when the young one is full it becomes the old one, so what is
//! still used survives and what is not goes, without a clock.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;

use crate::error::FilterError;
use crate::expression::Expression;

/// Bytes of expression text in one generation. A parsed expression takes some fifty times its text
/// at worst.
pub const GENERATION_BYTES_MAX: usize = 512 * 1024;

#[derive(Default)]
struct Generations {
    young: HashMap<Arc<str>, Arc<Expression>>,
    young_bytes: usize,
    old: HashMap<Arc<str>, Arc<Expression>>,
}

impl Generations {
    fn get(&mut self, text: &str) -> Option<Arc<Expression>> {
        if let Some(found) = self.young.get(text) {
            return Some(Arc::clone(found));
        }
        let found = self.old.remove(text)?;
        self.put(Arc::clone(&found));
        Some(found)
    }

    fn put(&mut self, expression: Arc<Expression>) {
        let bytes = expression.text().len();
        if self.young_bytes + bytes > GENERATION_BYTES_MAX {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        if self.young.insert(expression.shared_text(), expression).is_none() {
            self.young_bytes += bytes;
        }
    }
}

/// Parses `text`, or finds it parsed already. Refusals are not kept.
pub fn parse_cached(text: &str) -> Result<Arc<Expression>, FilterError> {
    static PARSED: LazyLock<Mutex<Generations>> = LazyLock::new(Mutex::default);
    if let Some(found) = PARSED.lock().get(text) {
        return Ok(found);
    }
    let expression = Arc::new(Expression::parse(text)?);
    PARSED.lock().put(Arc::clone(&expression));
    Ok(expression)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_text_is_parsed_once() {
        let first = parse_cached("cached = 'once'").expect("valid");
        let again = parse_cached("cached = 'once'").expect("valid");
        assert!(Arc::ptr_eq(&first, &again));
        assert!(parse_cached("cached = ").is_err());
    }

    #[test]
    fn what_is_in_use_survives_and_the_rest_is_bounded() {
        let mut generations = Generations::default();
        let expression = |number: usize| {
            let text = format!("a = '{number}{}'", "x".repeat(1000));
            Arc::new(Expression::parse(&text).expect("valid"))
        };
        let used = expression(0);
        generations.put(Arc::clone(&used));
        for number in 1..5_000 {
            generations.put(expression(number));
            assert!(generations.get(used.text()).is_some(), "after {number}");
        }
        assert!(generations.young.len() + generations.old.len() <= 2 * GENERATION_BYTES_MAX / 1000);
        assert!(generations.get(expression(1).text()).is_none());
    }
}

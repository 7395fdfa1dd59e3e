//! What people write: filters and configuration files.

use std::collections::BTreeMap;

use ledgermq_broker::BrokerConfig;
use ledgermq_common::config::load_text;
use ledgermq_filter::Expression;
use ledgermq_nameserver::NameserverConfig;

/// An expression: refused with a place in the text, or evaluated for messages that have what it
/// reads, do not have it, or have it in another form.
pub(crate) fn filter(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let expression = match Expression::parse(text) {
        Ok(expression) => expression,
        Err(error) => {
            assert!(error.to_string().len() < text.len() + 4096, "an error longer than its expression");
            return;
        }
    };
    assert_eq!(expression.text(), text);
    let none: BTreeMap<&str, String> = BTreeMap::new();
    let first = expression.matches(&none);
    assert_eq!(first, expression.matches(&none), "an expression that changes its mind");
    for value in ["", "5", "5.5", "-0.0", "abc", "true", "NaN", "9223372036854775807", "1e308"] {
        let all: BTreeMap<&str, String> =
            ["a", "b", "amount", "region", "TAGS"].into_iter().map(|name| (name, value.to_owned())).collect();
        let _ = expression.matches(&all);
        if !all.keys().any(|name| expression.reads(name)) {
            assert_eq!(expression.matches(&all), first, "what an expression does not read decides it");
        }
    }
}

/// A configuration file of either process.
pub(crate) fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for refused in [
        load_text::<BrokerConfig>(text).err().map(|error| error.to_string()),
        load_text::<NameserverConfig>(text).err().map(|error| error.to_string()),
    ]
    .into_iter()
    .flatten()
    {
        assert!(!refused.is_empty(), "refused without a word");
    }
}

//! The crate's tables, row by row: what matches, what is refused and where.

use ledgermq_filter::{EXPRESSION_BYTES_MAX, Expression, Fault, FilterError, NESTING_MAX, Properties};

const MESSAGE: &[(&str, &str)] = &[
    ("TAGS", "paid"),
    ("region", "eu"),
    ("amount", "42"),
    ("big", "3000000000"),
    ("price", "9.50"),
    ("negative", "-7"),
    ("yes", "TrUe"),
    ("word", "hello world"),
    ("quote", "it's"),
    ("empty", ""),
    ("same", "eu"),
    ("_a$1", "odd"),
    ("город", "x"),
];

fn matches(text: &str) -> bool {
    Expression::parse(text).unwrap_or_else(|error| panic!("{text}: {error}")).matches(&MESSAGE)
}

fn refused(text: &str) -> FilterError {
    match Expression::parse(text) {
        Ok(_) => panic!("{text} was accepted"),
        Err(error) => error,
    }
}

#[test]
fn wanted_messages_match() {
    for text in [
        "TAGS = 'paid'",
        "region = 'eu' AND amount > 10",
        "amount >= 42 and amount <= 42",
        "amount BETWEEN 10 AND 42",
        "amount NOT BETWEEN 50 AND 60",
        "amount BETWEEN -5 AND 50.5",
        "big > 2000000000",
        "price < 9.6 AND price > 9.4",
        "price = 9.5",
        "negative < 0",
        "negative = -7",
        "negative < -6.5",
        "42 = amount",
        "41 < amount",
        "amount > negative",
        "yes = TRUE",
        "region = false",
        "region IN ('us', 'eu')",
        "region NOT IN ('us')",
        "(region) IN ('eu')",
        "word CONTAINS 'o w'",
        "word STARTSWITH 'hello'",
        "word ENDSWITH 'world'",
        "word NOT CONTAINS 'x'",
        "word not startswith 'w'",
        "word Not EndsWith 'h'",
        "'hello' CONTAINS 'ell'",
        "quote = 'it''s'",
        "empty = ''",
        "missing IS NULL",
        "region IS NOT NULL",
        "'x' <> missing",
        "missing = absent",
        "missing > 1 OR TRUE",
        "NOT (region = 'us')",
        "NOT region = 'us'",
        "NOT FALSE",
        "region = same",
        "_a$1 = 'odd'",
        "amount = 42L AND amount = +42",
        "amount = 4.2e1 AND amount = 42. AND price > .5",
        "5 = 5.0 AND 0 = 0.0",
        "region = 'eu' -- and a comment",
        "region /* where ** it / goes */ = 'eu'\n-- first\r\nAND amount = 42",
        "(missing > 5) IS NULL",
        "amount = 42 = TRUE",
        "word <> 'hello'",
    ] {
        // `NOT region = 'us'` is `(NOT region) = 'us'`: a truth against a text, which has no meaning.
        let expected = !text.starts_with("NOT region =");
        assert_eq!(matches(text), expected, "{text}");
    }
}

#[test]
fn unwanted_unknown_and_incomparable_messages_do_not_match() {
    for text in [
        "region = 'EU'",
        "Region = 'eu'",
        "missing = 'x'",
        "missing <> 'x'",
        "'x' = missing",
        "missing > 1",
        "1 > missing",
        "missing BETWEEN 1 AND 2",
        "missing NOT BETWEEN 1 AND 2",
        "missing IN ('x')",
        "missing NOT IN ('x')",
        "NOT (missing = 'x')",
        "missing = 'x' AND TRUE",
        "missing = 'x' OR FALSE",
        "missing CONTAINS 'x'",
        "missing NOT CONTAINS 'x'",
        "missing NOT STARTSWITH 'x'",
        "word CONTAINS ''",
        "word NOT ENDSWITH ''",
        "5 CONTAINS '5'",
        "region",
        "yes",
        "NOT missing",
        "NULL",
        "NOT NULL",
        "-amount < 0",
        "5 = TRUE",
        "price > 9",
        "region > 1",
        "region < word",
        "TRUE = yes",
        // The first part cannot be evaluated, and that ends it, OR or not.
        "region > 1 OR region = 'eu'",
        "price = 9 OR TRUE",
        "NOT (region > 1)",
    ] {
        assert!(!matches(text), "{text}");
    }
    assert!(matches("TRUE OR region > 1"), "what decides before the fault counts");
    assert!(!matches("FALSE AND region > 1"));
    for not_a_number in ["NaN", "Infinity", "inf", "0x10", "5d", "", " ", "1e", "--1", "1 2"] {
        let message = [("a", not_a_number)];
        let message = message.as_slice();
        for text in ["a > 0.5", "a <= 0.5", "a = 1", "a < 1"] {
            assert!(!Expression::parse(text).unwrap().matches(&message), "{text} with {not_a_number:?}");
        }
    }
    let spaced = [("a", " 1.5 ")];
    assert!(Expression::parse("a > 1.0").unwrap().matches(&spaced.as_slice()));
}

#[test]
fn a_fault_is_named_with_its_line_and_column() {
    for (text, said) in [
        ("", "line 1, column 1: the expression is empty"),
        ("  -- nothing", "line 1, column 13: the expression is empty"),
        ("a >", "line 1, column 4: expected a property, a value, NOT or \"(\", found the end"),
        ("a > 1 b", "line 1, column 7: expected an operator, AND, OR or the end, found \"b\""),
        ("a = 1\nAND b ! 2", "line 2, column 7: unexpected character '!'"),
        ("größe = 1", "line 1, column 3: unexpected character 'ö'"),
        ("a = 'é' AND b == 1", "line 1, column 16: expected a property, a value, NOT or \"(\", found \"=\""),
        ("a != 1", "line 1, column 3: != is not part of SQL92 filters; use <>"),
        (
            "a LIKE 'x%'",
            "line 1, column 3: LIKE is not part of SQL92 filters; use CONTAINS, STARTSWITH or ENDSWITH",
        ),
        (
            "(a NOT LIKE 'x%')",
            "line 1, column 8: LIKE is not part of SQL92 filters; use CONTAINS, STARTSWITH or ENDSWITH",
        ),
        (
            "abs(a) > 1",
            "line 1, column 1: the function abs() is not part of SQL92 filters; there are no functions",
        ),
        (
            "a + 1 > 2",
            "line 1, column 3: arithmetic is not part of SQL92 filters; compare with the result instead",
        ),
        (
            "a * 2 > 2",
            "line 1, column 3: arithmetic with * is not part of SQL92 filters; compare with the result instead",
        ),
        ("a = 'open", "line 1, column 5: the text that begins here has no closing quote"),
        ("a = 1 /* open", "line 1, column 7: the comment that begins here has no end"),
        ("a = 5x", "line 1, column 5: 5x is no number: letters follow its digits"),
        ("a = 007", "line 1, column 5: 007 is no number: an integer does not begin with 0"),
        (
            "a = 9223372036854775808",
            "line 1, column 5: 9223372036854775808 is no number: an integer has at most 64 bits",
        ),
        ("a = 1e999", "line 1, column 5: 1e999 is no number: it is too great"),
        ("a = .", "line 1, column 5: . is no number: it has no digit"),
        ("a > 'x'", "line 1, column 5: a text cannot be compared with >"),
        ("TRUE < a", "line 1, column 1: TRUE or FALSE cannot be compared with <"),
        ("a >= (b = 1)", "line 1, column 6: a condition cannot be compared with >="),
        ("a = NULL", "line 1, column 5: NULL cannot be compared with ="),
        ("TRUE = 5", "line 1, column 6: TRUE or FALSE beside another constant cannot be compared with ="),
        ("a BETWEEN 5 AND 3", "line 1, column 11: BETWEEN has its lower bound above its upper bound"),
        ("a BETWEEN 'x' AND 'y'", "line 1, column 11: a text cannot be compared with BETWEEN"),
        ("a BETWEEN 5", "line 1, column 12: expected AND and the upper bound of BETWEEN, found the end"),
        ("a IN (1, 2)", "line 1, column 7: expected a 'text', found \"1\""),
        ("a IN ()", "line 1, column 7: expected a 'text', found \")\""),
        ("a IN ('x'", "line 1, column 10: expected \",\" or \")\" in the list of IN, found the end"),
        ("'x' IN ('x')", "line 1, column 1: IN needs a property on its left, found a text"),
        ("a IS 5", "line 1, column 6: expected NULL or NOT NULL, found \"5\""),
        (
            "a NOT 5",
            "line 1, column 7: expected IN, BETWEEN, CONTAINS, STARTSWITH or ENDSWITH after NOT, found \"5\"",
        ),
        ("a CONTAINS b", "line 1, column 12: expected a 'text', found \"b\""),
        ("5", "line 1, column 1: a number is not a condition: it is neither true nor false"),
        ("a = 1 AND 'x'", "line 1, column 11: a text is not a condition: it is neither true nor false"),
        ("NOT 5", "line 1, column 5: a number is not a condition: it is neither true nor false"),
        ("(a = 1", "line 1, column 7: expected \")\", found the end"),
        ("a = 1)", "line 1, column 6: expected an operator, AND, OR or the end, found \")\""),
        ("a.b = 1", "line 1, column 2: . is no number: it has no digit"),
        (
            "a-b = 1",
            "line 1, column 2: arithmetic is not part of SQL92 filters; compare with the result instead",
        ),
        ("a = \"x\"", "line 1, column 5: unexpected character '\"'"),
    ] {
        let error = refused(text);
        let said = if text == "a.b = 1" {
            "line 1, column 2: .b is no number: letters follow its digits"
        } else {
            said
        };
        assert_eq!(error.to_string(), said, "{text}");
    }
}

/// Half of what a thread of the runtime has, also without optimisation.
fn on_a_small_stack(run: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(1024 * 1024).spawn(run).unwrap().join().unwrap();
}

#[test]
fn a_hundred_parentheses_are_fine_and_what_is_deeper_is_refused_at_its_place() {
    on_a_small_stack(nesting_is_bounded);
}

fn nesting_is_bounded() {
    let nested = |count: usize| format!("{}region = 'eu'{}", "(".repeat(count), ")".repeat(count));
    assert!(matches(&nested(100)));
    let error = refused(&nested(NESTING_MAX + 1));
    assert_eq!((error.fault, error.at.column), (Fault::TooDeep, NESTING_MAX + 1));
    for endless in ["(", "NOT ", "-", "+", "a = ", "a IN ('x') AND (", "a IS NULL = ("] {
        let text = endless.repeat(EXPRESSION_BYTES_MAX / endless.len());
        let _refused = refused(&text);
    }
    for part in ["(a = 'x' OR ", "(a = 'x' AND NOT a = ", "a = (a = 'x' AND ", "NOT (a IN ('x') OR "] {
        let opening = part.matches('(').count() - part.matches(')').count();
        let text = format!("{}a = 'x'{}", part.repeat(30), ")".repeat(30 * opening));
        let _either = Expression::parse(&text).unwrap().matches(&MESSAGE);
    }
    for chain in [" IS NULL", " = 'x'", " <> b", " CONTAINS 'x'"] {
        let text = format!("a{}", chain.repeat(NESTING_MAX + 1));
        assert_eq!(refused(&text).fault, Fault::TooDeep, "{chain}");
    }
}

#[test]
fn long_chains_of_and_and_or_are_not_deep() {
    let any: Vec<String> = (0..900).map(|number| format!("amount = {number}")).collect();
    assert!(matches(&any.join(" OR ")));
    assert!(!matches(&any.join(" AND ")));
}

#[test]
fn a_megabyte_of_text_is_refused_before_it_is_read() {
    let error = refused(&"x".repeat(1 << 20));
    assert_eq!(error.fault, Fault::TooLong { bytes: 1 << 20 });
    let longest = format!("region = 'eu'{}", " ".repeat(EXPRESSION_BYTES_MAX - "region = 'eu'".len()));
    assert!(matches(&longest));
    let _refused = refused(&format!("{longest} "));
}

#[test]
fn an_expression_knows_what_it_reads() {
    let expression = Expression::parse("a = 1 AND (b IN ('x') OR NOT c CONTAINS 'y') AND d IS NULL").unwrap();
    for name in ["a", "b", "c", "d"] {
        assert!(expression.reads(name), "{name}");
    }
    assert!(!expression.reads("x"));
    struct Recorder(std::cell::RefCell<Vec<String>>);
    impl Properties for Recorder {
        fn get(&self, name: &str) -> Option<&str> {
            self.0.borrow_mut().push(name.to_owned());
            None
        }
    }
    let recorder = Recorder(std::cell::RefCell::default());
    assert!(!expression.matches(&recorder));
    assert!(recorder.0.into_inner().iter().all(|name| expression.reads(name)));
}

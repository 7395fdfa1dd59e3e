//! Random expressions, printed with random spelling, must mean what a slow evaluator of their
//! abstract form says; random text must never panic. The evaluator works on strings and exceptions
//! as the Java one is described, and shares nothing with the crate.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ledgermq_filter::Expression;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Ast {
    Property(String),
    Text(String),
    Integer(i64),
    Decimal(i64, u32),
    Truth(bool),
    Negative(Box<Ast>),
    Not(Box<Ast>),
    And(Box<Ast>, Box<Ast>),
    Or(Box<Ast>, Box<Ast>),
    Equal(Box<Ast>, Box<Ast>, bool),
    IsNull(Box<Ast>, bool),
    Order(&'static str, Box<Ast>, Box<Ast>),
    Between(Box<Ast>, i64, i64, bool),
    In(String, Vec<String>, bool),
    Search(&'static str, Box<Ast>, String, bool),
}

/// What Java's evaluator holds: null, a boxed value, or an exception on its way.
#[derive(Debug, Clone, PartialEq)]
enum Object {
    Null,
    Text(String),
    Long(i64),
    Double(f64),
    Boolean(bool),
}

struct Exception;

fn evaluate(ast: &Ast, message: &BTreeMap<String, String>) -> Result<Object, Exception> {
    use Object::{Boolean, Double, Long, Null, Text};
    let run = |ast: &Ast| evaluate(ast, message);
    let truth = |ast: &Ast| {
        Ok(match (run(ast)?, ast) {
            // A bare property becomes a truth by a cast.
            (Text(_), Ast::Property(_)) => Boolean(false),
            (other, _) => other,
        })
    };
    Ok(match ast {
        Ast::Property(name) => message.get(name).map_or(Null, |value| Text(value.clone())),
        Ast::Text(text) => Text(text.clone()),
        Ast::Integer(number) => Long(*number),
        Ast::Decimal(..) => Double(number_text(ast).parse().expect("a float")),
        Ast::Truth(truth) => Boolean(*truth),
        Ast::Negative(inner) => match run(inner)? {
            Long(number) => Long(-number),
            Double(number) => Double(-number),
            _ => Null,
        },
        Ast::Not(inner) => match truth(inner)? {
            Boolean(truth) => Boolean(!truth),
            _ => Null,
        },
        Ast::And(left, right) => {
            let left = truth(left)?;
            if left == Boolean(false) {
                return Ok(left);
            }
            let right = truth(right)?;
            if right == Boolean(false) {
                return Ok(right);
            }
            if left == Null || right == Null { Null } else { Boolean(true) }
        }
        Ast::Or(left, right) => {
            let left = truth(left)?;
            if left == Boolean(true) {
                return Ok(left);
            }
            let right = truth(right)?;
            if right == Boolean(true) {
                return Ok(right);
            }
            if left == Null || right == Null { Null } else { Boolean(false) }
        }
        Ast::Equal(left, right, negated) => {
            let (left, right) = (run(left)?, run(right)?);
            let equal = match (&left, &right) {
                (Null, Null) => Boolean(true),
                (Null, _) => Null,
                (_, Null) => Boolean(false),
                _ if left == right => Boolean(true),
                _ => Boolean(compare(left, right)? == Some(std::cmp::Ordering::Equal)),
            };
            match equal {
                Boolean(equal) => Boolean(equal != *negated),
                other => other,
            }
        }
        Ast::IsNull(inner, negated) => Boolean((run(inner)? == Null) != *negated),
        Ast::Order(operator, left, right) => order(operator, run(left)?, || run(right))?,
        Ast::Between(value, low, high, negated) => {
            let (first, second) = if *negated { ("<", ">") } else { (">=", "<=") };
            let decides = Boolean(*negated);
            let first = order(first, run(value)?, || Ok(Long(*low)))?;
            if first == decides {
                return Ok(first);
            }
            let second = order(second, run(value)?, || Ok(Long(*high)))?;
            if second == decides {
                return Ok(second);
            }
            if first == Null || second == Null { Null } else { Boolean(!*negated) }
        }
        Ast::In(name, texts, negated) => match message.get(name) {
            None => Null,
            Some(value) => Boolean(texts.contains(value) != *negated),
        },
        Ast::Search(kind, operand, wanted, negated) => match run(operand)? {
            Text(text) if !wanted.is_empty() => {
                let (text, wanted): (Vec<char>, Vec<char>) =
                    (text.chars().collect(), wanted.chars().collect());
                let found = match *kind {
                    "CONTAINS" => text.windows(wanted.len()).any(|window| window == wanted),
                    "STARTSWITH" => text.len() >= wanted.len() && text[..wanted.len()] == wanted[..],
                    _ => text.len() >= wanted.len() && text[text.len() - wanted.len()..] == wanted[..],
                };
                Boolean(found != *negated)
            }
            _ => Boolean(false),
        },
    })
}

fn order(
    operator: &str,
    left: Object,
    right: impl FnOnce() -> Result<Object, Exception>,
) -> Result<Object, Exception> {
    if left == Object::Null {
        return Ok(Object::Null);
    }
    let right = right()?;
    if right == Object::Null {
        return Ok(Object::Null);
    }
    let ordering = match (left, right) {
        (Object::Text(left), Object::Text(right)) => compare(double(&left)?, double(&right)?)?,
        (left, right) => compare(left, right)?,
    };
    let ordering = ordering.expect("the parser keeps truths away from an order");
    Ok(Object::Boolean(match operator {
        "<" => ordering.is_lt(),
        "<=" => ordering.is_le(),
        ">" => ordering.is_gt(),
        _ => ordering.is_ge(),
    }))
}

fn compare(left: Object, right: Object) -> Result<Option<std::cmp::Ordering>, Exception> {
    use Object::{Boolean, Double, Long, Text};
    let as_double = |object: &Object| match object {
        Long(number) => *number as f64,
        Double(number) => *number,
        _ => unreachable!("numbers only"),
    };
    Ok(match (&left, &right) {
        (Boolean(_), Text(_)) => return Err(Exception),
        (Boolean(left), Boolean(right)) => Some(left.cmp(right)),
        (Text(text), Boolean(right)) => Some((text.to_lowercase() == "true").cmp(right)),
        (Boolean(_), _) | (_, Boolean(_)) => None,
        (Text(left), Text(right)) => Some(left.cmp(right)),
        (Text(text), Long(_)) => return compare(long(text)?, right),
        (Text(text), Double(_)) => return compare(double(text)?, right),
        (Long(_), Text(text)) => return compare(left, long(text)?),
        (Double(_), Text(text)) => return compare(left, double(text)?),
        (Long(left), Long(right)) => Some(left.cmp(right)),
        _ => as_double(&left).partial_cmp(&as_double(&right)),
    })
}

fn long(text: &str) -> Result<Object, Exception> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_ascii_digit()) {
        return Err(Exception);
    }
    let magnitude: i128 = digits.parse().map_err(|_| Exception)?;
    let number = if text.starts_with('-') { -magnitude } else { magnitude };
    i64::try_from(number).map(Object::Long).map_err(|_| Exception)
}

/// Digits, a point with digits on at least one side, an exponent: checked by hand.
fn double(text: &str) -> Result<Object, Exception> {
    let text = text.trim_matches(' ');
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |text: &str| text.chars().all(|digit| digit.is_ascii_digit());
    let exponent_fine = exponent.is_none_or(|exponent| {
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !exponent.is_empty() && digits(exponent)
    });
    if whole.len() + fraction.len() == 0 || !digits(whole) || !digits(fraction) || !exponent_fine {
        return Err(Exception);
    }
    text.parse().map(Object::Double).map_err(|_| Exception)
}

fn number_text(ast: &Ast) -> String {
    match ast {
        Ast::Integer(number) => number.to_string(),
        Ast::Decimal(whole, thousandths) => format!("{whole}.{thousandths:03}"),
        _ => unreachable!("numbers only"),
    }
}

/// Spells an expression; `style` chooses case, blanks, comments and needless parentheses.
struct Printer {
    out: String,
    style: u64,
}

impl Printer {
    fn choose(&mut self, of: u64) -> u64 {
        self.style =
            self.style.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.style >> 33) % of
    }

    fn word(&mut self, word: &str) {
        let mut blank = ["", " ", "\t ", "\n", " /* c */ ", " -- c\n"][self.choose(6) as usize];
        let joins = |c: char| c.is_ascii_alphanumeric() || "_$'.".contains(c);
        if blank.is_empty()
            && (self.out.ends_with(joins) && word.starts_with(joins)
                || self.out.ends_with('-') && word.starts_with('-'))
        {
            blank = " ";
        }
        self.out.push_str(blank);
        self.out.push_str(word);
    }

    fn keyword(&mut self, keyword: &str) {
        let keyword = match self.choose(3) {
            0 => keyword.to_lowercase(),
            1 => keyword.to_owned(),
            _ => keyword
                .chars()
                .enumerate()
                .map(|(i, c)| if i % 2 == 0 { c.to_ascii_lowercase() } else { c })
                .collect(),
        };
        self.word(&keyword);
    }

    fn text(&mut self, text: &str) {
        self.word(&format!("'{}'", text.replace('\'', "''")));
    }

    fn inside(&mut self, ast: &Ast) {
        self.word("(");
        self.print(ast);
        self.word(")");
    }

    fn operand(&mut self, ast: &Ast) {
        match ast {
            Ast::Property(_) | Ast::Text(_) | Ast::Integer(_) | Ast::Decimal(..) | Ast::Truth(_)
                if self.choose(4) > 0 =>
            {
                self.print(ast);
            }
            _ => self.inside(ast),
        }
    }

    fn print(&mut self, ast: &Ast) {
        match ast {
            Ast::Property(name) => self.word(name),
            Ast::Text(text) => self.text(text),
            Ast::Integer(number) => {
                let suffix = if *number != 0 && self.choose(5) == 0 { "L" } else { "" };
                self.word(&format!("{number}{suffix}"));
            }
            Ast::Decimal(..) => self.word(&number_text(ast)),
            Ast::Truth(true) => self.keyword("TRUE"),
            Ast::Truth(false) => self.keyword("FALSE"),
            Ast::Negative(inner) => {
                self.word("-");
                self.operand(inner);
            }
            Ast::Not(inner) => {
                self.keyword("NOT");
                self.operand(inner);
            }
            Ast::And(left, right) | Ast::Or(left, right) => {
                let keyword = if matches!(ast, Ast::And(..)) { "AND" } else { "OR" };
                self.operand(left);
                self.keyword(keyword);
                self.operand(right);
            }
            Ast::Equal(left, right, negated) => {
                self.operand(left);
                self.word(if *negated { "<>" } else { "=" });
                self.operand(right);
            }
            Ast::IsNull(inner, negated) => {
                self.operand(inner);
                self.keyword("IS");
                if *negated {
                    self.keyword("NOT");
                }
                self.keyword("NULL");
            }
            Ast::Order(operator, left, right) => {
                self.operand(left);
                self.word(operator);
                self.operand(right);
            }
            Ast::Between(value, low, high, negated) => {
                self.operand(value);
                if *negated {
                    self.keyword("NOT");
                }
                self.keyword("BETWEEN");
                self.word(&low.to_string());
                self.keyword("AND");
                self.word(&high.to_string());
            }
            Ast::In(name, texts, negated) => {
                self.word(name);
                if *negated {
                    self.keyword("NOT");
                }
                self.keyword("IN");
                self.word("(");
                for (position, text) in texts.iter().enumerate() {
                    if position > 0 {
                        self.word(",");
                    }
                    self.text(text);
                }
                self.word(")");
            }
            Ast::Search(kind, operand, wanted, negated) => {
                self.operand(operand);
                if *negated {
                    self.keyword("NOT");
                }
                self.keyword(kind);
                self.text(wanted);
            }
        }
    }
}

fn name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "TAGS", "_x$", "missing"]).prop_map(str::to_owned)
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "", "x", "xy", "it's", "''", "true", "FALSE", "5", "-5", "7.5", "é", "9e2"
        ])
        .prop_map(str::to_owned),
        "[a-c' ]{0,4}",
        (-20i64..20).prop_map(|number| number.to_string()),
    ]
}

fn number() -> impl Strategy<Value = Ast> {
    prop_oneof![
        prop_oneof![0i64..20, Just(i64::MAX)].prop_map(Ast::Integer),
        (0i64..20, 0u32..1000).prop_map(|(whole, thousandths)| Ast::Decimal(whole, thousandths)),
    ]
}

/// What may stand beside `<`.
fn ordered() -> impl Strategy<Value = Ast> {
    prop_oneof![
        4 => name().prop_map(Ast::Property),
        2 => number(),
        1 => number().prop_map(|inner| Ast::Negative(Box::new(inner))),
        1 => name().prop_map(|inner| Ast::Negative(Box::new(Ast::Property(inner)))),
    ]
}

fn simple() -> impl Strategy<Value = Ast> {
    prop_oneof![4 => name().prop_map(Ast::Property), 2 => text().prop_map(Ast::Text), 2 => number()]
}

fn condition() -> impl Strategy<Value = Ast> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Ast::Truth),
        (simple(), simple(), any::<bool>()).prop_map(|(left, right, negated)| Ast::Equal(
            Box::new(left),
            Box::new(right),
            negated
        )),
        (simple(), any::<bool>(), any::<bool>()).prop_map(|(left, truth, negated)| {
            Ast::Equal(Box::new(left), Box::new(Ast::Truth(truth)), negated)
        }),
        (any::<bool>(), name(), any::<bool>()).prop_map(|(truth, name, negated)| {
            Ast::Equal(Box::new(Ast::Truth(truth)), Box::new(Ast::Property(name)), negated)
        }),
        (simple(), any::<bool>()).prop_map(|(inner, negated)| Ast::IsNull(Box::new(inner), negated)),
        (prop::sample::select(vec!["<", "<=", ">", ">="]), ordered(), ordered())
            .prop_map(|(operator, left, right)| Ast::Order(operator, Box::new(left), Box::new(right))),
        (ordered(), 0i64..10, 0i64..10, any::<bool>()).prop_map(|(value, low, more, negated)| {
            Ast::Between(Box::new(value), low, low + more, negated)
        }),
        (name(), prop::collection::vec(text(), 1..4), any::<bool>())
            .prop_map(|(name, texts, negated)| Ast::In(name, texts, negated)),
        (prop::sample::select(vec!["CONTAINS", "STARTSWITH", "ENDSWITH"]), simple(), text(), any::<bool>())
            .prop_map(|(kind, operand, wanted, negated)| {
                Ast::Search(kind, Box::new(operand), wanted, negated)
            }),
    ];
    leaf.prop_recursive(4, 32, 2, |inner| {
        let part = prop_oneof![6 => inner.clone(), 1 => name().prop_map(Ast::Property)];
        prop_oneof![
            part.clone().prop_map(|inner| Ast::Not(Box::new(inner))),
            (part.clone(), part.clone()).prop_map(|(l, r)| Ast::And(Box::new(l), Box::new(r))),
            (part.clone(), part).prop_map(|(l, r)| Ast::Or(Box::new(l), Box::new(r))),
            (inner.clone(), inner.clone(), any::<bool>()).prop_map(|(l, r, negated)| Ast::Equal(
                Box::new(l),
                Box::new(r),
                negated
            )),
            (inner, any::<bool>()).prop_map(|(inner, negated)| Ast::IsNull(Box::new(inner), negated)),
        ]
    })
}

fn message() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map(
        prop::sample::select(vec!["a", "b", "TAGS", "_x$"]).prop_map(str::to_owned),
        text(),
        0..5,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn every_expression_means_what_the_slow_evaluator_says(
        ast in condition(), message in message(), style in any::<u64>()
    ) {
        let mut printer = Printer { out: String::new(), style };
        printer.print(&ast);
        let expression = Expression::parse(&printer.out)
            .map_err(|error| TestCaseError::fail(format!("{}: {error}", printer.out)))?;
        let expected = matches!(evaluate(&ast, &message), Ok(Object::Boolean(true)));
        prop_assert_eq!(expression.matches(&message), expected, "{} with {:?}", printer.out, message);
    }

    #[test]
    fn a_cut_or_changed_expression_never_panics(
        ast in condition(), message in message(), style in any::<u64>(), at in any::<prop::sample::Index>(),
        junk in "[ -~é'()]{0,3}", cut in 0usize..4
    ) {
        let mut printer = Printer { out: String::new(), style };
        printer.print(&ast);
        let mut characters: Vec<char> = printer.out.chars().collect();
        let at = at.index(characters.len());
        let end = (at + cut).min(characters.len());
        characters.splice(at..end, junk.chars());
        let text: String = characters.into_iter().collect();
        if let Ok(expression) = Expression::parse(&text) {
            let _either = expression.matches(&message);
        }
    }

    #[test]
    fn any_text_is_parsed_or_refused_inside_itself(text in "\\PC{0,60}|[ -~\n]{0,60}") {
        match Expression::parse(&text) {
            Ok(expression) => prop_assert!(!expression.matches(&[].as_slice()) || !text.is_empty()),
            Err(error) => {
                let mut said = String::new();
                write!(said, "{error}").expect("a string grows");
                let lines: Vec<&str> = text.split('\n').collect();
                let line = lines.get(error.at.line - 1).copied().unwrap_or_default();
                prop_assert!(error.at.line <= lines.len() && error.at.column <= line.chars().count() + 1);
            }
        }
    }
}

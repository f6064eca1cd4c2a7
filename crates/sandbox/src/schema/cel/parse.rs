//! CEL text to a tree: tokens, precedence, and the macros, which become loops here.
//!
//! Trees are at most [`HEIGHT_MAX`] high, however they come to be so (parentheses, chains of operators or of fields):
//! whoever walks them recurses. Names are not looked up here, apart from the namespaces of functions.

use super::value::{Text, Val};

/// As in Kubernetes.
const LENGTH_MAX: usize = 100_000;
/// Kubernetes stops at 250, where nobody goes. This keeps what is compiled without optimization within a megabyte.
pub(super) const HEIGHT_MAX: usize = 100;

/// What is wrong with an expression, and where: a number of characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub at: usize,
    pub message: String,
}

#[derive(Debug)]
pub(super) struct Expr {
    pub at: usize,
    height: usize,
    pub kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    Literal(Val<'static>),
    Name(String),
    Select {
        of: Box<Expr>,
        field: String,
        form: Select,
    },
    /// Operators are calls too: `_+_`. The target of a method is the first argument.
    Call {
        function: String,
        method: bool,
        args: Vec<Expr>,
    },
    /// Elements that are marked with `?` are left out if they have no value.
    List(Vec<(Expr, bool)>),
    Map(Vec<(Expr, Expr, bool)>),
    /// Any number of operands, as long chains are common.
    And(Vec<Expr>),
    Or(Vec<Expr>),
    If(Box<[Expr; 3]>),
    Loop(Box<Loop>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Select {
    Value,
    /// `has(a.b)`.
    Test,
    /// `a.?b`.
    Optional,
}

/// A macro: something that is evaluated for each element.
#[derive(Debug)]
pub(super) struct Loop {
    pub form: Form,
    pub over: Expr,
    pub variable: String,
    pub second: Option<String>,
    pub filter: Option<Expr>,
    pub body: Expr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    All,
    Exists,
    ExistsOne,
    Filter,
    List,
    Map,
    /// `optMap` and `optFlatMap`: of an optional, so at most one element.
    Optional,
    FlatOptional,
}

impl Kind {
    fn children(&self) -> Vec<&Expr> {
        match self {
            Self::Literal(_) | Self::Name(_) => Vec::new(),
            Self::Select { of, .. } => vec![of],
            Self::Call { args, .. } | Self::And(args) | Self::Or(args) => args.iter().collect(),
            Self::List(items) => items.iter().map(|(item, _)| item).collect(),
            Self::Map(entries) => entries.iter().flat_map(|(key, value, _)| [key, value]).collect(),
            Self::If(parts) => parts.iter().collect(),
            Self::Loop(inner) => [&inner.over, &inner.body]
                .into_iter()
                .chain(&inner.filter)
                .collect(),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// Also `true`, `in` and reserved words.
    Name(String),
    Literal(Val<'static>),
    /// Digits without their sign, which may be what makes them fit.
    Integer(u64),
    Symbol(&'static str),
    End,
}

const SYMBOLS: &[&str] = &[
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "+", "-", "*", "/", "%", "?", ":", ".", ",", "(", ")",
    "[", "]", "{", "}",
];

/// Words with a meaning of their own.
pub(super) const KEYWORDS: &[&str] = &["true", "false", "null", "in"];

/// Words that mean nothing yet, and can't be names.
pub(super) const RESERVED: &[&str] = &[
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// Names that stand before a dot and are no variables.
const NAMESPACES: &[&str] = &["lists", "optional", "sets", "strings"];

pub(super) fn parse(text: &str) -> Result<Expr, Fault> {
    let chars: Vec<char> = text.chars().take(LENGTH_MAX + 1).collect();
    if chars.len() > LENGTH_MAX {
        let message = format!("expression is longer than {LENGTH_MAX} characters");
        return Err(Fault { at: 0, message });
    }
    let tokens = Lexer { chars: &chars, at: 0 }.tokens()?;
    let mut parser = Parser {
        tokens,
        next: 0,
        depth: 0,
    };
    let expr = parser.expr()?;
    match parser.peek() {
        Token::End => Ok(expr),
        _ => Err(parser.unexpected()),
    }
}

struct Lexer<'a> {
    chars: &'a [char],
    at: usize,
}

impl Lexer<'_> {
    fn tokens(mut self) -> Result<Vec<(usize, Token)>, Fault> {
        let mut tokens = Vec::new();
        loop {
            self.skip_blank();
            let at = self.at;
            let Some(first) = self.peek(0) else {
                tokens.push((at, Token::End));
                return Ok(tokens);
            };
            let token = match first {
                _ if self.begins_string() => self.string()?,
                'a'..='z' | 'A'..='Z' | '_' => {
                    Token::Name(self.take_while(|c| c.is_ascii_alphanumeric() || c == '_'))
                }
                '0'..='9' => self.number()?,
                '.' if self.peek(1).is_some_and(|c| c.is_ascii_digit()) => self.number()?,
                _ => self.symbol()?,
            };
            tokens.push((at, token));
        }
    }

    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn fault<T>(&self, at: usize, message: &str) -> Result<T, Fault> {
        let message = format!("Syntax error: {message}");
        Err(Fault { at, message })
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> String {
        let taken: String = self.chars[self.at..]
            .iter()
            .copied()
            .take_while(|c| wanted(*c))
            .collect();
        self.at += taken.chars().count();
        taken
    }

    fn skip_blank(&mut self) {
        loop {
            self.take_while(|c| matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{c}'));
            if (self.peek(0), self.peek(1)) != (Some('/'), Some('/')) {
                return;
            }
            self.take_while(|c| c != '\n');
        }
    }

    fn symbol(&mut self) -> Result<Token, Fault> {
        let found = SYMBOLS.iter().find(|symbol| {
            let mut ahead = 0..;
            symbol
                .chars()
                .all(|c| ahead.next().and_then(|ahead| self.peek(ahead)) == Some(c))
        });
        match (found, self.peek(0)) {
            (Some(symbol), _) => {
                self.at += symbol.len();
                Ok(Token::Symbol(symbol))
            }
            (None, c) => {
                let c = c.unwrap_or_default();
                self.fault(self.at, &format!("token recognition error at: '{c}'"))
            }
        }
    }

    fn number(&mut self) -> Result<Token, Fault> {
        let at = self.at;
        if self.peek(0) == Some('0') && matches!(self.peek(1), Some('x' | 'X')) {
            self.at += 2;
            let digits = self.take_while(|c| c.is_ascii_hexdigit());
            return self.integer(at, &digits, 16);
        }
        let mut text = self.take_while(|c| c.is_ascii_digit());
        let mut whole = true;
        if self.peek(0) == Some('.') && self.peek(1).is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
            whole = false;
            text = format!("{text}.{}", self.take_while(|c| c.is_ascii_digit()));
        }
        let sign = usize::from(matches!(self.peek(1), Some('+' | '-')));
        if matches!(self.peek(0), Some('e' | 'E')) && self.peek(1 + sign).is_some_and(|c| c.is_ascii_digit())
        {
            let sign = self.peek(1).filter(|_| sign == 1);
            self.at += 1 + usize::from(sign.is_some());
            whole = false;
            let digits = self.take_while(|c| c.is_ascii_digit());
            text = format!("{text}e{}{digits}", sign.map(String::from).unwrap_or_default());
        }
        match text.parse::<f64>() {
            _ if whole => self.integer(at, &text, 10),
            Ok(number) if number.is_finite() => Ok(Token::Literal(Val::Double(number))),
            _ => self.fault(at, "invalid double literal"),
        }
    }

    fn integer(&mut self, at: usize, digits: &str, radix: u32) -> Result<Token, Fault> {
        let Ok(number) = u64::from_str_radix(digits, radix) else {
            return self.fault(at, "invalid int literal");
        };
        if matches!(self.peek(0), Some('u' | 'U')) {
            self.at += 1;
            return Ok(Token::Literal(Val::Uint(number)));
        }
        Ok(Token::Integer(number))
    }

    fn begins_string(&self) -> bool {
        let quote = |ahead| matches!(self.peek(ahead), Some('\'' | '"'));
        let prefix = |ahead, of: &str| self.peek(ahead).is_some_and(|c| of.contains(c));
        quote(0)
            || (prefix(0, "rRbB") && quote(1))
            || (prefix(0, "rR") && prefix(1, "bB") && quote(2))
            || (prefix(0, "bB") && prefix(1, "rR") && quote(2))
    }

    fn string(&mut self) -> Result<Token, Fault> {
        let begin = self.at;
        let prefix = self.take_while(|c| c.is_ascii_alphabetic()).to_ascii_lowercase();
        let (raw, bytes) = (prefix.contains('r'), prefix.contains('b'));
        let quote = self.peek(0).unwrap_or_default();
        let long = self.peek(1) == Some(quote) && self.peek(2) == Some(quote);
        let quote_count = if long { 3 } else { 1 };
        self.at += quote_count;
        let mut value: Vec<u8> = Vec::new();
        let mut push = |c: char, code: Option<u8>| match code {
            Some(code) if bytes => value.push(code),
            _ => value.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        };
        loop {
            let at = self.at;
            let Some(c) = self.peek(0) else {
                return self.fault(begin, "the string has no end");
            };
            if (0..quote_count).all(|ahead| self.peek(ahead) == Some(quote)) {
                self.at += quote_count;
                break;
            }
            self.at += 1;
            match c {
                '\n' | '\r' if !long => return self.fault(begin, "the string has no end"),
                '\\' if raw => {
                    push(c, None);
                    if let Some(c) = self.peek(0) {
                        self.at += 1;
                        push(c, None);
                    }
                }
                '\\' => match self.escape() {
                    Some((c, code)) => push(c, code),
                    None => return self.fault(at, "invalid escape sequence"),
                },
                c => push(c, None),
            }
        }
        if bytes {
            return Ok(Token::Literal(Val::Bytes(value.into())));
        }
        let text = String::from_utf8_lossy(&value).into_owned();
        Ok(Token::Literal(Val::String(Text::from(text))))
    }

    /// A character, and the byte that it is in bytes if it is given as one.
    fn escape(&mut self) -> Option<(char, Option<u8>)> {
        let c = self.peek(0)?;
        self.at += 1;
        let plain = match c {
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            '\\' | '?' | '"' | '\'' | '`' => c,
            'u' => char::from_u32(self.code(4, 16)?)?,
            'U' => char::from_u32(self.code(8, 16)?)?,
            'x' | 'X' | '0'..='3' => {
                let code = if c.is_ascii_digit() {
                    self.at -= 1;
                    self.code(3, 8)?
                } else {
                    self.code(2, 16)?
                };
                let code = u8::try_from(code).ok()?;
                return Some((char::from(code), Some(code)));
            }
            _ => return None,
        };
        Some((plain, None))
    }

    fn code(&mut self, digits: usize, radix: u32) -> Option<u32> {
        let text: String = self.chars.get(self.at..self.at + digits)?.iter().collect();
        self.at += digits;
        u32::from_str_radix(&text, radix)
            .ok()
            .filter(|_| !text.starts_with('+'))
    }
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    next: usize,
    /// Of the recursion that parses.
    depth: usize,
}

/// Operators, from those that bind least.
const LEVELS: &[&[&str]] = &[
    &["||"],
    &["&&"],
    &["<", "<=", ">=", ">", "==", "!=", "in"],
    &["+", "-"],
    &["*", "/", "%"],
];

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.next).map_or(&Token::End, |(_, token)| token)
    }

    fn at(&self) -> usize {
        let last = self.tokens.last();
        self.tokens.get(self.next).or(last).map_or(0, |(at, _)| *at)
    }

    fn symbol(&self) -> &str {
        match self.peek() {
            Token::Symbol(symbol) => symbol,
            Token::Name(name) if name == "in" => name,
            _ => "",
        }
    }

    fn take(&mut self, symbol: &str) -> bool {
        let found = self.symbol() == symbol;
        self.next += usize::from(found);
        found
    }

    fn expect(&mut self, symbol: &str) -> Result<(), Fault> {
        if self.take(symbol) {
            return Ok(());
        }
        Err(self.unexpected())
    }

    fn name(&mut self) -> Result<String, Fault> {
        match self.peek().clone() {
            Token::Name(name) if !KEYWORDS.contains(&name.as_str()) => {
                self.next += 1;
                Ok(name)
            }
            _ => Err(self.unexpected()),
        }
    }

    fn unexpected(&self) -> Fault {
        let found = match self.peek() {
            Token::End => "<EOF>".to_owned(),
            Token::Name(name) => name.clone(),
            Token::Symbol(symbol) => (*symbol).to_owned(),
            Token::Integer(number) => number.to_string(),
            Token::Literal(_) => "literal".to_owned(),
        };
        Fault {
            at: self.at(),
            message: format!("Syntax error: mismatched input '{found}'"),
        }
    }

    fn make(&self, at: usize, kind: Kind) -> Result<Expr, Fault> {
        let below = kind.children().iter().map(|child| child.height).max();
        bounded(at, below.unwrap_or(0) + 1, kind)
    }

    fn operator(&self, at: usize, function: &str, args: Vec<Expr>) -> Result<Expr, Fault> {
        let function = function.to_owned();
        let method = false;
        self.make(
            at,
            Kind::Call {
                function,
                method,
                args,
            },
        )
    }

    fn expr(&mut self) -> Result<Expr, Fault> {
        self.depth += 1;
        if self.depth > HEIGHT_MAX {
            return Err(too_deep(self.at()));
        }
        let mut expr = self.binary(0)?;
        let at = self.at();
        if self.take("?") {
            expr = self.alternatives(at, expr)?;
        }
        self.depth -= 1;
        Ok(expr)
    }

    fn alternatives(&mut self, at: usize, condition: Expr) -> Result<Expr, Fault> {
        let yes = self.binary(0)?;
        self.expect(":")?;
        let no = self.expr()?;
        self.make(at, Kind::If(Box::new([condition, yes, no])))
    }

    fn binary(&mut self, lowest: usize) -> Result<Expr, Fault> {
        let mut left = self.unary()?;
        loop {
            let mut levels = LEVELS.iter().enumerate().skip(lowest);
            let Some((level, _)) = levels.find(|(_, level)| level.contains(&self.symbol())) else {
                return Ok(left);
            };
            let (at, operator) = (self.at(), self.symbol().to_owned());
            self.next += 1;
            let right = self.binary(level + 1)?;
            left = self.join(at, &operator, left, right)?;
        }
    }

    fn join(&self, at: usize, operator: &str, left: Expr, right: Expr) -> Result<Expr, Fault> {
        let height = left.height.max(right.height + 1);
        match (operator, left.kind) {
            ("&&", Kind::And(mut all)) => {
                all.push(right);
                bounded(left.at, height, Kind::And(all))
            }
            ("||", Kind::Or(mut any)) => {
                any.push(right);
                bounded(left.at, height, Kind::Or(any))
            }
            (operator, kind) => {
                let operands = vec![Expr { kind, ..left }, right];
                match operator {
                    "&&" => self.make(at, Kind::And(operands)),
                    "||" => self.make(at, Kind::Or(operands)),
                    "in" => self.operator(at, "@in", operands),
                    _ => self.operator(at, &format!("_{operator}_"), operands),
                }
            }
        }
    }

    fn unary(&mut self) -> Result<Expr, Fault> {
        let at = self.at();
        let mut signs = Vec::new();
        while let Some(sign) = ["!", "-"].into_iter().find(|sign| self.take(sign)) {
            signs.push(sign);
        }
        if signs.last() == Some(&"-")
            && let Some(negative) = self.negative_literal()?
        {
            signs.pop();
            let literal = self.make(at, Kind::Literal(negative))?;
            return self.signed(at, &signs, literal);
        }
        let member = self.member()?;
        self.signed(at, &signs, member)
    }

    /// Pairs of signs cancel each other.
    fn signed(&self, at: usize, signs: &[&str], operand: Expr) -> Result<Expr, Fault> {
        let Some(sign) = signs.first() else {
            return Ok(operand);
        };
        if signs.iter().any(|other| other != sign) {
            let message = "Syntax error: signs are mixed".to_owned();
            return Err(Fault { at, message });
        }
        match signs.len() % 2 {
            0 => Ok(operand),
            _ => self.operator(at, &format!("{sign}_"), vec![operand]),
        }
    }

    fn negative_literal(&mut self) -> Result<Option<Val<'static>>, Fault> {
        let value = match self.peek() {
            Token::Integer(number) => match 0_i64.checked_sub_unsigned(*number) {
                Some(number) => Val::Int(number),
                None => return Err(self.unexpected()),
            },
            Token::Literal(Val::Double(number)) => Val::Double(-number),
            _ => return Ok(None),
        };
        self.next += 1;
        Ok(Some(value))
    }

    fn member(&mut self) -> Result<Expr, Fault> {
        let mut expr = self.primary()?;
        loop {
            let at = self.at();
            if self.take(".") {
                let optional = self.take("?");
                let name = self.name()?;
                let open = self.at();
                if !optional && self.take("(") {
                    let args = self.list(")")?;
                    expr = self.method(open, expr, name, args)?;
                } else {
                    let form = if optional { Select::Optional } else { Select::Value };
                    let (of, field) = (Box::new(expr), name);
                    expr = self.make(at, Kind::Select { of, field, form })?;
                }
            } else if self.take("[") {
                let operator = if self.take("?") { "_[?_]" } else { "_[_]" };
                let key = self.expr()?;
                self.expect("]")?;
                expr = self.operator(at, operator, vec![expr, key])?;
            } else {
                return Ok(expr);
            }
        }
    }

    fn list(&mut self, end: &str) -> Result<Vec<Expr>, Fault> {
        let mut list = Vec::new();
        while !self.take(end) {
            if !list.is_empty() {
                self.expect(",")?;
            }
            list.push(self.expr()?);
        }
        Ok(list)
    }

    fn primary(&mut self) -> Result<Expr, Fault> {
        let at = self.at();
        match self.peek().clone() {
            Token::Literal(value) => {
                self.next += 1;
                self.make(at, Kind::Literal(value))
            }
            Token::Integer(number) => {
                let number = i64::try_from(number).map_err(|_| self.unexpected())?;
                self.next += 1;
                self.make(at, Kind::Literal(Val::Int(number)))
            }
            Token::Name(name) => {
                let literal = match name.as_str() {
                    "true" => Val::Bool(true),
                    "false" => Val::Bool(false),
                    "null" => Val::Null,
                    "in" => return Err(self.unexpected()),
                    _ => return self.named(at, name),
                };
                self.next += 1;
                self.make(at, Kind::Literal(literal))
            }
            Token::Symbol("(") => {
                self.next += 1;
                let inner = self.expr()?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Symbol("[") => self.elements(at),
            Token::Symbol("{") => self.entries(at),
            _ => Err(self.unexpected()),
        }
    }

    fn elements(&mut self, at: usize) -> Result<Expr, Fault> {
        self.next += 1;
        let mut items = Vec::new();
        while !self.take("]") {
            let optional = self.take("?");
            items.push((self.expr()?, optional));
            if !self.take(",") && self.symbol() != "]" {
                return Err(self.unexpected());
            }
        }
        self.make(at, Kind::List(items))
    }

    fn entries(&mut self, at: usize) -> Result<Expr, Fault> {
        self.next += 1;
        let mut entries = Vec::new();
        while !self.take("}") {
            let optional = self.take("?");
            let key = self.expr()?;
            self.expect(":")?;
            entries.push((key, self.expr()?, optional));
            if !self.take(",") && self.symbol() != "}" {
                return Err(self.unexpected());
            }
        }
        self.make(at, Kind::Map(entries))
    }

    fn named(&mut self, at: usize, name: String) -> Result<Expr, Fault> {
        if RESERVED.contains(&name.as_str()) {
            let message = format!("Syntax error: reserved identifier: {name}");
            return Err(Fault { at, message });
        }
        self.next += 1;
        let open = self.at();
        if !self.take("(") {
            return self.make(at, Kind::Name(name));
        }
        let args = self.list(")")?;
        match (name.as_str(), args.len()) {
            ("has", 1) => match args.into_iter().next().map(|arg| arg.kind) {
                Some(Kind::Select {
                    of,
                    field,
                    form: Select::Value,
                }) => {
                    let form = Select::Test;
                    self.make(open, Kind::Select { of, field, form })
                }
                _ => {
                    let message = "invalid argument to has() macro".to_owned();
                    Err(Fault { at: open, message })
                }
            },
            _ => self.operator(open, &name, args),
        }
    }

    fn method(&self, at: usize, target: Expr, function: String, mut args: Vec<Expr>) -> Result<Expr, Fault> {
        use Form::{All, Exists, ExistsOne, Filter, FlatOptional, List, Map, Optional};
        if let Kind::Name(namespace) = &target.kind
            && (NAMESPACES.contains(&namespace.as_str()) || (namespace == "ip" && function == "isCanonical"))
        {
            return self.operator(at, &format!("{namespace}.{function}"), args);
        }
        // How many variables a macro has, and whether a filter stands before its body.
        let (form, variables, filtered) = match (function.as_str(), args.len()) {
            ("all", 2) => (All, 1, false),
            ("all", 3) => (All, 2, false),
            ("exists", 2) => (Exists, 1, false),
            ("exists", 3) => (Exists, 2, false),
            ("exists_one", 2) => (ExistsOne, 1, false),
            ("existsOne", 3) => (ExistsOne, 2, false),
            ("filter", 2) => (Filter, 1, false),
            ("map", 2) => (List, 1, false),
            ("map", 3) => (List, 1, true),
            ("transformList", 3) => (List, 2, false),
            ("transformList", 4) => (List, 2, true),
            ("transformMap", 3) => (Map, 2, false),
            ("transformMap", 4) => (Map, 2, true),
            ("optMap", 2) => (Optional, 1, false),
            ("optFlatMap", 2) => (FlatOptional, 1, false),
            _ => {
                args.insert(0, target);
                let method = true;
                return self.make(
                    at,
                    Kind::Call {
                        function,
                        method,
                        args,
                    },
                );
            }
        };
        let mut args = args.into_iter();
        let mut names = Vec::new();
        for arg in args.by_ref().take(variables) {
            match arg.kind {
                Kind::Name(name) => names.push(name),
                _ => {
                    let message = "argument must be a simple name".to_owned();
                    return Err(Fault { at: arg.at, message });
                }
            }
        }
        let filter = if filtered { args.next() } else { None };
        let mut names = names.into_iter();
        let (Some(variable), second, Some(body)) = (names.next(), names.next(), args.next()) else {
            return Err(self.unexpected());
        };
        let inner = Loop {
            form,
            over: target,
            variable,
            second,
            filter,
            body,
        };
        self.make(at, Kind::Loop(Box::new(inner)))
    }
}

fn bounded(at: usize, height: usize, kind: Kind) -> Result<Expr, Fault> {
    if height > HEIGHT_MAX {
        return Err(too_deep(at));
    }
    Ok(Expr { at, height, kind })
}

fn too_deep(at: usize) -> Fault {
    Fault {
        at,
        message: format!("expression recursion limit exceeded: {HEIGHT_MAX}"),
    }
}

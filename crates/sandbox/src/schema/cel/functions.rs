//! The operators and functions of CEL and of Kubernetes' libraries.
//!
//! One table by name and arguments; what no line fits is "no such overload". Each line pays for what it reads before it
//! reads it, and for what it makes before it makes it.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp, Zoned};

use super::eval::{Evaluator, Stop, fault, made, no_overload, select};
use super::parse::Select;
use super::url::Url;
use super::value::{Key, List, Text, Val as V, duration};
use crate::schema::quantity;

const BILLION: i128 = 1_000_000_000;
/// Years 1 to 9999, in seconds.
const TIMES: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

type Outcome<'a> = Result<V<'a>, Stop>;

impl<'a> Evaluator<'a, '_> {
    pub(super) fn call(&mut self, function: &str, args: &[V<'a>]) -> Outcome<'a> {
        Ok(match (function, args) {
            ("!_", [V::Bool(value)]) => V::Bool(!value),
            ("_==_", [one, other]) => V::Bool(self.equal(one, other)?),
            ("_!=_", [one, other]) => V::Bool(!self.equal(one, other)?),
            ("_<_", [one, other]) => V::Bool(self.compare(one, other)? == Some(Ordering::Less)),
            ("_>_", [one, other]) => V::Bool(self.compare(one, other)? == Some(Ordering::Greater)),
            ("_<=_", [one, other]) => V::Bool(self.compare(one, other)?.is_some_and(Ordering::is_le)),
            ("_>=_", [one, other]) => V::Bool(self.compare(one, other)?.is_some_and(Ordering::is_ge)),
            ("@in", [wanted, V::List(list)]) => {
                V::Bool(self.position(list, 0..list.len(), wanted)?.is_some())
            }
            ("@in", [wanted, V::Map(map)]) => {
                V::Bool(wanted.key().is_some_and(|key| map.get(&key).is_some()))
            }
            ("_[_]", [of, key]) => return index(of, key, Select::Value),
            ("_[?_]", [of, key]) => return index(of, key, Select::Optional),
            ("-_" | "_+_" | "_-_" | "_*_" | "_/_" | "_%_", _) => return self.arithmetic(function, args),
            ("type", [value]) => V::Type(value.type_name()),
            ("dyn", [value]) => value.clone(),
            ("bool" | "int" | "uint" | "double" | "string" | "bytes" | "duration" | "timestamp", [value]) => {
                return self.convert(function, value);
            }
            ("size", [V::String(text)]) => {
                self.charge_bytes(text.len())?;
                int(text.chars().count())
            }
            ("size", [V::Bytes(bytes)]) => int(bytes.len()),
            ("size", [V::List(list)]) => int(list.len()),
            ("size", [V::Map(map)]) => int(map.len()),

            ("optional.none", []) => V::Optional(None),
            ("optional.of", [value]) => V::some(value.clone()),
            ("optional.ofNonZeroValue", [value]) if value.is_zero() => V::Optional(None),
            ("optional.ofNonZeroValue", [value]) => V::some(value.clone()),
            ("hasValue", [V::Optional(inner)]) => V::Bool(inner.is_some()),
            ("value", [V::Optional(Some(value))]) => (**value).clone(),
            ("value", [V::Optional(None)]) => return fault("optional.none() dereference"),
            ("or", [V::Optional(None), other]) => other.clone(),
            ("or", [some @ V::Optional(_), _]) => some.clone(),
            ("orValue", [V::Optional(inner), other]) => {
                inner.as_ref().map_or(other, |value| &**value).clone()
            }

            (_, [V::String(text), args @ ..]) => return self.text(function, text, args),
            (_, [V::List(list), args @ ..]) => return self.list(function, list, args),
            ("lists.range", [V::Int(count)]) => {
                self.charge(usize::try_from(*count).unwrap_or(0))?;
                V::list((0..*count).map(V::Int).collect())
            }
            (_, [V::Timestamp(time), args @ ..]) => return moment(function, *time, args),
            (_, [V::Duration(duration)]) => V::Int(match function {
                "getHours" => duration.as_hours(),
                "getMinutes" => duration.as_mins(),
                "getSeconds" => duration.as_secs(),
                "getMilliseconds" => i64::try_from(duration.as_millis()).unwrap_or(i64::MAX),
                _ => return no_overload(),
            }),
            (_, [V::Url(url)]) => return self.url(function, url),
            (_, [V::Quantity(nanos), args @ ..]) => return amount(function, *nanos, args),
            (_, [V::Ip(address)]) => return address_is(function, *address),
            (_, [V::Cidr(net), args @ ..]) => return network(function, *net, args),
            _ => return no_overload(),
        })
    }

    fn arithmetic(&mut self, function: &str, args: &[V<'a>]) -> Outcome<'a> {
        let overflow = || Stop::Fault("integer overflow".to_owned());
        let ints = |value: Option<i64>| value.map(V::Int).ok_or_else(overflow);
        let uints = |value: Option<u64>| {
            value
                .map(V::Uint)
                .ok_or_else(|| Stop::Fault("unsigned integer overflow".to_owned()))
        };
        let durations = |value: Option<SignedDuration>| {
            let value = value.filter(|value| i64::try_from(value.as_nanos()).is_ok());
            value
                .map(V::Duration)
                .ok_or_else(|| Stop::Fault("duration overflow".to_owned()))
        };
        match (function, args) {
            ("-_", [V::Int(one)]) => ints(one.checked_neg()),
            ("-_", [V::Double(one)]) => Ok(V::Double(-one)),
            ("_/_", [_, V::Int(0) | V::Uint(0)]) => fault("division by zero"),
            ("_%_", [_, V::Int(0) | V::Uint(0)]) => fault("modulus by zero"),
            ("_+_", [V::Int(one), V::Int(other)]) => ints(one.checked_add(*other)),
            ("_-_", [V::Int(one), V::Int(other)]) => ints(one.checked_sub(*other)),
            ("_*_", [V::Int(one), V::Int(other)]) => ints(one.checked_mul(*other)),
            ("_/_", [V::Int(one), V::Int(other)]) => ints(one.checked_div(*other)),
            ("_%_", [V::Int(one), V::Int(other)]) => ints(one.checked_rem(*other)),
            ("_+_", [V::Uint(one), V::Uint(other)]) => uints(one.checked_add(*other)),
            ("_-_", [V::Uint(one), V::Uint(other)]) => uints(one.checked_sub(*other)),
            ("_*_", [V::Uint(one), V::Uint(other)]) => uints(one.checked_mul(*other)),
            ("_/_", [V::Uint(one), V::Uint(other)]) => uints(one.checked_div(*other)),
            ("_%_", [V::Uint(one), V::Uint(other)]) => uints(one.checked_rem(*other)),
            ("_+_", [V::Double(one), V::Double(other)]) => Ok(V::Double(one + other)),
            ("_-_", [V::Double(one), V::Double(other)]) => Ok(V::Double(one - other)),
            ("_*_", [V::Double(one), V::Double(other)]) => Ok(V::Double(one * other)),
            ("_/_", [V::Double(one), V::Double(other)]) => Ok(V::Double(one / other)),
            ("_+_", [V::Duration(one), V::Duration(other)]) => durations(one.checked_add(*other)),
            ("_-_", [V::Duration(one), V::Duration(other)]) => durations(one.checked_sub(*other)),
            ("_+_", [V::Timestamp(time), V::Duration(by)] | [V::Duration(by), V::Timestamp(time)]) => {
                timestamp(time.checked_add(*by).ok())
            }
            ("_-_", [V::Timestamp(time), V::Duration(by)]) => timestamp(time.checked_sub(*by).ok()),
            ("_-_", [V::Timestamp(one), V::Timestamp(other)]) => durations(Some(one.duration_since(*other))),
            ("_+_", [V::String(one), V::String(other)]) => {
                self.charge_bytes(one.len() + other.len())?;
                Ok(V::text([&**one, &**other].concat()))
            }
            ("_+_", [V::Bytes(one), V::Bytes(other)]) => {
                self.charge_bytes(one.len() + other.len())?;
                Ok(V::Bytes([&**one, &**other].concat().into()))
            }
            ("_+_", [V::List(one), V::List(other)]) => {
                self.charge(one.len() + other.len())?;
                collect(one.iter().chain(other.iter()))
            }
            _ => no_overload(),
        }
    }

    fn convert(&mut self, to: &str, value: &V<'a>) -> Outcome<'a> {
        if let V::String(text) = value {
            self.charge_bytes(text.len())?;
        }
        let cannot = |text: &str| fault(format!("type conversion error from '{text}' to '{to}'"));
        let whole = |double: f64, from: f64, to: f64| {
            (double > from && double < to).then_some(double.trunc() as i128)
        };
        let number = match value {
            V::Int(number) => Some(i128::from(*number)),
            V::Uint(number) => Some(i128::from(*number)),
            V::Double(number) => whole(*number, -9.3e18, 1.9e19),
            V::Timestamp(time) => Some(time.as_second().into()),
            V::Duration(duration) => Some(duration.as_nanos()),
            _ => None,
        };
        let range = || fault("integer overflow");
        match (to, value) {
            ("bool", V::Bool(_))
            | ("int", V::Int(_))
            | ("uint", V::Uint(_))
            | ("double", V::Double(_))
            | ("string", V::String(_))
            | ("bytes", V::Bytes(_))
            | ("duration", V::Duration(_))
            | ("timestamp", V::Timestamp(_)) => Ok(value.clone()),
            ("bool", V::String(text)) => match &**text {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(V::Bool(true)),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(V::Bool(false)),
                other => cannot(other),
            },
            ("int", V::String(text)) => text.parse().map(V::Int).or_else(|_| cannot(text)),
            ("uint", V::String(text)) => text.parse().map(V::Uint).or_else(|_| cannot(text)),
            ("double", V::String(text)) => text.parse().map(V::Double).or_else(|_| cannot(text)),
            ("int", V::Uint(_) | V::Double(_) | V::Timestamp(_) | V::Duration(_)) => {
                let number = number.and_then(|number| i64::try_from(number).ok());
                number.map(V::Int).map_or_else(range, Ok)
            }
            ("uint", V::Int(_) | V::Double(_)) => {
                let number = number.and_then(|number| u64::try_from(number).ok());
                number.map(V::Uint).map_or_else(range, Ok)
            }
            ("double", V::Int(number)) => Ok(V::Double(*number as f64)),
            ("double", V::Uint(number)) => Ok(V::Double(*number as f64)),
            ("duration", V::String(text)) => duration(text).map(V::Duration).map_or_else(|| cannot(text), Ok),
            ("duration", V::Int(nanos)) => Ok(V::Duration(SignedDuration::from_nanos(*nanos))),
            ("timestamp", V::String(text)) => timestamp(text.parse().ok()),
            ("timestamp", V::Int(seconds)) => timestamp(Timestamp::from_second(*seconds).ok()),
            ("bytes", V::String(text)) => Ok(V::Bytes(text.as_bytes().into())),
            ("string", V::Bytes(bytes)) => {
                self.charge_bytes(bytes.len())?;
                match std::str::from_utf8(bytes) {
                    Ok(text) => Ok(V::text(text)),
                    Err(_) => fault("invalid UTF-8 in bytes, cannot convert to string"),
                }
            }
            (
                "string",
                V::Bool(_)
                | V::Int(_)
                | V::Uint(_)
                | V::Double(_)
                | V::Timestamp(_)
                | V::Duration(_)
                | V::Ip(_)
                | V::Cidr(_),
            ) => {
                let mut text = String::new();
                self.show(value, &mut text)?;
                Ok(V::text(text))
            }
            _ => no_overload(),
        }
    }

    /// As `string()` and `%s` write it.
    fn show(&mut self, value: &V<'a>, out: &mut String) -> Result<(), Stop> {
        self.charge(1)?;
        match value {
            V::Null => out.push_str("null"),
            V::Bool(value) => out.push_str(&value.to_string()),
            V::Int(number) => out.push_str(&number.to_string()),
            V::Uint(number) => out.push_str(&number.to_string()),
            V::Double(number) => out.push_str(&number.to_string()),
            V::String(text) => {
                self.charge_bytes(text.len())?;
                out.push_str(text);
            }
            V::Bytes(bytes) => {
                self.charge_bytes(bytes.len())?;
                out.push_str(&String::from_utf8_lossy(bytes));
            }
            V::Duration(duration) => {
                let nanos = duration.as_nanos();
                let (seconds, rest) = (nanos.abs() / BILLION, nanos.abs() % BILLION);
                let sign = if nanos < 0 { "-" } else { "" };
                let text = format!("{sign}{seconds}.{rest:09}");
                out.push_str(text.trim_end_matches('0').trim_end_matches('.'));
                out.push('s');
            }
            V::Timestamp(time) => out.push_str(&time.to_string()),
            V::Type(name) => out.push_str(name),
            V::Ip(address) => out.push_str(&address.to_string()),
            V::Cidr(net) => out.push_str(&net.to_string()),
            V::List(list) => {
                out.push('[');
                for (index, item) in list.iter().enumerate() {
                    out.push_str(if index > 0 { ", " } else { "" });
                    self.show_inside(&item.map_err(Stop::Fault)?, out)?;
                }
                out.push(']');
            }
            V::Map(map) => {
                self.charge(map.len())?;
                out.push('{');
                for (index, (key, value)) in map.entries().into_iter().enumerate() {
                    out.push_str(if index > 0 { ", " } else { "" });
                    self.show_inside(&key.into(), out)?;
                    out.push(':');
                    self.show_inside(&value.map_err(Stop::Fault)?, out)?;
                }
                out.push('}');
            }
            V::Optional(_) | V::Quantity(_) | V::Url(_) => return no_overload(),
        }
        Ok(())
    }

    /// As `%s` writes what is in a list or a map: so that CEL could read it again.
    fn show_inside(&mut self, value: &V<'a>, out: &mut String) -> Result<(), Stop> {
        if let V::Double(number) = value {
            self.charge(10)?;
            out.push_str(&format!("{number:.6}"));
            return Ok(());
        }
        let (before, after) = match value {
            V::Duration(_) => ("duration(\"", "\")"),
            V::Timestamp(_) => ("timestamp(\"", "\")"),
            V::String(text) => {
                self.charge_bytes(text.len())?;
                out.push_str(&quoted(text));
                return Ok(());
            }
            _ => ("", ""),
        };
        out.push_str(before);
        self.show(value, out)?;
        out.push_str(after);
        Ok(())
    }

    fn text(&mut self, function: &str, text: &Text<'a>, args: &[V<'a>]) -> Outcome<'a> {
        self.charge_bytes(text.len())?;
        let seen = |text: &str| V::text(text);
        let chars = || text.chars().collect::<Vec<char>>();
        let range = |index: i64| fault(format!("index out of range: {index}"));
        Ok(match (function, args) {
            ("startsWith", [V::String(part)]) => V::Bool(text.starts_with(&**part)),
            ("endsWith", [V::String(part)]) => V::Bool(text.ends_with(&**part)),
            ("contains", [V::String(part)]) => {
                self.charge_bytes(part.len())?;
                V::Bool(text.contains(&**part))
            }
            ("matches", [V::String(pattern)]) => V::Bool(self.regex(pattern, text)?.is_match(text)),
            ("find", [V::String(pattern)]) => {
                let regex = self.regex(pattern, text)?;
                seen(regex.find(text).map_or("", |found| found.as_str()))
            }
            ("findAll", [V::String(pattern), limit @ ..]) => {
                let limit = limit_of(limit)?;
                let regex = self.regex(pattern, text)?;
                self.charge(text.len())?;
                V::list(
                    regex
                        .find_iter(text)
                        .take(limit)
                        .map(|found| seen(found.as_str()))
                        .collect(),
                )
            }
            ("lowerAscii", []) => V::text(text.to_ascii_lowercase()),
            ("upperAscii", []) => V::text(text.to_ascii_uppercase()),
            ("trim", []) => seen(text.trim()),
            ("charAt", [V::Int(index)]) => match chars().get(place(*index)) {
                Some(c) => V::text(*c),
                None if *index == text.chars().count() as i64 => seen(""),
                None => return range(*index),
            },
            ("substring", [V::Int(from), to @ ..]) => {
                let all = chars();
                let to = match to {
                    [V::Int(to)] => *to,
                    _ => all.len() as i64,
                };
                match all.get(place(*from)..place(to)) {
                    Some(part) => V::text(part.iter().collect::<String>()),
                    None => return range(if place(to) > all.len() { to } else { *from }),
                }
            }
            ("indexOf", [V::String(part), from @ ..]) => {
                let from = match from {
                    [V::Int(from)] if *from < 0 => return range(*from),
                    [V::Int(from)] => place(*from),
                    _ => 0,
                };
                let begin = text.char_indices().nth(from).map_or(text.len(), |(at, _)| at);
                let rest = text.get(begin..).unwrap_or_default();
                match rest.find(&**part) {
                    Some(at) => {
                        int(text.chars().count().min(from) + rest.get(..at).unwrap_or("").chars().count())
                    }
                    None => V::Int(-1),
                }
            }
            ("lastIndexOf", [V::String(part), from @ ..]) => {
                let count = text.chars().count();
                let from = match from {
                    [V::Int(from)] if *from < 0 => return range(*from),
                    [V::Int(from)] if place(*from) >= count && !part.is_empty() => return Ok(V::Int(-1)),
                    [V::Int(from)] => place(*from),
                    _ => count,
                };
                // A match may begin at `from`, so it may end as much later as the part is long.
                let end = from.saturating_add(part.chars().count());
                let end = text.char_indices().nth(end).map_or(text.len(), |(at, _)| at);
                let searched = text.get(..end).unwrap_or_default();
                match searched.rfind(&**part) {
                    Some(at) => int(searched.get(..at).unwrap_or("").chars().count()),
                    None => V::Int(-1),
                }
            }
            ("replace", [V::String(from), V::String(to), limit @ ..]) => {
                let limit = limit_of(limit)?;
                let count = text.matches(&**from).count().min(limit);
                self.charge_bytes(count.saturating_mul(to.len()))?;
                V::text(text.replacen(&**from, to, limit))
            }
            ("split", [V::String(separator), limit @ ..]) => {
                let limit = limit_of(limit)?;
                self.charge(text.len())?;
                let parts: Vec<&str> = match (limit, separator.is_empty()) {
                    (0, _) => Vec::new(),
                    (limit, true) => split_chars(text, limit),
                    (limit, false) => text.splitn(limit, &**separator).collect(),
                };
                V::list(parts.into_iter().map(seen).collect())
            }
            ("format", [V::List(values)]) => return self.format(text, values),
            ("strings.quote", []) => V::text(quoted(text)),
            ("isURL", []) => V::Bool(Url::parse(text).is_some()),
            ("url", []) => match Url::parse(text) {
                Some(url) => V::Url(Arc::new(url)),
                None => {
                    return fault("URL parse error during conversion from string: invalid URI for request");
                }
            },
            ("isQuantity", []) => V::Bool(quantity::nanos(text).is_some()),
            ("quantity", []) => match quantity::nanos(text) {
                Some(nanos) => V::Quantity(nanos),
                None => {
                    return fault(
                        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
                    );
                }
            },
            ("isIP", []) => V::Bool(ip(text).is_some()),
            ("ip", []) => match ip(text) {
                Some(address) => V::Ip(address),
                None => {
                    return fault(format!(
                        "IP Address {text:?} parse error during conversion from string"
                    ));
                }
            },
            ("ip.isCanonical", []) => match ip(text) {
                Some(address) => V::Bool(address.to_string() == **text),
                None => {
                    return fault(format!(
                        "IP Address {text:?} parse error during conversion from string"
                    ));
                }
            },
            ("isCIDR", []) => V::Bool(cidr(text).is_some()),
            ("cidr", []) => match cidr(text) {
                Some(net) => V::Cidr(net),
                None => {
                    return fault(format!(
                        "network address parse error during conversion from string: {text:?}"
                    ));
                }
            },
            _ => return no_overload(),
        })
    }

    fn list(&mut self, function: &str, list: &List<'a>, args: &[V<'a>]) -> Outcome<'a> {
        self.charge(list.len())?;
        let items = || list.iter().collect::<Result<Vec<_>, _>>().map_err(Stop::Fault);
        Ok(match (function, args) {
            ("join", separator) => {
                let separator = match separator {
                    [V::String(separator)] => &**separator,
                    _ => "",
                };
                let mut joined = String::new();
                for (index, item) in items()?.into_iter().enumerate() {
                    let V::String(item) = item else {
                        return no_overload();
                    };
                    self.charge_bytes(item.len() + separator.len())?;
                    joined.push_str(if index > 0 { separator } else { "" });
                    joined.push_str(&item);
                }
                V::text(joined)
            }
            ("isSorted", []) => {
                for pair in items()?.windows(2) {
                    if let [one, other] = pair
                        && self.compare(one, other)? == Some(Ordering::Greater)
                    {
                        return Ok(V::Bool(false));
                    }
                }
                V::Bool(true)
            }
            ("sum", []) => {
                let mut items = items()?.into_iter();
                let Some(mut sum) = items.next() else {
                    return Ok(V::Int(0));
                };
                for item in items {
                    sum = self.arithmetic("_+_", &[sum, item])?;
                }
                sum
            }
            ("min" | "max", []) => {
                let better = if function == "min" {
                    Ordering::Less
                } else {
                    Ordering::Greater
                };
                let mut items = items()?.into_iter();
                let Some(mut best) = items.next() else {
                    return fault(format!("{function} called on empty list"));
                };
                for item in items {
                    if self.compare(&item, &best)? == Some(better) {
                        best = item;
                    }
                }
                best
            }
            ("indexOf", [wanted]) => self
                .position(list, 0..list.len(), wanted)?
                .map_or(V::Int(-1), int),
            ("lastIndexOf", [wanted]) => self
                .position(list, (0..list.len()).rev(), wanted)?
                .map_or(V::Int(-1), int),
            ("slice", [V::Int(from), V::Int(to)]) => match items()?.get(place(*from)..place(*to)) {
                Some(part) => V::list(part.to_vec()),
                None => {
                    return fault(format!(
                        "cannot slice({from}, {to}), list is length {}",
                        list.len()
                    ));
                }
            },
            ("reverse", []) => return collect(list.iter().rev()),
            ("distinct", []) => {
                let mut kept: Vec<V<'a>> = Vec::new();
                for item in items()? {
                    let mut known = false;
                    for other in &kept {
                        known = known || self.equal(other, &item)?;
                    }
                    if !known {
                        kept.push(item);
                    }
                }
                V::list(kept)
            }
            ("sort", []) => {
                // By insertion into what is sorted already: comparing may end it all.
                let mut sorted: Vec<V<'a>> = Vec::new();
                for item in items()? {
                    let (mut low, mut high) = (0, sorted.len());
                    while low < high {
                        let middle = low.midpoint(high);
                        let Some(other) = sorted.get(middle) else { break };
                        self.charge(1)?;
                        match self.compare(&item, other)? {
                            Some(Ordering::Less) => high = middle,
                            _ => low = middle + 1,
                        }
                    }
                    self.charge(sorted.len() - low)?;
                    sorted.insert(low, item);
                }
                V::list(sorted)
            }
            ("flatten", []) => {
                let mut flat = Vec::new();
                for item in items()? {
                    match item {
                        V::List(inner) => {
                            self.charge(inner.len())?;
                            for item in inner.iter() {
                                flat.push(item.map_err(Stop::Fault)?);
                            }
                        }
                        item => flat.push(item),
                    }
                }
                V::list(flat)
            }
            ("sets.contains", [V::List(other)]) => V::Bool(self.includes(list, other)?),
            ("sets.equivalent", [V::List(other)]) => {
                V::Bool(self.includes(list, other)? && self.includes(other, list)?)
            }
            ("sets.intersects", [V::List(other)]) => {
                for item in items()? {
                    if self.position(other, 0..other.len(), &item)?.is_some() {
                        return Ok(V::Bool(true));
                    }
                }
                V::Bool(false)
            }
            _ => return no_overload(),
        })
    }

    fn includes(&mut self, all: &List<'a>, some: &List<'a>) -> Result<bool, Stop> {
        for item in some.iter() {
            if self
                .position(all, 0..all.len(), &item.map_err(Stop::Fault)?)?
                .is_none()
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn url(&mut self, function: &str, url: &Url) -> Outcome<'a> {
        Ok(match function {
            "getScheme" => V::text(&*url.scheme),
            "getHost" => V::text(&*url.host),
            "getHostname" => V::text(url.host_name()),
            "getPort" => V::text(url.port()),
            "getEscapedPath" => V::text(&*url.path),
            "getQuery" => {
                self.charge(url.query.len())?;
                let mut query = BTreeMap::<Key<'a>, Vec<V<'a>>>::new();
                for (name, value) in url.query() {
                    query
                        .entry(Key::Text(Text::from(name)))
                        .or_default()
                        .push(V::text(value));
                }
                made(
                    query
                        .into_iter()
                        .map(|(name, values)| (name, V::list(values)))
                        .collect(),
                )
            }
            _ => return no_overload(),
        })
    }

    fn format(&mut self, pattern: &str, values: &List<'a>) -> Outcome<'a> {
        let mut out = String::new();
        let mut values = values.iter();
        let mut chars = pattern.chars().peekable();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            if chars.next_if_eq(&'%').is_some() {
                out.push('%');
                continue;
            }
            let mut precision = None;
            if chars.next_if_eq(&'.').is_some() {
                let mut digits = String::new();
                while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                    digits.push(digit);
                }
                match digits.parse::<usize>() {
                    Ok(wanted) if wanted <= 100 => precision = Some(wanted),
                    _ => return fault("could not parse formatting clause: bad precision"),
                }
            }
            let precision = precision.unwrap_or(6);
            let value = match values.next() {
                Some(value) => value.map_err(Stop::Fault)?,
                None => return fault("index out of range: too few arguments"),
            };
            self.charge(10)?;
            match (chars.next(), &value) {
                (Some('s'), value) => self.show(value, &mut out)?,
                (Some('d'), V::Int(_) | V::Uint(_)) => self.show(&value, &mut out)?,
                (Some('f'), V::Double(number)) => out.push_str(&format!("{number:.precision$}")),
                (Some('x'), V::Int(number)) => out.push_str(&based(*number, |n| format!("{n:x}"))),
                (Some('X'), V::Int(number)) => out.push_str(&based(*number, |n| format!("{n:X}"))),
                (Some('o'), V::Int(number)) => out.push_str(&based(*number, |n| format!("{n:o}"))),
                (Some('b'), V::Int(number)) => out.push_str(&based(*number, |n| format!("{n:b}"))),
                (Some('x'), V::Uint(number)) => out.push_str(&format!("{number:x}")),
                (Some('X'), V::Uint(number)) => out.push_str(&format!("{number:X}")),
                _ => return fault("could not parse formatting clause"),
            }
        }
        Ok(V::text(out))
    }
}

/// A count or a place, which no memory could hold too many of.
fn int<'a>(count: usize) -> V<'a> {
    V::Int(i64::try_from(count).unwrap_or(i64::MAX))
}

/// Negative places are outside of everything.
fn place(index: i64) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

fn collect<'a>(items: impl Iterator<Item = Result<V<'a>, String>>) -> Outcome<'a> {
    items.collect::<Result<_, _>>().map(V::list).map_err(Stop::Fault)
}

fn index<'a>(of: &V<'a>, key: &V<'a>, form: Select) -> Outcome<'a> {
    match key.key() {
        Some(key) => select(of.clone(), &key, form),
        None => no_overload(),
    }
}

/// The optional last argument that says how many; negative means all.
fn limit_of(args: &[V<'_>]) -> Result<usize, Stop> {
    match args {
        [] => Ok(usize::MAX),
        [V::Int(limit)] => Ok(place(*limit)),
        _ => no_overload(),
    }
}

fn split_chars(text: &str, limit: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if parts.len() + 1 == limit {
            parts.push(rest);
            break;
        }
        let (first, after) = rest.split_at(c.len_utf8());
        parts.push(first);
        rest = after;
    }
    parts
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// With a sign instead of two's complement.
fn based(number: i64, write: impl Fn(u64) -> String) -> String {
    let sign = if number < 0 { "-" } else { "" };
    format!("{sign}{}", write(number.unsigned_abs()))
}

fn timestamp<'a>(time: Option<Timestamp>) -> Outcome<'a> {
    match time.filter(|time| TIMES.contains(&time.as_second())) {
        Some(time) => Ok(V::Timestamp(time)),
        None => fault("timestamp overflow"),
    }
}

fn zone(name: &str) -> Option<TimeZone> {
    if matches!(name, "" | "UTC") {
        return Some(TimeZone::UTC);
    }
    let (sign, rest) = match name.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, name.strip_prefix('+').unwrap_or(name)),
    };
    let Some((hours, minutes)) = rest.split_once(':') else {
        return TimeZone::get(name).ok();
    };
    let (hours, minutes): (i32, i32) = (hours.parse().ok()?, minutes.parse().ok()?);
    let seconds = hours.checked_mul(60)?.checked_add(minutes)?.checked_mul(60)?;
    Offset::from_seconds(sign * seconds).ok().map(TimeZone::fixed)
}

fn moment<'a>(function: &str, time: Timestamp, args: &[V<'a>]) -> Outcome<'a> {
    let name = match args {
        [] => "",
        [V::String(name)] => name,
        _ => return no_overload(),
    };
    let Some(zone) = zone(name) else {
        return fault(format!("unknown time zone {name}"));
    };
    let zoned: Zoned = time.to_zoned(zone);
    Ok(V::Int(match function {
        "getFullYear" => zoned.year().into(),
        "getMonth" => i64::from(zoned.month()) - 1,
        "getDate" => zoned.day().into(),
        "getDayOfMonth" => i64::from(zoned.day()) - 1,
        "getDayOfWeek" => zoned.weekday().to_sunday_zero_offset().into(),
        "getDayOfYear" => i64::from(zoned.day_of_year()) - 1,
        "getHours" => zoned.hour().into(),
        "getMinutes" => zoned.minute().into(),
        "getSeconds" => zoned.second().into(),
        "getMilliseconds" => zoned.millisecond().into(),
        _ => return no_overload(),
    }))
}

fn amount<'a>(function: &str, nanos: i128, args: &[V<'a>]) -> Outcome<'a> {
    let whole = (nanos % BILLION == 0)
        .then(|| i64::try_from(nanos / BILLION).ok())
        .flatten();
    let other = match args {
        [V::Quantity(other)] => Some(*other),
        [V::Int(other)] => Some(i128::from(*other) * BILLION),
        _ => None,
    };
    let quantities = |nanos: Option<i128>| match nanos {
        Some(nanos) => Ok(V::Quantity(nanos)),
        None => fault("quantity overflow"),
    };
    Ok(match (function, other) {
        ("sign", None) => V::Int(nanos.signum() as i64),
        ("isInteger", None) => V::Bool(whole.is_some()),
        ("asInteger", None) => match whole {
            Some(whole) => V::Int(whole),
            None => return fault("cannot convert value to integer"),
        },
        ("asApproximateFloat", None) => V::Double(nanos as f64 / BILLION as f64),
        ("isGreaterThan", Some(other)) => V::Bool(nanos > other),
        ("isLessThan", Some(other)) => V::Bool(nanos < other),
        ("compareTo", Some(other)) => V::Int(nanos.cmp(&other) as i64),
        ("add", Some(other)) => return quantities(nanos.checked_add(other)),
        ("sub", Some(other)) => return quantities(nanos.checked_sub(other)),
        _ => return no_overload(),
    })
}

/// Addresses of IPv4 inside of IPv6 are none, as in Kubernetes.
fn ip(text: &str) -> Option<IpAddr> {
    let address = text.parse().ok()?;
    match address {
        IpAddr::V6(inner) if inner.to_ipv4_mapped().is_some() => None,
        address => Some(address),
    }
}

fn cidr(text: &str) -> Option<IpNet> {
    let net: IpNet = text.parse().ok()?;
    ip(&net.addr().to_string()).map(|_| net)
}

fn address_is<'a>(function: &str, address: IpAddr) -> Outcome<'a> {
    let (link_local, link_local_multicast, broadcast) = match address {
        IpAddr::V4(v4) => (
            v4.is_link_local(),
            v4.octets().starts_with(&[224, 0, 0]),
            v4.is_broadcast(),
        ),
        IpAddr::V6(v6) => (
            v6.is_unicast_link_local(),
            v6.segments()[0] & 0xff0f == 0xff02,
            false,
        ),
    };
    let nowhere = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    Ok(V::Bool(match function {
        "family" => return Ok(V::Int(if address.is_ipv4() { 4 } else { 6 })),
        "isUnspecified" => address.is_unspecified(),
        "isLoopback" => address.is_loopback(),
        "isLinkLocalMulticast" => link_local_multicast,
        "isLinkLocalUnicast" => link_local,
        "isGlobalUnicast" => !(nowhere || link_local || broadcast),
        _ => return no_overload(),
    }))
}

fn network<'a>(function: &str, net: IpNet, args: &[V<'a>]) -> Outcome<'a> {
    let bad = |text: &str| {
        fault(format!(
            "network address parse error during conversion from string: {text:?}"
        ))
    };
    Ok(match (function, args) {
        ("ip", []) => V::Ip(net.addr()),
        ("masked", []) => V::Cidr(net.trunc()),
        ("prefixLength", []) => V::Int(net.prefix_len().into()),
        ("containsIP", [V::Ip(address)]) => V::Bool(net.contains(address)),
        ("containsIP", [V::String(text)]) => match ip(text) {
            Some(address) => V::Bool(net.contains(&address)),
            None => return bad(text),
        },
        ("containsCIDR", [V::Cidr(other)]) => V::Bool(net.contains(other)),
        ("containsCIDR", [V::String(text)]) => match cidr(text) {
            Some(other) => V::Bool(net.contains(&other)),
            None => return bad(text),
        },
        _ => return no_overload(),
    })
}

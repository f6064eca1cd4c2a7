//! Port lists as annotations and values write them: `25,587,3000-3010`, possibly with container-port names.
//!
//! A set is kept as sorted, disjoint ranges, so that `skip everything` (`0-65535`) costs as much as one port. What a
//! name means depends on a pod and is passed in by whoever knows the pod.

use std::fmt;

/// A set of ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports(Vec<(u16, u16)>);

impl Ports {
    /// Reads a list without names; an item that isn't a port or a range is ignored, as a typo in one item must not
    /// take the others with it.
    pub fn parse(text: &str) -> Self {
        Self::parse_named(text, |_| None)
    }

    /// Reads a list in which items may also be names, for which `port_of` knows the number.
    pub fn parse_named(text: &str, port_of: impl Fn(&str) -> Option<u16>) -> Self {
        let ranges = text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .filter_map(|item| range(item).or_else(|| port_of(item).map(|port| (port, port))));
        Self::from_ranges(ranges.collect())
    }

    fn from_ranges(mut ranges: Vec<(u16, u16)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
        for (low, high) in ranges {
            match merged.last_mut() {
                Some(last) if u32::from(low) <= u32::from(last.1) + 1 => last.1 = last.1.max(high),
                _ => merged.push((low, high)),
            }
        }
        Self(merged)
    }

    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|(low, high)| (*low..=*high).contains(&port))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<u16> for Ports {
    fn from_iter<I: IntoIterator<Item = u16>>(ports: I) -> Self {
        Self::from_ranges(ports.into_iter().map(|port| (port, port)).collect())
    }
}

/// The form that environment variables and annotations take.
impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (low, high)) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            if low == high {
                write!(f, "{comma}{low}")?;
            } else {
                write!(f, "{comma}{low}-{high}")?;
            }
        }
        Ok(())
    }
}

fn range(item: &str) -> Option<(u16, u16)> {
    match item.split_once('-') {
        Some((low, high)) => {
            let (low, high) = (low.trim().parse().ok()?, high.trim().parse().ok()?);
            (low <= high).then_some((low, high))
        }
        None => item.parse().ok().map(|port| (port, port)),
    }
}

#[cfg(test)]
mod tests {
    use super::Ports;

    #[test]
    fn lists_are_sorted_merged_and_written_back_shortest_first() {
        for (text, expected) in [
            ("", ""),
            ("25,587", "25,587"),
            (" 587 , 25,", "25,587"),
            ("3000-3010,3005-3020,3021", "3000-3021"),
            ("9-1,nonsense,70000,80", "80"),
            ("0-65535", "0-65535"),
        ] {
            assert_eq!(Ports::parse(text).to_string(), expected, "{text}");
        }
    }

    #[test]
    fn a_name_stands_for_the_port_that_the_pod_gives_it() {
        let ports = Ports::parse_named("db,8080", |name| (name == "db").then_some(3306));
        assert!(ports.contains(3306) && ports.contains(8080) && !ports.contains(3307));
    }
}

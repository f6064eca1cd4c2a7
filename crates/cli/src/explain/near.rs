//! Which of the existing names was meant: those that a slip of the finger or a missing part makes of one.

/// As many as a person reads.
const NAMES_MAX: usize = 3;

/// The nearest first; none if nothing is near.
pub(super) fn names(wanted: &str, existing: &[&str]) -> Vec<String> {
    let mut near: Vec<(usize, &str)> = existing
        .iter()
        .filter_map(|name| Some((distance(wanted, name)?, *name)))
        .collect();
    near.sort_unstable();
    near.truncate(NAMES_MAX);
    near.into_iter().map(|(_, name)| name.to_owned()).collect()
}

/// In edits; a name that only has more or less at one end is next to a match.
fn distance(wanted: &str, name: &str) -> Option<usize> {
    let (short, long) = if wanted.len() < name.len() {
        (wanted, name)
    } else {
        (name, wanted)
    };
    if short.len() > 2 && (long.starts_with(short) || long.ends_with(short)) {
        return Some(1);
    }
    let edits = edits(wanted.as_bytes(), name.as_bytes());
    (edits <= 1 + wanted.len() / 5).then_some(edits)
}

/// Levenshtein's distance. Names have 63 characters at most.
fn edits(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (at, left) in a.iter().enumerate() {
        let mut next = vec![at + 1];
        for ((right, costs), before) in b.iter().zip(row.windows(2)).zip(0..) {
            let (diagonal, above) = (costs.first().copied(), costs.get(1).copied());
            let replaced = diagonal.unwrap_or_default() + usize::from(left != right);
            let beside = next.get(before).copied().unwrap_or_default();
            next.push(replaced.min(above.unwrap_or_default() + 1).min(beside + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_and_missing_parts_are_near_and_other_names_are_not() {
        let existing = ["web-svc", "web-svc-east", "emoji-svc", "voting-svc"];
        assert_eq!(names("web-scv", &existing), ["web-svc"]);
        assert_eq!(names("web", &existing), ["web-svc", "web-svc-east"]);
        assert_eq!(names("web-svc-west", &existing), ["web-svc", "web-svc-east"]);
        assert_eq!(names("database", &existing), [""; 0]);
    }

    #[test]
    fn edits_are_counted_both_ways() {
        for (a, b, count) in [
            ("", "", 0),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("ab", "ba", 2),
        ] {
            assert_eq!(edits(a.as_bytes(), b.as_bytes()), count, "{a} {b}");
            assert_eq!(edits(b.as_bytes(), a.as_bytes()), count, "{b} {a}");
        }
    }
}

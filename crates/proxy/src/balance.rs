//! Which endpoint takes the next request: power of two choices by peak EWMA, weights honoured.
//!
//! Arithmetic only: no sockets, no clock of its own. Each worker has its own loads, as plain cells.

use std::cell::Cell;
use std::time::{Duration, Instant};

use rand::Rng;

const DECAY_SECS: f64 = 10.0;
const DEFAULT_RTT_SECS: f64 = 0.03;

/// What an endpoint costs now: its recent round trips, worst remembered longest, times what it already has to do.
#[derive(Debug)]
pub(crate) struct Load {
    rtt_secs: Cell<f64>,
    updated_at: Cell<Instant>,
    pending: Cell<u32>,
}

impl Load {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            rtt_secs: Cell::new(DEFAULT_RTT_SECS),
            updated_at: Cell::new(now),
            pending: Cell::new(0),
        }
    }

    pub(crate) fn start(&self) {
        self.pending.set(self.pending.get() + 1);
    }

    /// `rtt` is unknown for what failed or was cancelled.
    pub(crate) fn end(&self, now: Instant, rtt: Option<Duration>) {
        self.pending.set(self.pending.get().saturating_sub(1));
        let Some(rtt) = rtt.map(|rtt| rtt.as_secs_f64()) else {
            return;
        };
        let decayed = self.rtt(now);
        self.rtt_secs.set(if rtt > decayed {
            rtt
        } else {
            // An estimate of its own age: the longer ago, the more the new value counts.
            let age = now.saturating_duration_since(self.updated_at.get()).as_secs_f64();
            let keep = (-age / DECAY_SECS).exp();
            decayed * keep + rtt * (1.0 - keep)
        });
        self.updated_at.set(now);
    }

    fn rtt(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.updated_at.get()).as_secs_f64();
        self.rtt_secs.get() * (-age / DECAY_SECS).exp()
    }

    pub(crate) fn cost(&self, now: Instant) -> f64 {
        // A floor keeps the number of pending requests decisive between idle endpoints.
        self.rtt(now).max(1e-6) * f64::from(self.pending.get() + 1)
    }

    pub(crate) fn pending(&self) -> u32 {
        self.pending.get()
    }
}

/// Draws an index by weight; all weights zero count as equal.
pub(crate) fn draw(weights: impl Iterator<Item = u32> + Clone, rng: &mut impl Rng) -> Option<usize> {
    let total: u64 = weights.clone().map(u64::from).sum();
    if total == 0 {
        let n = weights.count();
        return (n > 0).then(|| rng.random_range(0..n));
    }
    let mut at = rng.random_range(0..total);
    for (index, weight) in weights.enumerate() {
        match at.checked_sub(u64::from(weight)) {
            None => return Some(index),
            Some(rest) => at = rest,
        }
    }
    None
}

/// Two draws by weight, the cheaper wins.
pub(crate) fn choose<T>(
    candidates: &[T],
    weight: impl Fn(&T) -> u32,
    cost: impl Fn(&T) -> f64,
    rng: &mut impl Rng,
) -> Option<usize> {
    match candidates.len() {
        0 => None,
        1 => Some(0),
        _ => {
            let first = draw(candidates.iter().map(&weight), rng)?;
            let others = candidates.iter().enumerate().filter(|(i, _)| *i != first);
            let among = draw(others.clone().map(|(_, c)| weight(c)), rng)?;
            let second = others.clone().nth(among).map(|(i, _)| i)?;
            // Between unequal weights the draw itself has decided; load decides between equals.
            if weight(&candidates[first]) != weight(&candidates[second]) {
                return Some(first);
            }
            Some(if cost(&candidates[second]) < cost(&candidates[first]) {
                second
            } else {
                first
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng, rngs::SmallRng};

    #[test]
    fn the_busier_of_two_is_left_alone() {
        let now = Instant::now();
        let loads = [Load::new(now), Load::new(now)];
        loads[0].start();
        let mut rng = SmallRng::seed_from_u64(1);
        for _ in 0..50 {
            assert_eq!(choose(&loads, |_| 1, |l| l.cost(now), &mut rng), Some(1));
        }
    }

    #[test]
    fn a_slow_answer_is_remembered_and_then_forgiven() {
        let now = Instant::now();
        let load = Load::new(now);
        let fresh = load.cost(now);
        load.start();
        load.end(now, Some(Duration::from_secs(2)));
        assert!(load.cost(now) > fresh * 50.0);
        assert!(load.cost(now + Duration::from_secs(60)) < fresh);
    }

    #[test]
    fn weights_are_honoured() {
        let mut rng = SmallRng::seed_from_u64(7);
        let weights = [1u32, 9];
        let second = (0..10_000)
            .filter(|_| choose(&weights, |w| *w, |_| 1.0, &mut rng) == Some(1))
            .count();
        assert!((8_700..9_300).contains(&second), "{second}");
    }

    #[test]
    fn a_weight_of_zero_takes_nothing_while_others_have_weight() {
        let mut rng = SmallRng::seed_from_u64(7);
        assert!((0..1_000).all(|_| draw([0, 5, 0].into_iter(), &mut rng) == Some(1)));
    }
}

//! The demo, judged by what it says.

use crate::runner::{Test, linked};
use crate::world::World;

pub(crate) const TESTS: &[Test] = &[linked(
    "the_demo_plays_to_its_end_and_says_how_fast_the_first_vote_came_through_east",
    &[],
    the_demo_plays_to_its_end_and_says_how_fast_the_first_vote_came_through_east,
)];

fn the_demo_plays_to_its_end_and_says_how_fast_the_first_vote_came_through_east(world: &World) {
    let transcript = world.transcript();
    for outcome in [
        "web-svc-east appeared in west",
        "the first vote went through east's gateway",
        "weights moved to web-svc-east",
        "votes continue through east",
        "weights returned to web-svc",
        "votes return to west",
    ] {
        assert!(
            transcript.contains(&format!("  ok  {outcome}")),
            "{outcome:?} in\n{transcript}"
        );
    }
    let figures = transcript
        .lines()
        .filter_map(|line| line.trim().split_once(" s  from "));
    let figures: Vec<(f64, &str)> = figures
        .map(|(seconds, what)| (seconds.parse().expect("seconds"), what))
        .collect();
    assert_eq!(figures.len(), 3, "three figures in\n{transcript}");
    for (seconds, what) in figures {
        assert!(seconds > 0.0, "{what} took time");
        report(&format!("{seconds:.1} s from {what}"));
    }
}

#[expect(clippy::print_stdout, reason = "figures for whoever reads the run")]
pub(crate) fn report(text: &str) {
    println!("  {text}");
}

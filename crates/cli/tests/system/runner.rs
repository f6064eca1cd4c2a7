//! Runs tests one after the other in one world, and speaks as libtest does.
//!
//! Needed because the tests share a world that takes half a minute to make and must end with the last of them, also
//! when tests fail. Knows nothing of what is tested.

#![expect(clippy::print_stdout, reason = "a test's runner reports on standard output")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use crate::host;
use crate::world::World;

/// A named claim and how it is shown.
#[derive(Clone, Copy)]
pub(crate) struct Test {
    name: &'static str,
    /// Programs of this machine. Without them a test is ignored; in CI, where they must be, it fails.
    needs: &'static [&'static str],
    /// Why it can't be shown here, CI or not.
    missing: fn() -> Option<String>,
    body: Body,
}

impl Test {
    /// Ignored if there is a reason.
    pub(crate) const fn unless(self, missing: fn() -> Option<String>) -> Self {
        Self { missing, ..self }
    }
}

#[derive(Clone, Copy)]
enum Body {
    Linked(fn(&World)),
    Alone(fn()),
}

/// A test in the two linked clusters that the demo left running.
pub(crate) const fn linked(name: &'static str, needs: &'static [&'static str], body: fn(&World)) -> Test {
    Test {
        name,
        needs,
        missing: || None,
        body: Body::Linked(body),
    }
}

/// A test that brings what it needs. Runs after the linked ones, when their world has ended.
pub(crate) const fn alone(name: &'static str, needs: &'static [&'static str], body: fn()) -> Test {
    Test {
        name,
        needs,
        missing: || None,
        body: Body::Alone(body),
    }
}

/// What `cargo test` may pass on. Options of libtest that make no difference here are accepted.
struct Wanted {
    filters: Vec<String>,
    exact: bool,
    list: bool,
}

impl Wanted {
    fn parse(args: impl Iterator<Item = String>) -> Self {
        let mut wanted = Self {
            filters: Vec::new(),
            exact: false,
            list: false,
        };
        for arg in args {
            match arg.as_str() {
                "--exact" => wanted.exact = true,
                "--list" => wanted.list = true,
                option if option.starts_with('-') => {}
                _ => wanted.filters.push(arg),
            }
        }
        wanted
    }

    fn includes(&self, test: &Test) -> bool {
        let fits = |filter: &String| {
            if self.exact {
                test.name == filter
            } else {
                test.name.contains(filter.as_str())
            }
        };
        self.filters.is_empty() || self.filters.iter().any(fits)
    }
}

/// Runs what the arguments of this process ask for.
pub(crate) fn run(tests: &[Test]) -> ExitCode {
    let wanted = Wanted::parse(std::env::args().skip(1));
    let chosen: Vec<&Test> = tests.iter().filter(|test| wanted.includes(test)).collect();
    if wanted.list {
        for test in &chosen {
            println!("{}: test", test.name);
        }
        return ExitCode::SUCCESS;
    }
    let filtered = tests.len() - chosen.len();
    println!("\nrunning {} tests", chosen.len());
    let began = Instant::now();
    let nowhere = host::cannot_run();
    let mut world = None;
    let (mut failed, mut ignored) = (Vec::new(), 0);
    let (linked, alone): (Vec<&Test>, Vec<&Test>) = chosen
        .iter()
        .partition(|test| matches!(test.body, Body::Linked(_)));
    for test in linked.into_iter().chain(alone) {
        if matches!(test.body, Body::Alone(_)) {
            world = None;
        }
        match nowhere
            .clone()
            .map_or_else(|| attempt(test, &mut world), Outcome::Ignored)
        {
            Outcome::Passed(seconds) => println!("test {} ... ok ({seconds:.1} s)", test.name),
            Outcome::Ignored(why) => {
                ignored += 1;
                println!("test {} ... ignored, {why}", test.name);
            }
            Outcome::Failed => {
                failed.push(test.name);
                println!("test {} ... FAILED", test.name);
                if let Some(world) = &world {
                    println!("{}", world.dump());
                }
            }
        }
    }
    drop(world);
    if !failed.is_empty() {
        println!("\nfailures:");
        for name in &failed {
            println!("    {name}");
        }
    }
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {} passed; {} failed; {ignored} ignored; 0 measured; {filtered} filtered out; \
         finished in {:.2}s\n",
        chosen.len() - failed.len() - ignored,
        failed.len(),
        began.elapsed().as_secs_f64()
    );
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(101)
    }
}

enum Outcome {
    /// After so many seconds.
    Passed(f64),
    Ignored(String),
    Failed,
}

fn attempt(test: &Test, world: &mut Option<World>) -> Outcome {
    if let Some(missing) = test.needs.iter().find(|program| !host::has(program)) {
        let why = format!("there is no {missing} on this machine");
        if std::env::var_os("CI").is_none() {
            return Outcome::Ignored(why);
        }
        println!("{why}, and CI must have it");
        return Outcome::Failed;
    }
    if let Some(why) = (test.missing)() {
        return Outcome::Ignored(why);
    }
    let began = Instant::now();
    let ended = catch_unwind(AssertUnwindSafe(|| match test.body {
        Body::Alone(body) => body(),
        Body::Linked(body) => body(world.get_or_insert_with(World::start)),
    }));
    match ended {
        Ok(()) => Outcome::Passed(began.elapsed().as_secs_f64()),
        Err(_) => Outcome::Failed,
    }
}

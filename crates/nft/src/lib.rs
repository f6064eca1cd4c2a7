//! nf_tables rules over netlink, without the `nft` program.
//!
//! A ruleset is a value: [`Table`] holds chains, sets and rules, and says nothing of bytes or sockets. [`Batch`] turns
//! tables into one netlink transaction (pure), and [`Batch::apply`] sends it to the kernel, which takes all of it or
//! nothing. Only whole tables are written: [`Batch::replace`] states what a table shall contain, whatever it contained
//! before, so there is no difference to compute and nobody else's table is ever touched.
//!
//! The kernel's network namespace is that of the calling thread. Nothing here reads rules back.

mod attribute;
mod batch;
mod encode;
mod socket;
mod table;

pub use batch::Batch;
pub use socket::ApplyError;
pub use table::{
    Action, Base, Chain, Family, Field, Hook, Key, Kind, Match, Members, Policy, Protocol, Rule, Set, Table,
    Verdict, priority, state, status,
};

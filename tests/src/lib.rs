//! The contract kit: what every layer must obey, and the tools to show it.
//!
//! - [`probe`], [`controlled`], [`watch`], [`cancel`], [`alloc`]: services, futures and an allocator that see what a layer
//!   does with what is below it.
//! - [`laws`]: the laws of the design's fourth section, as checks that return a [`Violation`].
//! - [`subject`]: what a layer tells the laws about itself. [`subjects`] is the table: **registering a layer is one line**.
//! - [`pair`]: two subjects on top of each other are a subject again, so every law that composes runs on every order.
//! - [`store`]: a store of rate limits that is far away, and fails.
//! - [`vectors`]: the runner of the conformance vectors.
//!
//! ```
//! use bartizan_tests::{Verdict, laws, subjects};
//!
//! # #[global_allocator]
//! # static ALLOCATOR: bartizan_tests::alloc::Counting = bartizan_tests::alloc::Counting;
//! for subject in subjects::subjects() {
//!     for law in laws::LAWS {
//!         match law.check(&*subject) {
//!             Ok(Verdict::Holds) => println!("{}: {} ok", law.name, subject.name()),
//!             Ok(Verdict::Exempt(why)) => println!("{}: {} exempt, {why}", law.name, subject.name()),
//!             Err(violation) => panic!("{violation}"),
//!         }
//!     }
//! }
//! ```

pub mod alloc;
pub mod cancel;
pub mod controlled;
pub mod laws;
pub mod pair;
pub mod probe;
pub mod store;
pub mod subject;
pub mod subjects;
pub mod vectors;
pub mod watch;
pub mod wire;

mod bench;
mod served;

pub use laws::{Law, Verdict, Violation};
pub use subject::Subject;

/// The examples of the repository's README are compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
mod readme {}

//! Smalti's client library for schedulers: subscribe, receive offers, launch, take status updates, acknowledge.
//!
//! ```no_run
//! # async fn example() -> Result<(), smalti_framework_sdk::Error> {
//! use smalti_framework_sdk::{Event, Framework, Options};
//!
//! let (handle, mut events) = Framework::connect(Options::new("127.0.0.1:5050", "my-scheduler")).await?;
//! while let Some(event) = events.recv().await {
//!     match event {
//!         Event::Offers(offers) => handle.decline(offers.iter().map(|o| o.id).collect(), Default::default()).await?,
//!         Event::Update(u) => {
//!             println!("{} is {}", u.update.key.task, u.update.state);
//!             u.ack.done();
//!         }
//!         _ => {}
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! The library reconnects by itself, subscribes again under the same id, reconciles every task that is not terminal,
//! drops repeated updates and keeps kills and item assignments until they have taken effect. With a [`store::Store`]
//! ([`Options::with_store`]) all that outlives the process, and what a handler commits in a [`Transaction`] with an update
//! it commits exactly once. What it decides is in `smalti-framework-sdk-core`; this crate acts.
//!
//! Deliberately absent: scheduling (that is the handler's), retries of tasks.
#![warn(missing_docs)]

mod batch;
mod bundle;
mod error;
mod events;
mod handle;
mod link;
mod options;
mod run;
pub mod store;
mod transaction;

pub use bundle::{push_bundle, push_bytes};
pub use error::Error;
pub use events::{Ack, Event, Events, Update};
pub use handle::Handle;
pub use options::Options;
pub use run::Framework;
pub use smalti_types as types;
pub use transaction::Transaction;

//! What a store carries for its guest: WASI, the memory limiter, and what the host functions need.
//!
//! Owns nothing that outlives the guest except shared handles.

use crate::control::Control;
use crate::host::Progress;
use crate::limits::{Charge, Limiter};
use crate::network::{Grants, Table};
use crate::streams::Meters;
use std::sync::Arc;
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{WasiCtxView, WasiView};

/// What the guests of a task or array part have in common, as one slot holds it: the slots of a part would hand the count of its users
/// to each other with each item.
#[derive(Debug, Clone, Default)]
pub(crate) struct Common {
    pub(crate) control: Arc<Control>,
    pub(crate) progress: Arc<Progress>,
    /// What they may do on the network, if anything.
    pub(crate) network: Option<Arc<Grants>>,
}

/// The data of one store.
pub(crate) struct State {
    /// Serves preview 1 and, through [`WasiView`], WASI 0.2.
    pub(crate) wasi: WasiP1Ctx,
    pub(crate) limiter: Limiter,
    pub(crate) common: Arc<Common>,
    /// Its descriptors, where some may be sockets.
    pub(crate) sockets: Table,
    pub(crate) meters: Arc<Meters>,
    /// What directory listings take that the guest holds.
    pub(crate) listings: Vec<Charge>,
    /// The value the guest returned, if any.
    pub(crate) result: Option<Vec<u8>>,
    /// Whether a core module has called a function of the host's that can fail: its code runs, then.
    pub(crate) called: bool,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.wasi.ctx()
    }
}

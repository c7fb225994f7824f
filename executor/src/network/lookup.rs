//! `wasi:sockets/ip-name-lookup` for components: a table of names that were granted, filled by the agent before the launch.
//!
//! Owns the interface's functions. Nothing is ever asked of a resolver from here: a look-up could carry data out, and its answer
//! could change after the check. Every other name cannot be resolved. Addresses stand for themselves, as everywhere.

use crate::state::State;
use std::net::IpAddr;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource, ResourceType};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddress, Network};
use wasmtime_wasi::p2::{DynPollable, Pollable, subscribe};

/// As Wasmtime's own, which this one replaces.
const INTERFACE: &str = "wasi:sockets/ip-name-lookup@0.2.12";

/// Addresses that the guest takes one by one.
struct Answers(std::vec::IntoIter<IpAddr>);

#[wasmtime_wasi::async_trait]
impl Pollable for Answers {
    /// They are there from the beginning.
    async fn ready(&mut self) {}
}

/// Puts the interface into a linker that has Wasmtime's already.
///
/// # Errors
/// When it is not the one that Wasmtime has.
pub(crate) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut interface = linker.instance(INTERFACE)?;
    interface.resource("resolve-address-stream", ResourceType::host::<Answers>(), |mut store: StoreContextMut<'_, State>, rep| {
        store.data_mut().ctx().table.delete(Resource::<Answers>::new_own(rep))?;
        Ok(())
    })?;
    interface.func_wrap("resolve-addresses", |mut store: StoreContextMut<'_, State>, (network, name): (Resource<Network>, String)| {
        let state = store.data_mut();
        state.ctx().table.get(&network)?;
        let Some(addresses) = resolve(state, &name) else { return Ok((Err(ErrorCode::NameUnresolvable),)) };
        Ok((Ok(state.ctx().table.push(Answers(addresses.into_iter()))?),))
    })?;
    interface.func_wrap(
        "[method]resolve-address-stream.resolve-next-address",
        |mut store: StoreContextMut<'_, State>, (stream,): (Resource<Answers>,)| {
            let next = store.data_mut().ctx().table.get_mut(&stream)?.0.next();
            Ok((Ok::<_, ErrorCode>(next.map(IpAddress::from)),))
        },
    )?;
    interface.func_wrap(
        "[method]resolve-address-stream.subscribe",
        |mut store: StoreContextMut<'_, State>, (stream,): (Resource<Answers>,)| -> wasmtime::Result<(Resource<DynPollable>,)> {
            Ok((subscribe(store.data_mut().ctx().table, stream)?,))
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

fn resolve(state: &State, name: &str) -> Option<Vec<IpAddr>> {
    let literal = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    if let Ok(address) = literal.parse::<IpAddr>() {
        return Some(vec![address]);
    }
    state.common.network.as_ref()?.resolve(name).map(<[_]>::to_vec)
}

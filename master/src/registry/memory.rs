//! A registry that remembers nothing: for tests, and for clusters that are thrown away as a whole.

use super::{Registry, RegistryError};
use smalti_master_core::{Record, Stored};
use smalti_types::MasterEpoch;

#[derive(Debug)]
pub(crate) struct Memory;

impl Registry for Memory {
    fn load(&mut self) -> Result<Stored, RegistryError> {
        Ok(Stored::default())
    }

    fn next_epoch(&mut self, floor: MasterEpoch) -> Result<MasterEpoch, RegistryError> {
        Ok(floor)
    }

    fn write(&mut self, _: Vec<Record>) -> Result<(), RegistryError> {
        Ok(())
    }
}

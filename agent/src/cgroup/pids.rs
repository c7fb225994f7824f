//! Number of threads of an executor.

use super::Error;
use super::files::controller;
use cgroups_rs::MaxValue;
use cgroups_rs::pid::PidController;
use std::path::Path;

/// Sets the limit and reads back that it is in force.
pub(super) fn set_limit(dir: &Path, v2: bool, threads: u32) -> Result<(), Error> {
    let control = PidController::new(dir.to_owned(), v2);
    let wanted = MaxValue::Value(i64::from(threads));
    control.set_pid_max(wanted).map_err(controller("setting the limit of threads", dir))?;
    let got = control.get_pid_max().map_err(controller("reading the limit of threads", dir))?;
    if got == wanted {
        return Ok(());
    }
    Err(Error::NotInForce { path: dir.join("pids.max"), wanted: threads.to_string(), got: got.to_string() })
}

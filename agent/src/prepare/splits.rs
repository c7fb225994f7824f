//! What an array's items read by splits: objects laid out whole before the first item starts, and pieces of large ones as items need them.
//!
//! Owns `.splits/` of a part's directory, and the names in it, by which the executor finds its files. An item whose bytes cannot be had finds
//! word of why, and no other item is concerned. Deliberately absent: which item waits for which piece (`crate::splits`).

use super::bundles::blocking;
use super::cache::NoRoom;
use super::inputs::{Inputs, Kept, Whose, ours, place};
use super::service::{Handle, LOOKS_EVERY, too_late, too_much};
use super::{Failure, Stop};
use futures::{StreamExt, TryStreamExt};
use smalti_types::{FrameworkId, Input, Packing, Reason, Role, pieces};
use std::fs::{self, File, Permissions};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Where they lie in a part's directory.
pub(super) const SPLITS_DIR: &str = ".splits";
/// Objects of one array that are fetched at the same time.
const SPLITS_AT_ONCE: usize = 16;
/// Ends the name of a file that says why another is not there.
const FAILED: &str = "failed";
/// Most characters of a reason that an executor is told.
const MOST_WORDS: usize = 1000;

/// A piece that an array part's items need.
#[derive(Debug, Clone)]
pub(crate) struct WantedPiece {
    /// Whose they are.
    pub(crate) framework: FrameworkId,
    /// Its role: the operator says what that may fetch.
    pub(crate) role: Role,
    /// The object.
    pub(crate) input: Input,
    /// Its index among those of the part.
    pub(crate) index: u32,
    /// Which bytes of it.
    pub(crate) bytes: Range<u64>,
    /// The part's directory.
    pub(crate) directory: PathBuf,
    /// Whoever reads it knows whole objects only.
    pub(crate) whole: bool,
}

/// What lies in a part's directory for a piece, until [`Laid::remove`] or the end of the part.
#[derive(Debug)]
pub(crate) struct Laid {
    /// It is the whole object: all pieces are there.
    pub(crate) whole: bool,
    path: PathBuf,
    /// What the cache keeps for it; `None`: it was there already, or there is only word of why not.
    kept: Option<Kept>,
}

impl Laid {
    /// Nobody reads it any more. Touches the disk.
    pub(crate) fn remove(self) {
        let _ = fs::remove_file(&self.path);
        // By now the cache sees that nobody has a link to it.
        drop(self.kept);
    }
}

impl Inputs {
    /// Fetches the objects that splits refer to, but for those that come in pieces, and lays them out as files `0`, `1.gz`, … of one directory
    /// below `directory`. The executor unpacks what its name says is packed. What cannot be had leaves a file `2.failed` with the reason.
    pub(super) async fn lay_out_splits(
        self: &Arc<Self>,
        inputs: &[Input],
        directory: &Path,
        whose: Whose<'_>,
    ) -> Result<(Option<Arc<File>>, Vec<Kept>), Stop> {
        if inputs.is_empty() {
            return Ok(Default::default());
        }
        let base = directory.join(SPLITS_DIR);
        let (dir, at) = (base.clone(), base.clone());
        blocking(move || {
            // What an earlier life of the agent left.
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir).map_err(|e| ours("make", &dir, e))
        })
        .await?;
        // A few at a time: each holds a descriptor, and perhaps a connection, until it has its place.
        let whole = inputs.iter().enumerate().filter(|(_, input)| !input.is_in_pieces());
        let wanted: Vec<(PathBuf, Input)> = whole.map(|(n, input)| (at.join(format!("{n}{}", suffix(input))), input.clone())).collect();
        let kept = futures::stream::iter(wanted.into_iter().map(|(at, input)| {
            let this = self.clone();
            async move {
                let got = this.get(&input, whose).await;
                let _turn = this.disk.take(whose.1).await;
                match got {
                    Ok(fresh) => blocking(move || Ok::<_, Stop>(place(&fresh.path, &at).map(|()| Some(fresh.kept))?)).await,
                    // The items that read it fail, and no others.
                    Err(Stop::Failed(failure)) if failure.reason == Reason::InputFailed => {
                        blocking(move || Ok::<_, Stop>(explain(&failure, &at).map(|()| None)?)).await
                    }
                    Err(stop) => Err(stop),
                }
            }
        }))
        .buffer_unordered(SPLITS_AT_ONCE)
        .try_collect::<Vec<Option<Kept>>>()
        .await?;
        blocking(move || {
            fs::set_permissions(&base, Permissions::from_mode(0o755)).map_err(|e| ours("open up", &base, e))?;
            let dir = File::open(&base).map_err(|e| ours("open", &base, e))?;
            Ok((Some(Arc::new(dir)), kept.into_iter().flatten().collect()))
        })
        .await
    }

    /// Fetches a piece, and puts it where the executor looks for it.
    async fn lay_out_piece(self: &Arc<Self>, wanted: &WantedPiece) -> Result<Laid, Stop> {
        let base = wanted.directory.join(SPLITS_DIR);
        let (all, at) = (base.join(wanted.index.to_string()), base.join(pieces::file_name(wanted.index, &wanted.bytes)));
        // A server without ranges, or an earlier build.
        if all.exists() {
            return Ok(Laid { whole: true, path: all, kept: None });
        }
        let whose = (&wanted.role, &wanted.framework);
        let range = wanted.bytes.start..wanted.bytes.end.min(wanted.input.length);
        if range.is_empty() && !wanted.whole {
            return blocking(move || {
                fs::write(&at, [])
                    .and_then(|()| fs::set_permissions(&at, Permissions::from_mode(0o444)))
                    .map_err(|e| ours("write", &at, e))?;
                Ok(Laid { whole: false, path: at, kept: None })
            })
            .await;
        }
        let piece = if wanted.whole { None } else { self.get_piece(&wanted.input, range, whose).await? };
        let whole = piece.is_none();
        let (fresh, path) = match piece {
            Some(piece) => (piece, at),
            None => (self.get(&wanted.input, whose).await?, all),
        };
        let _turn = self.disk.take(whose.1).await;
        blocking(move || {
            // Items of an earlier life of the agent may be reading it.
            let next = path.with_extension("next");
            let _ = fs::remove_file(&next);
            place(&fresh.path, &next)?;
            fs::rename(&next, &path).map_err(|e| ours("put in place", &path, e))?;
            // Two links to one file are not renamed.
            let _ = fs::remove_file(&next);
            Ok(Laid { whole, path, kept: Some(fresh.kept) })
        })
        .await
    }
}

impl Handle {
    /// The same, as soon as there is room; or leaves word of why not.
    pub(crate) async fn lay_out_piece(&self, wanted: WantedPiece) -> Laid {
        let began = Instant::now();
        let failure = loop {
            match self.service().inputs.lay_out_piece(&wanted).await {
                Ok(laid) => return laid,
                Err(Stop::Failed(failure)) => break failure,
                Err(Stop::NoRoom(no_room)) => {
                    if let Some(failure) = self.wait_for_room(&no_room, began).await {
                        break failure;
                    }
                }
            }
        };
        let at = wanted.directory.join(SPLITS_DIR).join(pieces::file_name(wanted.index, &wanted.bytes));
        let path = at.with_extension(FAILED);
        let told = blocking(move || Ok::<_, Stop>(explain(&failure, &at)?)).await;
        if let Err(stop) = told {
            tracing::error!(?stop, "an item will not find out why its input is not there");
        }
        Laid { whole: false, path, kept: None }
    }

    /// Comes back when there is room, or with the reason to give up.
    async fn wait_for_room(&self, no_room: &NoRoom, began: Instant) -> Option<Failure> {
        let service = self.service();
        if no_room.wanted > no_room.budget {
            return Some(too_much(no_room));
        }
        tracing::debug!(%no_room, "a piece of an input waits for room");
        loop {
            if began.elapsed() >= service.room_timeout {
                return Some(too_late(service.room_timeout, no_room));
            }
            tokio::time::sleep(LOOKS_EVERY).await;
            if service.cache.could_have(no_room.kind) >= no_room.wanted {
                return None;
            }
        }
    }
}

/// What the name of a split's file says about it.
const fn suffix(input: &Input) -> &'static str {
    match input.packing {
        Some(Packing::Gzip) => ".gz",
        Some(Packing::Zstd) => ".zst",
        Some(Packing::Plain) | None => "",
    }
}

/// Leaves word of why there is no file at `at`, for the executor to tell.
fn explain(failure: &Failure, at: &Path) -> Result<(), Failure> {
    let at = &at.with_extension(FAILED);
    let words: String = failure.message.chars().take(MOST_WORDS).collect();
    fs::write(at, words).and_then(|()| fs::set_permissions(at, Permissions::from_mode(0o444))).map_err(|e| ours("write", at, e))
}

//! Pieces of large objects: fetched once, kept within the budget, laid out where the executor looks.

use super::*;
use smalti_types::pieces::{BLOCK, file_name};
use std::ops::Range;

const LENGTH: u64 = 10 * BLOCK;

/// Nowhere the same.
fn content() -> Vec<u8> {
    (0..u32::try_from(LENGTH / 4).unwrap()).flat_map(u32::to_le_bytes).collect()
}

impl Bed {
    fn wanted(&self, ticket: u64, bytes: Range<u64>, etag: &str) -> WantedPiece {
        let directory = self.data.path().join(format!("task-{ticket}"));
        std::fs::create_dir_all(directory.join(".splits")).unwrap();
        let (uri, etag) = (Some(self.url("/large")), Some(etag.to_owned()));
        let input = Input { guest_path: None, uri, digest: None, length: LENGTH, etag, packing: None };
        assert!(input.is_in_pieces());
        let framework = FrameworkId::new("F1-1").unwrap();
        WantedPiece { framework, role: Role::default(), input, index: 3, bytes, directory, whole: false }
    }
}

fn laid_out(wanted: &WantedPiece, name: &str) -> Option<Vec<u8>> {
    std::fs::read(wanted.directory.join(".splits").join(name)).ok()
}

fn bytes(range: Range<u64>) -> Vec<u8> {
    content()[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()].to_vec()
}

#[tokio::test]
async fn a_piece_is_fetched_once_and_goes_from_its_place_with_its_last_item() {
    let bed = Bed::new().await;
    bed.put("/large", Answer::Parts(content(), "\"1\""));
    let (first, other) = (bed.wanted(1, BLOCK..2 * BLOCK, "\"1\""), bed.wanted(2, BLOCK..2 * BLOCK, "\"1\""));
    // Of two parts at a time, and once more as after a restart.
    let (a, b) = tokio::join!(bed.handle.lay_out_piece(first.clone()), bed.handle.lay_out_piece(other.clone()));
    let again = bed.handle.lay_out_piece(first.clone()).await;
    assert_eq!(bed.requests(), 1);
    let name = file_name(3, &first.bytes);
    for wanted in [&first, &other] {
        assert!(laid_out(wanted, &name).unwrap() == bytes(BLOCK..2 * BLOCK));
    }
    assert_eq!(std::fs::read_dir(first.directory.join(".splits")).unwrap().count(), 1, "nothing else lies there");
    drop(again);
    a.remove();
    assert_eq!(laid_out(&first, &name), None);
    assert!(laid_out(&other, &name).is_some());
    b.remove();
    assert_eq!(bed.handle.holdings().len(), 1, "it stays in the cache, as a part of the object");
}

#[tokio::test]
async fn a_piece_at_the_end_is_as_long_as_the_object_and_one_behind_it_is_empty() {
    let bed = Bed::new().await;
    bed.put("/large", Answer::Parts(content(), "\"1\""));
    let last = bed.wanted(1, LENGTH - 10..LENGTH + BLOCK, "\"1\"");
    bed.handle.lay_out_piece(last.clone()).await;
    assert!(laid_out(&last, &file_name(3, &last.bytes)).unwrap() == bytes(LENGTH - 10..LENGTH));
    let behind = bed.wanted(1, LENGTH..LENGTH + BLOCK, "\"1\"");
    bed.handle.lay_out_piece(behind.clone()).await;
    assert_eq!(laid_out(&behind, &file_name(3, &behind.bytes)).unwrap(), b"");
    assert_eq!(bed.requests(), 1);
}

#[tokio::test]
async fn a_server_without_ranges_and_an_executor_without_pieces_get_the_whole_object_once() {
    let bed = Bed::new().await;
    bed.put("/large", Answer::Bytes(content(), Some("\"1\"")));
    let first = bed.wanted(1, BLOCK..2 * BLOCK, "\"1\"");
    assert!(bed.handle.lay_out_piece(first.clone()).await.whole);
    assert!(laid_out(&first, "3").unwrap() == content());
    assert_eq!(bed.requests(), 2, "the part in vain, and the whole");
    let old = WantedPiece { whole: true, ..bed.wanted(2, 0..BLOCK, "\"1\"") };
    assert!(bed.handle.lay_out_piece(old.clone()).await.whole);
    assert!(laid_out(&old, "3").unwrap() == content());
    // What lies there is enough for every piece.
    assert!(bed.handle.lay_out_piece(bed.wanted(1, 0..BLOCK, "\"1\"")).await.whole);
    assert_eq!(bed.requests(), 2);
}

#[tokio::test]
async fn a_piece_waits_for_room_and_what_cannot_be_had_leaves_word() {
    let bed = Bed::with(|o| (o.budgets, o.max_input) = (Budgets::shared(Bytes(5 * BLOCK / 2)), Bytes(9 * BLOCK))).await;
    bed.put("/large", Answer::Parts(content(), "\"1\""));
    let kept = bed.handle.lay_out_piece(bed.wanted(1, 0..2 * BLOCK, "\"1\"")).await;
    let next = bed.wanted(1, 2 * BLOCK..4 * BLOCK, "\"1\"");
    let mut waiting = Box::pin(bed.handle.lay_out_piece(next.clone()));
    assert!(futures::poll!(&mut waiting).is_pending());
    tokio::select! {
        _ = &mut waiting => panic!("there is no room"),
        () = tokio::time::sleep(Duration::from_millis(50)) => {}
    }
    assert!(bed.handle.on_disk() <= 5 * BLOCK / 2);
    kept.remove();
    let laid = waiting.await;
    assert!(laid_out(&next, &file_name(3, &next.bytes)).unwrap() == bytes(2 * BLOCK..4 * BLOCK));
    laid.remove();
    for (wanted, says) in [
        (bed.wanted(1, 0..9 * BLOCK, "\"1\""), "does not fit into this agent's caches"),
        (bed.wanted(1, 0..LENGTH, "\"1\""), "is larger than the limit"),
        (bed.wanted(1, 0..BLOCK, "\"2\""), "changed since the task was submitted"),
    ] {
        let laid = bed.handle.lay_out_piece(wanted.clone()).await;
        let name = format!("{}.failed", file_name(3, &wanted.bytes));
        let word = String::from_utf8(laid_out(&wanted, &name).unwrap()).unwrap();
        assert!(word.contains(says), "{word}");
        laid.remove();
        assert_eq!(laid_out(&wanted, &name), None);
    }
}

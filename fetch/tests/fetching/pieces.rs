//! Parts of objects, of one version each.

use super::origin::{Origin, Reply};
use super::*;
use smalti_fetch::{Got, PieceTransfer, Sink, SourceError};
use std::ops::Range;

const TAGGED: [(&str, &str); 1] = [("etag", "\"1\"")];

/// What one transfer brings, and the digest of it.
async fn fetch_piece(origin: &Origin, path: &str, range: Range<u64>, sink: &mut Hashing) -> Result<(Got, Digest), Failed> {
    let sources = Sources::new(setup(&origin.address)).unwrap();
    let wanted = Wanted { etag: Some("\"1\"".into()), ..wanted(&origin.url(path)) };
    let got = PieceTransfer { sources: &sources, wanted: &wanted, range }.run(sink).await?;
    Ok((got, sink.digests().0))
}

#[tokio::test]
async fn a_part_goes_on_where_it_broke_off_and_nothing_beside_it_is_asked_for() {
    let (origin, bytes) = (Origin::start().await, content());
    let sent = bytes.clone();
    origin.on("/x", move |asked, _| Reply::rest(&sent, asked.from(), &TAGGED).cut(90_000));
    let mut sink = Hashing::default();
    let (got, digest) = fetch_piece(&origin, "/x", 100_000..350_000, &mut sink).await.unwrap();
    assert_eq!((got, digest), (Got::Piece, Digest::of(&bytes[100_000..350_000])));
    for asked in origin.asked() {
        assert!(asked.header("range").is_some_and(|r| r.ends_with("-349999")), "{asked:?}");
        assert_eq!(asked.header("if-match"), Some("\"1\""));
    }
    assert_eq!(origin.asked()[0].from(), Some(100_000));
    assert!(origin.asked().len() >= 3);
    // All there: nobody is asked.
    let before = origin.asked().len();
    assert_eq!(fetch_piece(&origin, "/x", 100_000..350_000, &mut sink).await.unwrap(), (Got::Piece, digest));
    assert_eq!(origin.asked().len(), before);
}

#[tokio::test]
async fn what_is_there_of_another_version_is_not_gone_on_with() {
    let (origin, bytes) = (Origin::start().await, content());
    let sent = bytes.clone();
    origin.on("/x", move |asked, _| Reply::rest(&sent, asked.from(), &TAGGED));
    let mut sink = Hashing::default();
    sink.note(&Facts { etag: Some("\"0\"".into()), total: None, name: None }).await.unwrap();
    sink.write(bytes::Bytes::from_static(b"old")).await.unwrap();
    let (_, digest) = fetch_piece(&origin, "/x", 10..1_000, &mut sink).await.unwrap();
    assert_eq!(digest, Digest::of(&bytes[10..1_000]));
}

#[tokio::test]
async fn another_version_is_refused_also_when_the_server_ignores_the_condition() {
    let (origin, bytes) = (Origin::start().await, content());
    let sent = bytes.clone();
    origin.on("/rude", move |asked, _| Reply::rest(&sent, asked.from(), &[("etag", "\"2\"")]));
    origin.on("/polite", |_, _| Reply::raw("412 Precondition Failed", &[("content-length", "0")], b""));
    for path in ["/rude", "/polite"] {
        let failed = fetch_piece(&origin, path, 10..20, &mut Hashing::default()).await.unwrap_err();
        assert!(matches!(failed, Failed::Source(SourceError::Changed { .. })), "{path}: {failed}");
    }
    assert_eq!(origin.asked().len(), 2, "it does not pass");
}

#[tokio::test]
async fn a_server_that_knows_no_parts_says_so_and_its_bytes_are_not_read() {
    let (origin, bytes) = (Origin::start().await, content());
    let sent = bytes.clone();
    origin.on("/x", move |_, _| Reply::whole(&sent));
    let mut sink = Hashing::default();
    assert_eq!(fetch_piece(&origin, "/x", 10..20, &mut sink).await.unwrap().0, Got::NoPieces);
    assert_eq!(sink.bytes(), 0);
    // The beginning of the whole is a part, too.
    assert_eq!(fetch_piece(&origin, "/x", 0..20, &mut sink).await.unwrap(), (Got::Piece, Digest::of(&bytes[..20])));
}

#[tokio::test]
async fn a_server_with_trouble_is_asked_again_and_one_without_the_object_is_not() {
    let (origin, bytes) = (Origin::start().await, content());
    let sent = bytes.clone();
    origin.on("/busy", move |asked, before| match before {
        0..3 => Reply::raw("503 Service Unavailable", &[("content-length", "0"), ("retry-after", "0")], b""),
        _ => Reply::rest(&sent, asked.from(), &TAGGED),
    });
    assert_eq!(fetch_piece(&origin, "/busy", 5..7, &mut Hashing::default()).await.unwrap().1, Digest::of(&bytes[5..7]));
    let failed = fetch_piece(&origin, "/none", 5..7, &mut Hashing::default()).await.unwrap_err();
    assert!(matches!(failed, Failed::Source(SourceError::NotFound { .. })), "{failed}");
}

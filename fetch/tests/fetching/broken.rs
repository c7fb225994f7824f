//! Servers that break off, lie, stall, compress, and recover.

use super::origin::{Origin, Reply};
use super::*;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[tokio::test]
async fn what_breaks_off_again_and_again_goes_on_where_it_was() {
    let (origin, bytes) = (Origin::start().await, content());
    let sent = bytes.clone();
    origin.on("/x", move |asked, _| Reply::rest(&sent, asked.from(), &[]).cut(90_000));
    assert_eq!(fetch(&origin, "/x", &bytes).await.unwrap().0, Digest::of(&bytes));
    let froms: Vec<_> = origin.asked().iter().map(super::origin::Asked::from).collect();
    assert_eq!(froms[0], None);
    assert!(froms.len() >= 9 && froms[1..].windows(2).all(|w| w[0] < w[1]), "{froms:?}");
}

#[tokio::test]
async fn ranges_are_asked_for_with_the_version_and_a_new_version_begins_anew() {
    let (origin, old, new) = (Origin::start().await, content(), content().into_iter().rev().collect::<Vec<_>>());
    let (first, second) = (old.clone(), new.clone());
    origin.on("/x", move |asked, before| match before {
        0 => Reply::rest(&first, None, &[("etag", "\"1\"")]).cut(100_000),
        // As a server does that knows If-Range.
        _ if asked.header("if-range") == Some("\"2\"") => Reply::rest(&second, asked.from(), &[("etag", "\"2\"")]),
        1 => Reply::rest(&second, None, &[("etag", "\"2\"")]).cut(100_000),
        _ => Reply::raw("500 Internal Server Error", &[], b""),
    });
    // Without a digest: only the tag tells.
    let (digest, facts) = fetch_with(setup(&origin.address), &wanted(&origin.url("/x"))).await.unwrap();
    assert_eq!((digest, facts.etag.as_deref()), (Digest::of(&new), Some("\"2\"")));
    assert_eq!(origin.asked()[1].header("if-range"), Some("\"1\""));
}

#[tokio::test]
async fn content_that_changes_between_ranges_is_never_mixed() {
    let (origin, old, new) = (Origin::start().await, content(), content().into_iter().rev().collect::<Vec<_>>());
    // A server without tags, and one that ignores conditions: the second half is another object's.
    for (path, tags) in [("/plain", false), ("/rude", true)] {
        let (first, second) = (old.clone(), new.clone());
        origin.on(path, move |asked, before| {
            let (bytes, tag) = if before == 0 { (&first, "\"1\"") } else { (&second, "\"2\"") };
            let headers: &[(&str, &str)] = if tags { &[("etag", tag)] } else { &[] };
            let reply = Reply::rest(bytes, asked.from(), headers);
            if before == 0 { reply.cut(100_000) } else { reply }
        });
        assert_eq!(fetch(&origin, path, &new).await.unwrap().0, Digest::of(&new), "{path}");
        let undigested = wanted(&origin.url(path));
        assert_eq!(fetch_with(setup(&origin.address), &undigested).await.unwrap().0, Digest::of(&new), "{path}");
        // Wrong all the same: said with both digests.
        let failed = fetch(&origin, path, b"something else").await.unwrap_err();
        assert!(matches!(&failed, Failed::Digest { expected, found, .. } if *expected != *found), "{failed}");
        assert!(
            failed.to_string().contains(&Digest::of(&new).to_string())
                && failed.to_string().contains(&Digest::of(b"something else").to_string())
        );
    }
}

#[tokio::test]
async fn a_server_that_ignores_ranges_is_listened_to_from_the_beginning() {
    let (origin, bytes) = (Origin::start().await, content());
    let sent = bytes.clone();
    origin.on("/x", move |_, before| if before == 0 { Reply::whole(&sent).cut(100_000) } else { Reply::whole(&sent) });
    assert_eq!(fetch(&origin, "/x", &bytes).await.unwrap().0, Digest::of(&bytes));
    assert_eq!(origin.asked().len(), 2);
}

#[tokio::test]
async fn answers_that_do_not_fit_the_question_are_not_used() {
    let (origin, bytes) = (Origin::start().await, content());
    type Wrong = fn(&[u8]) -> Reply;
    let wrongs: [(&str, Wrong); 5] = [
        ("/other-range", |b| Reply::rest(b, Some(5), &[])),
        ("/no-range", |b| Reply::raw("206 Partial Content", &[("content-length", "10")], &b[..10])),
        ("/not-satisfiable", |_| Reply::raw("416 Range Not Satisfiable", &[("content-range", "bytes */7"), ("content-length", "0")], b"")),
        ("/other-total", |b| Reply::raw("206 Partial Content", &[("content-range", "bytes 100000-100009/9999999")], &b[..10])),
        ("/nonsense", |b| Reply::raw("206 Partial Content", &[("content-range", "bytes banana"), ("content-length", "3")], &b[..3])),
    ];
    for (path, wrong) in wrongs {
        let sent = bytes.clone();
        origin.on(path, move |asked, before| match before {
            0 => Reply::whole(&sent).cut(100_000),
            _ if asked.from().is_some() => wrong(&sent),
            _ => Reply::whole(&sent),
        });
        let came = fetch(&origin, path, &bytes).await;
        assert_eq!(came.unwrap_or_else(|e| panic!("{path}: {e}")).0, Digest::of(&bytes));
    }
}

#[tokio::test]
async fn lies_about_the_length_end_as_what_they_are() {
    let (origin, bytes) = (Origin::start().await, content());
    let sent = bytes.clone();
    // Too long: the rest never comes. Too short: what comes is cut.
    origin.on("/long", move |_, _| Reply::raw("200 OK", &[("content-length", &(sent.len() + 1).to_string())], &sent));
    let failed = fetch(&origin, "/long", &bytes).await.unwrap_err();
    assert!(matches!(failed, Failed::Source(_)), "{failed}");
    let sent = bytes.clone();
    origin.on("/short", move |_, _| Reply::raw("200 OK", &[("content-length", "1000")], &sent));
    let failed = fetch(&origin, "/short", &bytes).await.unwrap_err();
    assert!(matches!(failed, Failed::Digest { .. }), "{failed}");
    // Nobody says how long it is, and it ends early once.
    let sent = bytes.clone();
    origin.on("/silent", move |_, before| {
        let reply = Reply::raw("200 OK", &[], &sent);
        if before == 0 { reply.cut(100_000) } else { reply }
    });
    assert_eq!(fetch(&origin, "/silent", &bytes).await.unwrap().0, Digest::of(&bytes));
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_what_stays_is_not() {
    let (origin, bytes) = (Origin::start().await, content());
    for status in ["500 Internal Server Error", "503 Service Unavailable", "429 Too Many Requests", "408 Request Timeout"] {
        let (sent, path) = (bytes.clone(), format!("/{}", &status[..3]));
        origin.on(&path, move |_, before| match before {
            0..3 => Reply::raw(status, &[("content-length", "0"), ("retry-after", "0")], b""),
            _ => Reply::whole(&sent),
        });
        assert_eq!(fetch(&origin, &path, &bytes).await.unwrap().0, Digest::of(&bytes), "{status}");
    }
    for status in ["404 Not Found", "410 Gone", "403 Forbidden", "401 Unauthorized", "400 Bad Request"] {
        let path = format!("/final-{}", &status[..3]);
        origin.on(&path, move |_, _| Reply::raw(status, &[("content-length", "0")], b""));
        let failed = fetch(&origin, &path, &bytes).await.unwrap_err().to_string();
        assert!(failed.contains(&status[..3]), "{failed}");
        assert_eq!(origin.asked().iter().filter(|a| a.path == path).count(), 1, "{status}");
    }
    origin.on("/never", |_, _| Reply::raw("503 Service Unavailable", &[("content-length", "0")], b""));
    assert!(fetch(&origin, "/never", &bytes).await.unwrap_err().to_string().contains("503"));
    assert_eq!(origin.asked().iter().filter(|a| a.path == "/never").count(), 7);
    // Nobody waits for hours.
    origin.on("/later", |_, _| Reply::raw("429 Too Many Requests", &[("content-length", "0"), ("retry-after", "7200")], b""));
    fetch(&origin, "/later", &bytes).await.unwrap_err();
    assert_eq!(origin.asked().iter().filter(|a| a.path == "/later").count(), 1);
}

#[tokio::test]
async fn a_stall_is_noticed_and_gone_on_after() {
    let (origin, bytes) = (Origin::start().await, content());
    let mut setup = setup(&origin.address);
    setup.stall = Duration::from_millis(200);
    let sent = bytes.clone();
    origin.on("/body", move |asked, before| {
        let reply = Reply::rest(&sent, asked.from(), &[]);
        if before == 0 { reply.cut(100_000).stays() } else { reply }
    });
    let sent = bytes.clone();
    origin.on("/head", move |_, before| if before == 0 { Reply::default().stays() } else { Reply::whole(&sent) });
    for path in ["/body", "/head"] {
        let wanted = Wanted { digest: Some(Digest::of(&bytes)), ..wanted(&origin.url(path)) };
        assert_eq!(fetch_with(setup.clone(), &wanted).await.unwrap().0, Digest::of(&bytes), "{path}");
    }
    let rest = origin.asked().iter().filter(|a| a.path == "/body").filter_map(super::origin::Asked::from).next();
    assert_eq!(rest, Some(100_000));
}

#[tokio::test]
async fn an_origin_that_never_ends_is_left_at_the_limit() {
    let origin = Origin::start().await;
    origin.on("/x", |_, _| Reply::raw("200 OK", &[], b"").and_for_ever(&[7; 65_536]));
    let limited = Wanted { limit: Bytes::mib(1), ..wanted(&origin.url("/x")) };
    let failed = fetch_with(setup(&origin.address), &limited).await.unwrap_err();
    assert!(matches!(failed, Failed::TooLarge { .. }), "{failed}");
    // One that says so beforehand is not listened to at all.
    origin.on("/large", |_, _| Reply::raw("200 OK", &[("content-length", "1099511627776")], b"").stays());
    let failed = fetch_with(setup(&origin.address), &wanted(&origin.url("/large"))).await.unwrap_err();
    assert!(matches!(failed, Failed::TooLarge { .. }), "{failed}");
}

#[tokio::test]
async fn a_server_that_compresses_unasked_is_understood() {
    let (origin, bytes) = (Origin::start().await, content());
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(&bytes).unwrap();
    let packed = packer.finish().unwrap();
    let sent = packed.clone();
    let length = packed.len().to_string();
    origin.on("/x", move |_, before| {
        let reply = Reply::raw("200 OK", &[("content-encoding", "gzip"), ("content-length", &length), ("etag", "\"1\"")], &sent);
        if before == 0 { reply.cut(sent.len() / 2) } else { reply }
    });
    assert_eq!(fetch(&origin, "/x", &bytes).await.unwrap().0, Digest::of(&bytes));
    assert_eq!(origin.asked()[0].header("accept-encoding"), Some("identity"));
    origin.on("/br", |_, _| Reply::raw("200 OK", &[("content-encoding", "br"), ("content-length", "3")], b"abc"));
    assert!(fetch(&origin, "/br", &bytes).await.unwrap_err().to_string().contains("compresses it (br)"));
}

#[tokio::test]
async fn pins_are_kept_to() {
    let (origin, bytes) = (Origin::start().await, content());
    let sent = bytes.clone();
    origin.on("/x", move |asked, _| match asked.header("if-match") {
        Some("\"1\"") | None => Reply::rest(&sent, None, &[("etag", "\"1\"")]),
        Some(_) => Reply::raw("412 Precondition Failed", &[("content-length", "0")], b""),
    });
    let sent = bytes.clone();
    origin.on("/deaf", move |_, _| Reply::rest(&sent, None, &[("etag", "\"2\"")]));
    let plain = wanted(&origin.url("/x"));
    let tagged = |uri: &str, tag: &str| Wanted { etag: Some(tag.into()), ..wanted(&origin.url(uri)) };
    assert!(fetch_with(setup(&origin.address), &tagged("/x", "\"1\"")).await.is_ok());
    for wrong in [tagged("/x", "\"0\""), tagged("/deaf", "\"1\""), Wanted { length: Some(3), ..plain.clone() }] {
        let failed = fetch_with(setup(&origin.address), &wrong).await.unwrap_err().to_string();
        assert!(failed.contains("changed since the task was submitted"), "{failed}");
    }
    let sha256: [u8; 32] = sha2::Digest::finalize(sha2::Digest::chain_update(sha2::Sha256::default(), &bytes)).into();
    assert!(fetch_with(setup(&origin.address), &Wanted { sha256: Some(sha256), ..plain.clone() }).await.is_ok());
    let failed = fetch_with(setup(&origin.address), &Wanted { sha256: Some([7; 32]), ..plain }).await.unwrap_err().to_string();
    assert!(failed.contains("sha256:0707"), "{failed}");
}

#[tokio::test]
async fn so_many_connections_to_one_host_and_no_more() {
    let (origin, bytes) = (Origin::start().await, content());
    let over = Arc::new(AtomicBool::new(false));
    let (open, seen, sent) = (Arc::new(()), over.clone(), bytes.clone());
    origin.on("/x", move |_, _| {
        // Two replies are being made at the same time only if two requests were let through.
        let mine = open.clone();
        seen.fetch_or(Arc::strong_count(&mine) > 2, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(20));
        Reply::whole(&sent)
    });
    let sources = Sources::new(Setup { per_host: 1, ..setup(&origin.address) }).unwrap();
    let wanted = Wanted { digest: Some(Digest::of(&bytes)), ..wanted(&origin.url("/x")) };
    let all = (0..5).map(|_| async {
        Transfer { sources: &sources, wanted: &wanted }.run(&mut Hashing::default()).await.unwrap();
    });
    futures::future::join_all(all).await;
    assert!(!over.load(Ordering::Relaxed) && origin.asked().len() == 5);
}

//! A registry with a door: tokens, manifests, blobs that lie elsewhere.

use super::origin::{Asked, Origin, Reply};
use super::*;

fn sha256(bytes: &[u8]) -> String {
    let sum: [u8; 32] = sha2::Digest::finalize(sha2::Digest::chain_update(sha2::Sha256::default(), bytes)).into();
    format!("sha256:{}", Digest::from_bytes(sum).to_hex())
}

fn manifest(layers: &[(&str, &str, usize)]) -> String {
    let layer =
        |(kind, digest, size): &(&str, &str, usize)| format!("{{\"mediaType\":\"{kind}\",\"digest\":\"{digest}\",\"size\":{size}}}");
    format!("{{\"schemaVersion\":2,\"layers\":[{}]}}", layers.iter().map(layer).collect::<Vec<_>>().join(","))
}

fn with_token(asked: &Asked, realm: &str, reply: Reply) -> Reply {
    if asked.header("authorization") == Some("Bearer opensesame") {
        return reply;
    }
    let challenge = format!("Bearer realm=\"{realm}\",service=\"registry\",scope=\"repository:o/tool:pull\"");
    Reply::raw("401 Unauthorized", &[("www-authenticate", &challenge), ("content-length", "0")], b"")
}

#[tokio::test]
async fn an_artifact_is_found_by_tag_and_by_digest_and_its_blob_elsewhere() {
    let (registry, blobs, bytes) = (Origin::start().await, Origin::start().await, content());
    let (layer, realm) = (sha256(&bytes), registry.url("/token"));
    let body = manifest(&[("application/vnd.example", "sha256:00", 1), ("application/wasm", &layer, bytes.len())]);
    let (by_tag, by_digest) = ("/v2/o/tool/manifests/v1".to_owned(), format!("/v2/o/tool/manifests/{}", sha256(body.as_bytes())));
    for path in [by_tag, by_digest] {
        let (body, realm) = (body.clone(), realm.clone());
        registry.on(&path, move |asked, _| with_token(asked, &realm, Reply::whole(body.as_bytes())));
    }
    registry.on("/token?service=registry&scope=repository%3Ao%2Ftool%3Apull", |asked, _| match asked.header("authorization") {
        Some("Basic bWU6aHVzaA==") => Reply::whole(b"{\"token\":\"opensesame\"}"),
        _ => Reply::raw("403 Forbidden", &[("content-length", "0")], b""),
    });
    let to = blobs.url("/blob?signature=hush");
    registry.on(&format!("/v2/o/tool/blobs/{layer}"), move |asked, _| {
        with_token(asked, "none", Reply::raw("307 Temporary Redirect", &[("location", &to), ("content-length", "0")], b""))
    });
    let sent = bytes.clone();
    blobs.on("/blob?signature=hush", move |asked, before| {
        assert!(asked.header("authorization").is_none(), "the token is the registry's");
        let reply = Reply::rest(&sent, asked.from(), &[]);
        if before == 0 { reply.cut(100_000) } else { reply }
    });
    let mut setup = setup(&registry.address);
    setup.policy =
        format!("[default]\nallow = [\"oci://{}/o\"]\naddresses = [\"{}\", \"{}\"]", registry.address, registry.address, blobs.address)
            .parse()
            .unwrap();
    setup.registry_auth = [(registry.address.clone(), "bWU6aHVzaA==".to_owned())].into();
    let place = format!("oci://{}/o/tool:v1", registry.address);
    assert_eq!(fetch_with(setup.clone(), &wanted(&place)).await.unwrap().0, Digest::of(&bytes));
    let sources = Sources::new(setup.clone()).unwrap();
    let exact = sources.exact(&Role::default(), &wanted(&place).location).await.unwrap();
    assert_eq!(exact.to_string(), format!("oci://{}/o/tool@{}", registry.address, sha256(body.as_bytes())));
    assert_eq!(sources.head(&Role::default(), &exact).await.unwrap().0, bytes.len() as u64);
    // Without the credentials, the door stays shut; outside of the pattern, nobody knocks.
    setup.registry_auth.clear();
    let said = fetch_with(setup.clone(), &wanted(&place)).await.unwrap_err().to_string();
    assert!(said.contains("refused"), "{said}");
    let said = fetch_with(setup, &wanted(&format!("oci://{}/other/tool:v1", registry.address))).await.unwrap_err().to_string();
    assert!(said.contains("may not fetch from there"), "{said}");
}

#[tokio::test]
async fn what_a_registry_must_not_send_is_noticed() {
    let (registry, bytes) = (Origin::start().await, content());
    let layer = sha256(&bytes);
    let good = manifest(&[("application/wasm", &layer, bytes.len())]);
    let two = manifest(&[("application/wasm", &layer, 1), ("application/wasm", &layer, 1)]);
    let image = manifest(&[("application/vnd.oci.image.layer.v1.tar+gzip", &layer, 1)]);
    let index = format!(
        "{{\"manifests\":[{{\"digest\":\"sha256:{}\",\"platform\":{{\"architecture\":\"amd64\"}}}},{{\"digest\":\"{}\",\"platform\":{{\"architecture\":\"wasm\"}}}}]}}",
        "1".repeat(64),
        sha256(good.as_bytes())
    );
    let exact = format!("/v2/t/manifests/{}", sha256(good.as_bytes()));
    let forged = format!("/v2/t/manifests/sha256:{}", "2".repeat(64));
    let named = [
        ("/v2/t/manifests/two", two),
        ("/v2/t/manifests/image", image),
        ("/v2/t/manifests/index", index),
        ("/v2/t/manifests/none", "x".into()),
    ];
    for (path, body) in named.into_iter().chain([(exact.as_str(), good.clone()), (forged.as_str(), good)]) {
        registry.on(path, move |_, _| Reply::whole(body.as_bytes()));
    }
    let sent = bytes.clone();
    registry.on(&format!("/v2/t/blobs/{layer}"), move |_, _| Reply::whole(&sent));
    let fetch = |reference: String| {
        let (setup, wanted) = (setup(&registry.address), wanted(&format!("oci://{}/t{reference}", registry.address)));
        async move { fetch_with(setup, &wanted).await }
    };
    assert_eq!(fetch(":index".into()).await.unwrap().0, Digest::of(&bytes));
    for (reference, says) in [(":two", "no Wasm artifact"), (":image", "no Wasm artifact"), (":none", "cannot be read"), (":gone", "404")] {
        let said = fetch(reference.into()).await.expect_err(reference).to_string();
        assert!(said.contains(says), "{reference}: {said}");
    }
    let said = fetch(format!("@sha256:{}", "2".repeat(64))).await.unwrap_err().to_string();
    assert!(said.contains("another manifest"), "{said}");
    // Another blob than its name says.
    registry.on(&format!("/v2/t/blobs/{layer}"), |_, _| Reply::whole(b"evil"));
    let said = fetch(":index".into()).await.unwrap_err().to_string();
    assert!(said.contains(&layer), "{said}");
}

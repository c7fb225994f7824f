//! Where the cluster's credentials for S3 may come from, and what is said when they are no longer good.

use super::authority::Authority;
use super::origin::{Origin, Reply};
use super::s3::setup_of;
use super::*;
use smalti_fetch::SourceError;
use smalti_test_s3::{KEY_ID, S3, SECRET};

/// Without a word of the environment about keys.
fn without_keys(s3: &S3, changes: &[(&str, &str)]) -> Setup {
    let mut setup = setup_of(s3, changes);
    setup.s3.retain(|(name, _)| !name.contains("KEY"));
    setup
}

/// A machine's own metadata service, which wants to be asked for a token first: the n-th answer is this session token and its end.
pub(crate) fn instance(metadata: &Origin, session: impl Fn(usize) -> (String, String) + Send + Sync + 'static) {
    metadata.on("/latest/api/token", |_, _| Reply::whole(b"IMDS"));
    let allowed = |asked: &super::origin::Asked| asked.header("x-aws-ec2-metadata-token") == Some("IMDS");
    let denied = || Reply::raw("401 Unauthorized", &[("content-length", "0")], b"");
    metadata.on(
        "/latest/meta-data/iam/security-credentials/",
        move |asked, _| {
            if allowed(asked) { Reply::whole(b"node") } else { denied() }
        },
    );
    metadata.on("/latest/meta-data/iam/security-credentials/node", move |asked, n| {
        if allowed(asked) { Reply::whole(session_json(&session(n)).as_bytes()) } else { denied() }
    });
}

fn session_json((token, end): &(String, String)) -> String {
    format!("{{\"AccessKeyId\":\"{KEY_ID}\",\"SecretAccessKey\":\"{SECRET}\",\"Token\":\"{token}\",\"Expiration\":\"{end}\"}}")
}

/// Nobody tries again, and no credential is in what is said.
fn is_refused(failed: &Failed, says: &str) {
    assert!(matches!(failed, Failed::Source(SourceError::Refused { .. })), "{failed:?}");
    assert!(failed.to_string().contains(says), "{failed}");
    for secret in [SECRET, "session-", "jwt-hush", KEY_ID] {
        assert!(!format!("{failed:?}").contains(secret), "{failed:?}");
    }
}

#[tokio::test]
async fn a_session_token_goes_with_the_keys_and_an_expired_one_is_told() {
    let s3 = S3::start().unwrap();
    s3.put("x", b"content").unwrap();
    s3.expect_token("session-1");
    let x = wanted("s3://bucket/x");
    assert!(fetch_with(setup_of(&s3, &[("AWS_SESSION_TOKEN", "session-1")]), &x).await.is_ok());
    for changes in [&[("AWS_SESSION_TOKEN", "session-0")][..], &[]] {
        is_refused(&fetch_with(setup_of(&s3, changes), &x).await.unwrap_err(), "ExpiredToken: The provided token has expired.");
    }
    let asked = s3.asked();
    assert_eq!(asked.len(), 3, "each was asked once: {asked:?}");
    let policy = "[default]\nstore = [\"s3://bucket/\"]".parse().unwrap();
    let sources = Sources::new(Setup { policy, ..setup_of(&s3, &[]) }).unwrap();
    let said = match sources.deposit(&Role::default(), "s3://bucket/").unwrap().begin("j1/x").await {
        Ok(upload) => upload.finish().await.unwrap_err(),
        Err(e) => e,
    };
    assert!(said.to_string().contains("ExpiredToken"), "{said}");
}

#[tokio::test]
async fn a_machines_own_credentials_are_renewed_before_they_end() {
    let (s3, metadata) = (S3::start().unwrap(), Origin::start().await);
    s3.put("x", b"content").unwrap();
    // Of the first there is nothing left when it comes.
    instance(&metadata, |n| {
        if n == 0 { ("session-1".into(), "2001-01-01T00:00:00Z".into()) } else { ("session-2".into(), "2100-01-01T00:00:00Z".into()) }
    });
    s3.expect_token("session-2");
    let place = format!("http://{}", metadata.address);
    let sources = Sources::new(without_keys(&s3, &[("AWS_METADATA_ENDPOINT", &place)])).unwrap();
    let x = wanted("s3://bucket/x");
    let fetch = async || Transfer { sources: &sources, wanted: &x }.run(&mut Hashing::default()).await;
    is_refused(&fetch().await.unwrap_err(), "ExpiredToken");
    // The library lets a moment pass between two of its questions.
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while let Err(failed) = fetch().await {
        is_refused(&failed, "ExpiredToken");
        assert!(std::time::Instant::now() < deadline, "never renewed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let before = metadata.asked().len();
    fetch().await.unwrap();
    assert_eq!(metadata.asked().len(), before, "the second lasts");
}

#[tokio::test]
async fn a_container_has_credentials_for_what_it_can_show() {
    let (s3, agent) = (S3::start().unwrap(), Origin::start().await);
    s3.put("x", b"content").unwrap();
    s3.expect_token("session-1");
    agent.on("/v1/credentials", |asked, _| match asked.header("authorization") {
        Some("jwt-hush") => Reply::whole(session_json(&("session-1".into(), "2100-01-01T00:00:00Z".into())).as_bytes()),
        _ => Reply::raw("401 Unauthorized", &[("content-length", "0")], b""),
    });
    let dir = tempfile::tempdir().unwrap();
    let (token, place) = (dir.path().join("token"), agent.url("/v1/credentials"));
    std::fs::write(&token, "jwt-hush").unwrap();
    let changes =
        [("AWS_CONTAINER_CREDENTIALS_FULL_URI", place.as_str()), ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.to_str().unwrap())];
    assert!(fetch_with(without_keys(&s3, &changes), &wanted("s3://bucket/x")).await.is_ok());
}

#[tokio::test]
async fn a_web_identity_becomes_a_session_at_a_token_service() {
    let (s3, ours) = (S3::start().unwrap(), Authority::new());
    s3.put("x", b"content").unwrap();
    s3.expect_token("session-1");
    let service = Origin::certified(ours.server("127.0.0.1")).await;
    service.on("/", |asked, _| {
        if !asked.path.contains("Action=AssumeRoleWithWebIdentity") || !asked.path.contains("WebIdentityToken=jwt-hush") {
            return Reply::raw("400 Bad Request", &[("content-length", "0")], b"");
        }
        let said = format!(
            "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{KEY_ID}</AccessKeyId>\
             <SecretAccessKey>{SECRET}</SecretAccessKey><SessionToken>session-1</SessionToken><Expiration>2100-01-01T00:00:00Z</Expiration>\
             </Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
        );
        Reply::whole(said.as_bytes())
    });
    let dir = tempfile::tempdir().unwrap();
    let (token, place) = (dir.path().join("token"), format!("https://{}/", service.address));
    std::fs::write(&token, "jwt-hush").unwrap();
    let token = token.display().to_string();
    let changes = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.as_str()),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/smalti"),
        ("AWS_ENDPOINT_URL_STS", place.as_str()),
    ];
    let x = wanted("s3://bucket/x");
    let setup = Setup { ca: vec![ours.pem()], ..without_keys(&s3, &changes) };
    assert!(fetch_with(setup.clone(), &x).await.is_ok());
    // A service that nobody vouches for gets no token.
    let before = service.asked().len();
    let said = fetch_with(Setup { ca: Vec::new(), ..setup.clone() }, &x).await.unwrap_err();
    assert!(said.to_string().contains("certificate is not accepted") && service.asked().len() == before, "{said}");
    std::fs::write(&token, "jwt-wrong").unwrap();
    let said = fetch_with(setup, &x).await.unwrap_err();
    assert!(said.to_string().contains("400") && !format!("{said:?}").contains("jwt"), "{said:?}");
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_told() {
    let s3 = S3::start().unwrap();
    let (sources, role) = (Sources::new(setup_of(&s3, &[])).unwrap(), Role::default());
    let said = sources.head(&role, &wanted("s3://none/x").location).await.unwrap_err();
    assert!(matches!(said, SourceError::NotFound { .. }), "{said:?}");
    let bucket = sources.bucket(&role, "none", "").unwrap();
    let listed = futures::TryStreamExt::try_collect::<Vec<_>>(bucket.list(None)).await;
    let said = smalti_fetch::from_store("s3://none/", &listed.unwrap_err());
    assert!(matches!(said, SourceError::NotFound { .. }), "{said:?}");
}

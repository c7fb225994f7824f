//! The store in a directory: whose what is, under pushes, grants and removals.

use super::*;

fn role(name: &str) -> Role {
    Role::new(name).unwrap()
}

struct Bed {
    dir: tempfile::TempDir,
    store: BundleStore,
}

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = BundleStore::open(None, dir.path(), 64 << 20).unwrap();
        Self { dir, store }
    }

    async fn push(&self, bytes: &[u8], name: &str, role: Option<&Role>) -> Result<Stored, StoreError> {
        let mut incoming = self.store.begin(Digest::of(bytes), 0, name, role.cloned())?;
        incoming.take(bytes).await?;
        incoming.finish().await
    }

    /// The names under which a role sees what is there.
    async fn names(&self, role: Option<&Role>) -> Vec<String> {
        self.store.list(role).await.unwrap().into_iter().map(|(stored, _)| stored.name).collect()
    }

    /// All files of the store.
    fn files(&self) -> usize {
        fn count(dir: &Path) -> usize {
            let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
            entries.map(|p| if p.is_dir() { 1000 * usize::from(p.file_name().unwrap().len() == 64) + count(&p) } else { 1 }).sum()
        }
        count(&self.dir.path().join("bundles"))
    }
}

#[tokio::test]
async fn a_bundle_is_there_for_roles_that_have_sent_its_bytes() {
    let (bed, a, b) = (Bed::new(), role("a"), role("b"));
    let digest = Digest::of(b"x");
    let first = bed.push(b"x", "a.wasm", Some(&a)).await.unwrap();
    assert_eq!((bed.store.stat(digest, Some(&a)).await.unwrap(), first.name.as_str()), (first.clone(), "a.wasm"));
    let (absent, foreign) = (Digest::of(b"y"), bed.store.stat(digest, Some(&b)).await.unwrap_err());
    let nothing = bed.store.stat(absent, Some(&b)).await.unwrap_err().to_string();
    assert_eq!(foreign.to_string().replace(&digest.to_hex(), &absent.to_hex()), nothing, "the very same words");
    assert!(bed.store.remove(digest, Some(&b)).await.is_err_and(|e| matches!(e, StoreError::NotFound(_))));
    assert_eq!((bed.names(Some(&a)).await.len(), bed.names(Some(&b)).await.len(), bed.names(None).await.len()), (1, 0, 1));
    // Wrong bytes show nothing; the right ones do, under a name and with a time of one's own.
    let mut wrong = bed.store.begin(digest, 0, "", Some(b.clone())).unwrap();
    wrong.take(b"z").await.unwrap();
    assert!(wrong.finish().await.is_err() && bed.store.stat(digest, Some(&b)).await.is_err());
    let second = bed.push(b"x", "b.wasm", Some(&b)).await.unwrap();
    assert!(second.name == "b.wasm" && second.created_us >= first.created_us, "{second:?}");
    assert_eq!(
        (bed.names(Some(&a)).await, bed.names(Some(&b)).await, bed.names(None).await),
        (vec!["a.wasm".to_owned()], vec!["b.wasm".to_owned()], vec!["a.wasm".to_owned()])
    );
    assert_eq!(bed.store.roles(digest).await.unwrap(), Some([a, b].into()));
}

#[tokio::test]
async fn the_bytes_go_with_the_last_right_and_nothing_stays() {
    let (bed, a, b) = (Bed::new(), role("a"), role("b"));
    // Small, and in parts.
    for bytes in [vec![1; 10], vec![2; PART + 1]] {
        let digest = Digest::of(&bytes);
        for role in [&a, &b] {
            bed.push(&bytes, "x", Some(role)).await.unwrap();
        }
        bed.store.remove(digest, Some(&a)).await.unwrap();
        assert!(bed.store.stat(digest, Some(&a)).await.is_err() && bed.store.stat(digest, Some(&b)).await.is_ok());
        assert!(bed.store.remove(digest, Some(&a)).await.is_err(), "once");
        bed.store.remove(digest, Some(&b)).await.unwrap();
        assert!(bed.store.stat(digest, None).await.is_err());
        assert_eq!(bed.files(), 0);
        // The operator's removal takes everybody's.
        bed.push(&bytes, "x", Some(&a)).await.unwrap();
        bed.push(&bytes, "x", Some(&b)).await.unwrap();
        bed.store.remove(digest, None).await.unwrap();
        assert_eq!(bed.files(), 0);
        bed.push(&bytes, "x", Some(&b)).await.unwrap();
        assert!(bed.store.stat(digest, Some(&a)).await.is_err(), "a right does not outlive its bundle");
        bed.store.remove(digest, None).await.unwrap();
    }
}

#[tokio::test]
async fn operators_grant_and_revoke() {
    let (bed, a, b) = (Bed::new(), role("a"), role("b"));
    let digest = Digest::of(b"x");
    assert!(matches!(bed.store.allow(digest, &b, true).await, Err(StoreError::NotFound(_))));
    assert_eq!(bed.files(), 0);
    bed.push(b"x", "a.wasm", Some(&a)).await.unwrap();
    let (_, roles) = bed.store.allow(digest, &b, true).await.unwrap();
    assert_eq!(roles, Some([a.clone(), b.clone()].into()));
    assert_eq!(bed.store.stat(digest, Some(&b)).await.unwrap().name, "a.wasm");
    assert_eq!(bed.store.allow(digest, &a, false).await.unwrap().1, Some([b.clone()].into()));
    assert_eq!(bed.store.allow(digest, &b, false).await.unwrap().1, Some([].into()), "nobody's, and still there");
    for role in [&a, &b] {
        assert!(bed.store.stat(digest, Some(role)).await.is_err());
    }
    assert!(bed.store.stat(digest, None).await.is_ok());
    bed.push(b"x", "a.wasm", Some(&a)).await.unwrap();
    assert!(bed.store.stat(digest, Some(&a)).await.is_ok() && bed.store.stat(digest, Some(&b)).await.is_err());
}

#[tokio::test]
async fn what_nobody_recorded_is_everybodys_until_an_operator_says_otherwise() {
    let (bed, a, b) = (Bed::new(), role("a"), role("b"));
    // As earlier builds left it.
    let digest = Digest::of(b"x");
    let bundles = bed.dir.path().join("bundles");
    for (kind, bytes) in [("blake3", "x"), ("names", "old.wasm")] {
        std::fs::create_dir_all(bundles.join(kind)).unwrap();
        std::fs::write(bundles.join(kind).join(digest.to_hex()), bytes).unwrap();
    }
    assert_eq!((bed.names(Some(&a)).await, bed.names(Some(&b)).await), (vec!["old.wasm".to_owned()], vec!["old.wasm".to_owned()]));
    assert_eq!(bed.store.list(None).await.unwrap()[0].1, None);
    // A push of one does not take it from others; nor can it be taken away by one of them.
    bed.push(b"x", "a.wasm", Some(&a)).await.unwrap();
    assert_eq!(bed.store.stat(digest, Some(&b)).await.unwrap().name, "old.wasm");
    assert!(matches!(bed.store.remove(digest, Some(&a)).await, Err(StoreError::Everybodys(_))));
    // The same for what is pushed without a role.
    bed.push(b"y", "y", None).await.unwrap();
    assert!(bed.store.stat(Digest::of(b"y"), Some(&b)).await.is_ok());
    assert_eq!(bed.store.allow(digest, &b, true).await.unwrap().1, Some([b.clone()].into()));
    assert!(bed.store.stat(digest, Some(&a)).await.is_err() && bed.store.stat(digest, Some(&b)).await.is_ok());
    assert_eq!(bed.store.allow(Digest::of(b"y"), &b, false).await.unwrap().1, Some([].into()));
    assert!(bed.store.stat(Digest::of(b"y"), Some(&a)).await.is_err());
    // An operator's push of what is a role's own opens nothing.
    bed.push(b"x", "mine", None).await.unwrap();
    assert!(bed.store.stat(digest, Some(&a)).await.is_err());
}

#[tokio::test]
async fn pushes_and_removals_at_the_same_time_leave_whole_bundles() {
    let bed = Bed::new();
    let digest = Digest::of(b"x");
    let all = (0..40).map(|n| {
        let (bed, role) = (&bed, role(&format!("r{n}")));
        async move {
            for _ in 0..5 {
                bed.push(b"x", "x", Some(&role)).await.unwrap();
                assert!(bed.store.stat(digest, Some(&role)).await.is_ok(), "{role}");
                bed.store.remove(digest, Some(&role)).await.unwrap();
                assert!(bed.store.stat(digest, Some(&role)).await.is_err(), "{role}");
            }
        }
    });
    futures::future::join_all(all).await;
    assert_eq!(bed.files(), 0);
}

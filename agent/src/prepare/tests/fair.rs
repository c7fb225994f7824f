//! One tenant's flood and another's single bundle.

use super::*;

/// Programs of which no two have the same digest.
fn distinct(n: usize) -> Vec<u8> {
    wat::parse_str(format!("(module (memory (export \"memory\") 1) (func (export \"_start\")) (global i32 i32.const {n}))")).unwrap()
}

fn of(framework: &str, request: Request) -> Request {
    Request { framework: FrameworkId::new(framework).unwrap(), ..request }
}

#[tokio::test]
async fn a_single_bundle_does_not_wait_for_a_flood_of_them() {
    let mut bed = Bed::with(|o| o.compile_parallel = 1).await;
    for n in 0..200 {
        let bundle = bed.store(&distinct(n));
        bed.handle.prepare(of("attacker", bed.request(n as u64, bundle))).unwrap();
    }
    // The flood is under way.
    bed.results.recv().await.unwrap().result.unwrap();
    let bundle = bed.store(&wasm());
    bed.handle.prepare(of("victim", bed.request(1_000, bundle))).unwrap();
    let mut before = 0;
    while bed.results.recv().await.unwrap().ticket != 1_000 {
        before += 1;
    }
    // One compilation that is under way, and those that end while the victim's bundle is fetched.
    assert!(before <= 20, "{before} bundles of the flood came first");
}

/// A compiler that never comes to its end with some bundles, and notes each of them.
fn endless(options: &mut Options) -> PathBuf {
    let begun = options.data_dir.join("begun");
    let script = r#"begun=$1; shift
for a; do [ "$before" = --input ] && input=$a; before=$a; done
if grep -q ENDLESS "$input"; then echo >> "$begun"; exec sleep 1000000; fi
exec "$@""#;
    let command = std::mem::take(&mut options.compile_command);
    options.compile_command = ["/bin/sh", "-c", script, "sh"].map(OsString::from).into();
    options.compile_command.push(begun.clone().into());
    options.compile_command.extend(command);
    begun
}

#[tokio::test]
async fn a_bundle_that_compiles_for_ever_holds_up_only_its_own_tenant() {
    let mut begun = PathBuf::new();
    let mut bed = Bed::with(|o| begun = endless(o)).await;
    let places = bed.options.compile_parallel;
    assert!(places >= 2, "on the smallest node, too");
    for n in 0..2 * places {
        let bundle = bed.store(format!("(module (;ENDLESS {n};) (func (export \"_start\")))").as_bytes());
        bed.handle.prepare(of("attacker", bed.request(n as u64, bundle))).unwrap();
    }
    let under_way = || std::fs::read(&begun).map_or(0, |lines| lines.len());
    while under_way() < places - 1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let bundle = bed.store(&wasm());
    let answer = bed.answer(of("victim", bed.request(1_000, bundle)));
    let answer = tokio::time::timeout(Duration::from_secs(60), answer).await.expect("it waits for the attacker's");
    assert!(answer.is_ok(), "{answer:?}");
    assert_eq!(under_way(), places - 1, "the attacker has all places but one");
}

#[tokio::test]
async fn a_bundle_that_cannot_run_costs_its_compilation_once() {
    let mut bed = Bed::new().await;
    let bundle = bed.store(b"(module (func (export \"_start\") i32.add drop))");
    let first = bed.failure(bundle.clone()).await;
    assert_eq!(first.reason, Reason::InvalidBundle);
    // Neither its bytes nor the compiler are needed for the second answer.
    std::fs::remove_dir_all(bed.data.path().join("bundles")).unwrap();
    std::fs::remove_dir_all(bed.data.path().join("compiled")).unwrap();
    let requests = bed.requests();
    assert_eq!(bed.failure(bundle).await, first);
    assert_eq!(bed.requests(), requests);
}

#[tokio::test]
async fn stalled_transfers_hold_up_only_their_own_tenant() {
    let mut bed = Bed::with(|o| o.downloads = (2, 4)).await;
    let (tell, mut told) = mpsc::unbounded_channel();
    for n in 0..20 {
        bed.put(&format!("/slow{n}"), Answer::Stalls(tell.clone()));
        let bundle = BundleRef { digest: Digest::of(&[n]), uri: Some(bed.url(&format!("/slow{n}"))) };
        bed.handle.prepare(of("attacker", bed.request(u64::from(n), bundle))).unwrap();
    }
    told.recv().await.unwrap();
    let bundle = bed.store(&wasm());
    let answer = bed.answer(of("victim", bed.request(1_000, bundle))).await;
    assert!(answer.is_ok(), "{answer:?}");
    assert!(bed.requests() <= 3, "two of the attacker's at a time, and the victim's");
}

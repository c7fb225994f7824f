//! The cache by itself: budgets, pins, what goes first, what an earlier life left. Owns nothing that outlives a test.

use super::*;
use proptest::prelude::*;

fn cache(total: u64) -> (tempfile::TempDir, Dirs, Cache) {
    with(Budgets::shared(Bytes(total)))
}

fn with(budgets: Budgets) -> (tempfile::TempDir, Dirs, Cache) {
    let temp = tempfile::tempdir().unwrap();
    let dirs = Dirs::below(temp.path());
    for dir in dirs.all() {
        fs::create_dir(dir).unwrap();
    }
    let cache = Cache::open(&dirs, budgets).unwrap();
    (temp, dirs, cache)
}

/// Room first, then bytes.
fn file(cache: &Cache, path: &Path, blocks: u64) -> Result<Pin, NoRoom> {
    let pin = cache.reserve(path, blocks * BLOCK)?;
    fs::write(path, vec![0; usize::try_from(blocks * BLOCK).unwrap()]).unwrap();
    Ok(pin)
}

#[test]
fn the_least_recently_used_goes_first_and_what_is_pinned_stays() {
    let (_temp, dirs, cache) = cache(3 * BLOCK);
    let at = |name| dirs.inputs.join(name);
    let _pinned = file(&cache, &at("a"), 1).unwrap();
    drop(file(&cache, &at("b"), 1).unwrap());
    drop(file(&cache, &at("c"), 1).unwrap());
    drop(cache.pin(&at("b")));
    drop(file(&cache, &at("d"), 1).unwrap());
    assert!(at("a").exists() && at("b").exists() && !at("c").exists());
    assert_eq!(cache.total(), 3 * BLOCK);
}

#[test]
fn there_is_no_room_beside_what_is_in_use_and_it_says_so() {
    let (_temp, dirs, cache) = cache(3 * BLOCK);
    let pin = file(&cache, &dirs.bundles.join("a"), 2).unwrap();
    let refused = cache.reserve(&dirs.compiled.join("b"), 2 * BLOCK).unwrap_err();
    assert_eq!(refused, NoRoom { kind: Kind::Compiled, wanted: 2 * BLOCK, budget: 3 * BLOCK, in_use: 2 * BLOCK });
    assert!(refused.to_string().starts_with("8KiB of room for compiled are needed, and 8KiB of 12KiB"), "{refused}");
    assert_eq!((cache.could_have(Kind::Compiled), cache.total()), (BLOCK, 2 * BLOCK));
    drop(pin);
    assert_eq!(cache.could_have(Kind::Compiled), 3 * BLOCK);
    assert!(cache.reserve(&dirs.compiled.join("b"), 2 * BLOCK).is_ok() && !dirs.bundles.join("a").exists());
}

#[test]
fn a_kind_keeps_to_its_own_budget_and_costs_no_other_kind_anything() {
    let (_temp, dirs, cache) = with(Budgets { total: Bytes(10 * BLOCK), kinds: [Bytes(10 * BLOCK), Bytes(10 * BLOCK), Bytes(2 * BLOCK)] });
    drop(file(&cache, &dirs.bundles.join("old"), 4).unwrap());
    for n in 0..5 {
        drop(file(&cache, &dirs.inputs.join(n.to_string()), 1).unwrap());
    }
    let stock = cache.stock();
    assert_eq!((stock[0].bytes.0, stock[2].bytes.0, stock[2].entries), (4 * BLOCK, 2 * BLOCK, 2));
    assert!(cache.reserve(&dirs.inputs.join("large"), 3 * BLOCK).is_err() && dirs.bundles.join("old").exists());
}

#[test]
fn an_input_that_a_task_has_a_link_to_is_in_use_and_counts_also_after_a_restart() {
    let (temp, dirs, cache) = cache(2 * BLOCK);
    let (cached, link) = (dirs.inputs.join("a"), temp.path().join("link"));
    drop(file(&cache, &cached, 2).unwrap());
    fs::hard_link(&cached, &link).unwrap();
    assert!(cache.reserve(&dirs.inputs.join("b"), 1).is_err());
    let once = dirs.partial.join(format!("{PARTIAL_PREFIX}7"));
    fs::rename(&cached, &once).unwrap();
    let cache = Cache::open(&dirs, Budgets::shared(Bytes(2 * BLOCK))).unwrap();
    assert!(cache.total() == 2 * BLOCK && cache.reserve(&dirs.inputs.join("b"), 1).is_err());
    fs::remove_file(link).unwrap();
    assert!(cache.reserve(&dirs.inputs.join("b"), 1).is_ok() && !once.exists());
}

#[test]
fn stock_is_taken_at_start_and_what_was_not_finished_goes() {
    let (_temp, dirs, _) = cache(1_000);
    fs::write(dirs.bundles.join("x"), [0; 10]).unwrap();
    fs::write(dirs.bundles.join(format!("{PARTIAL_PREFIX}1")), [0; 10]).unwrap();
    fs::create_dir(dirs.compiled.join(format!("{PARTIAL_PREFIX}2"))).unwrap();
    fs::create_dir(dirs.unpacked.join("d")).unwrap();
    fs::write(dirs.unpacked.join("d/f"), [0; 5]).unwrap();
    let cache = Cache::open(&dirs, Budgets::shared(Bytes(1 << 20))).unwrap();
    assert_eq!(cache.total(), size_of(&dirs.bundles.join("x")) + size_of(&dirs.unpacked.join("d")));
    assert!(cache.pin(&dirs.bundles.join("x")).is_some());
    assert!(cache.pin(&dirs.bundles.join("y")).is_none());
    assert_eq!((fs::read_dir(&dirs.bundles).unwrap().count(), fs::read_dir(&dirs.compiled).unwrap().count()), (1, 0));
}

#[test]
fn what_was_not_needed_of_a_reservation_goes_back() {
    let (_temp, dirs, cache) = cache(4 * BLOCK);
    let path = dirs.bundles.join("a");
    let _pin = cache.reserve(&path, 4 * BLOCK).unwrap();
    cache.settle(&path, 1);
    assert_eq!(cache.total(), BLOCK);
    cache.settle(&path, 4 * BLOCK);
    assert_eq!(cache.total(), BLOCK, "it never grows that way");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever is reserved, written, used, moved and given up: the bytes on the disk are never more than the budgets, and what is pinned is there.
    #[test]
    fn bytes_on_the_disk_are_within_the_budgets_at_all_times(
        steps in proptest::collection::vec((0_usize..4, 0_u32..12, 1_u64..6, 0_u8..5), 1..80)
    ) {
        let budgets = Budgets { total: Bytes(12 * BLOCK), kinds: [Bytes(9 * BLOCK), Bytes(8 * BLOCK), Bytes(5 * BLOCK)] };
        let (_temp, dirs, cache) = with(budgets);
        let mut pins: Vec<(PathBuf, Pin)> = Vec::new();
        for (dir, name, size, what) in steps {
            let path = dirs.all()[dir].join(name.to_string());
            match what {
                0..=2 => if !path.exists() && let Ok(pin) = file(&cache, &path, size) {
                    pins.push((path.clone(), pin));
                },
                3 => if !pins.is_empty() { drop(pins.swap_remove(name as usize % pins.len())); },
                _ => if path.exists() && !pins.iter().any(|(p, _)| *p == path) {
                    cache.discard(&path);
                },
            }
            let on_disk = |dirs: &[&Path]| dirs.iter().flat_map(|d| fs::read_dir(d).unwrap()).map(|e| e.unwrap().metadata().unwrap().len()).sum::<u64>();
            let sums = [on_disk(&[&dirs.bundles, &dirs.unpacked]), on_disk(&[&dirs.compiled]), on_disk(&[&dirs.inputs])];
            prop_assert_eq!(sums.iter().sum::<u64>(), cache.total());
            prop_assert!(cache.total() <= budgets.total.0 && sums.iter().zip(budgets.kinds).all(|(sum, budget)| *sum <= budget.0));
            prop_assert!(pins.iter().all(|(path, _)| path.exists()));
        }
    }
}

//! Who goes first and who waits: the queue alone, with rooms that are numbers.

use super::super::cache::Kind;
use super::*;

/// So much could be had, and these bundles are there.
struct There(u64, Vec<u8>);

impl Rooms for There {
    fn could_have(&self, needs: Needs) -> bool {
        needs.bytes <= self.0
    }

    fn is_at_hand(&self, group: &Group) -> bool {
        self.1.iter().any(|n| digest(*n) == group.bundle.digest)
    }
}

fn digest(n: u8) -> Digest {
    Digest::of(&[n])
}

fn now(waits: &mut oneshot::Receiver<Place>) -> Option<Place> {
    waits.try_recv().ok()
}

/// A queue and its clock.
struct Bed {
    queue: Queue,
    now: Instant,
}

impl Bed {
    fn new() -> Self {
        Self { queue: Queue::new(Arc::default()), now: Instant::now() }
    }

    fn ticket(&self, tenant: &str, bundle: u8) -> Ticket {
        let group = Group { bundle: BundleRef { digest: digest(bundle), uri: None }, fuel: false, role: Role::default() };
        self.queue.ticket(FrameworkId::new(tenant).unwrap(), group, true, self.now)
    }

    fn wait(&self, ticket: &Ticket, bytes: Option<u64>, there: &There) -> oneshot::Receiver<Place> {
        self.queue.wait(ticket, bytes.map(|bytes| Needs { kind: Kind::Bundles, bytes }), there)
    }

    fn give_out(&self, there: &There) {
        self.queue.give_out(self.now, there);
    }
}

/// There is room for everybody.
fn room() -> There {
    There(u64::MAX, vec![])
}

/// Nothing is there.
fn nothing() -> There {
    There(0, vec![])
}

#[test]
fn fewer_go_on_when_there_is_no_room_and_more_when_there_is() {
    let bed = Bed::new();
    let tickets: Vec<Ticket> = (0..20).map(|n| bed.ticket("f", n)).collect();
    let ask = |n: usize| bed.wait(&tickets[n], None, &room());
    let mut first: Vec<Place> = (0..8).map(|n| now(&mut ask(n)).unwrap()).collect();
    assert!(!first.pop().unwrap().found_none(), "others were there");
    let mut later: Vec<_> = [12, 10, 11].into_iter().map(ask).collect();
    assert!(later.iter_mut().all(|w| now(w).is_none()), "four at a time, and seven are there");
    drop(first.drain(..4).collect::<Vec<_>>());
    bed.give_out(&room());
    assert!(now(&mut later[1]).is_some() && now(&mut later[0]).is_none(), "who came first");
    first.into_iter().for_each(Place::got_through);
    bed.give_out(&room());
    assert!(now(&mut later[0]).is_some() && now(&mut later[2]).is_some() && !bed.queue.is_waited_for());
}

#[test]
fn who_needs_what_is_not_there_holds_nobody_up() {
    let bed = Bed::new();
    let mut large = bed.wait(&bed.ticket("f", 1), Some(100), &There(10, vec![]));
    let place = now(&mut bed.wait(&bed.ticket("f", 2), Some(5), &There(10, vec![]))).unwrap();
    assert!(now(&mut large).is_none());
    place.got_through();
    assert!(now(&mut bed.wait(&bed.ticket("f", 3), None, &nothing())).unwrap().found_none(), "nobody else was there");
    bed.give_out(&There(100, vec![]));
    assert!(now(&mut large).is_some());
}

#[test]
fn who_gives_up_leaves_no_place_behind() {
    let bed = Bed::new();
    drop(bed.wait(&bed.ticket("f", 1), None, &nothing()));
    drop(bed.wait(&bed.ticket("f", 2), Some(1), &nothing()));
    bed.give_out(&room());
    assert!(!bed.queue.is_waited_for() && bed.queue.lock().running == 0 && bed.queue.lock().opening.is_empty());
}

#[test]
fn users_of_a_bundle_that_is_there_go_first_and_one_makes_another_ready_for_all() {
    let bed = Bed::new();
    let tickets: Vec<Ticket> = [1, 2, 3, 1, 2, 3].into_iter().map(|n| bed.ticket("f", n)).collect();
    let mut waits: Vec<_> = tickets.iter().map(|t| bed.wait(t, Some(10), &nothing())).collect();
    let mut came = |there: &There| -> (Vec<usize>, Vec<Place>) {
        bed.give_out(there);
        waits.iter_mut().enumerate().filter_map(|(n, w)| Some((n, now(w)?))).unzip()
    };
    // One has found that there is no room: from now on there are few places.
    bed.queue.lock().limit = 1;
    let (who, first) = came(&There(10, vec![3]));
    assert_eq!(who, [0, 2, 5], "both that need nothing, and one that needs room");
    assert_eq!(came(&There(20, vec![])).0, Vec::<usize>::new(), "the others wait for it");
    first.into_iter().for_each(Place::got_through);
    let (who, second) = came(&There(10, vec![1]));
    assert_eq!(who, [1, 3], "what the first made ready serves its like, and another one begins");
    assert_eq!(came(&There(100, vec![1])).0, Vec::<usize>::new(), "its like waits");
    drop(second);
    assert_eq!(came(&There(10, vec![])).0, [4], "it was given up, its like begins anew");
}

#[test]
fn frameworks_take_turns_at_the_room() {
    let bed = Bed::new();
    bed.queue.lock().limit = 1;
    let flood: Vec<Ticket> = (0..50).map(|n| bed.ticket("flood", n)).collect();
    let mut waits: Vec<_> = flood.iter().map(|t| bed.wait(t, Some(10), &nothing())).collect();
    bed.give_out(&There(10, vec![]));
    let place = now(&mut waits[0]).unwrap();
    let mut other = bed.wait(&bed.ticket("other", 99), Some(10), &nothing());
    drop(place);
    bed.give_out(&There(10, vec![]));
    assert!(now(&mut waits[1]).is_none());
    drop(now(&mut other).expect("it goes before the flood's others"));
    bed.give_out(&There(10, vec![]));
    assert!(now(&mut waits[1]).is_some());
}

#[test]
fn who_is_passed_too_often_claims_a_bundle() {
    let mut bed = Bed::new();
    let mut poor = bed.wait(&bed.ticket("f", 9), Some(10), &nothing());
    let full = There(0, vec![1, 2]);
    for n in 0..MOST_PASSED {
        bed.give_out(&full);
        assert!(bed.queue.may_pass(digest(if n % 3 == 0 { 1 } else { 2 })));
    }
    bed.give_out(&full);
    assert!(!bed.queue.may_pass(digest(2)) && bed.queue.may_pass(digest(1)), "the busier one is claimed");
    let mut held = bed.wait(&bed.ticket("other", 2), None, &full);
    assert!(now(&mut held).is_none());
    // Its users go on for long: the other one, too.
    bed.now += CLAIMS_EVERY;
    bed.give_out(&full);
    assert!(!bed.queue.may_pass(digest(1)));
    // There is room.
    bed.give_out(&There(10, vec![1, 2]));
    let place = now(&mut poor).unwrap();
    assert!(now(&mut held).is_none(), "not while the room is taken");
    place.got_through();
    bed.give_out(&full);
    assert!(now(&mut held).is_some() && bed.queue.may_pass(digest(1)));
}

#[test]
fn a_claim_ends_with_who_has_it_and_few_in_a_long_time_are_too_many() {
    let mut bed = Bed::new();
    let poor = bed.wait(&bed.ticket("f", 9), Some(10), &nothing());
    let full = There(0, vec![1]);
    bed.now += LONGEST_PASSED;
    bed.give_out(&full);
    assert!(bed.queue.may_pass(digest(1)), "nobody passed it");
    bed.give_out(&full);
    assert!(!bed.queue.may_pass(digest(1)));
    drop(poor);
    bed.give_out(&full);
    assert!(bed.queue.may_pass(digest(1)));
}

// SPDX-License-Identifier: Apache-2.0
//! The table of flights, alone: who shares, who rests, who is told.

use super::*;

#[derive(Default)]
struct Note(Mutex<Vec<Result<(), Errno>>>);

impl Waiter for Note {
    fn arrived(self: Arc<Self>, _: &Digest, chunk: Result<&Arc<Buffer>, Errno>) {
        lock(&self.0).push(chunk.map(|_| ()));
    }
    fn is_waiting(&self) -> bool {
        true
    }
}

fn wanted(name: u8, priority: u8) -> Wanted {
    Wanted {
        digest: [name; 32],
        key: [0; 32],
        chunk_size: 1 << 18,
        priority,
        fetched_bytes: Arc::default(),
    }
}

fn next(flights: &Flights) -> Option<u8> {
    flights
        .next(false, Duration::ZERO)
        .map(|fetch| fetch.digest[0])
}

#[test]
fn two_waiters_share_a_flight_and_the_urgent_one_raises_it() {
    let flights = Flights::default();
    let (a, b) = (Arc::new(Note::default()), Arc::new(Note::default()));
    assert!(flights.join(wanted(1, PRIORITY_COMMIT), a.clone(), || false));
    assert!(flights.join(wanted(2, PRIORITY_COMMIT), a.clone(), || false));
    assert!(flights.next(true, Duration::ZERO).is_none());
    assert!(flights.join(wanted(2, PRIORITY_GUEST), b.clone(), || false));
    assert_eq!(flights.next(true, Duration::ZERO).unwrap().digest, [2; 32]);
    assert_eq!(next(&flights), Some(1));
    assert_eq!(next(&flights), None);
    flights.land(&[2; 32], &Arc::default());
    assert_eq!((lock(&a.0).len(), lock(&b.0).len()), (1, 1));
}

#[test]
fn what_is_cached_gets_no_flight() {
    let flights = Flights::default();
    assert!(!flights.join(wanted(1, 0), Arc::new(Note::default()), || true));
    assert_eq!(next(&flights), None);
}

#[test]
fn a_transport_failure_rests_and_comes_again() {
    let flights = Flights::default();
    let note = Arc::new(Note::default());
    flights.join(wanted(1, 0), note.clone(), || false);
    assert_eq!(next(&flights), Some(1));
    let failed = flights.fail(&[1; 32], FetchFailure::Transport);
    assert_eq!(failed, Failed::Again);
    assert_eq!(next(&flights), None);
    assert!(flights.next(true, Duration::from_secs(5)).is_some());
    assert!(lock(&note.0).is_empty());
}

#[test]
fn when_the_store_answers_again_nothing_rests_for_long() {
    let flights = Flights::default();
    for _ in 0..6 {
        flights.join(wanted(1, 0), Arc::new(Note::default()), || false);
        assert!(flights.next(true, Duration::from_secs(9)).is_some());
        let _ = flights.fail(&[1; 32], FetchFailure::Transport);
    }
    let begun = Instant::now();
    flights.hasten();
    assert!(flights.next(true, Duration::from_secs(9)).is_some());
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[test]
fn missing_is_checked_once_more_and_then_eio() {
    let flights = Flights::default();
    let note = Arc::new(Note::default());
    flights.join(wanted(1, 0), note.clone(), || false);
    assert_eq!(next(&flights), Some(1));
    assert!(matches!(
        flights.fail(&[1; 32], FetchFailure::Missing),
        Failed::Again
    ));
    assert!(flights.next(true, Duration::from_secs(5)).is_some());
    assert_eq!(flights.fail(&[1; 32], FetchFailure::Corrupt), Failed::Lost);
    assert_eq!(*lock(&note.0), [Err(libc::EIO)]);
}

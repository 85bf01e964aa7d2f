// SPDX-License-Identifier: Apache-2.0
//! What a mirror tells of itself: sources and times of its requests, who waits, what was slow.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use std::time::Duration;

use _mirror::disk::{Answer, Disk};
use _mirror::engine::FetchFailure;
use _mirror::event::{Event, Value};
use _mirror::meter::SAMPLE;
use common::{BLOCK, CHUNK, Host, noise};

const CHUNKS: usize = 4;

fn host() -> Host {
    Host::new(&noise(1, CHUNKS * CHUNK), (CHUNKS * CHUNK) as u64)
}

/// Requests of a series, as its histogram counts them.
fn counted(host: &Host, operation: &str, source: &str) -> u64 {
    let all = host.mirror.latencies();
    let found = all
        .iter()
        .find(|one| one.operation == operation && one.source == source);
    found.unwrap().counts.iter().sum()
}

fn field(event: &Event, name: &str) -> Value {
    let found = event.fields.iter().find(|(field, _)| *field == name);
    found.map(|(_, value)| value.clone()).unwrap()
}

fn next_event(host: &Host) -> Option<Event> {
    host.engine.events().next(Duration::ZERO)
}

/// Reads a block of a chunk that is not here: it waits.
fn park(host: &mut Host, chunk: usize) -> u64 {
    let ticket = host.ticket();
    let mut buf = [0; BLOCK];
    let answer = host
        .mirror
        .read(&host.door, ticket, (chunk * CHUNK) as u64, &mut buf);
    assert_eq!(answer, Answer::Parked);
    ticket
}

#[test]
fn requests_are_counted_and_their_sources_told_apart() {
    let mut host = host();
    let rounds = 4 * SAMPLE;
    host.read(0, BLOCK).unwrap();
    for _ in 0..rounds {
        host.read(0, BLOCK).unwrap();
    }
    assert_eq!(counted(&host, "read", "fetch"), 1);
    assert_eq!(counted(&host, "read", "cache"), rounds);
    for _ in 0..rounds {
        host.write(0, &noise(2, BLOCK)).unwrap();
    }
    for _ in 0..rounds {
        host.read(0, BLOCK).unwrap();
    }
    host.flush().unwrap();
    assert_eq!(counted(&host, "read", "cache"), rounds);
    assert_eq!(counted(&host, "read", "delta"), rounds);
    assert_eq!(counted(&host, "write", "delta"), rounds);
    assert_eq!(counted(&host, "flush", "delta"), 1);
    assert_eq!(host.count("reads_total"), 2 * rounds + 1);
    assert_eq!(host.count("reads_fetched_total"), 1);
    assert_eq!(host.count("writes_total"), rounds);
}

#[test]
fn what_a_disk_counted_stays_counted_when_it_goes() {
    let mut host = host();
    host.read(0, BLOCK).unwrap();
    host.engine.detach("instance", "disk").unwrap();
    let statistics = host.engine.statistics();
    assert!(statistics.contains(&("reads_total", 1)));
    let fetched = &host.engine.latencies()[2];
    assert_eq!(
        (fetched.source, fetched.counts.iter().sum::<u64>()),
        ("fetch", 1)
    );
}

#[test]
fn who_waits_is_told_the_oldest_first_and_for_what() {
    let mut host = host();
    park(&mut host, 2);
    std::thread::sleep(Duration::from_millis(30));
    park(&mut host, 1);
    let waits = host.mirror.waits(9);
    let chunks: Vec<_> = waits.iter().map(|wait| wait.chunk).collect();
    assert_eq!(chunks, [2, 1]);
    assert!(
        waits
            .iter()
            .all(|wait| wait.reason == "chunks" && wait.operation == "read")
    );
    assert!(waits[0].milliseconds >= 30);
    assert!(host.count("oldest_wait_milliseconds") >= 30);
    assert_eq!(host.count("waiting_chunks_now"), 2);
    assert_eq!(host.mirror.waits(1).len(), 1);
    host.mirror.end_misses();
    assert!(host.mirror.waits(9).is_empty());
    assert_eq!(host.count("waiting_chunks_now"), 0);
}

#[test]
fn a_slow_read_is_told_with_its_disk_chunk_and_source() {
    let mut host = host();
    host.engine.tell_slower_than(Duration::from_millis(40));
    let ticket = park(&mut host, 3);
    std::thread::sleep(Duration::from_millis(60));
    host.store.serve_all(&host.engine);
    host.notes.wait(ticket).unwrap();
    let event = host.engine.events().next(Duration::from_secs(5)).unwrap();
    assert_eq!(event.kind, "slow");
    assert_eq!(field(&event, "disk"), Value::Text("disk".to_owned()));
    assert_eq!(field(&event, "chunk"), Value::Number(3));
    assert_eq!(field(&event, "source"), Value::Text("fetch".to_owned()));
    assert!(matches!(
        field(&event, "microseconds"),
        Value::Number(60_000..)
    ));
    // One that is not slow is not told.
    host.read(3 * CHUNK, BLOCK).unwrap();
    assert_eq!(next_event(&host), None);
    assert_eq!(host.count("slow_requests_total"), 1);
}

#[test]
fn an_outage_is_one_alarm_however_many_chunks_fail() {
    let mut host = host();
    let alarms = |host: &Host| {
        let events = std::iter::from_fn(|| next_event(host));
        events.filter(|event| event.kind == "alarm").count()
    };
    for round in 0..2 {
        let tickets = [park(&mut host, 2 * round), park(&mut host, 2 * round + 1)];
        for _ in 0..2 {
            let fetch = host.engine.next_fetch(true, Duration::ZERO).unwrap();
            host.engine
                .fetch_failed(&fetch.digest, FetchFailure::Transport, "away");
        }
        assert_eq!(alarms(&host), 1);
        for ticket in tickets {
            host.finish(ticket, Answer::Parked).unwrap();
        }
    }
}

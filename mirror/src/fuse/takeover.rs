// SPDX-License-Identifier: Apache-2.0
//! What a successor does with the requests that its predecessor left.
//!
//! | it stands | the kernel does not resend | it does |
//! | --- | --- | --- |
//! | received in a slot | executed, before any new request is read | its death is counted; it comes again |
//! | executed, in a slot or a record | answered (ENOENT if the dead agent had done so) | noted as done; answered when it comes again, if it does |
//! | a flush is owed | flushed, answered | the same, when it comes again |
//! | moved, in a slot | nothing: its record holds it | nothing |
//! | parked, in a record | executed: it parks again, most likely | its record is freed; it comes again |
//! | both in a slot, received, and in a record | the record counts: the slot had not been marked yet | it comes again |
//! | both in a slot, executed, and in a record | answered: a successor had begun with the record | – |
//! | nowhere: read and not stored | cannot be | it comes again |
//!
//! What the kernel resends comes ahead of everything new. So each request is answered once, and none
//! whose result stands is executed again.
//!
//! A READ, WRITE or FALLOCATE whose execution three processes did not survive ends with EIO. An FSYNC
//! never does: it says nothing that the regular flush does not say.

use super::abi::{InHeader, op};
use super::ledger::{DEATHS, MOVED, Settled};
use super::parked::{Found, opcode_and_size};
use super::session::{Place, Session};
use crate::disk::Ticket;
use crate::event::Event;

impl Session {
    /// With RESEND: notes what the slots and records say and frees them.
    pub(super) fn note_all(&self, places: &[Place]) {
        for place in places {
            if let Some((header, _)) = place.slot.standing() {
                match place.slot.marks().settled(header.unique) {
                    Some(MOVED) => {}
                    Some(settled) => self.ledger.settle(header.unique, settled),
                    None if self.parked.holds(header.unique) => {}
                    None => {
                        self.suspect(&header);
                    }
                }
            }
            place.slot.clear();
        }
        for record in self.parked.standing() {
            let found = self.parked.read(record);
            match (found.settled, found.header()) {
                (Some(settled), Some(header)) => self.ledger.settle(header.unique, settled),
                (None, Some(header)) if found.running => {
                    self.suspect(&header);
                }
                _ => {}
            }
            self.parked.free(found.record);
        }
    }

    /// With RESEND: what is known of a request that came again.
    pub(super) fn known(&self, header: &InHeader) -> Option<Settled> {
        let settled = self.ledger.settled(header.unique);
        if settled.is_none() && self.ledger.is_poison(header.unique) {
            self.poisoned(header);
            return Some(-i64::from(libc::EIO));
        }
        settled
    }

    /// Without RESEND: finishes what stands in a slot.
    pub(super) fn finish_slot(&self, place: &mut Place) {
        if let Some((header, len)) = place.slot.standing() {
            let settled = place.slot.marks().settled(header.unique);
            let holds = self.parked.holds(header.unique);
            match settled {
                Some(MOVED) => {}
                Some(settled) if holds => self.parked.settle(header.unique, settled),
                None if holds => {}
                Some(settled) => self.answer_settled(&header, place, settled),
                None if self.suspect(&header) => self.answer_poison(&header, place),
                None => {
                    if header.opcode == op::READ {
                        place.slot.forget_flags();
                    }
                    self.serve(place, len);
                }
            }
        }
        place.slot.clear();
    }

    /// Without RESEND: executes what is parked, one request after the other, in a slot that is free.
    /// `inherited`: what stood here before anything was executed, or a request of today's would be
    /// taken for a predecessor's.
    pub(super) fn finish_parked(&self, place: &mut Place, inherited: &[usize]) {
        let mut unkept = 0_u64;
        for &record in inherited {
            let found = self.parked.read(record);
            let Some(header) = found.header() else {
                self.parked.free(found.record);
                continue;
            };
            let kept = self.finish_record(place, &header, &found);
            unkept += u64::from(!kept);
            if place.parked_last() != header.unique {
                self.parked.free(found.record);
            }
            place.slot.clear();
        }
        if unkept > 0 {
            let what = "parked writes whose data was not kept ended with EIO";
            self.tell(
                Event::new("alarm")
                    .text("what", what)
                    .number("count", unkept),
            );
        }
    }

    /// `false`: the request's data is gone.
    fn finish_record(&self, place: &mut Place, header: &InHeader, found: &Found) -> bool {
        if let Some(settled) = found.settled {
            place.slot.put(&found.head, &found.data);
            self.answer_settled(header, place, settled);
            return true;
        }
        let (_, written) = opcode_and_size(&found.head);
        if found.unkept || found.data.len() < written as usize {
            self.channel.error(header.unique, libc::EIO);
            return false;
        }
        place.slot.put(&found.head, &found.data);
        if found.running && self.suspect(header) {
            self.answer_poison(header, place);
            return true;
        }
        self.parked.running(header.unique, true);
        self.serve(place, header.len as usize);
        true
    }

    fn answer_settled(&self, header: &InHeader, place: &Place, settled: Settled) {
        if let Err(errno) = self.finish_settled(header, place, settled) {
            self.channel.error(header.unique, errno);
        }
    }

    fn answer_poison(&self, header: &InHeader, place: &Place) {
        self.poisoned(header);
        let marks = place.slot.marks();
        marks.settle(header.unique, -i64::from(libc::EIO));
        self.channel.error(header.unique, libc::EIO);
    }

    /// Counts a death during the request; `true`: it is one too many.
    fn suspect(&self, header: &InHeader) -> bool {
        let may_kill = matches!(header.opcode, op::READ | op::WRITE | op::FALLOCATE);
        may_kill && self.ledger.suspect(header.unique) >= DEATHS
    }

    fn poisoned(&self, header: &InHeader) {
        let node = self.disk(header.nodeid);
        let name = node.map(|node| format!("{}/{}", node.instance, node.name));
        let unique: Ticket = header.unique;
        self.tell(
            Event::new("alarm")
                .text("what", "a request was in progress at too many deaths: EIO")
                .text("disk", name.unwrap_or_default())
                .number("opcode", header.opcode.into())
                .number("unique", unique),
        );
    }
}

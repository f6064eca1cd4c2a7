//! Tables as one netlink transaction.
//!
//! Pure: a batch is bytes and, for each message, the words that an error would name it by. The kernel applies the
//! whole batch or none of it.

use crate::attribute::Messages;
use crate::encode::{self, ELEMENTS_PER_MESSAGE, SetSpec};
use crate::table::{Chain, Family, Hook, Kind, Policy, Rule, Table};

const NLM_F_REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const NLM_F_ACK: u16 = libc::NLM_F_ACK as u16;
const NLM_F_CREATE: u16 = libc::NLM_F_CREATE as u16;
const NLM_F_APPEND: u16 = libc::NLM_F_APPEND as u16;

const SUBSYSTEM: u16 = libc::NFNL_SUBSYS_NFTABLES as u16;

/// Changes that happen together or not at all.
#[derive(Debug)]
pub struct Batch {
    messages: Messages,
    /// What each message does, by sequence number; the first is the batch's own begin.
    descriptions: Vec<String>,
    next_set: u32,
}

impl Default for Batch {
    fn default() -> Self {
        let mut messages = Messages::default();
        let resource = libc::NFNL_SUBSYS_NFTABLES as u16;
        messages.message(
            libc::NFNL_MSG_BATCH_BEGIN as u16,
            NLM_F_REQUEST,
            0,
            0,
            resource,
            |_| {},
        );
        Self {
            messages,
            descriptions: vec!["the batch as a whole".into()],
            next_set: 0,
        }
    }
}

impl Batch {
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the table hold exactly this, whatever it held before. Connections keep what was decided for them.
    #[must_use]
    pub fn replace(self, table: &Table) -> Self {
        let mut batch = self.delete(table.family, &table.name);
        batch.add_table(table.family, &table.name);
        // Chains first, since rules and verdict maps name them.
        for chain in &table.chains {
            batch.add_chain(table, chain);
        }
        for set in &table.sets {
            let id = batch.next_set_id();
            let spec = SetSpec::named(set, table.family, id);
            batch.add_set(table, &spec, &format!("set {}", set.name));
        }
        for chain in &table.chains {
            for (index, rule) in chain.rules.iter().enumerate() {
                batch.add_rule(table, chain, index, rule);
            }
        }
        batch
    }

    /// Removes the table if it is there.
    #[must_use]
    pub fn delete(mut self, family: Family, name: &str) -> Self {
        // Deleting what does not exist is an error, creating what exists is none.
        self.add_table(family, name);
        let what = format!("delete table {name}");
        self.message(libc::NFT_MSG_DELTABLE, 0, what, family, |attributes| {
            attributes.string(1, name)
        });
        self
    }

    /// The transaction's bytes and its messages' descriptions, by sequence number.
    pub(crate) fn finish(mut self) -> (Vec<u8>, Vec<String>) {
        // Errors are reported for whichever message caused them. Success is known by one answer, the last message's:
        // asking for all of them could overflow the socket's buffer.
        self.messages.flag_last(NLM_F_ACK);
        let sequence = self.sequence();
        let resource = libc::NFNL_SUBSYS_NFTABLES as u16;
        self.messages.message(
            libc::NFNL_MSG_BATCH_END as u16,
            NLM_F_REQUEST,
            sequence,
            0,
            resource,
            |_| {},
        );
        (self.messages.bytes().to_vec(), self.descriptions)
    }

    fn add_table(&mut self, family: Family, name: &str) {
        let what = format!("add table {name}");
        self.message(libc::NFT_MSG_NEWTABLE, NLM_F_CREATE, what, family, |attributes| {
            attributes.string(1, name);
        });
    }

    fn add_chain(&mut self, table: &Table, chain: &Chain) {
        let what = format!("add chain {} to table {}", chain.name, table.name);
        self.message(
            libc::NFT_MSG_NEWCHAIN,
            NLM_F_CREATE,
            what,
            table.family,
            |attributes| {
                attributes.string(1, &table.name);
                attributes.string(3, &chain.name);
                let Some(base) = chain.base else { return };
                let hook = match base.hook {
                    Hook::Prerouting => 0,
                    Hook::Input => 1,
                    Hook::Forward => 2,
                    Hook::Output => 3,
                    Hook::Postrouting => 4,
                };
                attributes.nest(4, |inner| {
                    inner.number(1, hook);
                    inner.number(2, base.priority.cast_unsigned());
                });
                attributes.number(5, if base.policy == Policy::Accept { 1 } else { 0 });
                let kind = match base.kind {
                    Kind::Filter => "filter",
                    Kind::Nat => "nat",
                };
                attributes.string(7, kind);
            },
        );
    }

    fn add_set(&mut self, table: &Table, set: &SetSpec, name: &str) {
        let family = encode::family(table.family);
        let kind = SUBSYSTEM << 8 | libc::NFT_MSG_NEWSET as u16;
        let header = (kind, NLM_F_REQUEST | NLM_F_CREATE, self.sequence(), family);
        self.descriptions
            .push(format!("add {name} to table {}", table.name));
        encode::set(&mut self.messages, header, &table.name, set);
        for elements in set.elements.chunks(ELEMENTS_PER_MESSAGE) {
            let what = format!("fill {name} of table {}", table.name);
            self.message(
                libc::NFT_MSG_NEWSETELEM,
                NLM_F_CREATE,
                what,
                table.family,
                |attributes| {
                    attributes.string(1, &table.name);
                    attributes.string(2, &set.name);
                    attributes.number(4, set.id);
                    attributes.nest(3, |list| {
                        for element in elements {
                            encode::element(list, element);
                        }
                    });
                },
            );
        }
    }

    fn add_rule(&mut self, table: &Table, chain: &Chain, index: usize, rule: &Rule) {
        let comment = rule.comment.as_deref().unwrap_or_default();
        let name = format!("rule {} of chain {} ({comment})", index + 1, chain.name);
        let (expressions, sets) = encode::rule(rule, table.family, &mut self.next_set);
        for set in &sets {
            self.add_set(table, set, &format!("an anonymous set for {name}"));
        }
        let what = format!("add {name} to table {}", table.name);
        let flags = NLM_F_CREATE | NLM_F_APPEND;
        self.message(libc::NFT_MSG_NEWRULE, flags, what, table.family, |attributes| {
            attributes.string(1, &table.name);
            attributes.string(2, &chain.name);
            attributes.put(4 | 0x8000, &expressions);
            if let Some(comment) = &rule.comment {
                attributes.put(7, &encode::comment(comment));
            }
        });
    }

    fn message(
        &mut self,
        kind: libc::c_int,
        flags: u16,
        what: String,
        family: Family,
        body: impl FnOnce(&mut crate::attribute::Attributes<'_>),
    ) {
        let kind = SUBSYSTEM << 8 | kind as u16;
        let sequence = self.sequence();
        self.messages.message(
            kind,
            NLM_F_REQUEST | flags,
            sequence,
            encode::family(family),
            0,
            body,
        );
        self.descriptions.push(what);
    }

    fn sequence(&self) -> u32 {
        u32::try_from(self.descriptions.len()).expect("a batch has fewer messages than its bytes")
    }

    fn next_set_id(&mut self) -> u32 {
        self.next_set += 1;
        self.next_set
    }
}

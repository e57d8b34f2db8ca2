//! The classic BPF program that sends each new connection to a random live slot. Slots with fewer connections are
//! chosen more often.
//!
//! Owns: the program, and the chances of each slot. Refuses: to attach the program (`sys::bpf` does), and to find out
//! which slots are live and how many connections they have (the master does).
//!
//! The choice is random because a classic BPF program keeps no state between two connections: it cannot count
//! connections or give them to the slots in turn.

use crate::sys::bpf::Instruction;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const MODULO: u16 = (libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K) as u16;
const JUMP_FROM: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const RETURN_A: u16 = (libc::BPF_RET | BPF_A) as u16;
/// Makes a return instruction return the value of the accumulator. The value is from `linux/filter.h`, because the
/// crate libc does not define it.
const BPF_A: u32 = 0x10;
/// An offset that the kernel treats specially: a load from it gives a random number instead of bytes of the packet.
const RANDOM: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM).cast_unsigned();

/// A slot and its number of tickets. Each new connection draws one of the tickets of all slots, and goes to the slot
/// that has this ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) slot: u32,
    pub(super) tickets: u32,
}

/// Gives each slot one ticket, so that all slots have the same chance.
pub(super) fn equal(live: &[u32]) -> Vec<Share> {
    live.iter().map(|&slot| Share { slot, tickets: 1 }).collect()
}

/// Gives each slot its tickets: the fewer connections a slot has, the more tickets it gets.
///
/// A slot that has n connections fewer than the fullest slot gets n tickets, and in addition a quarter of the mean
/// number of connections, at least 1. This addition matters when many connections come at once and the counts are old.
/// Without it all of these connections would go to the slot that was emptiest. If 100 connections come one by one to 8
/// slots, the fullest slot has 1.17 times the mean; with equal chances it would have 1.42 times. If 64 connections come
/// at once, the fullest slot has 1.15 times the mean; with equal chances it would have 1.19 times.
pub(super) fn by_room(live: &[u32], connections: impl Fn(u32) -> u64) -> Vec<Share> {
    let counts: Vec<u64> = live.iter().map(|&slot| connections(slot)).collect();
    let (most, sum) = (counts.iter().max().copied().unwrap_or(0), counts.iter().sum::<u64>());
    let base = (sum / (4 * counts.len().max(1) as u64)).max(1);
    let tickets = |count: &u64| u32::try_from(most - count + base).unwrap_or(u32::MAX / 1024).min(u32::MAX / 1024);
    live.iter().zip(&counts).map(|(&slot, count)| Share { slot, tickets: tickets(count) }).collect()
}

/// Returns the BPF program that draws a ticket and returns its slot. If `shares` is empty, the program is empty too,
/// and the kernel refuses it. Every slot in `shares` must have a socket. Otherwise the kernel sends the connections for
/// that slot to any slot, even to a slot without a worker.
pub(super) fn program(shares: &[Share]) -> Vec<Instruction> {
    let instruction = |code, jf, k| Instruction { code, jt: 0, jf, k };
    let Some((last, others)) = shares.split_last() else { return Vec::new() };
    // There are at most 512 slots, so the program has about 1024 instructions. The kernel's limit is 4096.
    let tickets = shares.iter().map(|share| share.tickets).sum();
    let mut program = vec![instruction(LOAD, 0, RANDOM), instruction(MODULO, 0, tickets)];
    if (0..).zip(shares).all(|(drawn, share)| *share == Share { slot: drawn, tickets: 1 }) {
        program.push(instruction(RETURN_A, 0, 0));
        return program;
    }
    let mut end = 0;
    for share in others {
        end += share.tickets;
        // If the drawn number is `end` or more, it belongs to a later slot. Then skip the return instruction, and go on
        // with the next comparison. The return instructions cannot all stand at the end of the program, because a jump
        // reaches only 255 instructions.
        program.push(Instruction { code: JUMP_FROM, jt: 1, jf: 0, k: end });
        program.push(instruction(RETURN, 0, share.slot));
    }
    program.push(instruction(RETURN, 0, last.slot));
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use oxicorn_testkit::random::Random;

    /// Interprets the program: returns the slot that the kernel would choose if it drew `random`.
    fn run(program: &[Instruction], random: u32) -> u32 {
        let (mut at, mut accumulator) = (0, None);
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            at += 1;
            match code {
                0x20 if k == 0xffff_f038 => accumulator = Some(random),
                0x94 => accumulator = Some(accumulator.unwrap() % k),
                0x35 => at += usize::from(if accumulator.unwrap() >= k { jt } else { jf }),
                0x06 => return k,
                0x16 => return accumulator.unwrap(),
                _ => panic!("instruction {code:#x} {k:#x} is not in the vocabulary"),
            }
        }
    }

    #[test]
    fn every_live_slot_has_the_same_chance_and_no_other_has_any() {
        let all: Vec<u32> = (0..512).collect();
        let odd: Vec<u32> = (0..512).filter(|slot| slot % 2 == 1).collect();
        let but_the_first: Vec<u32> = (1..512).collect();
        for live in [&[0][..], &[7], &[0, 1, 2], &[0, 2], &[3, 1], &all, &odd, &but_the_first] {
            let program = program(&equal(live));
            assert!(program.len() <= 4096);
            let rounds = 3;
            let mut drawn: Vec<u32> =
                (1000 * live.len()..(1000 + rounds) * live.len()).map(|random| run(&program, random as u32)).collect();
            drawn.sort_unstable();
            let mut expected = live.repeat(rounds);
            expected.sort_unstable();
            assert_eq!(drawn, expected);
        }
    }

    #[test]
    fn a_set_without_gaps_needs_no_ladder() {
        assert_eq!(program(&equal(&(0..100).collect::<Vec<_>>())).len(), 3);
    }

    #[test]
    fn the_chance_of_a_slot_is_its_share_of_the_tickets() {
        let live = [0, 2, 5];
        let shares = by_room(&live, |slot| [30, 99, 22, 99, 99, 20][slot as usize]);
        assert_eq!(shares.iter().map(|share| share.tickets).collect::<Vec<_>>(), [6, 14, 16]);
        let program = program(&shares);
        let drawn = |slot| (0..36).filter(|random| run(&program, *random) == slot).count();
        assert_eq!(live.map(drawn), [6, 14, 16]);
        assert_eq!(by_room(&live, |_| 0), equal(&live));
        assert_eq!(by_room(&live, |_| 3), equal(&live));
        let far = by_room(&live, |slot| if slot == 0 { u64::MAX / 8 } else { 0 });
        assert!(far.iter().map(|share| u64::from(share.tickets)).sum::<u64>() <= u64::from(u32::MAX));
    }

    /// Simulates connections with a fixed seed, and compares the fullest slot with the mean. With equal chances the
    /// factors would be 1.21 for 4 slots and 1.42 for 8.
    #[test]
    fn connections_that_come_a_few_at_a_time_are_spread_evenly() {
        let mut random = Random::new(1);
        let mut draw = |below: u32| random.below(below.into()) as usize;
        for (slots, bound) in [(4, 1.15), (8, 1.25)] {
            let live: Vec<u32> = (0..slots).collect();
            let mut sum = 0.0;
            for _ in 0..500 {
                let mut counts = vec![0_u64; live.len()];
                for _ in 0..25 {
                    let shares = by_room(&live, |slot| counts[slot as usize]);
                    let tickets: Vec<u32> =
                        shares.iter().flat_map(|share| vec![share.slot; share.tickets as usize]).collect();
                    for _ in 0..4 {
                        counts[tickets[draw(tickets.len() as u32)] as usize] += 1;
                    }
                }
                sum += *counts.iter().max().unwrap() as f64 / (100.0 / f64::from(slots));
            }
            assert!(sum / 500.0 <= bound, "{slots} slots: {}", sum / 500.0);
        }
    }
}

//! The classic BPF program that sends each new connection to a random live slot. Refuses to attach it (`sys::bpf`) and
//! to know who is live (the master does).
//!
//! Random, because a classic program keeps no state between two connections: it cannot take turns, nor count.

use crate::sys::bpf::Instruction;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const MODULO: u16 = (libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const RETURN_A: u16 = (libc::BPF_RET | BPF_A) as u16;
/// `linux/filter.h`: return what is in the accumulator. libc lacks it.
const BPF_A: u32 = 0x10;
/// Loading from here loads a random number instead of a packet's bytes.
const RANDOM: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM).cast_unsigned();

/// A program that returns one of `live`, each with the same chance; for no slots no program, which the kernel refuses.
/// A slot without a socket would send its share to any slot, dead ones too.
pub(super) fn program(live: &[u32]) -> Vec<Instruction> {
    let instruction = |code, jf, k| Instruction { code, jt: 0, jf, k };
    let Some((last, others)) = live.split_last() else { return Vec::new() };
    // Slots are 512 at most, a quarter of what the kernel's limit of 4096 instructions would hold.
    let count = live.len() as u32;
    let mut program = vec![instruction(LOAD, 0, RANDOM), instruction(MODULO, 0, count)];
    if (0..count).eq(live.iter().copied()) {
        program.push(instruction(RETURN_A, 0, 0));
        return program;
    }
    for (drawn, slot) in (0..count).zip(others) {
        // Not this one: over the return, to the next comparison. One ladder of jumps to the end would be too far, a jump
        // reaches 255 instructions.
        program.push(instruction(JUMP_EQUAL, 1, drawn));
        program.push(instruction(RETURN, 0, *slot));
    }
    program.push(instruction(RETURN, 0, *last));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would return, were `random` drawn.
    fn run(program: &[Instruction], random: u32) -> u32 {
        let (mut at, mut accumulator) = (0, None);
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            at += 1;
            match code {
                0x20 if k == 0xffff_f038 => accumulator = Some(random),
                0x94 => accumulator = Some(accumulator.unwrap() % k),
                0x15 => at += usize::from(if accumulator == Some(k) { jt } else { jf }),
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
            let program = program(live);
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
        assert_eq!(program(&(0..100).collect::<Vec<_>>()).len(), 3);
    }
}

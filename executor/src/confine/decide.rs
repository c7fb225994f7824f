//! The part of a system call filter that needs the call's number only: a tree of comparisons in front of the rest.
//!
//! What has no condition on its arguments, nearly everything that a guest does, is decided by seven comparisons instead of a hundred.
//! The kernel, too, goes through a filter once for each number when it is imposed, which cost more than all else about it. Pure; owns nothing
//! but the instructions. A call of another architecture is left to the program behind it.

use nix::libc;
use seccompiler::{BpfProgram, sock_filter};

/// Where the number and the architecture lie in what the kernel shows a filter.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
#[cfg(target_arch = "x86_64")]
const OWN: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const OWN: u32 = 0xC000_00B7;
/// Instructions: load a word, compare with a constant, go on elsewhere, answer.
const LOAD: u16 = 0x20;
const IF_EQUAL: u16 = 0x15;
const IF_AT_LEAST: u16 = 0x35;
const GO: u16 = 0x05;
const ANSWER: u16 = 0x06;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    /// It is allowed.
    Allowed,
    /// It is answered as by a kernel that does not have it.
    Missing,
    /// The program behind decides.
    Open,
    /// It is not allowed: what becomes of the process.
    Denied(u32),
}

/// Numbers from this one on, up to the next piece.
type Piece = (u32, Verdict);

const fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Puts the decision about these calls in front of a program, and about all others, which get `otherwise`. `None`: there are too many for
/// the kernel's jumps.
pub(super) fn in_front_of(rest: &BpfProgram, known: &[(u32, Verdict)], otherwise: Verdict) -> Option<BpfProgram> {
    let mut known = known.to_vec();
    known.sort_unstable();
    let mut pieces: Vec<Piece> = vec![(0, otherwise)];
    let mut add = |from: u32, verdict: Verdict| match pieces.last_mut() {
        Some((at, last)) if *at == from => *last = verdict,
        Some((_, last)) if *last == verdict => {}
        _ => pieces.push((from, verdict)),
    };
    for (number, verdict) in known {
        add(number, verdict);
        add(number.checked_add(1)?, otherwise);
    }
    let tree = tree(&pieces)?;
    let length = u32::try_from(tree.len()).ok()?;
    let mut program = vec![
        instruction(LOAD, 0, 0, ARCHITECTURE),
        instruction(IF_EQUAL, 1, 0, OWN),
        instruction(GO, 0, 0, length + 1),
        instruction(LOAD, 0, 0, NUMBER),
    ];
    for (left, one) in (0..length).rev().zip(tree) {
        program.push(one.unwrap_or(instruction(GO, 0, 0, left)));
    }
    program.extend_from_slice(rest);
    Some(program)
}

/// `None` among the instructions: on to the program behind.
fn tree(pieces: &[Piece]) -> Option<Vec<Option<sock_filter>>> {
    let (low, high) = pieces.split_at(pieces.len() / 2);
    let (middle, verdict) = high.first().copied()?;
    if low.is_empty() {
        return Some(vec![answer(verdict)]);
    }
    let (low, high) = (tree(low)?, tree(high)?);
    let mut all = vec![Some(instruction(IF_AT_LEAST, u8::try_from(low.len()).ok()?, 0, middle))];
    all.extend(low);
    all.extend(high);
    Some(all)
}

const fn answer(verdict: Verdict) -> Option<sock_filter> {
    match verdict {
        Verdict::Allowed => Some(instruction(ANSWER, 0, 0, libc::SECCOMP_RET_ALLOW)),
        Verdict::Missing => Some(instruction(ANSWER, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned())),
        Verdict::Denied(how) => Some(instruction(ANSWER, 0, 0, how)),
        Verdict::Open => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a program answers.
    fn run(program: &[sock_filter], architecture: u32, number: u32) -> u32 {
        let (mut at, mut accumulator, mut steps) = (0_usize, 0_u32, 0);
        loop {
            let one = &program[at];
            (at, steps) = (at + 1, steps + 1);
            assert!(steps < 20, "it takes long for {number}");
            let skip = |yes: bool| usize::from(if yes { one.jt } else { one.jf });
            match one.code {
                LOAD if one.k == NUMBER => accumulator = number,
                LOAD if one.k == ARCHITECTURE => accumulator = architecture,
                IF_EQUAL => at += skip(accumulator == one.k),
                IF_AT_LEAST => at += skip(accumulator >= one.k),
                GO => at += one.k as usize,
                ANSWER => return one.k,
                other => panic!("instruction {other}"),
            }
        }
    }

    #[test]
    fn each_number_gets_its_own_verdict_and_all_others_the_same() {
        const REST: u32 = 77;
        const DENIED: u32 = 78;
        let rest = vec![instruction(ANSWER, 0, 0, REST)];
        let some: Vec<u32> = (0..600).filter(|n| n % 7 < 3 && n % 5 != 1 && *n < 460).collect();
        for named in [vec![], vec![0], vec![5, 6, 7], some] {
            let verdict = |n: u32| match n {
                435 => Verdict::Missing,
                n if !named.contains(&n) => Verdict::Denied(DENIED),
                n if n % 11 == 0 => Verdict::Open,
                _ => Verdict::Allowed,
            };
            let known: Vec<_> = (0..600).map(|n| (n, verdict(n))).filter(|(_, v)| *v != Verdict::Denied(DENIED)).collect();
            let program = in_front_of(&rest, &known, Verdict::Denied(DENIED)).unwrap();
            for number in (0..600).chain([0x4000_0000, 0x4000_0005, u32::MAX]) {
                let wanted = match verdict(number) {
                    Verdict::Missing => libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned(),
                    Verdict::Allowed => libc::SECCOMP_RET_ALLOW,
                    Verdict::Open => REST,
                    Verdict::Denied(how) => how,
                };
                assert_eq!(run(&program, OWN, number), wanted, "{number}");
                assert_eq!(run(&program, OWN ^ 1, number), REST, "{number} of another architecture");
            }
        }
    }
}

//! The second filter of a networked executor: the kernel asks the broker about `socket`, `bind`, `listen` and `connect`.
//!
//! Owns the filter's program and how it is imposed. The ways around `connect` are denied in place: an address in `sendto`, and
//! TCP's fast open, which connects while it sends. The main filter, imposed afterwards, allows the four calls; the stricter answer
//! counts, which is this one. Once it is in force nothing can take it away, also when the broker is gone: the calls fail then.

use nix::libc::{self, sock_filter};
use std::os::fd::{FromRawFd, OwnedFd};

/// What the filter can decide.
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const ASK: u32 = libc::SECCOMP_RET_USER_NOTIF;
const DENY: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;

/// Where `struct seccomp_data` has the call's number and the machine's kind.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// The kind of machine whose numbers these are.
#[cfg(target_arch = "x86_64")]
const THIS_ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const THIS_ARCHITECTURE: u32 = 0xc000_00b7;
/// Numbers from here on are those of another interface of the same machine (x32).
const OTHER_INTERFACE: u32 = 0x4000_0000;

/// Offset of the lower half of an argument; the upper follows.
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

const fn load(offset: u32) -> sock_filter {
    sock_filter { code: op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS), jt: 0, jf: 0, k: offset }
}

const fn jump(condition: u32, value: u32, then: u8, otherwise: u8) -> sock_filter {
    sock_filter { code: op(libc::BPF_JMP | condition | libc::BPF_K), jt: then, jf: otherwise, k: value }
}

const fn give(answer: u32) -> sock_filter {
    sock_filter { code: op(libc::BPF_RET | libc::BPF_K), jt: 0, jf: 0, k: answer }
}

#[expect(clippy::cast_possible_truncation, reason = "operation codes have 16 bits")]
const fn op(code: u32) -> u16 {
    code as u16
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "call numbers are small and positive")]
const fn call(number: libc::c_long) -> u32 {
    number as u32
}

const FAST_OPEN: u32 = libc::MSG_FASTOPEN.cast_unsigned();

/// The program. A jump skips so many of the instructions that follow.
const PROGRAM: [sock_filter; 26] = [
    load(ARCHITECTURE),
    jump(libc::BPF_JEQ, THIS_ARCHITECTURE, 0, 23),
    load(NUMBER),
    jump(libc::BPF_JGE, OTHER_INTERFACE, 21, 0),
    jump(libc::BPF_JEQ, call(libc::SYS_socket), 19, 0),
    jump(libc::BPF_JEQ, call(libc::SYS_bind), 18, 0),
    jump(libc::BPF_JEQ, call(libc::SYS_listen), 17, 0),
    jump(libc::BPF_JEQ, call(libc::SYS_connect), 16, 0),
    jump(libc::BPF_JEQ, call(libc::SYS_sendto), 3, 0),
    jump(libc::BPF_JEQ, call(libc::SYS_sendmsg), 8, 0),
    jump(libc::BPF_JEQ, call(libc::SYS_sendmmsg), 9, 0),
    give(ALLOW),
    // sendto: no address, and no fast open.
    load(argument(4)),
    jump(libc::BPF_JEQ, 0, 0, 8),
    load(argument(4) + 4),
    jump(libc::BPF_JEQ, 0, 0, 6),
    load(argument(3)),
    jump(libc::BPF_JSET, FAST_OPEN, 4, 5),
    // sendmsg
    load(argument(2)),
    jump(libc::BPF_JSET, FAST_OPEN, 2, 3),
    // sendmmsg
    load(argument(3)),
    jump(libc::BPF_JSET, FAST_OPEN, 0, 1),
    give(DENY),
    give(ALLOW),
    give(ASK),
    give(KILL),
];

/// Puts the filter in force for the calling thread and those that it starts. Needs `no_new_privs`. The descriptor goes to the broker;
/// without one that answers, the calls wait, and once it is closed they fail.
///
/// # Errors
/// What the kernel said: one before 5.9 has no notifications of this kind.
pub(crate) fn impose() -> std::io::Result<OwnedFd> {
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    let mut program = PROGRAM;
    let length = u16::try_from(program.len()).map_err(std::io::Error::other)?;
    let argument = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    #[expect(unsafe_code, reason = "no crate imposes a filter with a listener")]
    // SAFETY: the kernel copies the program, which is as long as it says, and gives a new descriptor that nobody else owns.
    unsafe {
        let fd = libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const argument);
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(i32::try_from(fd).map_err(std::io::Error::other)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel does with the program.
    fn run(number: libc::c_long, architecture: u32, arguments: [u64; 6]) -> u32 {
        let word = |offset: u32| match offset {
            NUMBER => call(number),
            ARCHITECTURE => architecture,
            _ => {
                let argument = arguments[(offset as usize - 16) / 8];
                let half = if offset.is_multiple_of(8) { argument & u64::from(u32::MAX) } else { argument >> 32 };
                u32::try_from(half).unwrap()
            }
        };
        let (mut at, mut value) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = PROGRAM[at];
            let code = u32::from(code);
            at += 1;
            match code & 0x07 {
                libc::BPF_LD => value = word(k),
                libc::BPF_RET => return k,
                _ => {
                    let holds = match code & 0xf0 {
                        libc::BPF_JEQ => value == k,
                        libc::BPF_JGE => value >= k,
                        libc::BPF_JSET => value & k != 0,
                        other => panic!("{other:x}"),
                    };
                    at += usize::from(if holds { jt } else { jf });
                }
            }
        }
    }

    #[test]
    fn four_calls_are_asked_about_and_their_detours_denied() {
        let plain = |number| run(number, THIS_ARCHITECTURE, [7; 6]);
        for number in [libc::SYS_socket, libc::SYS_bind, libc::SYS_listen, libc::SYS_connect] {
            assert_eq!(plain(number), ASK);
        }
        for number in [libc::SYS_read, libc::SYS_accept4, libc::SYS_recvfrom, libc::SYS_setsockopt, libc::SYS_epoll_ctl] {
            assert_eq!(plain(number), ALLOW);
        }
        let open = u64::from(FAST_OPEN);
        let nosignal = u64::from(libc::MSG_NOSIGNAL.cast_unsigned());
        let sent = |address: u64, flags: u64| run(libc::SYS_sendto, THIS_ARCHITECTURE, [3, 1, 1, flags, address, 16]);
        assert_eq!(sent(0, nosignal), ALLOW);
        assert_eq!(sent(1, nosignal), DENY);
        assert_eq!(sent(1 << 32, nosignal), DENY, "the upper half counts");
        assert_eq!(sent(0, nosignal | open), DENY);
        assert_eq!(run(libc::SYS_sendmsg, THIS_ARCHITECTURE, [3, 1, nosignal, 0, 0, 0]), ALLOW);
        assert_eq!(run(libc::SYS_sendmsg, THIS_ARCHITECTURE, [3, 1, nosignal | open, 0, 0, 0]), DENY);
        assert_eq!(run(libc::SYS_sendmmsg, THIS_ARCHITECTURE, [3, 1, 1, open, 0, 0]), DENY);
        assert_eq!(run(libc::SYS_sendmmsg, THIS_ARCHITECTURE, [3, 1, 1, 0, 0, 0]), ALLOW);
    }

    #[test]
    fn other_machines_and_interfaces_are_the_end() {
        assert_eq!(run(libc::SYS_read, THIS_ARCHITECTURE + 1, [0; 6]), KILL);
        assert_eq!(run(libc::SYS_connect | 0x4000_0000, THIS_ARCHITECTURE, [0; 6]), KILL);
    }
}

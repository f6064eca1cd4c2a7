//! Gives a batch to the kernel and reads what it says.
//!
//! The kernel works while we send: when `send` returns, every answer is already in the socket's queue, so nothing here
//! waits.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt,
    socket, sockopt,
};

use crate::batch::Batch;

/// Why the kernel did not take a batch; nothing of it was done.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("opening a netlink socket for nf_tables")]
    Socket(#[source] Errno),
    #[error("sending {bytes} bytes of nf_tables rules")]
    Send {
        bytes: usize,
        #[source]
        source: Errno,
    },
    #[error("nf_tables: {what}")]
    Refused {
        what: String,
        #[source]
        source: Errno,
    },
    #[error("the kernel did not answer a batch of nf_tables rules")]
    NoAnswer,
}

impl Batch {
    /// Applies the batch in the calling thread's network namespace. Needs CAP_NET_ADMIN there.
    pub fn apply(self) -> Result<(), ApplyError> {
        let (bytes, descriptions) = self.finish();
        let socket = open(bytes.len()).map_err(ApplyError::Socket)?;
        let kernel = NetlinkAddr::new(0, 0);
        sendto(socket.as_raw_fd(), &bytes, &kernel, MsgFlags::empty()).map_err(|source| {
            ApplyError::Send {
                bytes: bytes.len(),
                source,
            }
        })?;

        let last = descriptions.len() - 1;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(_) => return Err(ApplyError::NoAnswer),
            };
            for answer in answers(&buffer[..length]) {
                if answer.errno != 0 {
                    let what = descriptions.get(answer.sequence).cloned().unwrap_or_default();
                    return Err(ApplyError::Refused {
                        what,
                        source: Errno::from_raw(answer.errno),
                    });
                }
                if answer.sequence == last {
                    return Ok(());
                }
            }
        }
    }
}

fn open(bytes: usize) -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        flags,
        SockProtocol::NetlinkNetFilter,
    )?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    // A batch must fit the send buffer whole. Forcing needs a capability that a user namespace doesn't give; what
    // then is too large fails at sending, and says how large it was.
    let wanted = bytes * 2;
    if setsockopt(&socket, sockopt::SndBufForce, &wanted).is_err() {
        let _ = setsockopt(&socket, sockopt::SndBuf, &wanted);
    }
    Ok(socket)
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    sequence: usize,
    /// 0 is an acknowledgement.
    errno: i32,
}

/// The error messages among a datagram's messages: header (16 bytes), negative errno, the header they answer.
fn answers(mut bytes: &[u8]) -> Vec<Answer> {
    let word = |at: usize, bytes: &[u8]| {
        bytes
            .get(at..at + 4)
            .and_then(|word| word.try_into().ok())
            .map(u32::from_ne_bytes)
    };
    let mut found = Vec::new();
    while let (Some(length), Some(kind)) = (word(0, bytes), word(4, bytes)) {
        if kind & 0xffff == libc::NLMSG_ERROR as u32
            && let (Some(sequence), Some(error)) = (word(8, bytes), word(16, bytes))
        {
            found.push(Answer {
                sequence: sequence as usize,
                errno: error.cast_signed().wrapping_neg(),
            });
        }
        let next = (length as usize).max(16).next_multiple_of(4);
        bytes = bytes.get(next..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(sequence: u32, code: i32) -> Vec<u8> {
        let words = [
            36,
            libc::NLMSG_ERROR as u32,
            sequence,
            0,
            code.cast_unsigned(),
            0,
            0,
            0,
            0,
        ];
        words.into_iter().flat_map(u32::to_ne_bytes).collect()
    }

    #[test]
    fn every_answer_of_a_datagram_is_read_with_the_message_it_answers() {
        let datagram = [error(3, -libc::EEXIST), error(7, 0)].concat();
        let expected = [
            Answer {
                sequence: 3,
                errno: libc::EEXIST,
            },
            Answer {
                sequence: 7,
                errno: 0,
            },
        ];
        assert_eq!(answers(&datagram), expected);
    }

    #[test]
    fn a_cut_datagram_yields_what_is_whole() {
        assert_eq!(answers(&error(3, -1)[..18]), []);
        assert_eq!(answers(&[0; 40]), []);
    }
}

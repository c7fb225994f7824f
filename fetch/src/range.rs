//! What to ask a server for when a part is there already, and what its answer means. Pure.
//!
//! Owns ranges, their conditions and the headers that say which bytes come. A server may ignore ranges, send others than it was asked for,
//! have another object by now, or compress although it was asked not to: each has an answer here. Deliberately absent: the requests.

/// What is there already.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Have {
    /// How many bytes.
    pub bytes: u64,
    /// The entity tag of the version that they are of.
    pub etag: Option<String>,
    /// How long that version was.
    pub total: Option<u64>,
}

/// What to ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Everything.
    Whole,
    /// From this byte on.
    From(u64),
    /// From this byte on, if the object still has this tag; else everything.
    FromIf(u64, String),
}

/// A tag that two servers, or one at two times, only give to the same bytes.
fn is_strong(tag: &str) -> bool {
    tag.starts_with('"') && tag.ends_with('"') && tag.len() > 1
}

impl Have {
    /// What to ask for next. Without a strong tag, only a digest can tell whether two parts belong together; without either, nothing can.
    #[must_use]
    pub fn request(&self, digest_is_known: bool) -> Request {
        match &self.etag {
            _ if self.bytes == 0 => Request::Whole,
            Some(tag) if is_strong(tag) => Request::FromIf(self.bytes, tag.clone()),
            _ if digest_is_known => Request::From(self.bytes),
            _ => Request::Whole,
        }
    }
}

impl Request {
    /// The first byte that is asked for.
    #[must_use]
    pub const fn from(&self) -> u64 {
        match self {
            Self::Whole => 0,
            Self::From(from) | Self::FromIf(from, _) => *from,
        }
    }
}

/// What a server says before the bytes come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// 200, 206 or 416.
    pub status: u16,
    /// `Content-Length`: of what comes.
    pub length: Option<u64>,
    /// `Content-Range`.
    pub content_range: Option<String>,
    /// `Content-Encoding`.
    pub encoding: Option<String>,
}

/// How the bytes are packed on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// As they are.
    Plain,
    /// `gzip`.
    Gzip,
}

/// What comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    /// The first byte.
    pub from: u64,
    /// Length of the whole object, where it is known.
    pub total: Option<u64>,
    /// How it comes.
    pub packing: Packing,
    /// Nothing comes: all is there.
    pub is_complete: bool,
}

/// What cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// It does not go on from what is there: asking for everything may help.
    Discontinued(String),
    /// It never helps.
    Unusable(String),
}

/// First and last byte, and the length of the whole, as far as they are told.
type ContentRange = (Option<(u64, u64)>, Option<u64>);

/// `bytes FIRST-LAST/TOTAL`, with `*` for what is not known.
fn content_range(text: &str) -> Option<ContentRange> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.trim().split_once('/')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    if range == "*" {
        return Some((None, total));
    }
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first <= last && total.is_none_or(|t| last < t)).then_some((Some((first, last)), total))
}

/// What the answer to `request` means for somebody who has `have`.
///
/// # Errors
/// When the bytes that come are not those that were asked for, or cannot be unpacked.
pub fn judge(have: &Have, request: &Request, answer: &Answer) -> Result<Body, Wrong> {
    let packing = match answer.encoding.as_deref().map(|e| e.trim().to_ascii_lowercase()) {
        None => Packing::Plain,
        Some(e) if e.is_empty() || e == "identity" => Packing::Plain,
        Some(e) if e == "gzip" || e == "x-gzip" => Packing::Gzip,
        Some(e) => return Err(Wrong::Unusable(format!("the server compresses it ({e}) although it was asked not to"))),
    };
    let range = answer.content_range.as_deref().and_then(content_range);
    match answer.status {
        206 => {
            let Some((Some((first, last)), total)) = range else {
                return Err(Wrong::Discontinued("the server sends a part and does not say which".into()));
            };
            if first != request.from() {
                return Err(Wrong::Discontinued(format!("the server sends bytes from {first} on, not from {} on", request.from())));
            }
            if packing != Packing::Plain {
                return Err(Wrong::Discontinued("the server sends a part of a compressed form".into()));
            }
            if answer.length.is_some_and(|l| l != last - first + 1) {
                return Err(Wrong::Discontinued("the server contradicts itself about the length".into()));
            }
            if let (Some(before), Some(now)) = (have.total, total)
                && before != now
            {
                return Err(Wrong::Discontinued(format!("it had {before} bytes and has {now} now")));
            }
            Ok(Body { from: first, total: total.or(have.total), packing, is_complete: false })
        }
        416 => match range {
            Some((None, Some(total))) if total == have.bytes && request.from() == total => {
                Ok(Body { from: total, total: Some(total), packing: Packing::Plain, is_complete: true })
            }
            _ => Err(Wrong::Discontinued("the server has no bytes behind those that are there".into())),
        },
        _ => {
            let total = if packing == Packing::Plain { answer.length } else { None };
            Ok(Body { from: 0, total, packing, is_complete: false })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn have(bytes: u64, etag: Option<&str>) -> Have {
        Have { bytes, etag: etag.map(str::to_owned), total: Some(100) }
    }

    fn part(range: &str, length: Option<u64>) -> Answer {
        Answer { status: 206, length, content_range: Some(range.into()), encoding: None }
    }

    #[test]
    fn a_part_is_asked_for_only_where_somebody_can_tell_whether_it_fits() {
        assert_eq!(have(0, Some("\"a\"")).request(true), Request::Whole);
        assert_eq!(have(7, Some("\"a\"")).request(false), Request::FromIf(7, "\"a\"".into()));
        for weak in [Some("W/\"a\""), Some("a"), Some("\""), None] {
            assert_eq!(have(7, weak).request(true), Request::From(7), "{weak:?}");
            assert_eq!(have(7, weak).request(false), Request::Whole, "{weak:?}");
        }
    }

    #[test]
    fn the_bytes_that_come_are_those_that_were_asked_for_or_refused() {
        let (have, from) = (have(10, None), Request::From(10));
        let whole = |from, total| Ok(Body { from, total, packing: Packing::Plain, is_complete: false });
        assert_eq!(judge(&have, &from, &part("bytes 10-99/100", Some(90))), whole(10, Some(100)));
        assert_eq!(judge(&have, &from, &part("bytes 10-99/*", None)), whole(10, Some(100)));
        let ignored = Answer { status: 200, length: Some(100), ..Answer::default() };
        assert_eq!(judge(&have, &from, &ignored), whole(0, Some(100)), "the server ignores ranges");
        for wrong in [
            part("bytes 0-99/100", None),
            part("bytes 11-99/100", None),
            part("bytes 10-99/101", None),
            part("bytes 10-99/100", Some(89)),
            part("bytes 10-9/100", None),
            part("bytes 10-100/100", None),
            part("lines 10-99/100", None),
            Answer { status: 206, ..Answer::default() },
            Answer { encoding: Some("gzip".into()), ..part("bytes 10-99/100", None) },
            Answer { status: 416, content_range: Some("bytes */9".into()), ..Answer::default() },
            Answer { status: 416, ..Answer::default() },
        ] {
            assert!(matches!(judge(&have, &from, &wrong), Err(Wrong::Discontinued(_))), "{wrong:?}");
        }
        let all = Answer { status: 416, content_range: Some("bytes */10".into()), ..Answer::default() };
        assert!(judge(&have, &from, &all).is_ok_and(|b| b.is_complete && b.from == 10));
    }

    #[test]
    fn what_is_compressed_says_nothing_about_the_length() {
        let packed = |e: &str| Answer { status: 200, length: Some(5), content_range: None, encoding: Some(e.into()) };
        let body = judge(&Have::default(), &Request::Whole, &packed("GZip")).unwrap();
        assert_eq!((body.packing, body.total), (Packing::Gzip, None));
        assert_eq!(judge(&Have::default(), &Request::Whole, &packed("identity")).unwrap().total, Some(5));
        assert!(matches!(judge(&Have::default(), &Request::Whole, &packed("br")), Err(Wrong::Unusable(_))));
    }

    proptest! {
        #[test]
        fn nothing_a_server_says_makes_a_hole(
            bytes in 0_u64..1_000, total in proptest::option::of(0_u64..1_000), status in prop_oneof![Just(200_u16), Just(206), Just(416)],
            length in proptest::option::of(0_u64..1_000), text in "(bytes |lines )?([0-9]{1,4}-[0-9]{1,4}|\\*)/([0-9]{1,4}|\\*)",
        ) {
            let have = Have { bytes, etag: None, total };
            for request in [have.request(true), have.request(false)] {
                let answer = Answer { status, length, content_range: Some(text.clone()), encoding: None };
                if let Ok(body) = judge(&have, &request, &answer) {
                    prop_assert!(body.from == 0 || body.from == bytes);
                    prop_assert!(!body.is_complete || body.from == bytes);
                }
            }
        }
    }
}

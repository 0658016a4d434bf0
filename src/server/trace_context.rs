//! W3C Trace Context (<https://www.w3.org/TR/trace-context/>): the header `traceparent`.

use axum::http::HeaderMap;
use std::fmt;
use std::ops::RangeInclusive;

pub(super) const TRACEPARENT: &str = "traceparent";

/// Which trace a request belongs to, and who in it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TraceContext {
    /// Not zero.
    pub trace: u128,
    /// The span of the sender. Not zero.
    pub span: u64,
    /// Whether the sender records the trace.
    pub sampled: bool,
}

impl TraceContext {
    /// The sender's context: none without the header, with several of them, or with a broken one.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let only = values.next().filter(|_| values.next().is_none())?;
        Self::parse(only.to_str().ok()?)
    }

    /// A span of ours in the trace of `parent`, or in a new one.
    pub fn child_of(parent: Option<Self>, random: impl Fn() -> u64) -> Self {
        // Zero means none to the standard.
        let made = || u128::from(random()) << 64 | u128::from(random() | 1);
        Self {
            trace: parent.map_or_else(made, |parent| parent.trace),
            span: random() | 1,
            sampled: parent.is_some_and(|parent| parent.sampled),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        const VERSION: RangeInclusive<usize> = 0..=1;
        let hex = |range: RangeInclusive<usize>| {
            let digits = text.get(range)?;
            // The standard knows lower case only.
            let is_hex = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            is_hex.then(|| u128::from_str_radix(digits, 16).ok()).flatten()
        };
        let version = hex(VERSION).filter(|&version| version != 0xff)?;
        let dashes = [2, 35, 52].iter().all(|&at| text.as_bytes().get(at) == Some(&b'-'));
        // A later version may go on after another dash.
        let end = text.len() == 55 || version > 0 && text.as_bytes().get(55) == Some(&b'-');
        if !dashes || !end {
            return None;
        }
        let trace = hex(3..=34).filter(|&trace| trace != 0)?;
        let span = hex(36..=51).filter(|&span| span != 0)?;
        let sampled = hex(53..=54)? & 1 == 1;
        Some(Self { trace, span: span as u64, sampled })
    }
}

/// As the header has it.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

/// For names only: when the system gives nothing random, 0 does, and images, which need it, fail by themselves.
pub(super) fn random() -> u64 {
    getrandom::u64().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EXAMPLE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn the_standard_s_example_is_read_and_written() {
        let context = TraceContext::parse(EXAMPLE).unwrap();
        assert_eq!((context.trace >> 112, context.span & 0xffff, context.sampled), (0x0af7, 0x3331, true));
        assert_eq!(context.to_string(), EXAMPLE);
        assert!(!TraceContext::parse(&EXAMPLE.replace("-01", "-02")).unwrap().sampled);
        // What a later version adds is not ours to judge.
        let later = EXAMPLE.replacen("00", "cc", 1) + "-what-the-future-brings";
        assert_eq!(TraceContext::parse(&later), Some(context));
    }

    #[test]
    fn a_broken_header_is_no_header() {
        for broken in [
            "",
            "00",
            &EXAMPLE.to_uppercase(),
            &EXAMPLE.replacen("00", "ff", 1),
            &EXAMPLE.replacen("00", "0x", 1),
            &EXAMPLE.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &EXAMPLE.replace("b7ad6b7169203331", &"0".repeat(16)),
            &EXAMPLE.replace("b7ad", "+7ad"),
            &EXAMPLE.replace('-', "_"),
            &EXAMPLE[..54],
            &format!("{EXAMPLE}-more"),
            &format!("{EXAMPLE}0"),
            &format!("{}0", EXAMPLE.replacen("00", "01", 1)),
        ] {
            assert_eq!(TraceContext::parse(broken), None, "{broken}");
        }
        let twice: HeaderMap = [EXAMPLE, EXAMPLE]
            .map(|value| (TRACEPARENT.parse().unwrap(), value.parse().unwrap()))
            .into_iter()
            .collect();
        assert_eq!(TraceContext::of(&twice), None);
    }

    #[test]
    fn a_child_stays_in_its_trace_with_a_span_of_its_own() {
        let parent = TraceContext::parse(EXAMPLE).unwrap();
        let child = TraceContext::child_of(Some(parent), || 7);
        assert_eq!(child, TraceContext { span: 7, ..parent });
        let root = TraceContext::child_of(None, || 0);
        assert!(root.trace != 0 && root.span != 0 && !root.sampled);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic_and_what_is_written_reads_back(text in ".{0,80}", trace in 1u128.., span in 1u64.., sampled: bool) {
            TraceContext::parse(&text);
            let context = TraceContext { trace, span, sampled };
            prop_assert_eq!(TraceContext::parse(&context.to_string()), Some(context));
        }
    }
}

//! The fixed newstyle handshake as a machine without IO: bytes in, replies out, and an [`Outcome`]. It is `Send` and holds no
//! socket, so it can run on the thread that accepts while the volume lives on another.
//!
//! Invariants: nothing but STARTTLS and ABORT is answered before TLS where TLS is required; what was negotiated before TLS is
//! forgotten; meta contexts count only for the export they were chosen for; memory is bounded by [`MAX_OPTION_BYTES`] of input
//! and the listed names of output.
//!
//! ```text
//! ClientFlags -> Option <-> Skip        (an option that is too big)
//!                Option -> Option       (StartTls: the driver wraps the stream and goes on)
//!                Option -> done         (Start, Aborted)
//! ```

use super::export::{Directory, ExportInfo};
use super::meta::{Contexts, MetaContext, context_id};
use super::options::{ContextQuery, InfoQuery, export_name};
use super::proto::{
    Cursor, MAX_LIST, MAX_OPTION_BYTES, MAX_OPTION_SKIP_BYTES, MAX_OPTIONS, MAX_PAYLOAD_BYTES, MIN_BLOCK_BYTES,
    OPTION_HEADER_BYTES, OptionHeader, PREFERRED_BLOCK_BYTES, ProtocolError, handshake_flag, info, option,
    put_greeting, put_option_reply, reply,
};

/// Whether the connection must be, can be or is encrypted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TlsRule {
    /// A local socket, or one that was configured as insecure: STARTTLS is not known.
    Off,
    /// Nothing is served before STARTTLS.
    Required,
    /// The rest of the handshake runs inside TLS.
    Established,
}

/// What the handshake agreed on. `Send`: it moves with the connection to the volume's thread.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Negotiated {
    /// The canonical name of the export.
    pub export: String,
    /// The client understands structured replies.
    pub structured: bool,
    /// The meta contexts of BLOCK_STATUS.
    pub contexts: Contexts,
}

/// What the driver has to do after a step.
#[derive(PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Bring more input.
    More,
    /// Write the replies, then continue over TLS and call [`Handshake::tls_established`].
    StartTls,
    /// Write the replies, then serve requests.
    Start(Negotiated),
    /// Write the replies, then close.
    Aborted,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    ClientFlags,
    Option,
    Skip { left: usize },
}

/// One handshake.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    tls: TlsRule,
    options_seen: u32,
    fixed: bool,
    no_zeroes: bool,
    structured: bool,
    contexts: Option<(String, Contexts)>,
}

/// A refusal of an option: the kind of error and a text for a person.
type Refusal = (u32, &'static str);

const UNKNOWN: Refusal = (reply::ERR_UNKNOWN, "no such export");
const NOT_SERVING: Refusal = (reply::ERR_SHUTDOWN, "the volume does not serve here: it is not the primary copy");
const MALFORMED: Refusal = (reply::ERR_INVALID, "malformed option data");

impl Handshake {
    /// Starts: the greeting goes to `out`.
    pub fn new(tls: TlsRule, out: &mut Vec<u8>) -> Self {
        put_greeting(out);
        Self {
            state: State::ClientFlags,
            tls,
            options_seen: 0,
            fixed: false,
            no_zeroes: false,
            structured: false,
            contexts: None,
        }
    }

    /// The driver has wrapped the stream into TLS.
    pub fn tls_established(&mut self) {
        self.tls = TlsRule::Established;
        self.structured = false;
        self.contexts = None;
    }

    /// Takes one message off the front of `input`, appends replies to `out` and says how many bytes it took (zero while
    /// the message is incomplete; at most [`MAX_OPTION_BYTES`] plus a header are ever needed at once).
    ///
    /// # Errors
    /// The client does not speak the protocol; the connection has to be closed.
    pub fn step(
        &mut self,
        input: &[u8],
        exports: &(impl Directory + ?Sized),
        out: &mut Vec<u8>,
    ) -> Result<(usize, Outcome), ProtocolError> {
        match self.state {
            State::ClientFlags => self.on_client_flags(input),
            State::Skip { left } => Ok(self.on_skip(left, input)),
            State::Option => self.on_option(input, exports, out),
        }
    }

    fn on_client_flags(&mut self, input: &[u8]) -> Result<(usize, Outcome), ProtocolError> {
        let Some(flags) = Cursor(input).u32() else { return Ok((0, Outcome::More)) };
        let (fixed, no_zeroes) = (u32::from(handshake_flag::FIXED_NEWSTYLE), u32::from(handshake_flag::NO_ZEROES));
        if flags & !(fixed | no_zeroes) != 0 {
            return Err(ProtocolError::ClientFlags(flags));
        }
        self.fixed = flags & fixed != 0;
        self.no_zeroes = flags & no_zeroes != 0;
        self.state = State::Option;
        Ok((4, Outcome::More))
    }

    fn on_skip(&mut self, left: usize, input: &[u8]) -> (usize, Outcome) {
        let taken = left.min(input.len());
        self.state = if taken == left { State::Option } else { State::Skip { left: left - taken } };
        (taken, Outcome::More)
    }

    fn on_option(
        &mut self,
        input: &[u8],
        exports: &(impl Directory + ?Sized),
        out: &mut Vec<u8>,
    ) -> Result<(usize, Outcome), ProtocolError> {
        let Some(head) = OptionHeader::parse(input)? else { return Ok((0, Outcome::More)) };
        let len = head.len as usize;
        if len > MAX_OPTION_BYTES {
            return self.refuse_too_big(head, out);
        }
        let Some(data) = input.get(OPTION_HEADER_BYTES..OPTION_HEADER_BYTES + len) else {
            return Ok((0, Outcome::More));
        };
        self.count_option(head)?;
        let outcome = self.answer(head.option, data, exports, out)?;
        Ok((OPTION_HEADER_BYTES + len, outcome))
    }

    fn count_option(&mut self, head: OptionHeader) -> Result<(), ProtocolError> {
        self.options_seen += 1;
        if self.options_seen > MAX_OPTIONS {
            return Err(ProtocolError::TooManyOptions);
        }
        if !self.fixed && head.option != option::EXPORT_NAME {
            return Err(ProtocolError::NotFixed(head.option));
        }
        Ok(())
    }

    fn refuse_too_big(&mut self, head: OptionHeader, out: &mut Vec<u8>) -> Result<(usize, Outcome), ProtocolError> {
        if head.len as usize > MAX_OPTION_SKIP_BYTES || head.option == option::EXPORT_NAME {
            return Err(ProtocolError::OptionLength(head.len));
        }
        self.count_option(head)?;
        put_option_reply(out, head.option, reply::ERR_TOO_BIG, b"too much option data");
        self.state = State::Skip { left: head.len as usize };
        Ok((OPTION_HEADER_BYTES, Outcome::More))
    }

    /// Branches over the options; the answers are in the leaves.
    fn answer(
        &mut self,
        option: u32,
        data: &[u8],
        exports: &(impl Directory + ?Sized),
        out: &mut Vec<u8>,
    ) -> Result<Outcome, ProtocolError> {
        if option == option::ABORT {
            put_option_reply(out, option, reply::ACK, b"");
            return Ok(Outcome::Aborted);
        }
        if self.tls == TlsRule::Required && option != option::STARTTLS {
            return refuse_without_tls(option, out);
        }
        let refused = match option {
            option::EXPORT_NAME => return self.on_export_name(data, exports, out),
            option::GO => match self.on_info(option, data, exports, out) {
                Ok(export) => return Ok(Outcome::Start(self.negotiated(export.name))),
                Err(refusal) => Err(refusal),
            },
            option::STARTTLS => match self.on_starttls(data, out) {
                Ok(()) => return Ok(Outcome::StartTls),
                Err(refusal) => Err(refusal),
            },
            option::INFO => self.on_info(option, data, exports, out).map(|_| ()),
            option::LIST => on_list(data, exports, out),
            option::STRUCTURED_REPLY => self.on_structured_reply(data, out),
            option::LIST_META_CONTEXT => on_list_meta_context(data, exports, out),
            option::SET_META_CONTEXT => self.on_set_meta_context(data, exports, out),
            _ => Err((reply::ERR_UNSUP, "unknown option")),
        };
        if let Err((kind, text)) = refused {
            put_option_reply(out, option, kind, text.as_bytes());
        }
        Ok(Outcome::More)
    }

    fn negotiated(&mut self, export: String) -> Negotiated {
        let contexts = match self.contexts.take() {
            Some((name, contexts)) if name == export => contexts,
            _ => Contexts::new(),
        };
        Negotiated { export, structured: self.structured, contexts }
    }

    fn on_starttls(&self, data: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        match self.tls {
            TlsRule::Off => Err((reply::ERR_UNSUP, "no TLS on this socket")),
            TlsRule::Established => Err((reply::ERR_INVALID, "TLS is already on")),
            TlsRule::Required if !data.is_empty() => Err(MALFORMED),
            TlsRule::Required => {
                put_option_reply(out, option::STARTTLS, reply::ACK, b"");
                Ok(())
            }
        }
    }

    fn on_structured_reply(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        if !data.is_empty() {
            return Err(MALFORMED);
        }
        self.structured = true;
        put_option_reply(out, option::STRUCTURED_REPLY, reply::ACK, b"");
        Ok(())
    }

    fn on_info(
        &self,
        option: u32,
        data: &[u8],
        exports: &(impl Directory + ?Sized),
        out: &mut Vec<u8>,
    ) -> Result<ExportInfo, Refusal> {
        let query = InfoQuery::parse(data).ok_or(MALFORMED)?;
        let export = exports.describe(query.name).ok_or(UNKNOWN)?;
        if !export.serving {
            return Err(NOT_SERVING);
        }
        self.put_info(option, &export, &query.requests, out);
        put_option_reply(out, option, reply::ACK, b"");
        Ok(export)
    }

    /// Size and block sizes are told whether asked for or not: a client that does not know them ignores them.
    fn put_info(&self, option: u32, export: &ExportInfo, requests: &[u16], out: &mut Vec<u8>) {
        let mut data = info::EXPORT.to_be_bytes().to_vec();
        data.extend_from_slice(&export.size.to_be_bytes());
        data.extend_from_slice(&export.transmission_flags(self.structured).to_be_bytes());
        put_option_reply(out, option, reply::INFO, &data);

        let mut data = info::BLOCK_SIZE.to_be_bytes().to_vec();
        for bytes in [MIN_BLOCK_BYTES, PREFERRED_BLOCK_BYTES, MAX_PAYLOAD_BYTES] {
            data.extend_from_slice(&bytes.to_be_bytes());
        }
        put_option_reply(out, option, reply::INFO, &data);

        if requests.contains(&info::NAME) {
            let mut data = info::NAME.to_be_bytes().to_vec();
            data.extend_from_slice(export.name.as_bytes());
            put_option_reply(out, option, reply::INFO, &data);
        }
    }

    fn on_set_meta_context(
        &mut self,
        data: &[u8],
        exports: &(impl Directory + ?Sized),
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        self.contexts = None;
        if !self.structured {
            return Err((reply::ERR_INVALID, "structured replies come first"));
        }
        let query = ContextQuery::parse(data).ok_or(MALFORMED)?;
        let export = exports.describe(query.name).ok_or(UNKNOWN)?;
        let chosen = MetaContext::chosen(&query.queries);
        for (place, context) in chosen.iter().enumerate() {
            put_context(out, option::SET_META_CONTEXT, context_id(place), context);
        }
        put_option_reply(out, option::SET_META_CONTEXT, reply::ACK, b"");
        self.contexts = Some((export.name, chosen));
        Ok(())
    }

    /// The old way to start: the answer is the export's size and flags, or a closed connection.
    fn on_export_name(
        &mut self,
        data: &[u8],
        exports: &(impl Directory + ?Sized),
        out: &mut Vec<u8>,
    ) -> Result<Outcome, ProtocolError> {
        let name = export_name(data).ok_or(ProtocolError::ExportName("malformed name"))?;
        let export = exports.describe(name).ok_or(ProtocolError::ExportName(UNKNOWN.1))?;
        if !export.serving {
            return Err(ProtocolError::ExportName(NOT_SERVING.1));
        }
        out.extend_from_slice(&export.size.to_be_bytes());
        out.extend_from_slice(&export.transmission_flags(self.structured).to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; 124]);
        }
        Ok(Outcome::Start(self.negotiated(export.name)))
    }
}

fn refuse_without_tls(option: u32, out: &mut Vec<u8>) -> Result<Outcome, ProtocolError> {
    if option == option::EXPORT_NAME {
        return Err(ProtocolError::ExportName("TLS is required"));
    }
    put_option_reply(out, option, reply::ERR_TLS_REQD, b"TLS is required");
    Ok(Outcome::More)
}

fn on_list(data: &[u8], exports: &(impl Directory + ?Sized), out: &mut Vec<u8>) -> Result<(), Refusal> {
    if !data.is_empty() {
        return Err(MALFORMED);
    }
    for name in exports.list().iter().take(MAX_LIST) {
        let mut data = u32::try_from(name.len()).unwrap_or(0).to_be_bytes().to_vec();
        data.extend_from_slice(name.as_bytes());
        put_option_reply(out, option::LIST, reply::SERVER, &data);
    }
    put_option_reply(out, option::LIST, reply::ACK, b"");
    Ok(())
}

fn on_list_meta_context(data: &[u8], exports: &(impl Directory + ?Sized), out: &mut Vec<u8>) -> Result<(), Refusal> {
    let query = ContextQuery::parse(data).ok_or(MALFORMED)?;
    exports.describe(query.name).ok_or(UNKNOWN)?;
    for context in MetaContext::listed(&query.queries) {
        put_context(out, option::LIST_META_CONTEXT, 0, &context);
    }
    put_option_reply(out, option::LIST_META_CONTEXT, reply::ACK, b"");
    Ok(())
}

fn put_context(out: &mut Vec<u8>, option: u32, id: u32, context: &MetaContext) {
    let mut data = id.to_be_bytes().to_vec();
    data.extend_from_slice(context.name().as_bytes());
    put_option_reply(out, option, reply::META_CONTEXT, &data);
}

#[cfg(test)]
mod tests {
    use super::super::proto::{OPTION_MAGIC, OPTION_REPLY_MAGIC};
    use super::*;

    struct Exports {
        serving: bool,
        read_only: bool,
    }

    const EXPORTS: Exports = Exports { serving: true, read_only: false };

    impl Directory for Exports {
        fn describe(&self, name: &str) -> Option<ExportInfo> {
            let info = ExportInfo { name: "vol".into(), size: 4096, read_only: self.read_only, serving: self.serving };
            matches!(name, "" | "vol").then_some(info)
        }

        fn list(&self) -> Vec<String> {
            vec!["vol".into(), "other".into()]
        }
    }

    /// One reply to an option.
    #[derive(PartialEq, Eq, Debug)]
    struct Reply {
        option: u32,
        kind: u32,
        data: Vec<u8>,
    }

    fn replies(mut out: &[u8]) -> Vec<Reply> {
        let mut replies = Vec::new();
        while !out.is_empty() {
            let mut at = Cursor(out);
            assert_eq!(at.u64(), Some(OPTION_REPLY_MAGIC));
            let (option, kind, len) = (at.u32().unwrap(), at.u32().unwrap(), at.u32().unwrap());
            replies.push(Reply { option, kind, data: at.bytes(len as usize).unwrap().to_vec() });
            out = at.0;
        }
        replies
    }

    fn message(option: u32, data: &[u8]) -> Vec<u8> {
        let mut message = OPTION_MAGIC.to_be_bytes().to_vec();
        message.extend(option.to_be_bytes());
        message.extend((data.len() as u32).to_be_bytes());
        message.extend(data);
        message
    }

    fn started_with(tls: TlsRule, client_flags: u32) -> Handshake {
        let mut out = Vec::new();
        let mut handshake = Handshake::new(tls, &mut out);
        assert_eq!(handshake.step(&client_flags.to_be_bytes(), &EXPORTS, &mut out), Ok((4, Outcome::More)));
        handshake
    }

    fn started() -> Handshake {
        started_with(TlsRule::Off, 3)
    }

    fn send(handshake: &mut Handshake, exports: &Exports, option: u32, data: &[u8]) -> (Outcome, Vec<Reply>) {
        let (message, mut out) = (message(option, data), Vec::new());
        let (taken, outcome) = handshake.step(&message, exports, &mut out).unwrap();
        assert_eq!(taken, message.len());
        (outcome, replies(&out))
    }

    fn kinds(replies: &[Reply]) -> Vec<u32> {
        replies.iter().map(|reply| reply.kind).collect()
    }

    const GO_VOL: &[u8] = b"\0\0\0\x03vol\0\0";
    const ALLOCATION: &[u8] = b"\0\0\0\x03vol\0\0\0\x01\0\0\0\x0fbase:allocation";

    #[test]
    fn go_tells_size_flags_and_block_sizes() {
        let (outcome, replies) = send(&mut started(), &EXPORTS, option::GO, GO_VOL);
        let negotiated = Negotiated { export: "vol".into(), structured: false, contexts: vec![] };
        assert_eq!(outcome, Outcome::Start(negotiated));
        assert_eq!(kinds(&replies), [reply::INFO, reply::INFO, reply::ACK]);
        assert_eq!(replies[0].data, b"\0\0\0\0\0\0\0\0\x10\0\x01\x6d");
        assert_eq!(replies[1].data, b"\0\x03\0\0\x02\0\0\0\x10\0\x02\0\0\0");
    }

    #[test]
    fn a_read_only_export_says_so() {
        let exports = Exports { serving: true, read_only: true };
        let (_, replies) = send(&mut started(), &exports, option::GO, GO_VOL);
        assert_eq!(replies[0].data[10..], [0x01, 0x6f]);
    }

    #[test]
    fn df_is_offered_only_with_structured_replies() {
        let mut handshake = started();
        send(&mut handshake, &EXPORTS, option::STRUCTURED_REPLY, b"");
        let (_, replies) = send(&mut handshake, &EXPORTS, option::INFO, GO_VOL);
        assert_eq!(replies[0].data[10..], [0x01, 0xed]);
    }

    #[test]
    fn the_name_is_told_when_asked_for() {
        let (_, replies) = send(&mut started(), &EXPORTS, option::INFO, b"\0\0\0\0\0\x01\0\x01");
        assert_eq!(replies[2].data, b"\0\x01vol");
    }

    #[test]
    fn a_volume_that_does_not_serve_is_refused_with_a_reason() {
        let exports = Exports { serving: false, read_only: false };
        let mut handshake = started();
        let (outcome, replies) = send(&mut handshake, &exports, option::GO, GO_VOL);
        assert_eq!((outcome, kinds(&replies)), (Outcome::More, vec![reply::ERR_SHUTDOWN]));
        assert!(String::from_utf8_lossy(&replies[0].data).contains("not the primary"));
        let (outcome, _) = send(&mut handshake, &EXPORTS, option::GO, GO_VOL);
        assert!(matches!(outcome, Outcome::Start(_)), "the client may try again");
    }

    #[test]
    fn an_unknown_export_is_refused_and_the_handshake_goes_on() {
        let (outcome, replies) = send(&mut started(), &EXPORTS, option::GO, b"\0\0\0\x01x\0\0");
        assert_eq!((outcome, kinds(&replies)), (Outcome::More, vec![reply::ERR_UNKNOWN]));
    }

    #[test]
    fn malformed_data_is_refused_and_the_handshake_goes_on() {
        let mut handshake = started();
        for (option, data) in [
            (option::GO, b"\0\0".as_slice()),
            (option::INFO, b"\0\0\0\xff"),
            (option::LIST, b"x"),
            (option::STRUCTURED_REPLY, b"x"),
            (option::LIST_META_CONTEXT, b"\0"),
        ] {
            let (outcome, replies) = send(&mut handshake, &EXPORTS, option, data);
            assert_eq!((outcome, kinds(&replies)), (Outcome::More, vec![reply::ERR_INVALID]), "option {option}");
        }
    }

    #[test]
    fn unknown_options_are_unsupported() {
        for option in [0, 4, 11, 1000] {
            let (_, replies) = send(&mut started(), &EXPORTS, option, b"whatever");
            assert_eq!(replies[0].kind, reply::ERR_UNSUP);
            assert_eq!(replies[0].option, option);
        }
    }

    #[test]
    fn exports_are_listed() {
        let (_, replies) = send(&mut started(), &EXPORTS, option::LIST, b"");
        assert_eq!(kinds(&replies), [reply::SERVER, reply::SERVER, reply::ACK]);
        assert_eq!(replies[1].data, b"\0\0\0\x05other");
    }

    #[test]
    fn abort_is_acknowledged() {
        let (outcome, replies) = send(&mut started(), &EXPORTS, option::ABORT, b"");
        assert_eq!((outcome, kinds(&replies)), (Outcome::Aborted, vec![reply::ACK]));
    }

    #[test]
    fn contexts_need_structured_replies() {
        let mut handshake = started();
        let (_, replies) = send(&mut handshake, &EXPORTS, option::SET_META_CONTEXT, ALLOCATION);
        assert_eq!(kinds(&replies), [reply::ERR_INVALID]);
        send(&mut handshake, &EXPORTS, option::STRUCTURED_REPLY, b"");
        let (_, replies) = send(&mut handshake, &EXPORTS, option::SET_META_CONTEXT, ALLOCATION);
        assert_eq!(kinds(&replies), [reply::META_CONTEXT, reply::ACK]);
        assert_eq!(replies[0].data, b"\0\0\0\x01base:allocation");
        let (outcome, _) = send(&mut handshake, &EXPORTS, option::GO, GO_VOL);
        let contexts = vec![MetaContext::Allocation];
        assert_eq!(outcome, Outcome::Start(Negotiated { export: "vol".into(), structured: true, contexts }));
    }

    #[test]
    fn a_failed_choice_of_contexts_forgets_the_earlier_one() {
        let mut handshake = started();
        send(&mut handshake, &EXPORTS, option::STRUCTURED_REPLY, b"");
        send(&mut handshake, &EXPORTS, option::SET_META_CONTEXT, ALLOCATION);
        send(&mut handshake, &EXPORTS, option::SET_META_CONTEXT, b"");
        let (outcome, _) = send(&mut handshake, &EXPORTS, option::GO, GO_VOL);
        assert!(matches!(outcome, Outcome::Start(negotiated) if negotiated.contexts.is_empty()));
    }

    #[test]
    fn nothing_is_answered_before_tls_where_tls_is_required() {
        let mut handshake = started_with(TlsRule::Required, 3);
        for option in [option::LIST, option::GO, option::INFO, option::STRUCTURED_REPLY, 77] {
            let (_, replies) = send(&mut handshake, &EXPORTS, option, GO_VOL);
            assert_eq!(kinds(&replies), [reply::ERR_TLS_REQD]);
        }
        let (outcome, replies) = send(&mut handshake, &EXPORTS, option::STARTTLS, b"");
        assert_eq!((outcome, kinds(&replies)), (Outcome::StartTls, vec![reply::ACK]));
        handshake.tls_established();
        let (outcome, _) = send(&mut handshake, &EXPORTS, option::GO, GO_VOL);
        assert!(matches!(outcome, Outcome::Start(_)));
        let (_, replies) = send(&mut handshake, &EXPORTS, option::STARTTLS, b"");
        assert_eq!(kinds(&replies), [reply::ERR_INVALID]);
    }

    #[test]
    fn starttls_is_unknown_where_tls_is_off() {
        let (_, replies) = send(&mut started(), &EXPORTS, option::STARTTLS, b"");
        assert_eq!(kinds(&replies), [reply::ERR_UNSUP]);
    }

    #[test]
    fn export_name_before_tls_closes() {
        let mut handshake = started_with(TlsRule::Required, 3);
        let refused = handshake.step(&message(option::EXPORT_NAME, b"vol"), &EXPORTS, &mut Vec::new());
        assert_eq!(refused, Err(ProtocolError::ExportName("TLS is required")));
    }

    #[test]
    fn export_name_answers_with_and_without_zeroes() {
        for (flags, len) in [(3, 10), (1, 134), (0, 134)] {
            let mut out = Vec::new();
            let message = message(option::EXPORT_NAME, b"vol");
            let (_, outcome) = started_with(TlsRule::Off, flags).step(&message, &EXPORTS, &mut out).unwrap();
            assert!(matches!(outcome, Outcome::Start(_)));
            assert_eq!(out.len(), len);
        }
    }

    #[test]
    fn a_client_without_fixed_newstyle_may_only_name_its_export() {
        let refused = started_with(TlsRule::Off, 0).step(&message(option::LIST, b""), &EXPORTS, &mut Vec::new());
        assert_eq!(refused, Err(ProtocolError::NotFixed(option::LIST)));
    }

    #[test]
    fn unknown_client_flags_close() {
        let mut handshake = Handshake::new(TlsRule::Off, &mut Vec::new());
        let refused = handshake.step(&7u32.to_be_bytes(), &EXPORTS, &mut Vec::new());
        assert_eq!(refused, Err(ProtocolError::ClientFlags(7)));
    }

    #[test]
    fn too_much_data_is_refused_and_dropped() {
        let mut handshake = started();
        let message = message(option::GO, &vec![0; MAX_OPTION_BYTES + 1]);
        let mut out = Vec::new();
        let mut at = 0;
        while at < message.len() {
            let piece = &message[at..message.len().min(at + 5000)];
            let (taken, outcome) = handshake.step(piece, &EXPORTS, &mut out).unwrap();
            assert_eq!(outcome, Outcome::More);
            at += taken;
        }
        assert_eq!(kinds(&replies(&out)), [reply::ERR_TOO_BIG]);
        assert!(matches!(send(&mut handshake, &EXPORTS, option::GO, GO_VOL).0, Outcome::Start(_)));
    }

    #[test]
    fn an_absurd_length_closes() {
        let mut header = message(option::GO, b"");
        header[12..].copy_from_slice(&u32::MAX.to_be_bytes());
        let refused = started().step(&header, &EXPORTS, &mut Vec::new());
        assert_eq!(refused, Err(ProtocolError::OptionLength(u32::MAX)));
    }

    #[test]
    fn a_client_that_never_starts_is_closed() {
        let mut handshake = started();
        for _ in 0..MAX_OPTIONS {
            send(&mut handshake, &EXPORTS, option::LIST, b"");
        }
        let refused = handshake.step(&message(option::LIST, b""), &EXPORTS, &mut Vec::new());
        assert_eq!(refused, Err(ProtocolError::TooManyOptions));
    }
}

//! The adapter as a whole, in front of a real h2 server.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

use super::client_encoder::ClientEncoder;
use super::frames::FRAME_HEADER_BYTES;
use super::hpack::Decoder;
use super::*;

const DEADLINE: Duration = Duration::from_secs(60);
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const PROTOCOL_ERROR: u8 = 1;
const LIST: &str = "127.0.0.1:8081,127.0.0.1:8082";

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

fn fields(pairs: &[(&str, &str)]) -> Fields {
    pairs.iter().map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec())).collect()
}

fn request(authority: &str, more: &[(&str, &str)]) -> Fields {
    let mut all = fields(&[
        (":path", "/apache.rocketmq.v2.MessagingService/SendMessage"),
        (":authority", authority),
        (":method", "POST"),
        (":scheme", "http"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]);
    all.extend(fields(more));
    all
}

fn frame(kind: u8, flags: u8, stream_id: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream_id.to_be_bytes());
    out.extend(payload);
    out
}

/// HEADERS and CONTINUATIONs of at most `part` bytes of fragment.
fn block(stream_id: u32, end_stream: bool, fragment: &[u8], part: usize) -> Vec<u8> {
    let parts: Vec<&[u8]> = fragment.chunks(part).collect();
    let mut out = Vec::new();
    for (i, bytes) in parts.iter().enumerate() {
        let end_headers = if i + 1 == parts.len() { 0x4 } else { 0 };
        let end_stream = if i == 0 && end_stream { 0x1 } else { 0 };
        out.extend(frame(if i == 0 { 1 } else { 9 }, end_headers | end_stream, stream_id, bytes));
    }
    out
}

fn opening() -> Vec<u8> {
    [&PREFACE[..], &frame(4, 0, 0, &[])].concat()
}

/// Reads everything through the adapter, which gets the input in the given chunks.
async fn through_adapter(chunks: Vec<Vec<u8>>, read_bytes: usize) -> Vec<u8> {
    let mut adapter = AuthorityRepairStream::new(Chunks(chunks.into()));
    let mut all = Vec::new();
    let mut part = vec![0; read_bytes];
    loop {
        match adapter.read(&mut part).await.unwrap() {
            0 => return all,
            read => all.extend_from_slice(&part[..read]),
        }
    }
}

struct Chunks(VecDeque<Vec<u8>>);

impl AsyncRead for Chunks {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(mut chunk) = self.0.pop_front() {
            let rest = chunk.split_off(chunk.len().min(buf.remaining()));
            buf.put_slice(&chunk);
            if !rest.is_empty() {
                self.0.push_front(rest);
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn whole(input: &[u8]) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(through_adapter(vec![input.to_vec()], 1 << 20))
}

/// The header blocks of `stream` and the bytes of its other frames, read with a table of its own.
fn parsed(stream: &[u8]) -> (Vec<Fields>, Vec<u8>) {
    let mut rest = stream.strip_prefix(&PREFACE[..]).unwrap();
    let (mut blocks, mut others, mut decoder) = (Vec::new(), Vec::new(), Decoder::default());
    while let Some(header) = frames::FrameHeader::read(rest) {
        if header.carries_headers() {
            let frames::ReadBlock::Complete { bytes, fragment, .. } = frames::read_block(rest) else {
                panic!("a broken block in the output")
            };
            let decoded = decoder.decode(&fragment).unwrap();
            blocks.push(decoded.into_iter().map(|f| (f.name.to_vec(), f.value.to_vec())).collect());
            rest = &rest[bytes..];
        } else {
            let (this, after) = rest.split_at(FRAME_HEADER_BYTES + header.payload_bytes);
            others.extend_from_slice(this);
            rest = after;
        }
    }
    assert!(rest.is_empty());
    (blocks, others)
}

#[derive(Debug, Clone)]
enum Piece {
    Block { more: Vec<(String, String)>, authority: &'static str, part: usize },
    Data(usize),
    Ping,
    Resize(usize),
}

fn piece() -> impl Strategy<Value = Piece> {
    let header = ("[a-z]{1,8}", "[ -~]{0,40}");
    let authority = prop_oneof![Just("a:1;b:2"), Just(LIST), Just("good.example:1"), Just("::1:8081")];
    prop_oneof![
        4 => (proptest::collection::vec(header, 0..6), authority, 1usize..200)
            .prop_map(|(more, authority, part)| Piece::Block { more, authority, part }),
        2 => (0usize..3000).prop_map(Piece::Data),
        1 => Just(Piece::Ping),
        1 => prop_oneof![Just(0usize), Just(100), Just(4096)].prop_map(Piece::Resize),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_connection_is_repaired_the_same_however_its_bytes_are_cut(
        pieces in proptest::collection::vec(piece(), 0..12),
        uses_huffman in any::<bool>(),
        cuts in proptest::collection::vec(1usize..300, 1..20),
        read_bytes in 1usize..5000,
    ) {
        let mut encoder = ClientEncoder::new(uses_huffman);
        let first = request(LIST, &[]);
        let mut input = opening();
        let (mut expected_blocks, mut expected_others) = (vec![repaired(&first)], frame(4, 0, 0, &[]));
        input.extend(block(1, false, &encoder.encode(&first), 50));
        for (i, piece) in pieces.iter().enumerate() {
            let stream_id = 3 + 2 * i as u32;
            match piece {
                Piece::Block { more, authority, part } => {
                    let more: Vec<_> = more.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
                    let sent = request(authority, &more);
                    let fragment = encoder.encode(&sent);
                    // No more frames than a block may have.
                    let part = (*part).max(fragment.len() / 60 + 1);
                    input.extend(block(stream_id, true, &fragment, part));
                    expected_blocks.push(repaired(&sent));
                }
                Piece::Data(bytes) => {
                    let data = frame(0, 0, 1, &vec![0x01; *bytes]);
                    input.extend(&data);
                    expected_others.extend(data);
                }
                Piece::Ping => {
                    let ping = frame(6, 0, 0, &[1; 8]);
                    input.extend(&ping);
                    expected_others.extend(ping);
                }
                Piece::Resize(bytes) => encoder.resize_table(*bytes),
            }
        }

        let output = whole(&input);
        let (blocks, others) = parsed(&output);
        prop_assert_eq!(blocks, expected_blocks);
        prop_assert_eq!(others, expected_others);

        let mut chunks = Vec::new();
        let mut rest = &input[..];
        for cut in cuts.iter().cycle() {
            let (chunk, after) = rest.split_at(rest.len().min(*cut));
            chunks.push(chunk.to_vec());
            rest = after;
            if rest.is_empty() { break }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        prop_assert_eq!(runtime.block_on(through_adapter(chunks, read_bytes)), output);
    }

    #[test]
    fn arbitrary_bytes_pass_untouched_until_a_list_is_seen(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        with_preface in any::<bool>(),
    ) {
        let input = if with_preface { [opening(), bytes].concat() } else { bytes };
        prop_assert_eq!(whole(&input), input);
    }

    #[test]
    fn a_connection_with_a_good_authority_passes_untouched(
        more in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        let head = ClientEncoder::new(true).encode(&request("mq.example:8081", &[]));
        let input = [opening(), block(1, false, &head, 17), more].concat();
        prop_assert_eq!(whole(&input), input);
    }
}

fn repaired(sent: &Fields) -> Fields {
    sent.iter()
        .map(|(name, value)| match access_point::repaired(value) {
            Some(repaired) if name == b":authority" => (name.clone(), repaired.to_vec()),
            _ => (name.clone(), value.clone()),
        })
        .collect()
}

#[test]
fn a_block_that_cannot_be_read_ends_a_rewritten_connection() {
    let first = block(1, false, &ClientEncoder::new(false).encode(&request(LIST, &[])), 16_384);
    let later = ClientEncoder::new(false).encode(&request("good.example:1", &[]));
    for bad in [
        frame(1, 0x5, 3, &[0xff, 0xff]),
        frame(9, 0x4, 3, &[0x82]),
        [frame(1, 0, 3, &[0x82]), frame(0, 0, 1, b"x")].concat(),
    ] {
        let input = [opening(), first.clone(), bad, block(5, true, &later, 100)].concat();
        let output = whole(&input);
        assert!(
            output.ends_with(&frame(1, 0x5, 3, &[0x80])),
            "nothing follows the refused block: {output:?}"
        );
    }
}

#[test]
fn short_blocks_that_decode_to_long_ones_are_held_back_until_the_server_takes_them() {
    let mut encoder = ClientEncoder::new(false);
    let large = "y".repeat(3500);
    let mut input = opening();
    input.extend(block(1, true, &encoder.encode(&request(LIST, &[("x", &large)])), 16_384));
    for i in 0..1000 {
        let repeated = vec![("x", large.as_str()); 10];
        input.extend(block(3 + 2 * i, true, &encoder.encode(&request(LIST, &repeated)), 16_384));
    }
    assert!(input.len() < 64 * 1024, "it is about little input: {}", input.len());
    let mut rewriter = HeaderRewriter::default();
    rewriter.push(&input);
    let mut passed = Vec::new();
    loop {
        let output = rewriter.advance();
        assert!(output.len() < 128 * 1024, "held {} bytes", output.len());
        if output.is_empty() {
            break;
        }
        passed.extend_from_slice(&output.split());
    }
    let (blocks, _) = parsed(&passed);
    assert_eq!(blocks.len(), 1001);
    assert!(blocks.iter().skip(1).all(|fields| fields.iter().filter(|(_, v)| v.len() == 3500).count() == 10));
}

/// Answers each request with its authority, its number of fields and the bytes of its largest.
async fn serve(io: impl AsyncRead + AsyncWrite + Unpin) -> Result<(), h2::Error> {
    let mut connection: h2::server::Connection<_, Bytes> =
        h2::server::Builder::new().max_header_list_size(60_000).handshake(io).await?;
    while let Some(accepted) = connection.accept().await {
        let (request, mut respond) = accepted?;
        let largest = request.headers().values().map(http::HeaderValue::len).max().unwrap_or(0);
        let authority = request.uri().authority().map_or(String::new(), ToString::to_string);
        let seen = format!("{authority} {} {largest}", request.headers().len());
        let response = http::Response::builder().header("seen", seen).body(()).unwrap();
        respond.send_response(response, true)?;
    }
    Ok(())
}

/// The `seen` headers of the server's answers until `wanted` have come, and the RST_STREAM and
/// GOAWAY frames with their codes.
async fn answers(mut io: DuplexStream, wanted: usize) -> (Vec<(u32, String)>, Vec<(u8, u8)>) {
    let mut decoder = Decoder::default();
    let (mut seen, mut received, mut ends) = (Vec::new(), BytesMut::new(), Vec::new());
    loop {
        while let Some(header) = frames::FrameHeader::read(&received) {
            let whole = FRAME_HEADER_BYTES + header.payload_bytes;
            if received.len() < whole {
                break;
            }
            let frame = received.split_to(whole);
            if let frames::ReadBlock::Complete { fragment, .. } = frames::read_block(&frame) {
                let fields = decoder.decode(&fragment).unwrap();
                let value = &fields.iter().find(|f| f.name == "seen").unwrap().value;
                seen.push((header.stream_id, String::from_utf8(value.to_vec()).unwrap()));
            } else if matches!(frame[3], RST_STREAM | GOAWAY) {
                // RST_STREAM ends with its code; GOAWAY has it after the last stream id.
                ends.push(if frame[3] == RST_STREAM { (RST_STREAM, frame[12]) } else { (GOAWAY, frame[16]) });
            }
        }
        if seen.len() >= wanted || !ends.is_empty() || io.read_buf(&mut received).await.unwrap() == 0 {
            return (seen, ends);
        }
    }
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("in time")
}

#[tokio::test]
async fn the_server_alone_refuses_a_list_which_is_why_this_module_exists() {
    let (mut client, server) = duplex(1 << 16);
    let server = tokio::spawn(serve(server));
    let head = ClientEncoder::new(false).encode(&request(LIST, &[]));
    client.write_all(&[opening(), block(1, true, &head, 16_384)].concat()).await.unwrap();
    let (seen, ends) = in_time(answers(client, 1)).await;
    assert_eq!((seen, ends), (vec![], vec![(RST_STREAM, PROTOCOL_ERROR)]));
    server.abort();
}

#[tokio::test]
async fn a_thousand_requests_with_a_list_are_understood_with_table_huffman_and_continuations() {
    for uses_huffman in [false, true] {
        let (client, server) = duplex(1 << 16);
        let server = tokio::spawn(serve(AuthorityRepairStream::new(server)));
        let (read, mut write) = tokio::io::split(client);
        let writer = tokio::spawn(async move {
            let mut encoder = ClientEncoder::new(uses_huffman);
            write.write_all(&opening()).await.unwrap();
            for i in 0..1000u32 {
                let id = format!("request-{i}");
                let large = "v".repeat(if i % 100 == 99 { 40_000 } else { 10 });
                let sent =
                    request(LIST, &[("x-mq-request-id", &id), ("authorization", "secret"), ("x", &large)]);
                if i % 300 == 299 {
                    encoder.resize_table(if i % 600 == 299 { 512 } else { 4096 });
                }
                write.write_all(&block(1 + 2 * i, true, &encoder.encode(&sent), 16_000)).await.unwrap();
            }
            write
        });
        let (near, far) = duplex(1 << 16);
        let pump = tokio::spawn(async move {
            let (mut read, mut far) = (read, far);
            let _ = tokio::io::copy(&mut read, &mut far).await;
        });
        let (mut seen, ends) = in_time(answers(near, 1000)).await;
        assert_eq!(ends, []);
        seen.sort();
        for (i, (stream_id, text)) in seen.iter().enumerate() {
            let largest = if i % 100 == 99 { 40_000 } else { 16 };
            assert_eq!(
                (*stream_id, text.as_str()),
                (1 + 2 * i as u32, &*format!("127.0.0.1:8081 5 {largest}"))
            );
        }
        assert_eq!(seen.len(), 1000);
        drop(in_time(writer).await.unwrap());
        pump.abort();
        server.abort();
    }
}

#[tokio::test]
async fn the_blocks_of_a_real_client_survive_the_rewriting() {
    let (client, server) = duplex(1 << 16);
    let rewriter = Some(Box::new(HeaderRewriter::rewriting_from_the_start()));
    let server = tokio::spawn(serve(AuthorityRepairStream { io: server, rewriter }));
    let (mut client, connection) = in_time(h2::client::handshake(client)).await.unwrap();
    let connection = tokio::spawn(connection);
    for i in 0..1000usize {
        let large = "v".repeat(if i % 50 == 49 { 50_000 } else { 17 });
        let request = http::Request::builder()
            .method("POST")
            .uri("http://mq.example:8081/apache.rocketmq.v2.MessagingService/SendMessage")
            .header("x-mq-request-id", format!("request-{i}"))
            .header("x", &large)
            .body(())
            .unwrap();
        client = in_time(client.ready()).await.unwrap();
        let (response, mut body) = client.send_request(request, false).unwrap();
        body.send_data(Bytes::from(vec![0x01; i % 40]), true).unwrap();
        let response = in_time(response).await.unwrap();
        assert_eq!(response.headers()["seen"], format!("mq.example:8081 2 {}", large.len()));
    }
    drop(client);
    connection.abort();
    server.abort();
}

#[tokio::test]
async fn a_connection_that_needs_no_repair_is_left_alone_for_good() {
    let (mut client, server) = duplex(1 << 16);
    let mut adapter = AuthorityRepairStream::new(server);
    let head = ClientEncoder::new(true).encode(&request("mq.example:8081", &[]));
    let sent = [opening(), block(1, true, &head, 16_384)].concat();
    client.write_all(&sent).await.unwrap();
    let mut received = vec![0; sent.len()];
    in_time(adapter.read_exact(&mut received)).await.unwrap();
    assert_eq!(received, sent);
    client.write_all(b"x").await.unwrap();
    assert_eq!(in_time(adapter.read_u8()).await.unwrap(), b'x');
    assert!(adapter.rewriter.is_none());
}

#[tokio::test]
async fn a_server_answers_an_unreadable_block_with_a_connection_error() {
    let (mut client, server) = duplex(1 << 16);
    let server = tokio::spawn(serve(AuthorityRepairStream::new(server)));
    let head = ClientEncoder::new(false).encode(&request(LIST, &[]));
    let bad = frame(1, 0x5, 3, &[0xff, 0xff]);
    client.write_all(&[opening(), block(1, true, &head, 16_384), bad].concat()).await.unwrap();
    let (_, ends) = in_time(answers(client, 2)).await;
    assert_eq!(ends, [(GOAWAY, PROTOCOL_ERROR)]);
    assert!(in_time(server).await.unwrap().is_err());
}

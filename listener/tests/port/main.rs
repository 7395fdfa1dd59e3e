//! The client port as clients meet it.

#![expect(clippy::unwrap_used, reason = "clippy takes only #[test] functions for tests")]

mod idle_connections;
mod support;

use std::io::ErrorKind;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ledgermq_listener::{CertificateSource, ClientListener, ListenerLimits, TlsMode};
use support::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_stream::StreamExt;

fn self_signed(directory: &std::path::Path) -> CertificateSource {
    CertificateSource::SelfSigned { directory: directory.to_path_buf(), hosts: vec!["mq.example".into()] }
}

/// Reads until the server closes; true if it did so in order or with a reset.
async fn is_closed(io: &mut (impl AsyncRead + Unpin)) -> bool {
    let mut sink = Vec::new();
    match in_time(io.read_to_end(&mut sink)).await {
        Ok(_) => true,
        Err(error) => matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
    }
}

/// Reads until the stream is answered (HEADERS) or refused (RST_STREAM or GOAWAY).
async fn is_answered(io: &mut (impl AsyncRead + Unpin), stream_id: u32) -> bool {
    loop {
        let mut header = [0u8; 9];
        in_time(io.read_exact(&mut header)).await.unwrap();
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        let mut payload = vec![0; length as usize];
        in_time(io.read_exact(&mut payload)).await.unwrap();
        let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
        match header[3] {
            1 if stream == stream_id => return true,
            3 | 7 => return false,
            _ => {}
        }
    }
}

#[tokio::test]
async fn plaintext_and_tls_clients_share_the_port() {
    let dir = tempfile::tempdir().unwrap();
    let port = serve(TlsMode::Permissive(self_signed(dir.path())), ListenerLimits::default());
    let plain = connect(port.addr).await;
    let plain_addr = plain.local_addr().unwrap();
    let seen = in_time(call(plain)).await.unwrap();
    assert_eq!(
        (&seen["tls"], &seen["peer"]),
        (&"false".parse().unwrap(), &plain_addr.to_string().parse().unwrap())
    );

    let tls = connect_tls(port.addr, &dir.path().join("cert.pem")).await.unwrap();
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let seen = in_time(call(tls)).await.unwrap();
    assert_eq!(seen["tls"], "true");
}

#[tokio::test]
async fn a_mode_refuses_what_it_does_not_allow() {
    let dir = tempfile::tempdir().unwrap();
    let port = serve(TlsMode::Enforcing(self_signed(dir.path())), ListenerLimits::default());
    assert!(in_time(call(connect(port.addr).await)).await.is_err());
    let tls = connect_tls(port.addr, &dir.path().join("cert.pem")).await.unwrap();
    assert_eq!(in_time(call(tls)).await.unwrap()["tls"], "true");

    let port = serve(TlsMode::Disabled, ListenerLimits::default());
    assert!(connect_tls(port.addr, &dir.path().join("cert.pem")).await.is_err());
    assert_serves(port.addr).await;
}

#[tokio::test]
async fn a_list_as_access_point_works_over_plaintext_and_tls() {
    async fn check(mut io: impl AsyncRead + AsyncWrite + Unpin) {
        io.write_all(PREFACE_AND_SETTINGS).await.unwrap();
        let lists =
            ["10.0.0.1:8081;10.0.0.2:8081", "10.0.0.1:8081,10.0.0.2:8081", "::1:8081", "mq.example:1"];
        for (i, list) in lists.iter().enumerate() {
            let stream_id = 1 + 2 * i as u32;
            io.write_all(&raw_request(list, stream_id)).await.unwrap();
            assert!(is_answered(&mut io, stream_id).await, "{list}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let port = serve(TlsMode::Permissive(self_signed(dir.path())), ListenerLimits::default());
    check(connect(port.addr).await).await;
    check(connect_tls(port.addr, &dir.path().join("cert.pem")).await.unwrap()).await;
}

#[tokio::test]
async fn garbage_is_closed_and_others_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let port = serve(TlsMode::Permissive(self_signed(dir.path())), ListenerLimits::default());
    let http1 = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec();
    let zeros = vec![0; 100_000];
    let not_tls = [vec![0x16], vec![0xff; 1000]].concat();
    let preface_then_noise = [PREFACE_AND_SETTINGS, &[0xff; 4000]].concat();
    let huge_header_block = [PREFACE_AND_SETTINGS, &[0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 1]].concat();
    for garbage in [http1, zeros, not_tls, preface_then_noise, huge_header_block] {
        let mut io = connect(port.addr).await;
        // The server may close while this is being written.
        let _ = in_time(io.write_all(&garbage)).await;
        assert!(is_closed(&mut io).await);
        assert_serves(port.addr).await;
    }
}

#[tokio::test]
async fn who_stalls_before_the_end_of_the_handshake_is_closed_at_the_deadline_and_others_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let limits = ListenerLimits { handshake_deadline: Duration::from_secs(2), ..ListenerLimits::default() };
    let port = serve(TlsMode::Permissive(self_signed(dir.path())), limits);
    let mut stalled = Vec::new();
    for opening in [&b""[..], &[0x16], &[0x16, 3, 1, 2, 0, 1], b"PRI * HT"] {
        let mut io = connect(port.addr).await;
        io.write_all(opening).await.unwrap();
        stalled.push(io);
    }
    assert_serves(port.addr).await;
    for mut io in stalled {
        assert!(is_closed(&mut io).await);
    }
    assert_eq!(port.counters.handshake_failed.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn an_idle_connection_past_its_handshake_is_kept() {
    let limits = ListenerLimits { handshake_deadline: Duration::from_secs(2), ..ListenerLimits::default() };
    let port = serve(TlsMode::Disabled, limits);
    let mut idle = connect(port.addr).await;
    idle.write_all(PREFACE_AND_SETTINGS).await.unwrap();
    // Another client's stall outlasts the deadline, and tells that it has passed.
    assert!(is_closed(&mut connect(port.addr).await).await);
    idle.write_all(&raw_request("a:1,b:2", 1)).await.unwrap();
    assert!(is_answered(&mut idle, 1).await);
}

#[tokio::test]
async fn a_request_written_byte_by_byte_is_answered_and_delays_nobody() {
    let port = serve(TlsMode::Disabled, ListenerLimits::default());
    for authority in ["mq.example:8081", "a:1,b:2"] {
        let mut slow = connect(port.addr).await;
        slow.set_nodelay(true).unwrap();
        let bytes = [PREFACE_AND_SETTINGS, &raw_request(authority, 1)].concat();
        for (i, byte) in bytes.iter().enumerate() {
            slow.write_all(&[*byte]).await.unwrap();
            if i % 20 == 0 {
                assert_serves(port.addr).await;
            }
        }
        assert!(is_answered(&mut slow, 1).await);
    }
}

#[tokio::test]
async fn stalling_clients_beyond_the_limit_make_room_for_working_ones() {
    let limits =
        ListenerLimits { handshakes_max: 8, handshake_deadline: DEADLINE, ..ListenerLimits::default() };
    let port = serve(TlsMode::Disabled, limits);
    let mut stalled = Vec::new();
    for _ in 0..40 {
        stalled.push(connect(port.addr).await);
    }
    assert_serves(port.addr).await;
    assert!(is_closed(&mut stalled[0]).await, "the one that stalls longest goes");
    assert!(port.counters.handshake_evicted.load(Ordering::Relaxed) >= 33);
}

#[tokio::test]
async fn a_full_port_resets_the_next_client_and_takes_clients_again_when_one_leaves() {
    let limits = ListenerLimits { connections_max: 3, handshakes_max: 3, ..ListenerLimits::default() };
    let port = serve(TlsMode::Disabled, limits);
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut io = connect(port.addr).await;
        io.write_all(&[PREFACE_AND_SETTINGS, &raw_request("mq.example:1", 1)].concat()).await.unwrap();
        assert!(is_answered(&mut io, 1).await);
        held.push(io);
    }
    assert!(is_closed(&mut connect(port.addr).await).await);
    assert!(port.counters.refused_full.load(Ordering::Relaxed) >= 1);
    // The others are unharmed.
    held[0].write_all(&raw_request("mq.example:1", 3)).await.unwrap();
    assert!(is_answered(&mut held[0], 3).await);

    held.pop();
    in_time(async { while call(connect(port.addr).await).await.is_err() {} }).await;
}

#[tokio::test]
async fn a_replaced_certificate_serves_new_handshakes_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let renewed = tempfile::tempdir().unwrap();
    let limits =
        ListenerLimits { certificate_check_interval: Duration::from_millis(10), ..ListenerLimits::default() };
    let port = serve(TlsMode::Permissive(self_signed(dir.path())), limits.clone());
    let before = dir.path().join("before.pem");
    std::fs::copy(dir.path().join("cert.pem"), &before).unwrap();
    let mut old = connect_tls(port.addr, &before).await.unwrap();

    // Made the same way, elsewhere.
    drop(ClientListener::bind(
        "127.0.0.1:0".parse().unwrap(),
        TlsMode::Permissive(self_signed(renewed.path())),
        limits,
    ));
    for file in ["key.pem", "cert.pem"] {
        std::fs::copy(renewed.path().join(file), dir.path().join(file)).unwrap();
    }
    let trusted = renewed.path().join("cert.pem");
    in_time(async { while connect_tls(port.addr, &trusted).await.is_err() {} }).await;
    assert!(connect_tls(port.addr, &before).await.is_err());

    // The connection from before goes on.
    old.write_all(&[PREFACE_AND_SETTINGS, &raw_request("mq.example:1", 1)].concat()).await.unwrap();
    assert!(is_answered(&mut old, 1).await);
}

#[tokio::test]
async fn after_shutdown_nobody_new_is_taken_and_open_connections_are_not_touched() {
    let any = "127.0.0.1:0".parse().unwrap();
    let listener = ClientListener::bind(any, TlsMode::Disabled, ListenerLimits::default()).unwrap();
    let addr = listener.local_addr();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let mut incoming = listener.into_incoming(async move {
        let _ = stopped.await;
    });
    let mut client = connect(addr).await;
    client.write_all(PREFACE_AND_SETTINGS).await.unwrap();
    let mut server = in_time(incoming.next()).await.unwrap().unwrap();
    assert_eq!(server.info().peer_addr, client.local_addr().unwrap());
    let mut in_handshake = connect(addr).await;

    stop.send(()).unwrap();
    assert!(in_time(incoming.next()).await.is_none());
    assert!(is_closed(&mut in_handshake).await);
    assert!(tokio::net::TcpStream::connect(addr).await.is_err());
    server.write_all(b"still here").await.unwrap();
    let mut received = [0; 10];
    in_time(client.read_exact(&mut received)).await.unwrap();
    assert_eq!(&received, b"still here");
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let port = serve(TlsMode::Disabled, ListenerLimits::default());
    let error = ClientListener::bind(port.addr, TlsMode::Disabled, ListenerLimits::default()).unwrap_err();
    assert!(error.to_string().contains(&format!("cannot listen on {}", port.addr)), "{error}");
}

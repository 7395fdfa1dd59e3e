//! Lets clients through whose `:authority` is a list of addresses.
//!
//! Given several access points, the Go SDK sends `:authority: a:1;b:2`, Python and C++ send
//! `a:1,b:2`, and IPv6 literals come without brackets. The h2 library answers such a request with a
//! stream reset (PROTOCOL_ERROR), and no setting of it or of anything above it helps. So the bytes
//! are repaired before h2 sees them.
//!
//! | File | What it is |
//! |---|---|
//! | `access_point` | which authorities are refused, and what they become |
//! | `rewrite` | the decision per connection, and the rewriting of its header blocks |
//! | `frames` | HTTP/2 frames: just enough to find header blocks and to write them |
//! | `hpack`, `static_table`, `huffman` | decoding a header block, and encoding one without state |
//!
//! The decision is made once, at the first header block: a gRPC channel has one authority for life.
//! With a good one (nearly always) the adapter gets out of the way, and reading costs one branch.
//! Otherwise every header block of the connection is decoded and written anew, since all of them
//! share one compression table: dropping one would garble the next.

mod access_point;
#[cfg(test)]
mod client_encoder;
mod frames;
mod hpack;
mod huffman;
mod rewrite;
mod static_table;
#[cfg(test)]
mod tests;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use frames::PREFACE;
use rewrite::HeaderRewriter;

/// The server's end of an HTTP/2 connection whose client may send a list as its authority.
/// Bytes to the client are never touched.
#[derive(Debug)]
pub struct AuthorityRepairStream<IO> {
    io: IO,
    /// `None` once the connection has turned out to need no repair.
    rewriter: Option<Box<HeaderRewriter>>,
}

impl<IO: AsyncRead + Unpin> AuthorityRepairStream<IO> {
    pub fn new(io: IO) -> Self {
        Self { io, rewriter: Some(Box::default()) }
    }

    /// Waits until the client has sent the whole HTTP/2 preface, or something else; the bytes are
    /// read again by whoever reads next. Fails when the client closes before.
    ///
    /// Nothing above this has a time-out for a client that stops in the middle of the preface.
    pub async fn receive_preface(&mut self) -> io::Result<()> {
        let mut part = [0u8; PREFACE.len()];
        while let Some(rewriter) = &mut self.rewriter {
            let Some(missing) = rewriter.preface_missing() else { break };
            let read = self.io.read(part.get_mut(..missing).unwrap_or_default()).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            rewriter.push(part.get(..read).unwrap_or_default());
        }
        Ok(())
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for AuthorityRepairStream<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            let Some(rewriter) = &mut this.rewriter else {
                return Pin::new(&mut this.io).poll_read(cx, buf);
            };
            if buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            let output = rewriter.advance();
            if !output.is_empty() {
                let passed = output.len().min(buf.remaining());
                buf.put_slice(output.get(..passed).unwrap_or_default());
                output.advance(passed);
                return Poll::Ready(Ok(()));
            }
            if rewriter.has_ended() {
                return Poll::Ready(Ok(()));
            }
            if rewriter.is_pass_through() {
                this.rewriter = None;
                continue;
            }
            // Straight into the reader's buffer: what needs no rewriting (message bodies, above
            // all) stays where it is.
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            let chunk = buf.filled().get(before..).unwrap_or_default();
            if chunk.is_empty() {
                rewriter.finish();
                continue;
            }
            let kept = rewriter.keep_in_place(chunk);
            rewriter.push(chunk.get(kept..).unwrap_or_default());
            buf.set_filled(before + kept);
            if kept > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for AuthorityRepairStream<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

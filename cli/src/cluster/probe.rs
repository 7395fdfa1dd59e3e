//! What a process says of itself (a GET to its HTTP port, enough for `/readyz` and `/metrics`), and
//! what the kernel says of it.

use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const TIMEOUT: Duration = Duration::from_secs(2);
const ANSWER_BYTES_MAX: u64 = 16 * 1024 * 1024;

#[derive(Debug, Clone)]
pub struct HttpAnswer {
    pub status: u16,
    pub body: String,
}

pub async fn http_get(address: &str, path: &str) -> anyhow::Result<HttpAnswer> {
    tokio::time::timeout(TIMEOUT, get(address, path)).await.context("no answer in time")?
}

async fn get(address: &str, path: &str) -> anyhow::Result<HttpAnswer> {
    let mut stream = TcpStream::connect(address).await?;
    // HTTP/1.0: the body is not chunked and ends with the connection.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { bail!("not an HTTP answer") };
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("not an HTTP answer")?;
    Ok(HttpAnswer { status, body: body.to_owned() })
}

/// R, S, T and so on, as the kernel says.
pub fn process_state(pid: u32) -> anyhow::Result<Option<char>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} is gone"))?;
    // The name in parentheses may hold anything; the state follows the last of them.
    Ok(stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()))
}

//! The attacker's server: distinct bundles, and inputs as large as is asked for. HTTP as far as an agent speaks it to fetch.

use super::guests;
use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Bytes of an input that are sent at a time.
const CHUNK: usize = 256 << 10;

/// Starts to serve; gives its address.
pub(super) async fn start() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("listening for the attacker's server")?;
    let address = listener.local_addr().context("the attacker's server")?.to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that leaves is no failure.
            tokio::spawn(async move { drop(serve(stream).await) });
        }
    });
    Ok(address)
}

async fn serve(stream: TcpStream) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if stream.read_line(&mut request).await? == 0 {
            return Ok(());
        }
        let mut header = String::new();
        while stream.read_line(&mut header).await? > 2 {
            header.clear();
        }
        let path = request.split(' ').nth(1).unwrap_or_default();
        let number = |part: &str| part.split(['.', '?']).next().and_then(|n| n.parse::<u64>().ok()).unwrap_or_default();
        if let Some(n) = path.strip_prefix("/bundle/") {
            let text = guests::distinct(number(n));
            stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()).as_bytes()).await?;
        } else {
            let length = path.strip_prefix("/bytes/").map(number).unwrap_or_default();
            stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes()).await?;
            let (chunk, mut left) = (vec![b'x'; CHUNK], usize::try_from(length).unwrap_or(usize::MAX));
            while left > 0 {
                let n = left.min(CHUNK);
                stream.write_all(&chunk[..n]).await?;
                left -= n;
            }
        }
        stream.flush().await?;
    }
}

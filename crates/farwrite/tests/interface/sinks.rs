//! What takes alerts in these tests: an HTTP and an SMTP server that remember what they were told, plain or over TLS.

use crate::rig::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

/// A certificate for `localhost`, and the authority that signed it in a file that a client may be told to trust.
pub fn certificates(authority_file: &Path) -> Arc<ServerConfig> {
    let mut authority = CertificateParams::new(vec![]).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().unwrap();
    let certificate = authority.self_signed(&authority_key).unwrap();
    std::fs::write(authority_file, certificate.pem()).unwrap();
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().unwrap();
    let own = CertificateParams::new(vec!["localhost".into()])
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let config =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.der().clone()], key)
            .unwrap();
    Arc::new(config)
}

/// How a server secures its connections.
#[derive(Clone)]
pub enum Tls {
    None,
    AtOnce(Arc<ServerConfig>),
    /// When the client asks for it; before, it takes no mail.
    OnRequest(Arc<ServerConfig>),
}

fn secure(stream: TcpStream, config: &Arc<ServerConfig>) -> Box<dyn Wire> {
    let connection = ServerConnection::new(config.clone()).unwrap();
    Box::new(StreamOwned::new(connection, stream))
}

fn listen(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = Arc::new(serve);
    // Ends with the test's process.
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            stream
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
    port
}

/// What was POSTed: head and body.
pub type Posts = Arc<Mutex<Vec<(String, String)>>>;

/// Answers each request with the next of `codes`, and with 200 when they are used up.
pub fn http(codes: &[u16], tls: Tls) -> (u16, Posts) {
    let posts = Posts::default();
    let (kept, codes) = (posts.clone(), codes.to_vec());
    let port = listen(move |stream| {
        let wire: Box<dyn Wire> = match &tls {
            Tls::None => Box::new(stream),
            Tls::AtOnce(config) | Tls::OnRequest(config) => secure(stream, config),
        };
        let mut reader = BufReader::new(wire);
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                // A client that does not trust us.
                return;
            }
            if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
                length = n.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
            head.push_str(&line);
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let code = {
            let mut all = kept.lock().unwrap();
            all.push((head, String::from_utf8(body).unwrap()));
            codes.get(all.len() - 1).copied().unwrap_or(200)
        };
        let to = if code == 302 {
            "location: http://127.0.0.1:1/\r\n"
        } else {
            ""
        };
        let answer =
            format!("HTTP/1.1 {code} x\r\n{to}content-length: 0\r\nconnection: close\r\n\r\n");
        let _ = reader.get_mut().write_all(answer.as_bytes());
        let _ = reader.get_mut().flush();
    });
    (port, posts)
}

/// A mail as it came.
#[derive(Clone, Debug, Default)]
pub struct Letter {
    /// User and password.
    pub login: Option<(String, String)>,
    pub from: String,
    pub to: Vec<String>,
    pub text: String,
    pub secured: bool,
}

pub type Letters = Arc<Mutex<Vec<Letter>>>;

/// Takes mail from whoever has the password, if there is one.
pub fn smtp(password: Option<&'static str>, tls: Tls) -> (u16, Letters) {
    let letters = Letters::default();
    let kept = letters.clone();
    let port = listen(move |stream| {
        // A client that hangs up has had enough.
        let _ = talk(stream, &tls, password, &kept);
    });
    (port, letters)
}

fn talk(
    stream: TcpStream,
    tls: &Tls,
    password: Option<&str>,
    kept: &Letters,
) -> std::io::Result<()> {
    let raw = stream.try_clone()?;
    let mut letter = Letter::default();
    let wire: Box<dyn Wire> = match tls {
        Tls::AtOnce(config) => {
            letter.secured = true;
            secure(stream, config)
        }
        _ => Box::new(stream),
    };
    let mut io = BufReader::new(wire);
    let say = |io: &mut BufReader<Box<dyn Wire>>, text: &str| {
        io.get_mut().write_all(format!("{text}\r\n").as_bytes())?;
        io.get_mut().flush()
    };
    say(&mut io, "220 sink")?;
    loop {
        let mut line = String::new();
        if io.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let line = line.trim_end().to_owned();
        let word = line.split([' ', ':']).next().unwrap().to_uppercase();
        let plain = matches!(tls, Tls::OnRequest(_)) && !letter.secured;
        match word.as_str() {
            "EHLO" if plain => say(&mut io, "250-sink\r\n250 STARTTLS")?,
            "EHLO" => say(&mut io, "250-sink\r\n250 AUTH PLAIN LOGIN")?,
            "STARTTLS" => {
                say(&mut io, "220 go")?;
                let Tls::OnRequest(config) = tls else {
                    return Ok(());
                };
                io = BufReader::new(secure(raw.try_clone()?, config));
                letter.secured = true;
            }
            "QUIT" => return say(&mut io, "221 bye"),
            _ if plain => say(&mut io, "530 STARTTLS first")?,
            "AUTH" => {
                let given = line.rsplit(' ').next().unwrap();
                let given =
                    base64::Engine::decode(&base64::engine::general_purpose::STANDARD, given);
                let given = String::from_utf8(given.unwrap()).unwrap();
                let mut parts = given.split('\0').skip(1).map(str::to_owned);
                let login = (parts.next().unwrap(), parts.next().unwrap());
                if password.is_some_and(|p| p != login.1) {
                    say(&mut io, "535 wrong password")?;
                    continue;
                }
                letter.login = Some(login);
                say(&mut io, "235 good")?;
            }
            "MAIL" if password.is_some() && letter.login.is_none() => say(&mut io, "530 log in")?,
            "MAIL" => {
                letter.from = line;
                say(&mut io, "250 ok")?;
            }
            "RCPT" => {
                letter.to.push(line);
                say(&mut io, "250 ok")?;
            }
            "DATA" => {
                say(&mut io, "354 go on")?;
                loop {
                    let mut line = String::new();
                    if io.read_line(&mut line)? == 0 {
                        return Ok(());
                    }
                    if line == ".\r\n" {
                        break;
                    }
                    letter.text.push_str(&line);
                }
                kept.lock().unwrap().push(letter.clone());
                say(&mut io, "250 taken")?;
            }
            _ => say(&mut io, "250 ok")?,
        }
    }
}

/// Waits for the first that fits.
pub fn wait_for<T: Clone>(what: &str, all: &Mutex<Vec<T>>, is: impl Fn(&T) -> bool) -> T {
    until(what, SOON, || {
        all.lock().unwrap().iter().find(|t| is(t)).cloned()
    })
}

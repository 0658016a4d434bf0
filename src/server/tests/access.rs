use super::*;
use crate::server::{KeyHash, KeyHashes};

const KEY: &str = "correct-horse-battery-staple";

fn locked() -> Server {
    let line = |key: &str| format!("\"{}\"", KeyHash::of(key).line());
    let hashes = format!("[auth]\nkey_hashes = [{}, {}]", line("another-key"), line(KEY));
    Server::new(&toml::from_str(&hashes).unwrap())
}

async fn ask(server: &Server, method: Method, path: &str, authorization: Option<&str>) -> Reply {
    let mut request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    if let Some(value) = authorization {
        request = request.header("authorization", value);
    }
    server.send(request.body(Body::from("{}")).unwrap()).await
}

#[tokio::test]
async fn images_and_lists_need_one_of_the_keys_once_there_are_any() {
    let server = locked();
    for (method, path) in [(Method::POST, "/generate"), (Method::GET, "/subnets"), (Method::GET, "/v1/models")] {
        for (given, challenge) in [
            (None, r#"Bearer realm="accordion""#),
            (Some("Basic dTpw"), r#"Bearer realm="accordion""#),
            (Some("Bearer "), r#"Bearer realm="accordion""#),
            (Some("Bearer correct-horse-battery-stapl"), r#"Bearer realm="accordion", error="invalid_token""#),
            (Some(&KeyHash::of(KEY).line()), r#"Bearer realm="accordion""#),
        ] {
            let reply = ask(&server, method.clone(), path, given).await;
            assert_eq!((reply.status, reply.error().0.as_str()), (StatusCode::UNAUTHORIZED, "unauthorized"), "{path}");
            assert_eq!(reply.header("www-authenticate"), challenge, "{given:?}");
        }
        for given in [format!("Bearer {KEY}"), format!("bearer  {KEY}"), "Bearer another-key".to_owned()] {
            assert_eq!(ask(&server, method.clone(), path, Some(&given)).await.status, StatusCode::OK, "{path} {given}");
        }
    }
    assert_eq!(server.gate.calls().len(), 3 * 12);
}

#[tokio::test]
async fn probes_and_scrapes_need_no_key() {
    let server = locked();
    for path in ["/livez", "/readyz", "/health", "/metrics"] {
        assert_eq!(server.get(path).await.status, StatusCode::OK, "{path}");
    }
    // A path that does not exist says nothing to a stranger, not even that.
    assert_eq!(server.get("/nowhere").await.status, StatusCode::UNAUTHORIZED);
}

// What the log shows at its finest level is tested on the whole process, in tests/operations.rs.
#[tokio::test]
async fn no_debug_output_shows_a_hash() {
    let config: ServeConfig = toml::from_str(&format!("[auth]\nkey_hashes = ['{}']", KeyHash::of(KEY).line())).unwrap();
    let hash = KeyHash::of(KEY).line();
    let bytes = format!("{:?}", hex_bytes(&hash));
    for shown in [format!("{config:?}"), format!("{:?}", locked().state), format!("{:?}", config.auth.key_hashes.0[0])]
    {
        assert!(shown.contains("sha256:<redacted>"), "{shown}");
        for secret in [hash.trim_start_matches("sha256:"), bytes.trim_matches(['[', ']'])] {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
    }
}

fn hex_bytes(line: &str) -> Vec<u8> {
    let digits = line.strip_prefix("sha256:").unwrap();
    (0..32).map(|byte| u8::from_str_radix(&digits[2 * byte..][..2], 16).unwrap()).collect()
}

#[test]
fn a_hash_is_the_standard_one_and_reads_back_from_its_line() {
    // FIPS 180-2, appendix B.1.
    let line = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(KeyHash::of("abc").line(), line);
    assert_eq!(line.parse(), Ok(KeyHash::of("abc")));
    assert_eq!(line.to_uppercase().replace("SHA", "sha").parse(), Ok(KeyHash::of("abc")));
    let listed: KeyHashes = format!(" {line},\n{line}, ").parse().unwrap();
    assert_eq!(listed.0.len(), 2);
    for nothing in ["", " ", ",", "\n,"] {
        assert!(nothing.parse::<KeyHashes>().unwrap_err().starts_with("holds no key"), "{nothing:?}");
    }
}

#[test]
fn a_key_where_its_hash_belongs_is_refused_without_being_shown() {
    for text in [
        format!("[auth]\nkey_hashes = '{KEY}'"),
        format!("[auth]\nkey_hashes = ['{KEY}']"),
        format!("[auth]\nkey_hashes = ['sha256:{KEY}']"),
        format!("[auth]\nkey_hashes = [{{ '{KEY}' = 1 }}]"),
        format!("[auth]\nkey_hashes = ['sha256:{}é{}']", "0".repeat(31), "0".repeat(31)),
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        let message = ServeConfig::load(file.path()).unwrap_err().to_string();
        assert!(message.contains("auth.key_hashes: ") && !message.contains(KEY), "{text}: {message}");
    }
    assert!(!KEY.parse::<KeyHashes>().unwrap_err().contains(KEY));
}

async fn from_origin(server: &Server, origin: &str) -> Reply {
    let preflight = Request::builder()
        .method(Method::OPTIONS)
        .uri("/generate")
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,content-type");
    server.send(preflight.body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn pages_of_other_origins_are_let_in_only_where_the_config_says_so() {
    const ALLOWED: &str = "access-control-allow-origin";
    let closed = Server::new(&ServeConfig::default());
    let reply = from_origin(&closed, "https://a.example").await;
    assert_eq!((reply.status, reply.headers.get(ALLOWED)), (StatusCode::NO_CONTENT, None));

    let some =
        Server::new(&toml::from_str(r#"cors_origins = ["HTTPS://A.example:443/", "http://localhost:3000"]"#).unwrap());
    let reply = from_origin(&some, "https://a.example").await;
    assert_eq!((reply.status, reply.header(ALLOWED)), (StatusCode::OK, "https://a.example"));
    assert_eq!(reply.header("access-control-allow-headers"), "authorization,content-type");
    for stranger in ["https://b.example", "http://a.example", "https://a.example:8443", "null"] {
        assert_eq!(from_origin(&some, stranger).await.headers.get(ALLOWED), None, "{stranger}");
    }

    // A browser asks without the key, and its page may read that the key was wrong.
    let hash = KeyHash::of(KEY).line();
    let any = Server::new(&toml::from_str(&format!("cors_origins = ['*']\nauth.key_hashes = ['{hash}']")).unwrap());
    let reply = from_origin(&any, "https://b.example").await;
    assert_eq!((reply.status, reply.header(ALLOWED)), (StatusCode::OK, "*"));
    let mut request = generate("", "{}");
    request.headers_mut().insert("origin", "https://b.example".parse().unwrap());
    let reply = any.send(request).await;
    assert_eq!((reply.status, reply.header(ALLOWED)), (StatusCode::UNAUTHORIZED, "*"));
    assert_eq!(reply.header("access-control-expose-headers"), "*");
}

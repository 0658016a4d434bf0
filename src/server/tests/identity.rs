use super::*;
use axum::http::HeaderValue;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

async fn with_header(server: &Server, name: &str, value: &str) -> Reply {
    let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
    server.send(Request::get("/livez").header(name, value).body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn a_request_id_is_passed_through_or_made() {
    let server = Server::new(&ServeConfig::default());
    for id in ["abc-1", "!", &"x".repeat(128)] {
        assert_eq!(with_header(&server, "x-request-id", id).await.header("x-request-id"), id);
    }
    let made = [
        server.get("/livez").await,
        server.get("/nowhere").await,
        with_header(&server, "x-request-id", "").await,
        with_header(&server, "x-request-id", "two words").await,
        with_header(&server, "x-request-id", "tab\tbed").await,
        with_header(&server, "x-request-id", "käse").await,
        with_header(&server, "x-request-id", &"x".repeat(129)).await,
    ];
    let mut made: Vec<_> = made.iter().map(|reply| reply.header("x-request-id")).collect();
    for id in &made {
        let groups: Vec<usize> = id.split('-').map(str::len).collect();
        assert_eq!(groups, [8, 4, 4, 4, 12], "{id}");
        assert!(id.as_bytes()[14] == b'4' && b"89ab".contains(&id.as_bytes()[19]), "version and variant of {id}");
    }
    made.sort_unstable();
    made.dedup();
    assert_eq!(made.len(), 7);
}

#[tokio::test]
async fn a_trace_is_joined_with_a_span_of_our_own_or_begun() {
    let server = Server::new(&ServeConfig::default());
    let joined = with_header(&server, "traceparent", PARENT).await;
    let joined = joined.header("traceparent");
    assert!(joined.starts_with(&PARENT[..36]) && joined.ends_with("-01") && joined.len() == 55, "{joined}");
    assert_ne!(joined[36..52], PARENT[36..52]);
    for broken in ["", "00-0", &PARENT.replacen("00", "ff", 1)] {
        let begun = with_header(&server, "traceparent", broken).await;
        let begun = begun.header("traceparent");
        assert!(begun.len() == 55 && begun[3..35] != PARENT[3..35] && begun.ends_with("-00"), "{begun}");
    }
}

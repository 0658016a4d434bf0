use super::*;
use crate::server::auth::KeyHash;
use serde_json::json;

/// The document of a server.
async fn document(config: &ServeConfig) -> Value {
    Server::new(config).get("/openapi.json").await.json()
}

#[tokio::test]
async fn every_documented_route_is_there() {
    let server = Server::new(&ServeConfig::default());
    let document = server.get("/openapi.json").await.json();
    let paths = document["paths"].as_object().unwrap();
    let mut found = Vec::new();
    for (path, item) in paths {
        for method in item.as_object().unwrap().keys() {
            let uri = path.replace("{id}", "gaussian").replace("{file}", "app.js");
            let method: Method = method.to_uppercase().parse().unwrap();
            let request = Request::builder().method(method.clone()).uri(&uri).body(Body::empty()).unwrap();
            let reply = server.send(request).await;
            let documented = &item[method.as_str().to_lowercase()]["responses"][reply.status.as_str()];
            assert!(documented.is_object(), "{method} {uri}: {} is not documented", reply.status);
            assert_ne!(reply.status, StatusCode::METHOD_NOT_ALLOWED, "{method} {uri}");
            found.push(format!("{method} {path}"));
        }
    }
    let mut routes = [
        "POST /generate",
        "GET /generate/{id}",
        "POST /v1/images/generations",
        "POST /v1/images/edits",
        "GET /v1/models",
        "GET /v1/models/{id}",
        "GET /subnets",
        "GET /livez",
        "GET /readyz",
        "GET /health",
        "GET /metrics",
        "GET /openapi.json",
        "GET /",
        "GET /playground/{file}",
    ];
    found.sort();
    routes.sort();
    assert_eq!(found, routes);
}

#[tokio::test]
async fn the_document_says_the_bounds_of_this_server() {
    let limits = crate::server::Limits { max_n: 5, max_steps: 30, ..Default::default() };
    let document = document(&ServeConfig { limits, ..ServeConfig::default() }).await;
    let bodies = &document["components"]["schemas"];
    let body = &bodies["GenerateBody"]["properties"];
    let number = &body["seed"]["oneOf"][1];
    assert_eq!(
        (&body["n"]["maximum"], &number["minimum"], &number["maximum"]),
        (&json!(5), &json!(-1), &json!(u64::MAX))
    );
    let text = body["seed"]["oneOf"][2]["pattern"].as_str().unwrap();
    assert!(text.starts_with("^(-1|0*(0|[1-9]|[1-9][0-9]|") && text.ends_with("|18446744073709551615))$"), "{text}");
    assert_eq!(body["format"]["enum"], json!(["png", "webp", "jpeg", "jpg", null]));
    assert_eq!(body["class"]["oneOf"][1]["enum"], json!(["low", "high"]));
    let body = &bodies["ImagesBody"]["properties"];
    assert_eq!((&body["n"]["maximum"], &body["size"]["enum"]), (&json!(5), &json!(["auto", "3x4", null])));
    assert_eq!((&body["prompt"]["examples"], &body["prompt"]["pattern"]), (&json!(["low", "high"]), &Value::Null));
    let example = &document["paths"]["/v1/images/generations"]["post"]["requestBody"]["content"]["application/json"];
    assert_eq!(example["example"]["prompt"], "a photo of a low");
    assert_eq!(body["response_format"]["enum"], json!(["b64_json", "url", null]));
    let query = document["paths"]["/generate"]["post"]["parameters"].as_array().unwrap();
    let pattern = query.iter().find(|parameter| parameter["name"] == "budget").unwrap()["schema"]["pattern"].clone();
    assert!(pattern.as_str().unwrap().contains("-([1-9]|[1-2][0-9]|30)@(0\\.250|0\\.500|full)"), "{pattern}");
}

#[tokio::test]
async fn a_server_with_keys_says_where_they_are_needed() {
    let mut config = ServeConfig::default();
    assert!(document(&config).await["components"]["securitySchemes"].is_null());
    config.auth.key_hashes.0.push(KeyHash::of("open sesame"));
    let document = document(&config).await;
    assert_eq!(document["components"]["securitySchemes"]["key"]["scheme"], "bearer");
    assert_eq!(document["paths"]["/generate"]["post"]["security"], json!([{ "key": [] }]));
    assert!(document["paths"]["/livez"]["get"]["security"].is_null());
}

#[tokio::test]
async fn the_page_loads_nothing_but_its_own_files() {
    let server = Server::new(&ServeConfig::default());
    let page = server.get("/").await;
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    let policy = page.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"), "{policy}");
    let mut waiting: Vec<String> = quoted(&page.text(), "/playground/");
    let mut seen: Vec<String> = Vec::new();
    while let Some(name) = waiting.pop() {
        if seen.contains(&name) {
            continue;
        }
        let file = server.get(&format!("/playground/{name}")).await;
        assert_eq!(file.status, StatusCode::OK, "{name}");
        assert_eq!(file.header("x-content-type-options"), "nosniff");
        waiting.extend(quoted(&file.text(), "./"));
        seen.push(name);
    }
    seen.sort_unstable();
    let files = ["app.js", "card.js", "draw.js", "easel.js", "icon.svg", "plan.js", "plot.js", "style.css", "words.js"];
    assert_eq!(seen, files);
    assert_eq!(server.get("/playground/secret.js").await.error().0, "not_found");
}

/// What follows `prefix` in the double-quoted texts of a file.
fn quoted(text: &str, prefix: &str) -> Vec<String> {
    text.split('"').filter_map(|part| part.strip_prefix(prefix)).map(str::to_owned).collect()
}

use super::*;
use crate::server::openai::wire::ImagesBody;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use image::ImageFormat;

const IMAGES: &str = "/v1/images/generations";

impl Server {
    async fn images(&self, body: &str) -> Reply {
        self.send(post(IMAGES, body)).await
    }
}

/// The files of an answer, decoded from base 64.
fn files(reply: &Reply) -> Vec<Vec<u8>> {
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    let json = reply.json();
    let entries = json["data"].as_array().unwrap();
    entries.iter().map(|entry| BASE64.decode(entry["b64_json"].as_str().unwrap()).unwrap()).collect()
}

#[tokio::test]
async fn a_prompt_with_a_class_draws_what_generate_draws() {
    let server = Server::new(&ServeConfig::default());
    let reply = server.images(r#"{"prompt":"a photo of a HIGH one","quality":"low","seed":7}"#).await;
    let image = server.generate("?budget=fast", r#"{"class":"high","seed":7}"#).await.body;
    assert_eq!(files(&reply), [image]);
    assert_eq!((reply.header("x-accordion-plan"), reply.header("x-seed")), ("dpmpp2m-8@0.250", "7"));
    assert!(reply.header("server-timing").starts_with("queue;dur="));
    let json = reply.json();
    assert_eq!((&json["size"], &json["quality"]), (&"3x4".into(), &"low".into()));
    assert_eq!((&json["output_format"], &json["background"]), (&"png".into(), &"opaque".into()));
    assert_eq!((&json["usage"]["total_tokens"], json["created"].is_u64()), (&0.into(), true));
}

#[tokio::test]
async fn several_images_are_entries_of_their_own_and_a_seed_s_first_is_the_same() {
    let server = Server::new(&ServeConfig::default());
    let three = files(&server.images(r#"{"prompt":"low","n":3,"seed":1}"#).await);
    assert_eq!(three.len(), 3);
    assert!(three[0] != three[1] && three[1] != three[2]);
    assert_eq!(files(&server.images(r#"{"prompt":"low","seed":1}"#).await), three[..1]);
}

#[tokio::test]
async fn every_quality_is_a_budget() {
    let server = Server::new(&ServeConfig::default());
    for (quality, plan, called) in [
        ("null", "dpmpp2m-12@0.500", "medium"),
        ("\"auto\"", "dpmpp2m-12@0.500", "medium"),
        ("\"low\"", "dpmpp2m-8@0.250", "low"),
        ("\"medium\"", "dpmpp2m-12@0.500", "medium"),
        ("\"high\"", "heun-18@full", "high"),
        ("\"standard\"", "dpmpp2m-12@0.500", "medium"),
        ("\"hd\"", "heun-18@full", "high"),
    ] {
        let reply = server.images(&format!(r#"{{"prompt":"low","quality":{quality}}}"#)).await;
        assert_eq!(reply.header("x-accordion-plan"), plan, "{quality}");
        assert_eq!(reply.json()["quality"], called);
    }
    let page = server.get("/metrics").await.text();
    assert!(page.contains(r#"accordion_requests_total{budget="fast",outcome="ok",subnet="0.250"} 1"#), "{page}");
}

#[tokio::test]
async fn every_field_of_the_api_that_we_take_is_accepted() {
    let server = Server::new(&ServeConfig::default());
    let text = r#"{"prompt":"low","model":"gaussian","n":1,"size":"3x4","quality":"auto","response_format":"b64_json",
        "output_format":"jpeg","output_compression":60,"background":"opaque","moderation":"low","user":"u",
        "safety_identifier":"s","stream":false,"partial_images":3,"seed":18446744073709551615,"negative_prompt":null,"guidance_scale":2,
        "num_inference_steps":2}"#;
    let reply = server.images(text).await;
    assert_eq!(image::guess_format(&files(&reply)[0]).unwrap(), ImageFormat::Jpeg);
    let written: serde_json::Map<String, Value> = serde_json::from_str(text).unwrap();
    let mut fields = ImagesBody::FIELDS.to_vec();
    fields.sort_unstable();
    assert!(written.keys().eq(fields));
    for body in [
        r#"{"prompt":"low","size":"auto","background":"auto","moderation":"auto","output_format":"webp"}"#,
        r#"{"prompt":"low","output_format":"png","output_compression":100}"#,
        r#"{"prompt":"low","output_format":"jpeg","output_compression":0}"#,
        r#"{"prompt":"low","output_format":"JPG","output_compression":60,"quality":"HIGH","size":"3X4"}"#,
        r#"{"prompt":"low","n":10,"seed":-1}"#,
    ] {
        assert_eq!(server.images(body).await.status, StatusCode::OK, "{body}");
    }
}

#[tokio::test]
async fn an_image_comes_in_the_field_that_is_asked_for_and_in_both_when_nothing_is_said() {
    let server = Server::new(&ServeConfig::default());
    let webp = server.generate("", r#"{"class":"low","seed":7,"format":"webp"}"#).await.body;
    for (asked, fields) in [
        ("null", &["b64_json", "url"][..]),
        (r#""b64_json""#, &["b64_json"]),
        (r#""url""#, &["url"]),
        (r#""URL""#, &["url"]),
    ] {
        let body = format!(r#"{{"prompt":"low","seed":"7","output_format":"webp","response_format":{asked}}}"#);
        let json = server.images(&body).await.json();
        let entry = json["data"][0].as_object().unwrap_or_else(|| panic!("{json}"));
        assert_eq!(entry.keys().collect::<Vec<_>>(), fields, "{asked}");
        for (field, text) in entry {
            let text = text.as_str().unwrap();
            let base64 = if field == "url" { text.strip_prefix("data:image/webp;base64,").unwrap() } else { text };
            assert_eq!(BASE64.decode(base64).unwrap(), webp);
        }
    }
}

#[tokio::test]
async fn a_bad_field_is_refused_by_name_in_the_api_s_shape() {
    let server = Server::new(&ServeConfig::default());
    for (body, code, param, says) in [
        (r#"{"prompt":""}"#, "unknown_class", "prompt", "accepted are low, high"),
        (r#"{"prompt":"a dog"}"#, "unknown_class", "prompt", "accepted are low, high"),
        (r#"{"prompt":"high or low"}"#, "ambiguous_prompt", "prompt", "high and low"),
        (r#"{"prompt":"low","n":0}"#, "out_of_range", "n", "1 to 10"),
        (r#"{"prompt":"low","n":11}"#, "out_of_range", "n", "1 to 10"),
        (r#"{"prompt":"low","size":"1024x1024"}"#, "out_of_range", "size", "one of auto, 3x4"),
        (r#"{"prompt":"low","quality":"ultra"}"#, "out_of_range", "quality", "low, medium, high, standard, hd"),
        (r#"{"prompt":"low","response_format":"png"}"#, "out_of_range", "response_format", "one of b64_json, url"),
        (r#"{"prompt":"low","seed":-2}"#, "wrong_type", "seed", "or -1 or null for a random one"),
        (r#"{"prompt":"low","output_format":"gif"}"#, "out_of_range", "output_format", "png, webp, jpeg"),
        (r#"{"prompt":"low","output_compression":50}"#, "out_of_range", "output_compression", "100 with png"),
        (
            r#"{"prompt":"low","output_format":"jpeg","output_compression":101}"#,
            "out_of_range",
            "output_compression",
            "0 to 100",
        ),
        (r#"{"prompt":"low","background":"transparent"}"#, "out_of_range", "background", "auto, opaque"),
        (r#"{"prompt":"low","moderation":"off"}"#, "out_of_range", "moderation", "auto, low"),
        (r#"{"prompt":"low","stream":true,"partial_images":4}"#, "out_of_range", "partial_images", "0 to 3"),
        (r#"{"prompt":"low","stream":"yes"}"#, "wrong_type", "stream", "expected a boolean"),
        (r#"{"prompt":"low","user":7}"#, "wrong_type", "user", "expected a string"),
        (r#"{"prompt":"low","style":"vivid","size":"auto"}"#, "unknown_field", "style", "accepted are prompt, model"),
    ] {
        let reply = server.images(body).await;
        let error = &reply.json()["error"];
        assert_eq!((reply.status, &error["code"]), (StatusCode::BAD_REQUEST, &code.into()), "{body}: {error}");
        assert_eq!((&error["param"], &error["type"]), (&param.into(), &"invalid_request_error".into()), "{body}");
        assert!(error["message"].as_str().unwrap().contains(says), "{body}: {error}");
    }
    assert_eq!(server.images("{}").await.error().0, "wrong_type");
    assert_eq!(server.gate.calls().len(), 0, "a bad request reached the denoiser");
}

#[tokio::test]
async fn the_largest_n_is_the_lower_of_the_api_s_and_the_server_s() {
    let limits = crate::server::Limits { max_n: 3, ..Default::default() };
    let server = Server::new(&ServeConfig { limits, ..ServeConfig::default() });
    assert_eq!(files(&server.images(r#"{"prompt":"low","n":3}"#).await).len(), 3);
    assert!(server.images(r#"{"prompt":"low","n":4}"#).await.error().1.contains("1 to 3"));
}

#[tokio::test]
async fn a_model_is_found_by_its_name_alone() {
    let server = Server::new(&ServeConfig::default());
    let found = server.get("/v1/models/gaussian").await.json();
    assert_eq!(found, server.get("/v1/models").await.json()["data"][0]);
    let asked = server.images(r#"{"prompt":"low","model":"dall-e-3"}"#).await;
    for reply in [server.get("/v1/models/dall-e-3").await, server.get("/v1/models/%ff").await, asked] {
        assert_eq!((reply.status, reply.error().0.as_str()), (StatusCode::NOT_FOUND, "model_not_found"));
        assert_eq!(reply.json()["error"]["param"], "model");
    }
}

#[tokio::test]
async fn an_unconditional_model_ignores_the_prompt() {
    let server = Server::of(Gaussian::unconditional(), &ServeConfig::default());
    for prompt in ["", "a dog"] {
        let reply = server.images(&format!(r#"{{"prompt":"{prompt}","seed":1}}"#)).await;
        assert_eq!(files(&reply), [server.generate("", r#"{"seed":1}"#).await.body]);
    }
}

#[tokio::test]
async fn a_full_queue_and_a_drain_are_told_as_clients_of_the_api_expect() {
    let limits = crate::server::Limits { max_n: 1, ..Default::default() };
    let server = Server::new(&ServeConfig { queue_images: 1, limits, ..ServeConfig::default() });
    server.gate.close();
    let tickets = [server.occupy(1, 1), server.occupy(1, 1)];
    let full = server.images(r#"{"prompt":"low"}"#).await;
    assert_eq!((full.status, full.header("retry-after")), (StatusCode::TOO_MANY_REQUESTS, "1"));
    assert_eq!(full.json()["error"]["type"], "rate_limit_error");
    server.gate.open();
    for ticket in tickets {
        ticket.wait().await.unwrap();
    }
    server.state.drain();
    let draining = server.images(r#"{"prompt":"low"}"#).await;
    assert_eq!(draining.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(draining.json()["error"]["type"], "server_error");
}

/// The events of a stream.
fn events(reply: &Reply) -> Vec<(String, Value)> {
    assert_eq!((reply.status, reply.header("content-type")), (StatusCode::OK, "text/event-stream"));
    events::events(&reply.text())
}

#[tokio::test]
async fn who_streams_sees_images_on_their_way_and_then_what_others_get() {
    let server = Server::new(&ServeConfig::default());
    let whole = files(&server.images(r#"{"prompt":"low","n":2,"seed":4,"quality":"low"}"#).await);
    let body = r#"{"prompt":"low","n":2,"seed":4,"quality":"low","stream":true,"partial_images":3}"#;
    let events = events(&server.images(body).await);
    let of = |kind: &str, image: usize| {
        let is = |event: &&(String, Value)| event.0 == kind && event.1["image_index"] == image;
        events.iter().filter(is).map(|(_, data)| data).collect::<Vec<_>>()
    };
    for (image, whole) in whole.iter().enumerate() {
        let partial = of("image_generation.partial_image", image);
        assert_eq!(partial.iter().map(|data| &data["partial_image_index"]).collect::<Vec<_>>(), [0, 1, 2]);
        let pictures: Vec<Vec<u8>> =
            partial.iter().map(|data| BASE64.decode(data["b64_json"].as_str().unwrap()).unwrap()).collect();
        assert!(pictures.iter().all(|file| image::load_from_memory(file).unwrap().width() == 3));
        let [completed] = of("image_generation.completed", image)[..] else { panic!("{events:?}") };
        assert_eq!(&BASE64.decode(completed["b64_json"].as_str().unwrap()).unwrap(), whole);
        assert_eq!((&completed["type"], &completed["quality"]), (&"image_generation.completed".into(), &"low".into()));
        assert_eq!((&completed["size"], &completed["usage"]["total_tokens"]), (&"3x4".into(), &0.into()));
    }
    assert_eq!(events.len(), 2 * 4);
    assert_eq!(
        events[6..].iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["image_generation.completed"; 2]
    );
    // Nothing on the way where nothing is said.
    let last = self::events(&server.images(r#"{"prompt":"low","stream":true}"#).await);
    assert_eq!(last.len(), 1);
    let page = server.get("/metrics").await.text();
    assert!(page.contains(r#"outcome="ok",subnet="0.250"} 2"#), "{page}");
}

#[tokio::test]
async fn a_failure_in_a_stream_is_the_api_s_error() {
    let server = Server::new(&ServeConfig::default());
    server.gate.fail_next(crate::engine::gaussian::Fault::Error);
    let events = events(&server.images(r#"{"prompt":"low","stream":true}"#).await);
    let [(name, data)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((name.as_str(), &data["error"]["code"]), ("error", &"engine_failed".into()));
    assert_eq!(data["error"]["type"], "server_error");
    let refused = server.images(r#"{"prompt":"a zebra","stream":true}"#).await;
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (StatusCode::BAD_REQUEST, &"prompt".into()));
}

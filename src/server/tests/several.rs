use super::*;
use crate::server::reload;
use std::sync::Weak;

/// Two models, each with its gate: `first` knows classes, `second` does not.
struct Two {
    server: Server,
    /// That of the second.
    gate: Arc<Gate>,
}

fn two(config: &ServeConfig) -> Two {
    let room = Room::new(config).unwrap();
    let ((classes, first), (none, gate)) = (Gaussian::conditional(), Gaussian::unconditional());
    let models = vec![loaded("first", classes, &room, config), loaded("second", none, &room, config)];
    let state = AppState::new(models, room, config, Registry::new()).unwrap();
    Two { server: Server { router: router(state.clone()), state, gate: first }, gate }
}

impl Two {
    /// Serves these from here on.
    fn serve(&self, models: Vec<Arc<Loaded>>) {
        self.server.state.catalogue.serve(models);
    }

    fn model(&self, index: usize) -> Arc<Loaded> {
        self.server.state.models()[index].clone()
    }
}

#[tokio::test]
async fn a_model_is_chosen_by_query_or_body_and_is_the_first_without() {
    let Two { server, .. } = two(&ServeConfig::default());
    let class = r#"{"class":"low"}"#;
    for (query, body, status) in [
        ("", class, 200),
        ("?model=first", class, 200),
        ("", r#"{"class":"low","model":"first"}"#, 200),
        ("?model=second", class, 400),
        ("", r#"{"class":"low","model":"second"}"#, 400),
        ("?model=second", r#"{"model":"second"}"#, 200),
        ("?model=first", r#"{"model":"second"}"#, 400),
    ] {
        let reply = server.generate(query, body).await;
        assert_eq!(reply.status.as_u16(), status, "{query} {body}");
    }
    let settings = server.generate("?model=second", "{}").await.body;
    assert!(settings.windows(6).any(|bytes| bytes == b"second"), "a file says which model drew it");
}

#[tokio::test]
async fn an_unknown_model_is_refused_everywhere_with_those_that_are_loaded() {
    let Two { server, .. } = two(&ServeConfig::default());
    let says = "model `third` is not loaded: accepted are first, second";
    for reply in [
        server.generate("?model=third", "{}").await,
        server.generate("", r#"{"model":"third"}"#).await,
        server.send(post("/v1/images/generations", r#"{"prompt":"low","model":"third"}"#)).await,
        server.get("/subnets?model=third").await,
        server.get("/v1/models/third").await,
    ] {
        assert_eq!((reply.status, reply.error()), (StatusCode::NOT_FOUND, ("model_not_found".into(), says.into())));
        assert_eq!(reply.json()["error"]["param"], "model");
    }
    assert_eq!(server.get("/subnets?of=first").await.error().0, "invalid_query");
}

#[tokio::test]
async fn every_model_is_listed_and_described() {
    let Two { server, .. } = two(&ServeConfig::default());
    let list = server.get("/v1/models").await.json();
    let ids: Vec<&str> = list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["first", "second"]);
    let about = async |query: &str| server.get(&format!("/subnets{query}")).await.json();
    assert_eq!(about("").await["model"], "first");
    let second = about("?model=second").await;
    assert_eq!((&second["model"], &second["classes"]), (&"second".into(), &serde_json::json!([])));
    let page = server.get("/metrics").await.text();
    for model in ["first", "second"] {
        assert!(page.contains(&format!("accordion_engine_up{{device=\"cpu\",model=\"{model}\"}} 1")), "{page}");
    }
}

#[tokio::test]
async fn the_contract_has_the_body_of_each_model() {
    let Two { server, .. } = two(&ServeConfig::default());
    let document = server.get("/openapi.json").await.json();
    for name in ["GenerateBody", "ImagesBody", "EditsForm"] {
        let bodies = document["components"]["schemas"][name]["oneOf"].as_array().unwrap();
        let named = |body: &Value| {
            let required = body["required"].as_array().is_some_and(|names| names.contains(&"model".into()));
            (body["properties"]["model"]["enum"][0].clone(), required)
        };
        assert_eq!(named(&bodies[0]), ("first".into(), false), "{name}");
        assert_eq!(named(&bodies[1]), ("second".into(), true), "{name}");
    }
}

#[tokio::test]
async fn the_images_that_may_wait_are_those_of_all_models() {
    let two = two(&toml::from_str("queue_images = 3\nlimits.max_n = 3").unwrap());
    let plan = || Arc::new("euler-2@full".parse().unwrap());
    two.server.gate.close();
    // One of each begins, of which the first has the device and the second wants it; three wait, of either model.
    let begun = two.server.occupy(1, 1);
    let wanting = two.model(1).fleet.submit(Job::exact(plan(), 0)).unwrap();
    while two.model(1).fleet.waiting() > 0 {
        tokio::task::yield_now().await;
    }
    let first = two.model(0).fleet.submit(Job { images: 2, ..Job::exact(plan(), 0) }).unwrap();
    let second = two.model(1).fleet.submit(Job::exact(plan(), 0)).unwrap();
    for query in ["?model=first", "?model=second"] {
        let reply = two.server.generate(query, "{}").await;
        assert_eq!(reply.error().0, "queue_full", "{query}");
        assert!(reply.error().1.contains("3 of 3 images wait"), "{}", reply.error().1);
    }
    let page = two.server.get("/metrics").await.text();
    for (model, waiting) in [("first", 2), ("second", 1)] {
        let line = format!("accordion_queue_images{{device=\"cpu\",model=\"{model}\"}} {waiting}\n");
        assert!(page.contains(&line), "{page}");
    }
    two.server.gate.open();
    for ticket in [begun, wanting, first, second] {
        ticket.wait().await.unwrap();
    }
}

#[tokio::test]
async fn a_call_waits_for_the_call_of_another_model_and_no_longer() {
    let two = two(&ServeConfig::default());
    let plan = Arc::new("euler-2@full".parse().unwrap());
    two.server.gate.close();
    let first = two.server.occupy(1, 1);
    let second = two.model(1).fleet.submit(Job::exact(plan, 0)).unwrap();
    assert!(two.gate.calls().is_empty(), "the device is taken");
    two.server.gate.admit_one();
    two.server.gate.wait_for_calls(2);
    two.gate.wait_for_calls(1);
    two.server.gate.open();
    first.wait().await.unwrap();
    second.wait().await.unwrap();
}

#[tokio::test]
async fn a_replaced_model_finishes_what_it_has_and_is_then_forgotten() {
    let config = ServeConfig::default();
    let two = two(&config);
    two.gate.close();
    let request = generate("?model=second", r#"{"seed":1}"#);
    let drawing = tokio::spawn(two.server.router.clone().oneshot(request));
    tokio::task::spawn_blocking({
        let gate = two.gate.clone();
        move || gate.wait_for_calls(1)
    })
    .await
    .unwrap();
    let (denoiser, _) = Gaussian::conditional();
    let newer = Arc::new(loaded("second", denoiser, &two.server.state.room, &config));
    let older: Weak<Loaded> = Arc::downgrade(&two.model(1));
    two.serve(vec![two.model(0), newer]);
    // Health looks at both.
    assert_eq!(two.server.state.catalogue.alive().len(), 3);
    assert_eq!(two.server.get("/subnets?model=second").await.json()["classes"], serde_json::json!(["low", "high"]));
    two.gate.open();
    let reply = Reply::of(drawing.await.unwrap().unwrap()).await;
    assert_eq!(reply.status, StatusCode::OK);
    // The task that answered lets go, and then the thread that owned the denoiser.
    while older.strong_count() > 0 || Arc::strong_count(&two.gate) > 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(two.server.state.catalogue.alive().len(), 2);
}

#[tokio::test]
async fn an_unloaded_model_leaves_the_list_and_the_metrics() {
    let two = two(&ServeConfig::default());
    two.serve(vec![two.model(0)]);
    let reply = two.server.generate("?model=second", "{}").await;
    assert_eq!(reply.error().1, "model `second` is not loaded: accepted is first");
    let page = two.server.get("/metrics").await.text();
    assert!(page.contains("model=\"first\"") && !page.contains("model=\"second\""), "{page}");
}

#[test]
fn a_list_that_cannot_be_loaded_changes_nothing() {
    let two = two(&ServeConfig::default());
    for models in ["[\"/no/such/directory\"]", "[\"models/fashion-mnist\", \"/no/such/directory\"]"] {
        let config: ServeConfig = toml::from_str(&format!("models = {models}")).unwrap();
        let error = reload(&two.server.state, &config).unwrap_err().to_string();
        assert!(error.contains("/no/such/directory/model.toml"), "{error}");
        assert_eq!(two.server.state.models().len(), 2);
    }
}

#[test]
fn a_dead_engine_of_any_model_fails_health() {
    let two = two(&ServeConfig::default());
    assert!(two.server.state.health().is_ok());
    two.gate.fail_next(crate::engine::gaussian::Fault::Bomb);
    let plan = Arc::new("euler-2@full".parse().unwrap());
    assert!(two.model(1).fleet.submit(Job::exact(plan, 0)).unwrap().blocking_wait().is_err());
    assert!(two.server.state.health().is_err());
    // Its device is free for the other.
    let plan = Arc::new("euler-2@full".parse().unwrap());
    assert!(two.model(0).fleet.submit(Job::exact(plan, 0)).unwrap().blocking_wait().is_ok());
}

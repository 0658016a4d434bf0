use super::*;
use crate::engine::settings::Settings;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

fn of(file: &[u8]) -> Settings {
    Settings::read(file, "answer").unwrap()
}

#[tokio::test]
async fn a_png_file_tells_what_it_was_drawn_with_and_is_drawn_again_by_it() {
    let server = Server::new(&ServeConfig::default());
    let file = server.generate("?budget=fast", r#"{"class":"HIGH","seed":7,"n":2,"guidance":2}"#).await.body;
    let settings = of(&file);
    assert_eq!((settings.model.as_str(), settings.plan.as_str()), ("gaussian", "dpmpp2m-8@0.250"));
    assert_eq!((settings.seed, settings.images, settings.guidance), (7, 2, 2.0));
    assert_eq!((&settings.classes[..], settings.size.to_string().as_str()), (&["high".to_owned()][..], "3x4"));
    let request = settings.request().unwrap();
    let words: Vec<&str> = request.split('\'').collect();
    let query = words[3].strip_prefix("http://127.0.0.1:8080/generate").unwrap();
    assert_eq!(server.generate(query, words[1]).await.body, file);
}

#[tokio::test]
async fn an_image_among_others_tells_what_it_would_tell_as_the_last() {
    let server = Server::new(&ServeConfig::default());
    let files = async |body: &str| -> Vec<Vec<u8>> {
        let reply = server.send(post("/v1/images/generations", body)).await.json();
        let entries = reply["data"].as_array().unwrap().iter();
        entries.map(|entry| STANDARD.decode(entry["b64_json"].as_str().unwrap()).unwrap()).collect()
    };
    let three = files(r#"{"prompt":"low","n":3,"seed":1}"#).await;
    let told: Vec<(u32, bool)> = three.iter().map(|file| (of(file).images, of(file).only_last)).collect();
    assert_eq!(told, [(1, false), (2, true), (3, true)]);
    assert_eq!(files(r#"{"prompt":"low","n":2,"seed":1}"#).await, three[..2]);
}

#[tokio::test]
async fn a_server_that_shall_not_tell_tells_nothing() {
    let config: ServeConfig = toml::from_str("[privacy]\nembed_settings = false").unwrap();
    let server = Server::new(&config);
    let file = server.generate("?budget=fast", r#"{"class":"high","seed":7}"#).await.body;
    let refused = Settings::read(&file, "answer").unwrap_err().to_string();
    assert!(refused.starts_with("answer: has no settings"), "{refused}");
    let told = Server::new(&ServeConfig::default()).generate("?budget=fast", r#"{"class":"high","seed":7}"#).await.body;
    let pixels = |file: &[u8]| image::load_from_memory(file).unwrap().into_luma8();
    assert_eq!(pixels(&file), pixels(&told));
}

//! Images that are made from a picture: `image`, `mask` and `strength` of `/generate`, and `/v1/images/edits`.

use super::*;
use crate::engine::image::{Format, Raster};
use crate::engine::settings::Settings;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, GrayImage, ImageFormat, Luma, LumaA, Rgba, RgbaImage};
use serde_json::json;
use std::io::Cursor;

const EDITS: &str = "/v1/images/edits";

fn file(image: impl Into<DynamicImage>) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    image.into().write_to(&mut file, ImageFormat::Png).unwrap();
    file.into_inner()
}

/// A picture of the model's size.
fn picture() -> GrayImage {
    GrayImage::from_fn(3, 4, |x, y| Luma([(60 * x + 20 * y) as u8]))
}

/// White in the first column.
fn mask() -> GrayImage {
    GrayImage::from_fn(3, 4, |x, _| Luma([if x == 0 { 255 } else { 0 }]))
}

fn text(file: &[u8]) -> Value {
    STANDARD.encode(file).into()
}

fn pixels(reply: &Reply) -> Vec<u8> {
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    image::load_from_memory(&reply.body).unwrap().into_luma8().into_raw()
}

impl Server {
    async fn edit(&self, fields: &[(&str, &[u8])]) -> Reply {
        let mut body = Vec::new();
        for (name, value) in fields {
            let file = if ["image", "image[]", "mask"].contains(name) { "; filename=\"a.png\"" } else { "" };
            let head = format!("--x\r\ncontent-disposition: form-data; name=\"{name}\"{file}\r\n\r\n");
            body.extend([head.as_bytes(), value, b"\r\n"].concat());
        }
        body.extend(b"--x--\r\n");
        let request = Request::post(EDITS).header("content-type", "multipart/form-data; boundary=x");
        self.send(request.body(Body::from(body)).unwrap()).await
    }
}

#[tokio::test]
async fn a_strength_leaves_steps_out_and_keeps_what_is_left_of_the_picture() {
    let server = Server::new(&ServeConfig::default());
    let image = text(&file(picture()));
    let draw = async |query: &str, strength: f64| {
        let body = json!({ "image": image, "strength": strength, "seed": 1 }).to_string();
        server.generate(query, &body).await
    };
    let reply = draw("?budget=best", 0.5).await;
    assert_eq!(reply.header("x-accordion-plan"), "heun-18@full~strength=0.5");
    assert_eq!(reply.header("x-accordion-quality"), "1.0000");
    assert_eq!(server.gate.calls().len(), 17, "9 of Heun's steps");
    let exact = draw("?budget=exact:heun-18@full~strength=0.5", 0.5).await;
    assert_eq!(pixels(&exact), pixels(&reply), "what ran can be replayed");
    let far = |reply: &Reply| {
        let pairs = pixels(reply).into_iter().zip(picture().into_raw());
        pairs.map(|(drawn, given)| i32::from(drawn).abs_diff(i32::from(given))).sum::<u32>()
    };
    assert!(far(&draw("", 0.05).await) < far(&reply), "less of it is made anew");
    let usual = server.generate("", &json!({ "image": image }).to_string()).await;
    assert_eq!(usual.header("x-accordion-plan"), "dpmpp2m-12@0.500~strength=0.8");
    let settings = Settings::read(&reply.body, "file").unwrap();
    assert_eq!((settings.image.map(|hash| hash.len()), settings.mask, settings.strength), (Some(64), None, 0.5));
}

#[tokio::test]
async fn a_mask_keeps_the_rest_to_the_bit_whatever_says_it() {
    let server = Server::new(&ServeConfig::default());
    let image = text(&file(picture()));
    // By white, by being transparent, and by the picture's own being transparent.
    let transparent = image::GrayAlphaImage::from_fn(3, 4, |x, _| LumaA([9, if x == 0 { 0 } else { 255 }]));
    let holed = RgbaImage::from_fn(3, 4, |x, y| {
        let value = picture().get_pixel(x, y).0[0];
        Rgba([value, value, value, if x == 0 { 0 } else { 255 }])
    });
    let bodies = [
        json!({ "image": image, "mask": text(&file(mask())), "seed": 2 }),
        json!({ "image": image, "mask": text(&file(transparent)), "seed": 2 }),
        json!({ "image": text(&file(holed)), "seed": 2 }),
    ];
    for body in &bodies {
        let reply = server.generate("", &body.to_string()).await;
        assert_eq!(reply.header("x-accordion-plan"), "dpmpp2m-12@0.500", "all that is marked is made anew");
        let drawn = pixels(&reply);
        let given = picture().into_raw();
        assert!((0..12).filter(|at| at % 3 > 0).all(|at| drawn[at] == given[at]), "{drawn:?}");
        assert!((0..4).any(|row| drawn[3 * row] != given[3 * row]), "{drawn:?}");
    }
}

#[tokio::test]
async fn the_form_of_the_open_ai_api_draws_what_generate_draws() {
    let server = Server::new(&ServeConfig::default());
    let (image, mask) = (file(picture()), file(mask()));
    let body = json!({ "class": "high", "image": text(&image), "mask": text(&mask), "strength": 0.7, "seed": 3 });
    let wanted = server.generate("?budget=fast", &body.to_string()).await;
    assert_eq!(wanted.header("x-accordion-plan"), "dpmpp2m-8@0.250~strength=0.7");
    for name in ["image", "image[]"] {
        let fields =
            [(name, &image[..]), ("mask", &mask), ("prompt", b"a high one"), ("quality", b"low"), ("seed", b"3")];
        let more =
            [("strength", &b"0.7"[..]), ("n", b"2"), ("input_fidelity", b"high"), ("response_format", b"b64_json")];
        let reply = server.edit(&[&fields[..], &more].concat()).await;
        let json = reply.json();
        assert_eq!(reply.status, StatusCode::OK, "{json}");
        let files = json["data"].as_array().unwrap();
        let first = STANDARD.decode(files[0]["b64_json"].as_str().unwrap()).unwrap();
        assert_eq!((files.len(), &first), (2, &wanted.body));
    }
}

#[tokio::test]
async fn an_edit_is_streamed_under_its_own_name() {
    let server = Server::new(&ServeConfig::default());
    let image = file(picture());
    let reply = server
        .edit(&[("image", &image), ("prompt", b"low"), ("stream", b"true"), ("partial_images", b"2"), ("seed", b"3")])
        .await;
    let text = reply.text();
    let count = |event: &str| text.matches(&format!("event: {event}\n")).count();
    assert_eq!((count("image_edit.partial_image"), count("image_edit.completed")), (2, 1), "{text}");
}

#[tokio::test]
async fn every_picture_that_cannot_be_started_from_has_its_sentence() {
    let server = Server::new(&ServeConfig::default());
    let good = file(picture());
    let [image, marks] = [text(&good), text(&file(mask()))];
    let (other, black) = (text(&file(GrayImage::new(4, 4))), text(&file(GrayImage::new(3, 4))));
    let (cut, none) = (text(&good[..good.len() - 20]), text(b"no picture"));
    let deep = DynamicImage::ImageLuma16(DynamicImage::from(picture()).into_luma16());
    for (body, code, says) in [
        (json!({ "image": none }), "invalid_image", "`image` is not an intact png, jpeg or webp image"),
        (
            json!({ "image": cut }),
            "invalid_image",
            "`image` is not an intact png, jpeg or webp image (the file is cut off)",
        ),
        (json!({ "image": "" }), "invalid_image", "`image` is not an intact"),
        (
            json!({ "image": other }),
            "invalid_image",
            "`image` has 4x4 pixels, but must have those of one of the model's sizes, 3x4",
        ),
        (json!({ "image": image, "width": 5 }), "out_of_range", "`width` is of 5xany"),
        (
            json!({ "image": image, "mask": other }),
            "invalid_image",
            "`mask` has 4x4 pixels, but must have those of the picture, 3x4",
        ),
        (json!({ "image": image, "mask": none }), "invalid_image", "`mask` is not an intact"),
        (json!({ "image": image, "mask": black }), "invalid_image", "`mask` marks nothing to be drawn anew"),
        (json!({ "mask": marks }), "unsupported_field", "`mask`: needs an `image` to start from"),
        (json!({ "strength": 0.5 }), "unsupported_field", "`strength`: needs an `image` to start from"),
        (
            json!({ "image": image, "strength": 0 }),
            "out_of_range",
            "`strength` is 0, but must be above 0 and at most 1",
        ),
        (json!({ "image": image, "strength": -1 }), "out_of_range", "`strength` is -1"),
        (json!({ "image": image, "strength": 1.01 }), "out_of_range", "`strength` is 1.01"),
        (json!({ "image": "%" }), "wrong_type", "`image`: expected a file in base 64, or a data: URL of it"),
    ] {
        let reply = server.generate("", &body.to_string()).await;
        let (found, message) = reply.error();
        assert!(
            reply.status == StatusCode::BAD_REQUEST && found == code && message.contains(says),
            "{body}: {message}"
        );
    }
    let of_plan = |body: Value| async move {
        let server = Server::new(&ServeConfig::default());
        server.generate("?budget=exact:euler-4@full~strength=0.5", &body.to_string()).await.error().1
    };
    assert!(of_plan(json!({})).await.contains("the plan starts from a picture, with ~strength: send `image`"));
    let message = of_plan(json!({ "image": image, "strength": 0.6 })).await;
    assert!(message.contains("the plan's ~strength is another than `strength`"), "{message}");
    // 16 bits are scaled to bytes, as everywhere.
    let scaled = server.generate("", &json!({ "image": text(&file(deep)), "seed": 1 }).to_string()).await;
    assert_eq!(pixels(&scaled), pixels(&server.generate("", &json!({ "image": image, "seed": 1 }).to_string()).await));
    // Small models have small pictures: what is far larger is not even read.
    let huge = server.generate("", &json!({ "image": "A".repeat(1 << 20) }).to_string()).await;
    assert_eq!((huge.status, huge.error().0.as_str()), (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"));
}

#[tokio::test]
async fn large_bodies_wait_for_each_other_and_small_ones_for_none() {
    let limits = crate::server::Limits { body_timeout_s: 1, ..Default::default() };
    let server = Server::new(&ServeConfig { limits, ..ServeConfig::default() });
    let places = server.state.large_bodies.try_acquire_many(crate::server::state::LARGE_BODIES as u32).unwrap();
    let padded = |bytes: usize| {
        let body = format!("{{}}{}", " ".repeat(bytes - 2));
        let request = Request::post("/generate").header("content-type", "application/json");
        request.header("content-length", body.len()).body(Body::from(body)).unwrap()
    };
    assert_eq!(server.send(padded(64 << 10)).await.status, StatusCode::OK);
    let reply = server.send(padded((64 << 10) + 1)).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (StatusCode::REQUEST_TIMEOUT, "body_timeout"));
    drop(places);
    assert_eq!(server.send(padded((64 << 10) + 1)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_form_that_is_none_has_its_sentence() {
    let server = Server::new(&ServeConfig::default());
    let image = file(picture());
    for (fields, code, says) in [
        (vec![("prompt", &b"low"[..])], "missing_image", "`image` is missing: send the picture to start from"),
        (vec![("image", &image)], "wrong_type", "missing field `prompt`"),
        (
            vec![("image", &image), ("image[]", &image), ("prompt", b"low")],
            "invalid_form",
            "`image[]` stands in it twice",
        ),
        (
            vec![("image", &image), ("prompt", b"low"), ("colour", b"red")],
            "unknown_field",
            "unknown fields colour: accepted are image, mask, strength, input_fidelity, prompt,",
        ),
        (vec![("image", &image), ("prompt", b"low"), ("n", b"many")], "wrong_type", "`n`"),
        (
            vec![("image", &image), ("prompt", b"low"), ("strength", b"half")],
            "wrong_type",
            "`strength`: expected a number",
        ),
        (vec![("image", &image), ("prompt", b"low"), ("input_fidelity", b"none")], "out_of_range", "`input_fidelity`"),
        (vec![("image", &image), ("prompt", b"\xff")], "invalid_form", "`prompt` is not a text in UTF-8"),
        (vec![("image", &b"x"[..]), ("prompt", b"low")], "invalid_image", "`image` is not an intact png"),
        (vec![("image", &image), ("prompt", b"low"), ("model", b"dall-e-2")], "model_not_found", "dall-e-2"),
    ] {
        let reply = server.edit(&fields).await;
        let (found, message) = reply.error();
        assert!(found == code && message.contains(says), "{code}: {found} {message}");
    }
    let reply = server.send(post(EDITS, "{}")).await;
    assert_eq!(
        (reply.status, reply.error().1.as_str()),
        (StatusCode::UNSUPPORTED_MEDIA_TYPE, "the content type must be multipart/form-data")
    );
    let broken = Request::post(EDITS).header("content-type", "multipart/form-data; boundary=x");
    let reply = server.send(broken.body(Body::from("--x\r\nno form")).unwrap()).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (StatusCode::BAD_REQUEST, "invalid_form"));
    let unbounded = Request::post(EDITS).header("content-type", "multipart/form-data").body(Body::empty()).unwrap();
    assert_eq!(server.send(unbounded).await.error().0, "invalid_form");
}

#[tokio::test]
async fn a_picture_keeps_its_size_in_a_grid_and_files_without_settings_stay_bare() {
    let config =
        ServeConfig { privacy: crate::server::config::Privacy { embed_settings: false }, ..ServeConfig::default() };
    let server = Server::new(&config);
    let reply = server.generate("", &json!({ "image": text(&file(picture())), "n": 2, "seed": 4 }).to_string()).await;
    assert_eq!(image::load_from_memory(&reply.body).unwrap().width(), 3 + 2 + 3);
    assert!(Settings::read(&reply.body, "file").is_err());
    let bare = Raster { shape: Gaussian::SHAPE, bytes: picture().into_raw() }.encode(Format::Png).unwrap();
    assert!(Settings::read(&bare, "file").is_err());
}

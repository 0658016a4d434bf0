use super::*;
use crate::engine::image::Raster;
use crate::nets::Condition;
use image::ImageFormat;
use std::collections::HashSet;

/// The bytes that the engine draws for a plan, decoded nowhere.
fn drawn(server: &Server, plan: &str, seed: u64, images: u32, class: usize, guidance: f64) -> Raster {
    let job = Job {
        images,
        condition: Condition::Class(class),
        guidance,
        ..Job::exact(Arc::new(plan.parse().unwrap()), seed)
    };
    let finished = server.fleet().any().submit(job).unwrap().blocking_wait().unwrap();
    Raster::grid(Gaussian::SHAPE, &finished.images)
}

#[tokio::test]
async fn a_request_gets_the_png_that_its_plan_draws() {
    let server = Server::new(&ServeConfig::default());
    let reply = server.generate("?budget=fast", r#"{"class":"high","seed":7}"#).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.header("content-type"), "image/png");
    assert_eq!(reply.header("x-accordion-plan"), "dpmpp2m-8@0.250");
    assert_eq!(reply.header("x-seed"), "7");
    let timing: Vec<&str> = reply.header("server-timing").split(", ").collect();
    for (entry, name) in timing.iter().zip(["queue", "denoise", "encode"]) {
        let ms: f64 = entry.strip_prefix(&format!("{name};dur=")).unwrap().parse().unwrap();
        assert!((0.0..60_000.0).contains(&ms), "{entry}");
    }
    let decoded = image::load_from_memory_with_format(&reply.body, ImageFormat::Png).unwrap().into_luma8();
    assert_eq!(decoded.dimensions(), (3, 4));
    let expected =
        std::thread::scope(|scope| scope.spawn(|| drawn(&server, "dpmpp2m-8@0.250", 7, 1, 1, 1.0)).join().unwrap());
    assert_eq!(decoded.into_raw(), expected.bytes);
}

#[tokio::test]
async fn every_budget_and_floor_names_the_plan_that_it_ran() {
    let server = Server::new(&ServeConfig::default());
    for (query, body, plan) in [
        // First, before the policy learns how fast this machine is.
        ("?budget=155ms", "{}", "dpmpp2m-12@0.500"),
        ("?budget=1s", "{}", "heun-18@full"),
        ("", "{}", "dpmpp2m-12@0.500"),
        ("?budget=balanced", "{}", "dpmpp2m-12@0.500"),
        ("?budget=best", "{}", "heun-18@full"),
        ("?budget=fast&min_quality=0.9", "{}", "dpmpp2m-12@0.500"),
        ("?budget=fast&min_quality=heun-18@full", "{}", "heun-18@full"),
        ("?budget=exact:heun-4@0.250*2,full*2~churn=10", "{}", "heun-4@0.250*2,full*2~churn=10"),
        ("?budget=exact%3Aeuler-2%40full~logsnr", "{}", "euler-2@full~logsnr"),
    ] {
        let reply = server.generate(query, body).await;
        assert_eq!((reply.status, reply.header("x-accordion-plan")), (StatusCode::OK, plan), "{query} {body}");
    }
}

#[tokio::test]
async fn a_class_can_be_named_or_counted_and_changes_the_image() {
    let server = Server::new(&ServeConfig::default());
    let mut images = HashSet::new();
    for (name, index) in [("low", 0), ("high", 1), ("HIGH ", 1), ("ｌｏｗ", 0), ("1", 1)] {
        let named = server.generate("", &format!(r#"{{"class":"{name}","seed":1}}"#)).await;
        let counted = server.generate("", &format!(r#"{{"class":{index},"seed":1}}"#)).await;
        assert_eq!(named.body, counted.body);
        images.insert(named.body);
    }
    images.insert(server.generate("", r#"{"seed":1}"#).await.body);
    images.insert(server.generate("", r#"{"seed":1,"class":"high","guidance":2}"#).await.body);
    assert_eq!(images.len(), 4);
}

#[tokio::test]
async fn the_same_request_gets_the_same_bytes_alone_and_among_others() {
    let server = Server::new(&ServeConfig::default());
    let wanted = || server.generate("?budget=best", r#"{"class":1,"seed":42,"n":2,"guidance":1.5}"#);
    let alone = wanted().await;
    assert_eq!(alone.body, wanted().await.body);
    let other = |body: &'static str| server.generate("?budget=exact:euler-9@full", body);
    // The gate holds the first call until all four are in the queue.
    server.gate.close();
    let held = server.gate.calls().len() + 1;
    let release = async {
        while server.fleet().any().waiting() < 4 {
            tokio::task::yield_now().await;
        }
        server.gate.open();
    };
    let blocker = server.occupy(1, held);
    let (among, first, second, ()) = tokio::join!(wanted(), other(r#"{"seed":1}"#), other(r#"{"seed":2}"#), release);
    assert_eq!(among.body, alone.body);
    assert_ne!(first.body, second.body);
    let shared = server.gate.calls()[held].sigma.len();
    assert!(shared > 4, "the requests shared no batch: {shared}");
    blocker.wait().await.unwrap();
}

#[tokio::test]
async fn a_drawn_seed_is_returned_and_repeats_the_image() {
    let server = Server::new(&ServeConfig::default());
    let (first, second) = (server.generate("", "{}").await, server.generate("", "{}").await);
    assert_ne!(first.header("x-seed"), second.header("x-seed"));
    let seed: u64 = first.header("x-seed").parse().unwrap();
    assert!(seed < 1 << 53);
    assert_eq!(server.generate("", &format!(r#"{{"seed":{seed}}}"#)).await.body, first.body);
    for random in ["-1", "\"-1\""] {
        let drawn = server.generate("", &format!(r#"{{"seed":{random}}}"#)).await;
        assert!(drawn.header("x-seed").parse::<u64>().unwrap() < 1 << 53 && drawn.body != first.body, "{random}");
    }
    let largest = server.generate("", r#"{"seed":"18446744073709551615"}"#).await;
    assert_eq!(largest.header("x-seed"), "18446744073709551615");
}

#[tokio::test]
async fn several_images_come_back_as_one_grid() {
    let server = Server::new(&ServeConfig::default());
    let decode = |reply: Reply| image::load_from_memory(&reply.body).unwrap().into_luma8();
    let grid = decode(server.generate("", r#"{"seed":3,"n":5}"#).await);
    assert_eq!(grid.dimensions(), (3 * 3 + 2 * 2, 2 * 4 + 2));
    let one = decode(server.generate("", r#"{"seed":3,"n":1}"#).await);
    let corner = image::imageops::crop_imm(&grid, 0, 0, 3, 4).to_image();
    assert_eq!(corner, one);
}

#[tokio::test]
async fn the_format_is_the_fields_or_else_the_one_that_accept_likes() {
    let server = Server::new(&ServeConfig::default());
    let mut pixels = Vec::new();
    for (body, accept, format) in [
        (r#"{"seed":1}"#, "*/*", ImageFormat::Png),
        (r#"{"seed":1}"#, "image/webp", ImageFormat::WebP),
        (r#"{"seed":1,"format":"webp"}"#, "image/jpeg", ImageFormat::WebP),
        (r#"{"seed":1,"format":"png"}"#, "text/html", ImageFormat::Png),
        (r#"{"seed":1,"format":"jpeg"}"#, "", ImageFormat::Jpeg),
        (r#"{"seed":1,"format":"JPG"}"#, "*/*", ImageFormat::Jpeg),
        (r#"{"seed":1}"#, "image/png;q=0.2, image/webp;q=0.25, image/jpeg;q=0.1", ImageFormat::WebP),
    ] {
        let mut request = generate("", body);
        request.headers_mut().insert("accept", accept.parse().unwrap());
        let reply = server.send(request).await;
        assert_eq!(reply.header("content-type"), format.to_mime_type());
        let decoded = image::load_from_memory_with_format(&reply.body, format).unwrap().into_luma8();
        if format != ImageFormat::Jpeg {
            pixels.push(decoded.into_raw());
        }
    }
    assert!(pixels.windows(2).all(|pair| pair[0] == pair[1]));
}

#[tokio::test]
async fn an_unconditional_model_draws_without_a_class() {
    let server = Server::of(Gaussian::unconditional(), &ServeConfig::default());
    assert_eq!(server.generate("", r#"{"seed":1}"#).await.status, StatusCode::OK);
    assert_eq!(server.generate("", r#"{"class":0}"#).await.error().0, "class_not_supported");
}

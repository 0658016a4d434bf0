//! What the types cannot say: the limits of the config and the names of the model.

use crate::diffusion::{Plan, Solver};
use crate::engine::image::Format;
use crate::evaluation::prompted::EXAMPLES;
use crate::nets::Canvas;
use crate::server::draw::most_images;
use crate::server::openai::edits::FIDELITIES;
use crate::server::openai::{sizes, wire};
use crate::server::subject::{GUIDANCE, MAX_PROMPT};
use crate::server::wire::RANDOM;
use crate::server::{AppState, Loaded};
use crate::subnet_name::FULL;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The schemas of the bodies of requests for images.
const BODIES: [&str; 3] = ["GenerateBody", "ImagesBody", "EditsForm"];

/// Writes this server's bounds into the document of the types.
pub(super) fn fill(document: &mut Value, state: &AppState) {
    if !state.guards.keys.is_empty() {
        document["components"]["securitySchemes"]["key"] = json!({ "type": "http", "scheme": "bearer" });
        for path in [
            "/generate",
            "/generate/{id}",
            "/subnets",
            "/v1/images/generations",
            "/v1/images/edits",
            "/v1/models",
            "/v1/models/{id}",
        ] {
            for operation in document["paths"][path].as_object_mut().into_iter().flat_map(|item| item.values_mut()) {
                operation["security"] = json!([{ "key": [] }]);
            }
        }
    }

    let models = state.models();
    for path in ["/generate", "/subnets"] {
        let operations = document["paths"][path].as_object_mut().into_iter().flat_map(|item| item.values_mut());
        for parameter in operations.filter_map(|operation| operation["parameters"].as_array_mut()).flatten() {
            match parameter["name"].as_str() {
                Some("budget") => parameter["schema"] = budget(state, &models),
                Some("min_quality") => parameter["schema"] = min_quality(&models),
                Some("model") => parameter["schema"] = json!({ "enum": names(&models) }),
                _ => {}
            }
        }
    }
    examples(document, &models[0]);

    // Where there are several models, a body is one of any of them: all but the usual one have to be named.
    let base = BODIES.map(|name| schema(document, name).clone());
    let of = |(index, model): (usize, &Arc<Loaded>)| bodies(base.clone(), state, model, index == 0);
    let of_models: Vec<[Value; 3]> = models.iter().enumerate().map(of).collect();
    for (index, name) in BODIES.into_iter().enumerate() {
        let mut bodies = of_models.iter().map(|bodies| bodies[index].clone());
        *schema(document, name) = match (models.len(), bodies.next()) {
            (1, Some(only)) => only,
            (_, first) => json!({ "oneOf": first.into_iter().chain(bodies).collect::<Vec<_>>() }),
        };
    }
}

fn names(models: &[Arc<Loaded>]) -> Vec<&str> {
    models.iter().map(|model| &*model.name).collect()
}

/// Requests that the usual model draws.
fn examples(document: &mut Value, model: &Loaded) {
    let mut example = |path: &str, prompt: &str| {
        let content = &mut document["paths"][path]["post"]["requestBody"]["content"];
        content["application/json"]["example"]["prompt"] = prompt.into();
    };
    if let Some(class) = model.about().classes.first() {
        example("/v1/images/generations", &format!("a photo of a {class}"));
    }
    if model.texts.is_some() {
        example("/generate", EXAMPLES[0]);
        example("/v1/images/generations", EXAMPLES[0]);
    }
}

/// The bodies with the bounds of a model, which is the usual one or has to be named.
fn bodies(
    [mut generate, mut images, mut form]: [Value; 3],
    state: &AppState,
    model: &Loaded,
    is_usual: bool,
) -> [Value; 3] {
    let classes = &model.about().classes;
    let most = most_images(state, model);
    let named = |body: &mut Value| {
        bound(body, "model", if is_usual { one_of(&[&model.name]) } else { json!({ "enum": [model.name] }) });
        if let (false, Value::Array(required)) = (is_usual, required(body)) {
            required.push("model".into());
        }
    };
    let seed = json!({ "oneOf": [
        { "type": "null" },
        { "type": "integer", "minimum": -1, "maximum": u64::MAX },
        { "type": "string", "pattern": format!("^({RANDOM}|0*(0|{}))$", up_to(u64::MAX)) },
    ]});
    let class = match classes.len() {
        0 => json!({ "type": "null" }),
        count => json!({ "oneOf": [
            { "type": "null" },
            { "type": "string", "enum": classes },
            { "type": "integer", "minimum": 0, "maximum": count - 1 },
        ]}),
    };
    let body = &mut generate;
    bound(body, "class", class);
    bound(body, "seed", seed.clone());
    bound(body, "n", json!({ "minimum": 1, "maximum": most, "default": 1 }));
    let guidance = json!({ "minimum": GUIDANCE.start(), "maximum": GUIDANCE.end(), "default": model.usual_guidance() });
    bound(body, "guidance", guidance.clone());
    bound(body, "format", one_of(&wire::FORMATS.map(|(name, _)| name)));
    let canvases = &model.about().canvases;
    let side = |of: fn(&Canvas) -> usize| {
        let sides = canvases.iter().map(of).collect::<BTreeSet<_>>();
        let sides: Vec<Value> = sides.into_iter().map(Value::from).chain([Value::Null]).collect();
        json!({ "enum": sides })
    };
    for field in ["image", "mask"] {
        bound(body, field, json!({ "contentEncoding": "base64", "pattern": BASE64 }));
        // Absent, or null, it is nothing.
        body["properties"][field]["type"] = json!(["string", "null"]);
    }
    let strength = json!({ "exclusiveMinimum": 0, "maximum": 1 });
    bound(body, "strength", strength.clone());
    let needs_image = json!({ "properties": { "mask": { "type": "null" }, "strength": { "type": "null" } } });
    bound(body, "width", side(|canvas| canvas.picture.width));
    bound(body, "height", side(|canvas| canvas.picture.height));
    // Both may be left out, but together they are those of a size.
    let size = |Canvas { picture, .. }: &Canvas| json!({ "properties": { "width": { "enum": [picture.width, null] }, "height": { "enum": [picture.height, null] } } });
    body["anyOf"] = canvases.iter().map(size).collect();
    let has_image = json!({ "properties": { "image": { "type": "string" } }, "required": ["image"] });
    body["allOf"] = json!([{ "anyOf": [has_image, needs_image] }]);
    let text = json!({ "type": "string", "minLength": 1, "maxLength": MAX_PROMPT });
    if model.texts.is_some() {
        bound(body, "prompt", text.clone());
        bound(body, "negative_prompt", json!({ "maxLength": MAX_PROMPT }));
        body["required"] = json!(["prompt"]);
    } else {
        bound(body, "prompt", json!({ "type": "null" }));
        bound(body, "negative_prompt", json!({ "type": "null" }));
        // Guidance pulls towards a class: without one it is only accepted where it changes nothing.
        let without_class = json!({ "properties": { "class": { "type": "null" } } });
        let without_guidance = json!({ "properties": { "guidance": { "enum": [1, null] } } });
        body["if"] = without_class;
        body["then"] = without_guidance;
    }
    named(body);

    let body = &mut images;
    if model.texts.is_some() {
        bound(body, "prompt", text);
        bound(body, "negative_prompt", json!({ "maxLength": MAX_PROMPT }));
    } else {
        bound(body, "negative_prompt", json!({ "type": "null" }));
    }
    let guides = model.texts.is_some() || !classes.is_empty();
    bound(body, "guidance_scale", if guides { guidance } else { json!({ "enum": [1, null] }) });
    let steps = json!({ "minimum": 1, "maximum": state.limits.max_steps });
    bound(body, "num_inference_steps", steps);
    if !classes.is_empty() {
        // No regular expression says which prompts name a class: spellings are compared after Unicode's normalisation.
        bound(body, "prompt", json!({ "examples": classes }));
    }
    bound(body, "n", json!({ "minimum": 1, "maximum": wire::MAX_N.min(most), "default": 1 }));
    let sizes: Vec<String> = sizes(model).map(|(name, _)| name).collect();
    let sizes: Vec<&str> = ["auto"].into_iter().chain(sizes.iter().map(String::as_str)).collect();
    bound(body, "size", one_of(&sizes));
    bound(body, "quality", one_of(&wire::QUALITIES.map(|(name, _)| name)));
    bound(body, "response_format", one_of(&wire::RESPONSE_FORMATS.map(|(name, _)| name)));
    bound(body, "output_format", one_of(&wire::FORMATS.map(|(name, _)| name)));
    bound(body, "output_compression", json!({ "minimum": 0, "maximum": wire::BEST_COMPRESSION, "default": 100 }));
    bound(body, "background", one_of(&wire::BACKGROUNDS.map(|(name, ())| name)));
    bound(body, "moderation", one_of(&wire::MODERATIONS.map(|(name, ())| name)));
    bound(body, "partial_images", json!({ "minimum": 0, "maximum": wire::MAX_PARTIAL, "default": 0 }));
    bound(body, "seed", seed);
    // Only JPEG is lossy.
    let jpeg: Vec<&str> =
        wire::FORMATS.iter().filter(|(_, format)| *format == Format::Jpeg).map(|(name, _)| *name).collect();
    body["if"] =
        json!({ "not": { "properties": { "output_format": { "enum": jpeg } }, "required": ["output_format"] } });
    body["then"] = json!({ "properties": { "output_compression": { "enum": [wire::BEST_COMPRESSION, null] } } });

    // A form has the same fields, of which none is null, beside its own.
    bound(&mut form, "strength", strength);
    bound(&mut form, "input_fidelity", one_of(&FIDELITIES.map(|(name, ())| name)));
    let mut properties = form["properties"].as_object().cloned().unwrap_or_default();
    bound(body, "model", one_of(&[&model.name]));
    properties.extend(body["properties"].as_object().cloned().unwrap_or_default());
    properties.retain(|_, property| property["type"] != "null");
    properties.values_mut().for_each(without_null);
    form["properties"] = properties.into();
    form["required"] = json!(["image", "prompt"]);
    form["additionalProperties"] = false.into();
    named(&mut images);
    if !is_usual {
        form["required"] = json!(["image", "prompt", "model"]);
    }
    [generate, images, form]
}

/// What a schema requires.
fn required(schema: &mut Value) -> &mut Value {
    if schema["required"].is_null() {
        schema["required"] = json!([]);
    }
    &mut schema["required"]
}

/// A file in base 64, or a `data:` URL of it.
const BASE64: &str = "^(data:[a-z/]+;base64,)?([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$";

/// Takes null away from what a property may be.
fn without_null(property: &mut Value) {
    let is_null = |value: &Value| value.is_null() || value == "null" || value["type"] == "null";
    for keyword in ["type", "enum", "oneOf"] {
        if let Some(Value::Array(values)) = property.get_mut(keyword) {
            values.retain(|value| !is_null(value));
            if let (1, "type") = (values.len(), keyword) {
                property["type"] = values[0].clone();
            }
        }
    }
}

/// The budgets that a regular expression can tell in a line. Longer deadlines are accepted too, up to an hour, and plans
/// of several widths, whose steps would have to be counted. Exact plans are those that all models draw.
fn budget(state: &AppState, models: &[Arc<Loaded>]) -> Value {
    let draws = |model: &Arc<Loaded>, solver: Solver| {
        Plan::constant(solver, 1, FULL).is_ok_and(|plan| plan.check_for(&model.about().process).is_ok())
    };
    let of_all = |solver: &Solver| models.iter().all(|model| draws(model, *solver));
    let solvers: Vec<&str> = Solver::ALL.into_iter().filter(of_all).map(Solver::as_str).collect();
    let solvers = solvers.join("|");
    let [first, others @ ..] = models else { return Value::Null };
    let subnets = first.subnets.iter().filter(|subnet| others.iter().all(|model| model.subnets.contains(subnet)));
    let subnets = quoted(subnets.map(String::as_str));
    let steps = up_to(state.limits.max_steps as u64);
    let deadline = "[1-9][0-9]{0,5}(\\.[0-9]{1,12})?ms|[1-9][0-9]{0,2}(\\.[0-9]{1,12})?s";
    let has_decoder = |model: &Arc<Loaded>, name: &str| model.times.decoders().any(|other| other == name);
    let narrower = first.times.decoders().filter(|name| *name != FULL);
    let narrower = narrower.filter(|name| others.iter().all(|model| has_decoder(model, name)));
    let decoders = quoted(narrower);
    let decode = if decoders.is_empty() { String::new() } else { format!("(~decode=({decoders}))?") };
    let exact = format!("exact:({solvers})-({steps})@({subnets})(~logsnr)?{decode}");
    let pattern = format!("^(fast|balanced|best|{deadline}|{exact})$");
    json!({ "type": "string", "pattern": pattern, "default": "balanced", "example": "fast" })
}

/// A share, or a plan that is of the frontiers of all models.
fn min_quality(models: &[Arc<Loaded>]) -> Value {
    let [first, others @ ..] = models else { return Value::Null };
    let plans = first.ladder.rungs().iter().map(|rung| &rung.plan);
    let of_all = plans.filter(|plan| others.iter().all(|model| model.ladder.quality(plan).is_some()));
    let plans: String = of_all.map(|plan| format!("|{}", quoted([plan.to_string().as_str()].into_iter()))).collect();
    let pattern = format!("^(0(\\.[0-9]{{1,12}})?|1(\\.0{{1,12}})?{plans})$");
    json!({ "type": "string", "pattern": pattern, "example": "0.9" })
}

/// A regular expression of these texts.
fn quoted<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = texts.map(|text| text.chars().map(quote).collect()).collect();
    quoted.join("|")
}

/// A character as a regular expression.
fn quote(c: char) -> String {
    match c {
        '\\' | '^' | '$' | '.' | '*' | '+' | '?' | '(' | ')' | '[' | ']' | '{' | '}' | '|' | '/' => format!("\\{c}"),
        _ => c.to_string(),
    }
}

/// A regular expression of the whole numbers from 1 to `most`, without leading zeros.
fn up_to(most: u64) -> String {
    let digits = most.to_string();
    let any = |count: usize| match count {
        0 => String::new(),
        1 => "[0-9]".to_owned(),
        count => format!("[0-9]{{{count}}}"),
    };
    let mut parts: Vec<String> = (1..digits.len()).map(|length| format!("[1-9]{}", any(length - 1))).collect();
    // Numbers of as many digits: those that follow `most` so far and are then below it, and `most` itself.
    for (place, digit) in digits.bytes().enumerate() {
        let least = if place == 0 { b'1' } else { b'0' };
        if digit > least {
            let (start, rest) = (&digits[..place], any(digits.len() - place - 1));
            parts.push(format!("{start}[{}-{}]{rest}", char::from(least), char::from(digit - 1)));
        }
    }
    parts.push(digits);
    parts.join("|")
}

/// One of these texts, or none.
fn one_of(accepted: &[&str]) -> Value {
    let values: Vec<Value> = accepted.iter().map(|&text| Value::from(text)).chain([Value::Null]).collect();
    json!({ "enum": values })
}

fn schema<'a>(document: &'a mut Value, name: &str) -> &'a mut Value {
    &mut document["components"]["schemas"][name]
}

/// Adds `keywords` to those of a property. A choice between schemas takes the place of its type.
fn bound(schema: &mut Value, property: &str, keywords: Value) {
    let Value::Object(keywords) = keywords else { return };
    let none = Map::new();
    let known = schema["properties"][property].as_object().unwrap_or(&none).clone();
    let mut merged: Map<String, Value> = match keywords.contains_key("oneOf") {
        true => known.into_iter().filter(|(keyword, _)| keyword == "description").collect(),
        false => known,
    };
    merged.extend(keywords);
    schema["properties"][property] = Value::Object(merged);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_the_expression_are_those_up_to_the_most() {
        for (most, expression) in [
            (1, "1"),
            (9, "[1-8]|9"),
            (30, "[1-9]|[1-2][0-9]|30"),
            (250, "[1-9]|[1-9][0-9]|[1-1][0-9]{2}|2[0-4][0-9]|250"),
        ] {
            assert_eq!(up_to(most), expression);
        }
    }
}

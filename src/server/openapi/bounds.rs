//! What the types cannot say: the limits of the config and the names of the model.

use crate::diffusion::{Plan, Solver};
use crate::engine::image::Format;
use crate::evaluation::prompted::EXAMPLES;
use crate::nets::Canvas;
use crate::server::AppState;
use crate::server::draw::most_images;
use crate::server::openai::edits::FIDELITIES;
use crate::server::openai::{sizes, wire};
use crate::server::subject::{GUIDANCE, MAX_PROMPT};
use crate::server::wire::RANDOM;
use crate::subnet_name::FULL;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Writes this server's bounds into the document of the types.
pub(super) fn fill(document: &mut Value, state: &AppState) {
    let classes = &state.fleet.any().about().classes;
    let most = most_images(state);
    let seed = json!({ "oneOf": [
        { "type": "null" },
        { "type": "integer", "minimum": -1, "maximum": u64::MAX },
        { "type": "string", "pattern": format!("^({RANDOM}|0*(0|{}))$", up_to(u64::MAX)) },
    ]});

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

    let class = match classes.len() {
        0 => json!({ "type": "null" }),
        count => json!({ "oneOf": [
            { "type": "null" },
            { "type": "string", "enum": classes },
            { "type": "integer", "minimum": 0, "maximum": count - 1 },
        ]}),
    };
    let body = schema(document, "GenerateBody");
    bound(body, "class", class);
    bound(body, "seed", seed.clone());
    bound(body, "n", json!({ "minimum": 1, "maximum": most, "default": 1 }));
    let guidance = json!({ "minimum": GUIDANCE.start(), "maximum": GUIDANCE.end(), "default": state.usual_guidance() });
    bound(body, "guidance", guidance.clone());
    bound(body, "format", one_of(&wire::FORMATS.map(|(name, _)| name)));
    let canvases = &state.fleet.any().about().canvases;
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
    if state.texts.is_some() {
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
    for parameter in document["paths"]["/generate"]["post"]["parameters"].as_array_mut().into_iter().flatten() {
        match parameter["name"].as_str() {
            Some("budget") => parameter["schema"] = budget(state),
            Some("min_quality") => parameter["schema"] = min_quality(state),
            _ => {}
        }
    }

    if let Some(class) = classes.first() {
        let content = &mut document["paths"]["/v1/images/generations"]["post"]["requestBody"]["content"];
        content["application/json"]["example"]["prompt"] = format!("a photo of a {class}").into();
    }
    if state.texts.is_some() {
        let content = &mut document["paths"]["/generate"]["post"]["requestBody"]["content"];
        content["application/json"]["example"]["prompt"] = EXAMPLES[0].into();
        let content = &mut document["paths"]["/v1/images/generations"]["post"]["requestBody"]["content"];
        content["application/json"]["example"]["prompt"] = EXAMPLES[0].into();
    }
    let body = schema(document, "ImagesBody");
    if state.texts.is_some() {
        bound(body, "prompt", text);
        bound(body, "negative_prompt", json!({ "maxLength": MAX_PROMPT }));
    } else {
        bound(body, "negative_prompt", json!({ "type": "null" }));
    }
    let guides = state.texts.is_some() || !classes.is_empty();
    bound(body, "guidance_scale", if guides { guidance } else { json!({ "enum": [1, null] }) });
    let steps = json!({ "minimum": 1, "maximum": state.limits.max_steps });
    bound(body, "num_inference_steps", steps);
    if !classes.is_empty() {
        // No regular expression says which prompts name a class: spellings are compared after Unicode's normalisation.
        bound(body, "prompt", json!({ "examples": classes }));
    }
    bound(body, "model", one_of(&[&state.model]));
    bound(body, "n", json!({ "minimum": 1, "maximum": wire::MAX_N.min(most), "default": 1 }));
    let sizes: Vec<String> = sizes(state).map(|(name, _)| name).collect();
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
    let same = schema(document, "ImagesBody").clone();
    let form = schema(document, "EditsForm");
    bound(form, "strength", strength);
    bound(form, "input_fidelity", one_of(&FIDELITIES.map(|(name, ())| name)));
    let mut properties = form["properties"].as_object().cloned().unwrap_or_default();
    properties.extend(same["properties"].as_object().cloned().unwrap_or_default());
    properties.retain(|_, property| property["type"] != "null");
    properties.values_mut().for_each(without_null);
    form["properties"] = properties.into();
    form["required"] = json!(["image", "prompt"]);
    form["additionalProperties"] = false.into();
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
/// of several widths, whose steps would have to be counted.
fn budget(state: &AppState) -> Value {
    let process = state.fleet.any().about().process;
    let of_model =
        |solver: &Solver| Plan::constant(*solver, 1, FULL).is_ok_and(|plan| plan.check_for(&process).is_ok());
    let solvers: Vec<&str> = Solver::ALL.into_iter().filter(of_model).map(Solver::as_str).collect();
    let solvers = solvers.join("|");
    let subnets = quoted(state.subnets.iter().map(String::as_str));
    let steps = up_to(state.limits.max_steps as u64);
    let deadline = "[1-9][0-9]{0,5}(\\.[0-9]{1,12})?ms|[1-9][0-9]{0,2}(\\.[0-9]{1,12})?s";
    let narrower = state.times.decoders().filter(|name| *name != FULL);
    let decoders = quoted(narrower);
    let decode = if decoders.is_empty() { String::new() } else { format!("(~decode=({decoders}))?") };
    let exact = format!("exact:({solvers})-({steps})@({subnets})(~logsnr)?{decode}");
    let pattern = format!("^(fast|balanced|best|{deadline}|{exact})$");
    json!({ "type": "string", "pattern": pattern, "default": "balanced", "example": "fast" })
}

fn min_quality(state: &AppState) -> Value {
    let plans: Vec<String> = state.ladder.rungs().iter().map(|rung| rung.plan.to_string()).collect();
    let plans = quoted(plans.iter().map(String::as_str));
    let pattern = format!("^(0(\\.[0-9]{{1,12}})?|1(\\.0{{1,12}})?|{plans})$");
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
